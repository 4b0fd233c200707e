"""oneDNN from PyPI, and the layers of caffe_layers/ that use it, put into Caffe's source."""

import hashlib
import platform
import re
import shutil
import zipfile
from pathlib import Path

from caffe_build import programs, venv
from caffe_build.cache import cache_folder, keep
from caffe_build.programs import ROOT, Refused, edit, remove, show

WHEEL_PINS = ROOT / "tools" / "onednn_wheels.txt"
LAYERS = ROOT / "caffe_layers"
LIBRARY = "libdnnl.so.2"  # the wheel has it under three names; Caffe is linked with this one

# Caffe makes every layer in this one place. Caffe's own layer is made where ours do not cover the parameters.
FACTORY_CHANGES = [
    ("template <typename Dtype>\nclass LayerRegistry {",
     "template <typename Dtype>\nshared_ptr<Layer<Dtype> > FastLayer(const LayerParameter& param);\n\n"
     "template <typename Dtype>\nclass LayerRegistry {"),
    ("    return registry[type](param);\n",
     "    shared_ptr<Layer<Dtype> > fast = FastLayer<Dtype>(param);\n"
     "    return fast ? fast : registry[type](param);\n"),
]  # fmt: skip
# libgomp reads its settings when it is loaded, so they come before _caffe.so.
PYCAFFE_CHANGES = [("from .pycaffe import Net,", "from .onednn import has_onednn\nfrom .pycaffe import Net,")]


def parts_of_key() -> list[str]:
    """Return the contents of everything of this project that a build with oneDNN is made from."""
    return [path.read_text() for path in (WHEEL_PINS, *sorted(LAYERS.iterdir())) if path.is_file()]


def fetch_wheels(switches: dict[str, str]) -> list[Path]:
    """Return oneDNN's wheels with the pinned hashes, from .build, the cache, or pip's index; or raise Refused."""
    if platform.machine() != "x86_64":
        raise Refused(f"oneDNN 2.6 is for x86-64, and this machine is {platform.machine()}")
    if "clang" in switches["CUSTOM_CXX"]:
        raise Refused("its layers need g++, and CUSTOM_CXX names another compiler")
    wheels = _wheels_in(programs.BUILD, cache_folder() or programs.BUILD)
    if not wheels:
        show("Downloading oneDNN (30 MB)")
        download = programs.BUILD / "download"
        remove(download)
        venv.pip("download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(WHEEL_PINS),
                 "-d", str(download), what="Downloading oneDNN with pip")  # fmt: skip
        for wheel in download.iterdir():
            wheel.rename(programs.BUILD / wheel.name)
            keep(programs.BUILD / wheel.name)
        wheels = _wheels_in(programs.BUILD)
    return wheels


def _wheels_in(*folders: Path) -> list[Path]:
    """Return the pinned wheels, from whichever folder has them; none if one of them is in no folder."""
    found = []
    for name, version, pinned in re.findall(r"^(\S+)==(\S+) --hash=sha256:(\w+)", WHEEL_PINS.read_text(), re.M):
        paths = [path for folder in folders for path in folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")]
        found.append(next((path for path in paths if hashlib.sha256(path.read_bytes()).hexdigest() == pinned), None))
    return found if all(found) else []


def add_layers(tree: Path, wheels: list[Path]) -> None:
    """Put oneDNN and our layers into a source tree; raise Refused if Caffe's own source is not as expected there."""
    folder = tree / "onednn"
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                # NAME.data/data/lib/libdnnl.so.2, .../include/... and .../share/doc/onednn/LICENSE
                inside = name.partition(".data/data/")[2]
                if inside.startswith(("include/", "share/")) or inside == f"lib/{LIBRARY}":
                    (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                    (folder / inside).write_bytes(packed.read(name))
    (folder / "lib" / "libdnnl.so").symlink_to(LIBRARY)
    for path in LAYERS.iterdir():
        target = {".hpp": "include/caffe/layers", ".cpp": "src/caffe/layers", ".py": "python/caffe"}.get(path.suffix)
        if target:
            shutil.copy(path, tree / target)
    edit(tree / "include/caffe/layer_factory.hpp", FACTORY_CHANGES)
    edit(tree / "python/caffe/__init__.py", PYCAFFE_CHANGES)


def add_library(tree: Path, package: Path) -> None:
    """Copy a source tree's oneDNN, with its licences, next to libcaffe.so in the package `caffe`."""
    folder = tree / "onednn"
    shutil.copy(folder / "lib" / LIBRARY, package)
    for name in ("LICENSE", "THIRD-PARTY-PROGRAMS"):
        shutil.copy(folder / "share/doc/onednn" / name, package / f"oneDNN-{name}")
