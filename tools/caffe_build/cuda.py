"""What a GPU build is compiled and linked with: the system's CUDA toolkit, and wheels from PyPI for what it lacks."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from caffe_build import programs, venv
from caffe_build.programs import ROOT, Refused, clean_environment, output_of, remove, show

WHEEL_PINS = ROOT / "tools" / "cuda_wheels.txt"


class Cuda(NamedTuple):
    """What a GPU build is compiled and linked with."""

    toolkit: Path  # the folder that contains bin/nvcc
    architectures: str  # nvcc's options for the GPUs to compile for
    libraries: dict[str, Path]  # name -> the file to link with
    headers: list[Path]  # of the libraries that come from wheels

    def library_folders(self) -> list[Path]:
        """Return the folders that contain the libraries, each once."""
        return list(dict.fromkeys(path.parent for path in self.libraries.values()))


def find_cuda(switches: dict[str, str]) -> Cuda | None:
    """Return the Cuda of a configuration: CUDA_DIR's toolkit, and wheels for what it lacks. None for a CPU build."""
    if switches["CPU_ONLY"] == "1":
        return None
    toolkit = Path(switches["CUDA_DIR"])
    if not (toolkit / "bin" / "nvcc").exists():
        toolkit = cuda_wheel("13", "nvcc")
    version = output_of([toolkit / "bin" / "nvcc", "--version"], env=clean_environment(), otherwise=(
        f"{toolkit}/bin/nvcc cannot be run: set CUDA_DIR in Makefile.config to a CUDA toolkit for this machine."))
    release = re.search(r"release (\d+)", version)[1]
    multiarch = output_of(["g++", "-print-multiarch"], env=clean_environment()).strip()
    own, system = [toolkit / "lib64", toolkit / "lib"], [Path("/usr/lib") / multiarch, Path("/usr/local/lib")]
    # Debian keeps CUDA's headers and libraries among the system's. Another toolkit must not be mixed with those.
    mixed = not (toolkit / "include" / "cuda_runtime.h").exists()
    libraries, headers = {}, []
    for name in ["cudart", "cublas", "curand", *["nccl"] * (switches["USE_NCCL"] == "1")]:
        folders = [*own, *system] if mixed or name == "nccl" else own
        there = [folder / f"lib{name}.so" for folder in folders if (folder / f"lib{name}.so").exists()]
        if not there:
            folder = cuda_wheel(release, name)
            there = sorted((folder / "lib").glob(f"lib{name}.so.*"))  # wheels have no link without the version
            headers += (folder / "include").glob(f"{name}*.h")
        libraries[name] = there[0]
    return Cuda(toolkit, switches["CUDA_ARCH"] or gpu_architectures(), libraries, headers)


def cuda_wheel(release: str, name: str) -> Path:
    """Return the folder in which wheels put nvcc or a library; install the wheels into .venv first if necessary."""
    pinned = re.search(rf"^## {release} {name} (\S+)\n((?:\S+==.*\n)+)", WHEEL_PINS.read_text(), re.M)
    if not pinned:
        raise Refused(f"CUDA {release} has no {name} on this machine, and tools/{WHEEL_PINS.name} has no wheel for it: "
                      f"set CUDA_DIR in Makefile.config to a complete CUDA toolkit.")
    wheels = {line.split("==")[0].replace("-", "_"): line for line in pinned[2].splitlines()}
    site = venv.site_packages()
    # Another version, installed for another package, will do as well. pip writes RECORD last.
    missing = [line for wheel, line in wheels.items() if not list(site.glob(f"{wheel}-*.dist-info/RECORD"))]
    if missing:
        show(f"Downloading CUDA {release}'s {name} into .venv with pip")
        chosen = programs.BUILD / "cuda_wheels.txt"
        chosen.write_text("\n".join(missing))
        venv.pip("install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r",
                 os.path.relpath(chosen, ROOT), what=f"Installing CUDA {release}'s {name} with pip")
    return site / pinned[1]


def gpu_architectures() -> str:
    """Return nvcc's options for the GPUs of this machine, or for A100 and H100 if it has none.

    Intermediate code for the newest GPU is included, which the driver can compile for even newer ones.
    """
    listed = ""
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
                                capture_output=True, text=True).stdout
    numbers = sorted({int(line.replace(".", "")) for line in listed.splitlines() if re.fullmatch(r"\d+\.\d", line)})
    *older, newest = numbers or [80, 90]
    return " ".join([*(f"-gencode arch=compute_{number},code=sm_{number}" for number in older),
                     f"-gencode arch=compute_{newest},code=[sm_{newest},compute_{newest}]"])


def cuda_rpaths(cuda: Cuda) -> list[str]:
    """Return where libcaffe.so, in site-packages/caffe, finds CUDA: wheels' folders are relative to its own."""
    site = venv.site_packages()
    return [f"$$ORIGIN/../{folder.relative_to(site)}" if folder.is_relative_to(site) else str(folder)
            for folder in cuda.library_folders()]


def link_cuda(tree: Path, cuda: Cuda) -> None:
    """Make the folder `cuda` in the source tree, with links under the names that Caffe's Makefile expects."""
    remove(tree / "cuda")
    for folder in ("include", "lib"):
        (tree / "cuda" / folder).mkdir(parents=True)
    (tree / "cuda" / "toolkit").symlink_to(cuda.toolkit.resolve())
    for name, path in cuda.libraries.items():
        (tree / "cuda" / "lib" / f"lib{name}.so").symlink_to(path)
    for path in cuda.headers:
        (tree / "cuda" / "include" / path.name).symlink_to(path)
