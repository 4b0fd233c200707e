"""Pack this project with its Caffe for machines with another Python, other libraries and no network: make bundle.

.build/tripletloss-bundle.tar.xz can be unpacked on any Linux for the same processor. tripletloss-bundle/python in it
starts .venv's interpreter with a loader and a C library that are in the bundle, too. So it uses nothing of that system,
except that a GPU build uses its NVIDIA driver and CUDA libraries, which are large, and present wherever a GPU is.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from packaging.requirements import Requirement
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / ".build" / "tripletloss-bundle"
ARCHIVE = BUNDLE.with_suffix(".tar.xz")
PACKAGES = ["tripletloss", "pytest", "hypothesis"]  # with their dependencies, to train and to run the tests
LEFT_OUT = re.compile(  # the libraries of CUDA and its driver
    r"lib(cudart|cublas|cublasLt|curand|nccl|cuda)\.so")
UNUSED = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", "test", "idlelib", "tkinter",
                                "turtledemo", "ensurepip", "lib2to3", "config-3*")  # fmt: skip

# CUDA's libraries are searched for in the folders of CUDA_LIBRARIES, then where its toolkit and driver usually are.
STARTER = """#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONNOUSERSITE=1
exec "$here/lib/shared/{loader}" --argv0 "$here/python" --library-path \\
    "$here/lib/shared${{CUDA_LIBRARIES:+:$CUDA_LIBRARIES}}:/usr/local/cuda/lib64:/usr/local/nvidia/lib64" \\
    "$here/bin/{python}" "$@"
"""


def needed_distributions():
    """Return the installed distributions of PACKAGES and of everything that they require."""
    found, names = {}, list(PACKAGES)
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            wanted = map(Requirement, found[name].requires or [])
            names += [one.name for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]
    del found["tripletloss"]  # its files go into project/
    return list(found.values())


def copy_packages(site, target):
    """Copy the files of the distributions, and Caffe."""
    target.mkdir(parents=True)
    for distribution in needed_distributions():
        for file in distribution.files:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(site / file, target / file)
    shutil.copytree(site / "caffe", target / "caffe", ignore=shutil.ignore_patterns("__pycache__"))
    (target / "project.pth").write_text("../../../project\n../../../project/compat\n")


def copy_project(target):
    """Copy the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def copy_shared_libraries(interpreter, target):
    """Copy all outside libraries that the interpreter and the modules need; return the loader's name."""
    target.mkdir()
    modules = [path for path in (BUNDLE / "lib").rglob("*.so*") if path.is_file()]
    # In .venv, a module's library path leads to everything that it needs.
    site = Path(sysconfig.get_path("platlib"))
    packages = BUNDLE / "lib" / "python3" / "dist-packages"
    originals = [site / path.relative_to(packages) if path.is_relative_to(packages) else path for path in modules]
    loader = ""
    for path in tqdm([interpreter, *originals], desc="libraries", unit="file", mininterval=0.5):
        said = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        for name, found in re.findall(r"^\s*(?:(\S+) => )?(/\S+) \(0x", said, re.M):
            name = Path(name or found).name
            inside = Path(found).resolve().is_relative_to(site.resolve())
            if not inside and not LEFT_OUT.match(name) and not (target / name).exists():
                shutil.copy(found, target / name)
            if name.startswith("ld-linux"):
                loader = name
    return loader


def main():
    """Make the bundle and its archive, and print their sizes."""
    if ARCHIVE.exists():
        ARCHIVE.unlink()
    shutil.rmtree(BUNDLE, ignore_errors=True)
    interpreter = Path(sys._base_executable).resolve()
    (BUNDLE / "bin").mkdir(parents=True)
    shutil.copy2(interpreter, BUNDLE / "bin")
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(stdlib, BUNDLE / "lib" / stdlib.name, ignore=UNUSED)
    copy_packages(Path(sysconfig.get_path("platlib")), BUNDLE / "lib" / "python3" / "dist-packages")
    copy_project(BUNDLE / "project")
    loader = copy_shared_libraries(interpreter, BUNDLE / "lib" / "shared")
    starter = BUNDLE / "python"
    starter.write_text(STARTER.format(loader=loader, python=interpreter.name))
    starter.chmod(0o755)
    size = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    print(f"Compressing {size / 1e6:.0f} MB", flush=True)
    part = ARCHIVE.with_suffix(".part")
    subprocess.run(["tar", "-C", BUNDLE.parent, "-cf", part, "-I", "xz -T0 -3", BUNDLE.name], check=True)
    os.replace(part, ARCHIVE)
    print(f"{ARCHIVE.relative_to(ROOT)} has {ARCHIVE.stat().st_size / 1e6:.0f} MB. Unpack it, then run "
          f"{BUNDLE.name}/python {BUNDLE.name}/project/train.py")


if __name__ == "__main__":
    main()
