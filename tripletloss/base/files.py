"""Files read in one piece; files and folders that are complete or do not exist, whenever the machine stops."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping

MOST_BYTES = 2**30  # of a file that is read in one piece
MADE = ".made"  # a file in each folder that a command wrote: the names of the files that it wrote there


def read_file(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file. Raises OSError, also if it is not a regular file or has more than `most` bytes."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):  # a device may never end, and a pipe may have no writer
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, and at most {most} are read", path)
    with open(path, "rb") as file:
        return file.read(most)


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Context manager for writing a file: gives a temporary path, which is renamed to `path` once it is on the disk.

    If the block raises, nothing is left. Raises OSError.
    """
    part = _aside(path)
    try:
        yield part
        _flush(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
    _flush(os.path.dirname(path) or ".")


def write_whole(path: str, content: bytes) -> None:
    """Write bytes to a file that appears once it is complete and on the disk. After an OSError, nothing is left."""
    with whole_file(path) as part, open(part, "xb") as file:
        file.write(content)


def write_all(contents: Mapping[str, bytes]) -> None:
    """write_whole for several files, path -> bytes. After an OSError, no new file is left."""
    new = [path for path in contents if not os.path.lexists(path)]
    try:
        with contextlib.ExitStack() as stack:
            for path, content in contents.items():
                with open(stack.enter_context(whole_file(path)), "xb") as file:
                    file.write(content)
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                os.remove(path)
        raise


@contextlib.contextmanager
def whole_files(folder: str) -> Iterator[str]:
    """Context manager for writing several files into a folder: gives a temporary folder, whose files then move there.

    They replace files of the same names. If the block raises, nothing is left. Raises OSError.
    """
    part = _aside(os.path.join(folder, "files"))
    os.mkdir(part)
    try:
        yield part
        names = sorted(os.listdir(part))
        for name in names:
            _flush(os.path.join(part, name))
        for name in names:
            os.replace(os.path.join(part, name), os.path.join(folder, name))
        _flush(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: str, force: bool = False) -> Iterator[str]:
    """Context manager for writing a folder: gives a temporary one, which is renamed to `path` once it is complete.

    force: whether it may replace an existing folder; see outputs.check_folder. If the block raises, nothing is left.
    Raises OSError.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = _aside(path)
    os.mkdir(part)
    try:
        yield part
        publish_folder(part, path, force)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def publish_folder(part: str, path: str, force: bool) -> None:
    """Add the list of its files to a complete folder, and rename it to `path`. force: as in whole_folder."""
    write_whole(os.path.join(part, MADE), b"\0".join(map(os.fsencode, sorted(files_in(part)))))
    os.sync()  # one call for all its files
    old = _aside(path)
    if force:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, old)
    os.rename(part, path)
    shutil.rmtree(old, ignore_errors=True)


def files_in(folder: str) -> set[str]:
    """The files in a folder and its subfolders, as paths relative to it, except for the list of files, MADE."""
    walk = os.walk(folder)
    return {os.path.relpath(os.path.join(at, name), folder) for at, _, names in walk for name in names} - {MADE}


def made_in(folder: str) -> set[str]:
    """The files that a command wrote into a folder, as publish_folder listed them; empty without a list."""
    try:
        return set(os.fsdecode(read_file(os.path.join(folder, MADE))).split("\0"))
    except OSError:
        return set()


def _aside(path):
    """A temporary path next to a file or folder, for what is not complete yet: one that nothing else uses."""
    return f"{path}.{secrets.token_hex(4)}.part"


def _flush(path):
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def short(path: str) -> str:
    """A path relative to the current folder if it is in there."""
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside


def amount(count: int) -> str:
    """A number of bytes as text, with two digits or more: 950 bytes, 1.2 kB, 35 MB, 1.8 GB, 1200 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:.0f} {unit}"
    return f"{count} bytes"


def digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file in hexadecimal digits, by which weights are recognised."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
