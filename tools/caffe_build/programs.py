"""Other programs, run with their output in a log; and files and folders that appear only when they are complete."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv"
BUILD = ROOT / ".build"


class Refused(Exception):
    """The work cannot continue; the message says why and what to do."""


def show(text: object) -> None:
    """Print a line and flush it, so that it appears at once in a pipe, too."""
    print(text, flush=True)


def show_status(line: str) -> None:
    """Show the latest line of a command's output on one line of the terminal; do nothing without a terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 3
        print(f"\r\033[K  {line[:width]}" if line else "\r\033[K", end="", flush=True)


def run_logged(
    command: Sequence, what: str, log: Path | None = None, env: dict | None = None, cwd: Path = ROOT,
    on_line: Callable[[str], None] = show_status,
) -> None:  # fmt: skip
    """Run a command, write its output to the log, and pass each line to on_line; raise Refused if it fails."""
    said, log = [], log or BUILD / "setup.log"
    with open(log, "a") as file:
        file.write(f"$ {shlex.join(map(str, command))}\n")
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       errors="replace", env=env, cwd=cwd, stdin=subprocess.DEVNULL,
                                       close_fds=False)  # so that it holds the lock, too
        except OSError as error:
            raise Refused(f"{what} failed: {command[0]} cannot be run ({error.strerror}).") from error
        try:
            for line in process.stdout:
                file.write(line)
                said.append(line.strip())
                on_line(said[-1])
        except KeyboardInterrupt:
            # The command has received the signal as well. Give it time to remove what is incomplete.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise
        finally:
            file.write(process.stdout.read())
            process.wait()
            show_status("")
    if process.returncode:
        errors = [line for line in said if re.search(r"\berror\b|^E: |undefined ref|cannot find|\*\*\*", line, re.I)]
        reason = (errors or [line for line in said if line][-1:] or ["it printed nothing"])[0]
        raise Refused(f"{what} failed: {reason} (full output: {os.path.relpath(log, ROOT)})")


def output_of(command: Sequence, otherwise: str = "", **options) -> str:
    """Return what a command prints. If it fails, raise Refused with the message `otherwise`, or else its own words."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise Refused(otherwise or f"{command[0]} failed: {said}") from error


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment for Caffe's make, its tests and import checks.

    The caller's CXXFLAGS, MAKEFLAGS and PYTHONPATH are left out: they would change the build, but not its key.
    The distribution's compiler and protoc come before those of a conda or pyenv environment.
    """
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": "/usr/bin:/bin:" + os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", **kept, **more}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def edit(path: Path, changes: Sequence[tuple[str, str]]) -> None:
    """Replace texts in a file; raise Refused unless each occurs exactly once."""
    text = path.read_text()
    for before, after in changes:
        if text.count(before) != 1:
            raise Refused(f"{path.name} of Caffe's source has {text.count(before)} times, not once, what is to be "
                          f"replaced there: {before.strip()!r}")
        text = text.replace(before, after)
    path.write_text(text)


def put(source: Path, target: Path) -> None:
    """Copy a file or a folder, replacing the target; the target appears only when the copy is complete."""
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, part)
    remove(target)
    part.rename(target)
