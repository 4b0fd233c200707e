"""What a command may write: nothing that exists already, except with --force, and never what it reads."""

import argparse
import itertools
import os
from collections.abc import Iterable

from tripletloss.base.errors import InputError
from tripletloss.base.files import files_in, made_in


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the argument that lets a command replace existing files."""
    parser.add_argument("--force", action="store_true", help="replace existing output, but never a file that is read")


def check_outputs(outputs: Iterable[str], inputs: Iterable[str | None] = (), force: bool = False) -> None:
    """Refuse, before any work, to write files that exist already.

    outputs: paths of files. inputs: paths of what the command reads; '' and None stand for no file. Raises InputError
    if an output exists, unless force is given; if it is an input, by whatever name, or not a regular file, even with
    force; and if its folder does not exist or cannot be written.
    """
    for path in outputs:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise InputError(f"{path} cannot be written, because {folder} is not a folder: make it, or write elsewhere")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{path} cannot be written, because you may not write to {folder}: write elsewhere")
        if not os.path.lexists(path):
            continue
        if any(_is_same(path, name) for name in inputs if name):
            raise InputError(f"{path} is an input of this command, so it is not replaced: write elsewhere")
        _need_force(path, force)
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError(f"{path} is not a regular file, so it is not replaced: write elsewhere")


def check_folder(path: str, inputs: Iterable[str | None] = (), force: bool = False) -> None:
    """Refuse, before any work, to write a folder that exists already; as check_outputs does for files.

    With force, only a folder that files.whole_folder wrote and that has no other files and no inputs may be replaced.
    Raises InputError.
    """
    if not os.path.lexists(path):
        return
    within = os.path.join(os.path.realpath(path), "")
    if any(os.path.join(os.path.realpath(name), "").startswith(within) for name in inputs if name):
        raise InputError(f"{path} contains an input of this command, so it is not replaced: write elsewhere")
    _need_force(path, force)
    if os.path.islink(path) or not os.path.isdir(path):
        raise InputError(f"{path} is not a folder, so it is not replaced: write elsewhere")
    if others := files_in(path) - made_in(path):
        raise InputError(
            f"{path} is not replaced, because this command did not write {min(others)} in it: move {path} away, or "
            "write elsewhere"
        )


def _is_same(path, other):
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _need_force(path, force):
    if not force:
        raise InputError(f"{path} exists already: move it away, write elsewhere, or replace it with --force")


def distinct(names: list[str]) -> list[str]:
    """Different file names from names that may repeat: repeated ones get _2, _3, ... before the suffix.

    Upper and lower case count as equal, as they do on some file systems.
    """
    wanted, given, found = {name.casefold() for name in names}, set(), []
    for name in names:
        stem, suffix = os.path.splitext(name)
        numbered = (f"{stem}_{number}{suffix}" for number in itertools.count(2))
        free = (other for other in numbered if other.casefold() not in wanted)
        chosen = next(other for other in itertools.chain([name], free) if other.casefold() not in given)
        given.add(chosen.casefold())
        found.append(chosen)
    return found
