"""The commands that a run was made by, and the versions of what they used, as its folder keeps them."""

import json
import os
import platform
import shlex
import sys
import time
from importlib import metadata
from typing import Any

import tripletloss
from tripletloss.base.files import write_whole

NAME = "commands.json"
PACKAGES = ("numpy", "opencv-python-headless", "scikit-learn", "protobuf")


def note(folder: str, config_file: str, device: str, processes: int) -> None:
    """Add this process's command to commands.json in a run's folder. Raises OSError.

    config_file: of the run, '' if commands find it themselves; device: in words.
    """
    launcher = ["mpirun", "-np", str(processes)] if processes > 1 else []
    about = {
        "line": shlex.join([*launcher, "python", *sys.argv]), "config": config_file, "device": device,
        "started": time.strftime("%Y-%m-%d %H:%M"), "versions": versions(),
    }  # fmt: skip
    write_whole(os.path.join(folder, NAME), json.dumps([*read(folder), about], indent=1).encode())


def read(folder: str) -> list[dict[str, Any]]:
    """What note() wrote, the oldest command first; [] if it is not there, or damaged."""
    try:
        with open(os.path.join(folder, NAME), encoding="utf-8") as file:
            return [{**about, "versions": dict(about["versions"])} for about in json.load(file)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def versions() -> dict[str, str]:
    """The versions of this package, Python and what figures depend on."""
    found = {"tripletloss": tripletloss.__version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # installed under another name
            continue
    return {**found, "system": platform.platform()}
