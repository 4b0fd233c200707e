"""What everything else stands on: errors, whole files, child processes, several processes, packages from PyPI."""
