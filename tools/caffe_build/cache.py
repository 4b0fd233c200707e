"""What was built before: whether it is complete, and the cache that clones share."""

import hashlib
import os
from pathlib import Path

from caffe_build.programs import put, show


def digest(package: Path) -> str:
    """Return a hash of a package's files and their names, without what Python adds when it imports the package."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.name != "build_key" and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(package)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_whole(package: Path, key: str) -> bool:
    """Return whether a folder holds the complete caffe package of this key, with every byte as it was put there."""
    stamp = package / "build_key"
    return stamp.exists() and stamp.read_text() == f"{key} {digest(package)}"


def cache_folder() -> Path | None:
    """Return the folder that clones share, or None if CACHE=0 switches it off or the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.environ.get("CACHE") == "0":
        return None
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tripletloss"
    except RuntimeError:
        return None


def keep(made: Path) -> None:
    """Copy a file or a folder into the cache. A cache that cannot be written costs time, but stops nothing."""
    if folder := cache_folder():
        try:
            put(made, folder / made.name)
        except OSError as error:
            show(f"Could not add {made.name} to the cache: {error}")
