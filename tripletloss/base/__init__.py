"""What everything else builds on: errors, files, child processes, several processes, packages from PyPI."""
