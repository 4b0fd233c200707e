"""What a command may write: nothing that is there already, unless --force; and never what it reads."""

import itertools
import os

from tripletloss.base.errors import InputError
from tripletloss.base.files import files_in, made_in


def add_force(parser):
    """Add the argument that lets a command replace what is there."""
    parser.add_argument("--force", action="store_true", help="replace what is there already, but no file that is read")


def check_outputs(outputs, inputs=(), force=False):
    """Refuse, before any work, to write files that are there already.

    outputs: paths of files. inputs: paths of what the command reads; '' and None stand for none. Raises InputError for
    an output that is there, unless force; with force too for one that is an input, under whatever name, or no regular
    file; and where its folder is not there or cannot be written.
    """
    for path in outputs:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise InputError(f"{path} cannot be written, as {folder} is no folder: make it, or write elsewhere")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{path} cannot be written, as {folder} takes no new files: write elsewhere")
        if not os.path.lexists(path):
            continue
        if any(_is_same(path, name) for name in inputs if name):
            raise InputError(f"{path} is read by this command, so it is not written: write elsewhere")
        _need_force(path, force)
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError(f"{path} is no regular file, so it is not replaced: write elsewhere")


def check_folder(path, inputs=(), force=False):
    """Refuse, before any work, to write a folder that is there already; as check_outputs for files.

    With force it is replaced where it is a folder that files.whole_folder wrote, with no other files in it and no
    input. Raises InputError.
    """
    if not os.path.lexists(path):
        return
    within = os.path.join(os.path.realpath(path), "")
    if any(os.path.join(os.path.realpath(name), "").startswith(within) for name in inputs if name):
        raise InputError(f"{path} holds what this command reads, so it is not replaced: write elsewhere")
    _need_force(path, force)
    if os.path.islink(path) or not os.path.isdir(path):
        raise InputError(f"{path} is no folder, so it is not replaced: write elsewhere")
    if others := files_in(path) - made_in(path):
        raise InputError(
            f"{path} is not replaced, as {min(others)} in it was not written by such a command: move {path} away, or "
            "write elsewhere"
        )


def _is_same(path, other):
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _need_force(path, force):
    if not force:
        raise InputError(f"{path} exists already: move it away, write elsewhere, or replace it with --force")


def distinct(names):
    """Names for files, all different, from names of which some may be equal: those get _2, _3, ... before the suffix.

    Upper and lower case count as equal, as they do on some systems.
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
