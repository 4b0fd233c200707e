"""Files that are whole or not there, whenever the machine stops; and what tells one from another."""

import contextlib
import errno
import hashlib
import os
import stat

MOST_BYTES = 2**30  # of a file that is read at once


def read_file(path, most=MOST_BYTES):
    """The bytes of a file. Raises OSError, also where it is no regular file, or has more than `most` bytes."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):  # a device never ends, and a pipe may have nobody at its other end
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, and {most} are the most that are read", path)
    with open(path, "rb") as file:
        return file.read(most)


def write_whole(path, content):
    """Write bytes to a file aside, flush them to the disk, and give it its name. After an OSError nothing is left."""
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def amount(count):
    """So many bytes as text, to two digits or more: 950 bytes, 1.2 kB, 35 MB, 1.8 GB, 1200 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:.0f} {unit}"
    return f"{count} bytes"


def digest(path):
    """The SHA-256 of a file, in hexadecimal digits: the identity of weights."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
