"""Files that are whole or not there, whenever the machine stops."""

import contextlib
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
