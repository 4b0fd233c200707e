"""Makefile.config, and the packages of Debian or Ubuntu that it needs."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

from caffe_build.programs import ROOT, Refused, clean_environment, output_of, run_logged, show

SWITCHES = ("CPU_ONLY", "CUDA_DIR", "CUDA_ARCH", "USE_NCCL", "USE_LMDB", "USE_LEVELDB", "USE_OPENCV", "USE_ONEDNN",
            "BLAS", "CUSTOM_CXX")

# What every build needs, by the names of Debian and Ubuntu; needed_packages adds what the configuration asks for.
PACKAGES = (
    "g++ make python3 python3-venv python3-dev libboost-python-dev libboost-thread-dev libboost-filesystem-dev "
    "libboost-system-dev libboost-regex-dev libprotobuf-dev protobuf-compiler libhdf5-dev libgoogle-glog-dev "
    "libgflags-dev"
).split()


def configure_gpu(root: Path = ROOT) -> None:
    """Make sure that Makefile.config asks for a GPU build; if there is none, write the example with CPU_ONLY off."""
    path = root / "Makefile.config"
    if not path.exists():
        example = (root / "Makefile.config.example").read_text()
        path.write_text(example.replace("\nCPU_ONLY := 1\n", "\nCPU_ONLY := 0\n"))
        show("Wrote Makefile.config with CPU_ONLY := 0: remove it to build for the CPU again")
    elif read_config(root)[1]["CPU_ONLY"] == "1":
        raise Refused("GPU=1 is given, but Makefile.config says CPU_ONLY := 1: set it to 0 there.")


def read_config(root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """Return (text, switches) of Makefile.config, or of the example if there is none; make itself reads it."""
    path = root / "Makefile.config"
    if not path.exists():
        path = root / "Makefile.config.example"
    questions = "".join(f"$(info {name}=$({name}))\n" for name in SWITCHES)
    answers = output_of(["make", "-s", "-f", "-"], input=f"include {path.name}\n{questions}all: ;\n", cwd=root,
                        env=clean_environment(PYTHON_VERSION="3"))
    return path.read_text(), dict(line.split("=", 1) for line in answers.splitlines() if "=" in line)


def needed_packages(switches: dict[str, str]) -> list[str]:
    """Return the distribution's packages for a configuration. An unset switch has Caffe's default."""
    blas = {"open": ["libopenblas-dev"], "mkl": []}.get(switches["BLAS"], ["libatlas-base-dev"])
    optional = {"USE_LMDB": ["liblmdb-dev"], "USE_OPENCV": ["libopencv-dev"],
                "USE_LEVELDB": ["libleveldb-dev", "libsnappy-dev"]}
    wanted = [names for switch, names in optional.items() if switches[switch] in ("1", "")]
    return [*PACKAGES, *blas, *itertools.chain(*wanted)]


def installed_packages(names: list[str], admin_dir: Path | str = "/var/lib/dpkg") -> dict[str, str]:
    """Return {name: upstream version} of the packages that are installed; raise Refused if there is no dpkg."""
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        raise Refused(f"This system has no apt-get: install what Debian calls {' '.join(names)}, build Caffe by hand, "
                      f"and name its folder: make caffe CAFFE_ROOT=/path/to/caffe")
    # dpkg-query fails if it does not know a name, but still lists the ones that it knows, installed or not.
    form = "${Package} ${db:Status-Status} ${source:Upstream-Version}\n"
    listed = subprocess.run(["dpkg-query", f"--admindir={admin_dir}", "-W", "-f", form, *names],
                            capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[0]: row[2] for row in rows if row[1:2] == ["installed"]}


def may_install() -> bool:
    """Return whether packages can be installed without a password: as root, or with passwordless sudo."""
    return os.geteuid() == 0 or bool(
        shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0)


def install_packages(missing: list[str], allowed: bool) -> None:
    """Install the missing packages; if that is not allowed, raise Refused with the command to run."""
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not allowed:
        raise Refused(f"Caffe needs packages that are not installed. Run this, then run make again:\n"
                      f"  sudo apt-get update && sudo {' '.join(install)}")
    show(f"Installing packages: {' '.join(missing)}")
    prefix = ["env", "DEBIAN_FRONTEND=noninteractive"] if os.geteuid() == 0 else [
        "sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive"]
    try:
        run_logged([*prefix, "apt-get", "update"], "apt-get update")
    except Refused as error:
        show(error)  # perhaps only one source of many is out of reach; the installation shows whether it matters
    run_logged([*prefix, *install], "Installing packages with apt-get")
