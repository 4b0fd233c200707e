"""The folder of a run: one run at a time works in it, and none overwrites another's snapshots."""

import contextlib
import fcntl
import glob
import os
from collections.abc import Sequence
from typing import IO

from tripletloss.base.errors import InputError
from tripletloss.training import snapshots


def check_folder(folder: str, stages: Sequence[str], resume: bool) -> None:
    """Raise InputError where claim_folder() would, but make and change nothing."""
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        reason = "Permission denied" if os.path.isdir(there) else f"{there} is not a folder"
        raise InputError(f"the run's folder {folder} cannot be written ({reason}): set RUN_FOLDER")
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, ".lock"), "r+") as lock:
        _lock(lock, folder)
    _refuse_begun(folder, stages, resume)


def claim_folder(folder: str, stages: Sequence[str], resume: bool) -> IO[str]:
    """Make the run's folder and lock it. Returns the lock, which holds as long as it is referred to.

    stages: that will be trained. Raises InputError if the folder cannot be written, if another run is at work in it,
    or, unless the run is to resume, if it has snapshots of one of the stages.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "w")  # the end of the process, whatever it is, unlocks
        _lock(lock, folder)
        snapshots.clear(folder)
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be written ({error.strerror}): set RUN_FOLDER") from None
    _refuse_begun(folder, stages, resume)
    return lock


def _lock(file, folder):
    """Lock the file that belongs to a run's folder. Raises InputError while another run has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by children
    except BlockingIOError:
        raise InputError(f"another run is at work in {folder}: wait for it, or set RUN_FOLDER to another") from None


def _refuse_begun(folder, stages, resume):
    """Raise InputError if a folder has snapshots of one of the stages, unless the run is to resume."""
    for stage in () if resume else stages:
        if glob.glob(os.path.join(glob.escape(folder), f"{stage}_iter_*.caffemodel*")):
            raise InputError(
                f"{folder} already has snapshots of a {stage} stage: resume it with --resume, set RUN_FOLDER to a new "
                "folder, or move that one away"
            )
