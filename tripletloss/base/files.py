"""Files that are whole or not there, whenever the machine stops; and what tells one from another."""

import contextlib
import hashlib
import os


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


def digest(path):
    """The SHA-256 of a file, in hexadecimal digits: the identity of weights."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
