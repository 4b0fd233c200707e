"""Files that are read at once; files and folders that are whole or not there, whenever the machine stops."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat

MOST_BYTES = 2**30  # of a file that is read at once
MADE = ".made"  # in a folder that a command wrote: the names of the files that it wrote there


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


@contextlib.contextmanager
def whole_file(path):
    """A with statement for writing a file: gives the path to write to, which gets its name once it is on the disk.

    Where the block raises, nothing is left. Raises OSError.
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


def write_whole(path, content):
    """Write bytes to a file aside, flush them to the disk, and give it its name. After an OSError nothing is left."""
    with whole_file(path) as part, open(part, "xb") as file:
        file.write(content)


def write_all(contents):
    """write_whole for several files, path -> bytes: after an OSError, none is there that was not before."""
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
def whole_files(folder):
    """A with statement for writing several files into a folder: gives one aside, whose files then move there together.

    They replace those of their names. Where the block raises, nothing is left. Raises OSError.
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
def whole_folder(path, force=False):
    """A with statement for writing a folder: gives the path of one aside, which gets its name once it is whole.

    force: whether it replaces one of that name; see outputs.check_folder. Where the block raises, nothing is left.
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


def publish_folder(part, path, force):
    """Give a folder that is whole its name, with the list of its files in it. force: as in whole_folder."""
    write_whole(os.path.join(part, MADE), b"\0".join(map(os.fsencode, sorted(files_in(part)))))
    os.sync()  # at once for all its files
    old = _aside(path)
    if force:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, old)
    os.rename(part, path)
    shutil.rmtree(old, ignore_errors=True)


def files_in(folder):
    """The set of the files in a folder and the folders in it, by their paths from there, without the list of them."""
    walk = os.walk(folder)
    return {os.path.relpath(os.path.join(at, name), folder) for at, _, names in walk for name in names} - {MADE}


def made_in(folder):
    """The set of the files that a command wrote into a folder, as publish_folder listed them; empty without a list."""
    try:
        return set(os.fsdecode(read_file(os.path.join(folder, MADE))).split("\0"))
    except OSError:
        return set()


def _aside(path):
    """The path of a new file or folder beside one, for what is not yet whole: none that anybody has."""
    return f"{path}.{secrets.token_hex(4)}.part"


def _flush(path):
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
