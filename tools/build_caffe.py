"""Get Caffe with its Python interface into .venv: `make venv`, `make caffe` and `make caffe-test` run this file.

The distribution's own python3 runs it, with nothing installed: it uses the standard library, and tqdm once .venv
has it. The steps stand below in the order in which they are taken. Whatever is made gets its name, or its stamp,
only when it is whole, so that this can be stopped at any point and run again.
"""

import fcntl
import hashlib
import itertools
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BUILD = ROOT / ".build"
SOURCE_PIN = ROOT / "tools" / "caffe_source.txt"
WHEEL_PINS = ROOT / "tools" / "cuda_wheels.txt"
SWITCHES = ("CPU_ONLY", "CUDA_DIR", "CUDA_ARCH", "USE_NCCL", "USE_LMDB", "USE_LEVELDB", "USE_OPENCV", "BLAS",
            "CUSTOM_CXX")

# What every build needs, by the names of Debian and Ubuntu; needed_packages adds what the configuration asks for.
PACKAGES = (
    "g++ make python3 python3-venv python3-dev libboost-python-dev libboost-thread-dev libboost-filesystem-dev "
    "libboost-system-dev libboost-regex-dev libprotobuf-dev protobuf-compiler libhdf5-dev libgoogle-glog-dev "
    "libgflags-dev"
).split()

ATTRIBUTE_OF = """static int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}
"""

# What is changed in Caffe's source: file, then pairs of what stands there once and what takes its place.
DEVICE_QUERY = "void Caffe::DeviceQuery() {\n  cudaDeviceProp prop;"
SOURCE_CHANGES = {
    # This copy of BVLC's source reads weights of 512 MB at the most, BVLC's own 2 GB; VGG_FACE_16's are 553 MB.
    "src/caffe/util/io.cpp": [("TotalBytesLimit(536870912)", "TotalBytesLimit(kProtoReadBytesLimit)")],
    # CUDA 13 dropped these three fields of cudaDeviceProp. CUDA 12 and 13 both tell them one by one.
    "src/caffe/common.cpp": [
        (DEVICE_QUERY, f"{ATTRIBUTE_OF}\n{DEVICE_QUERY}"),
        ("prop.clockRate", "attribute_of(device, cudaDevAttrClockRate)"),
        ("prop.deviceOverlap", "attribute_of(device, cudaDevAttrGpuOverlap)"),
        ("prop.kernelExecTimeoutEnabled", "attribute_of(device, cudaDevAttrKernelExecTimeout)"),
    ],
    # NCCL's unique id is 128 bytes, of which any may be zero, where a C string would end.
    "python/caffe/_caffe.cpp": [
        ("PyBytes_FromString(uid.c_str())", "PyBytes_FromStringAndSize(uid.data(), uid.size())"),
    ],
}

# The Python that an old protoc writes is refused by a newer protobuf. What it writes about caffe.proto with
# --descriptor_set_out is the same in all versions, and this makes the classes from that.
CAFFE_PB2 = '''"""Caffe's protocol buffer classes, made from caffe.desc, protoc's description of caffe.proto."""
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder

_files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("caffe.desc").read_bytes())
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(_files.file[0].SerializeToString())
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, __name__, globals())
'''

# pycaffe's tests use two names that Python 3.12 dropped. test_draw wants Graphviz and Caffe's examples.
RUN_TESTS = """
import pathlib, sys, unittest, caffe
unittest.TestCase.assertEquals = unittest.TestCase.assertEqual
unittest.TestCase.assertRaisesRegexp = unittest.TestCase.assertRaisesRegex
folder = pathlib.Path(caffe.__file__).parent / "test"
names = sorted(path.stem for path in folder.glob("test_*.py") if path.stem != "test_draw")
if not names:
    sys.exit(f"There are no tests of pycaffe in {folder}.")
sys.path.insert(0, str(folder))
unittest.main(module=None, argv=["", *names])
"""


class Refused(Exception):
    """The reason, in one sentence, for which the work cannot go on."""


# ------------------------------------------------------------------------------ running other programs


def show(text):
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def show_status(line):
    """Show what a command says last on one line of the terminal; show nothing where there is no terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 3
        print(f"\r\033[K  {line[:width]}" if line else "\r\033[K", end="", flush=True)


def run_logged(command, what, log=None, env=None, cwd=ROOT, on_line=show_status):
    """Run a command, with its output in the log and each line also given to on_line; raise Refused if it fails."""
    said, log = [], log or BUILD / "setup.log"
    with open(log, "a") as file:
        file.write(f"$ {shlex.join(map(str, command))}\n")
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       errors="replace", env=env, cwd=cwd, stdin=subprocess.DEVNULL,
                                       close_fds=False)  # so that it holds the lock too
        except OSError as error:
            raise Refused(f"{what} failed: {command[0]} cannot be run ({error.strerror}).") from error
        try:
            for line in process.stdout:
                file.write(line)
                said.append(line.strip())
                on_line(said[-1])
        except KeyboardInterrupt:
            # The command was told too. Let it take away what it has half made.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise
        finally:
            file.write(process.stdout.read())
            process.wait()
            show_status("")
    if process.returncode:
        errors = [line for line in said if re.search(r"\berror\b|^E: |undefined ref|cannot find|\*\*\*", line, re.I)]
        reason = (errors or [line for line in said if line][-1:] or ["it said nothing"])[0]
        raise Refused(f"{what} failed: {reason} (the whole output is in {os.path.relpath(log, ROOT)})")


def output_of(command, otherwise="", **options):
    """Return what a command prints; raise Refused, with the sentence `otherwise` if given, when it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise Refused(otherwise or f"{command[0]} failed: {said}") from error


def clean_environment(**more):
    """Return the environment for Caffe's make, its tests and import checks.

    A caller's CXXFLAGS, MAKEFLAGS or PYTHONPATH stay outside: they would make another build than its key tells.
    The distribution's compiler and protoc come before those of a conda or pyenv environment.
    """
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": "/usr/bin:/bin:" + os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", **kept, **more}


def remove(path):
    """Remove a file, a folder or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(source, target):
    """Copy a file or a folder to a place where it appears when it is whole, instead of what is there."""
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, part)
    remove(target)
    part.rename(target)


# ------------------------------------------------------------------------------ 1. configuration, packages


def configure_gpu(root=ROOT):
    """Have a Makefile.config for a GPU build: where there is none, the example with CPU_ONLY off. It stays."""
    path = root / "Makefile.config"
    if not path.exists():
        example = (root / "Makefile.config.example").read_text()
        path.write_text(example.replace("\nCPU_ONLY := 1\n", "\nCPU_ONLY := 0\n"))
        show("Makefile.config is written, with CPU_ONLY := 0: remove it to build for the CPU again")
    elif read_config(root)[1]["CPU_ONLY"] == "1":
        raise Refused("GPU=1 is given, but Makefile.config says CPU_ONLY := 1: set it to 0 there.")


def read_config(root=ROOT):
    """Return (text, switches) of Makefile.config, or of the example if there is none; make itself reads it."""
    path = root / "Makefile.config"
    if not path.exists():
        path = root / "Makefile.config.example"
    questions = "".join(f"$(info {name}=$({name}))\n" for name in SWITCHES)
    answers = output_of(["make", "-s", "-f", "-"], input=f"include {path.name}\n{questions}all: ;\n", cwd=root,
                        env=clean_environment(PYTHON_VERSION="3"))
    return path.read_text(), dict(line.split("=", 1) for line in answers.splitlines() if "=" in line)


def needed_packages(switches):
    """Return the distribution's packages for a configuration. A switch that it leaves out has Caffe's default."""
    blas = {"open": ["libopenblas-dev"], "mkl": []}.get(switches["BLAS"], ["libatlas-base-dev"])
    optional = {"USE_LMDB": ["liblmdb-dev"], "USE_OPENCV": ["libopencv-dev"],
                "USE_LEVELDB": ["libleveldb-dev", "libsnappy-dev"]}
    wanted = [names for switch, names in optional.items() if switches[switch] in ("1", "")]
    return [*PACKAGES, *blas, *itertools.chain(*wanted)]


def installed_packages(names, admin_dir="/var/lib/dpkg"):
    """Return {name: upstream version} of those packages that are installed; raise Refused where there is no dpkg."""
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        raise Refused(f"This system has no apt-get: install what Debian calls {' '.join(names)}, build Caffe by hand "
                      f"and give its folder: make caffe CAFFE_ROOT=/path/to/caffe")
    # It fails when it does not know one of the names; those that it knows are in the list, installed or not.
    form = "${Package} ${db:Status-Status} ${source:Upstream-Version}\n"
    listed = subprocess.run(["dpkg-query", f"--admindir={admin_dir}", "-W", "-f", form, *names],
                            capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[0]: row[2] for row in rows if row[1:2] == ["installed"]}


def may_install():
    """Tell whether packages can be installed without asking anybody: as root, or by a sudo without a password."""
    return os.geteuid() == 0 or bool(
        shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0)


def install_packages(missing, allowed):
    """Install the packages that are missing; raise Refused with the command to type where that is not allowed."""
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not allowed:
        raise Refused(f"Caffe needs packages that are not installed; run this, then make again:\n"
                      f"  sudo apt-get update && sudo {' '.join(install)}")
    show(f"Installing packages: {' '.join(missing)}")
    prefix = ["env", "DEBIAN_FRONTEND=noninteractive"] if os.geteuid() == 0 else [
        "sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive"]
    try:
        run_logged([*prefix, "apt-get", "update"], "apt-get update")
    except Refused as error:
        show(error)  # one source of many out of reach: the installation tells whether that matters
    run_logged([*prefix, *install], "Installing packages with apt-get")


# ------------------------------------------------------------------------------ 2. Python and .venv


def boost_interpreter():
    """Return the interpreter for which the distribution's Boost.Python was made, as in /usr/bin/python3.11."""
    found = sorted(int(re.search(r"python3(\d+)", path.name)[1])
                   for path in Path("/usr/lib").glob("*-linux-gnu*/libboost_python3*.so"))
    usable = [f"/usr/bin/python3.{minor}" for minor in found if Path(f"/usr/bin/python3.{minor}").exists()]
    if not usable:
        raise Refused("No /usr/lib/*/libboost_python3*.so has its python3 in /usr/bin: install libboost-python-dev.")
    default = os.path.realpath("/usr/bin/python3")
    return default if default in usable else usable[-1]


def caffe_root_interpreter(caffe_root):
    """Return the interpreter that a Caffe built elsewhere is linked to; python3 if it does not tell."""
    libraries = sorted((caffe_root / "python" / "caffe").glob("_caffe*.so"))
    if not libraries:
        raise Refused(f"CAFFE_ROOT is {caffe_root}, but that has no python/caffe/_caffe.so: build it there first.")
    linked = re.search(rb"lib(?:boost_python(?:-py)?|python)3\.?(\d+)", libraries[0].read_bytes())
    name = f"python3.{int(linked[1])}" if linked else "python3"
    path = shutil.which(name, path="/usr/bin:" + os.environ.get("PATH", ""))
    if not path:
        raise Refused(f"The Caffe in {caffe_root} was built for {name}, which is not installed here.")
    return os.path.realpath(path)


def make_venv(interpreter):
    """Make .venv and install the project and its dependencies there, unless that is done.

    .venv/made_by names the interpreter and the hash of the pyproject.toml that .venv was made by. As long as it
    says `unfinished`, something may be half there: .venv is made anew.
    """
    wanted = f"{interpreter} {hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()}"
    stamp = VENV / "made_by"
    made = stamp.read_text() if stamp.exists() else ""
    if not made and (VENV / "pyvenv.cfg").exists():
        raise Refused(".venv is there, but this project's make did not make it: move it away, then run make again.")
    if not made.startswith(f"{interpreter} ") or not (VENV / "bin" / "python").exists():
        show(f"Making .venv with {interpreter}")
        made = "unfinished"
        remove(VENV)
        VENV.mkdir()
        stamp.write_text(made)
        run_logged([interpreter, "-m", "venv", VENV], "Making .venv (which needs the package python3-venv)")
    if made != wanted:
        show("Installing the Python packages that pyproject.toml names into .venv")
        stamp.write_text("unfinished")
        try:
            pip("install", "-e", ".[dev]", what="Installing the Python packages with pip")
        except Refused:
            stamp.write_text(made)  # pip has undone what it began
            raise
        stamp.write_text(wanted)


def pip(*arguments, what, **variables):
    """Run .venv's pip with the user's own settings of pip; raise Refused if it fails."""
    try:
        run_logged([VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
                   what, env={**os.environ, **variables})
    except Refused as error:
        raise Refused(f"{error}; check the network and pip's settings, then run make again.") from error


def site_packages():
    """Return .venv's folder of packages."""
    return next(VENV.glob("lib/python3*/site-packages"))


# ------------------------------------------------------------------------------ 3. CUDA


class Cuda(NamedTuple):
    """What a GPU build is compiled and linked with."""

    toolkit: Path  # the folder of bin/nvcc
    architectures: str  # nvcc's options for them
    libraries: dict  # name -> the file to link with
    headers: list  # of those libraries that come from wheels

    def library_folders(self):
        """Return the folders that the libraries are in, each once."""
        return list(dict.fromkeys(path.parent for path in self.libraries.values()))


def find_cuda(switches):
    """Return the Cuda of a configuration, or None without one: CUDA_DIR's toolkit, and wheels for what that lacks."""
    if switches["CPU_ONLY"] == "1":
        return None
    toolkit = Path(switches["CUDA_DIR"])
    if not (toolkit / "bin" / "nvcc").exists():
        toolkit = cuda_wheel("13", "nvcc")
    version = output_of([toolkit / "bin" / "nvcc", "--version"], env=clean_environment(), otherwise=(
        f"{toolkit}/bin/nvcc cannot be run: set CUDA_DIR in Makefile.config to a CUDA of this machine's kind."))
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


def cuda_wheel(release, name):
    """Return the folder that nvcc or a library is in by its wheels, which are installed into .venv if need be."""
    pinned = re.search(rf"^## {release} {name} (\S+)\n((?:\S+==.*\n)+)", WHEEL_PINS.read_text(), re.M)
    if not pinned:
        raise Refused(f"CUDA {release} is used, but its {name} is neither there nor among the wheels in "
                      f"tools/{WHEEL_PINS.name}: set CUDA_DIR in Makefile.config to a whole CUDA toolkit.")
    wheels = {line.split("==")[0].replace("-", "_"): line for line in pinned[2].splitlines()}
    # Another version, which another package wanted, is used as well. pip writes RECORD last.
    missing = [line for wheel, line in wheels.items() if not list(site_packages().glob(f"{wheel}-*.dist-info/RECORD"))]
    if missing:
        show(f"Downloading CUDA {release}'s {name} from pip's index into .venv")
        chosen = BUILD / "cuda_wheels.txt"
        chosen.write_text("\n".join(missing))
        pip("install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", os.path.relpath(chosen, ROOT),
            what=f"Installing CUDA {release}'s {name} with pip")
    return site_packages() / pinned[1]


def gpu_architectures():
    """Return nvcc's options for the GPUs of this machine, or for A100 and H100 where there is none.

    The newest one's intermediate code goes along, which the driver compiles for GPUs that are newer still.
    """
    listed = ""
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
                                capture_output=True, text=True).stdout
    numbers = sorted({int(line.replace(".", "")) for line in listed.splitlines() if re.fullmatch(r"\d+\.\d", line)})
    *older, newest = numbers or [80, 90]
    return " ".join([*(f"-gencode arch=compute_{number},code=sm_{number}" for number in older),
                     f"-gencode arch=compute_{newest},code=[sm_{newest},compute_{newest}]"])


# ------------------------------------------------------------------------------ 4. what is there already


def build_key(config, switches, packages, interpreter, cuda=None):
    """Return the hash of all that a build comes from: what was built under the same key can be used again."""
    compilers = [switches["CUSTOM_CXX"] or "g++"]
    parts = [SOURCE_PIN.read_text(), Path(__file__).read_text(), config, platform.machine(), interpreter]
    if cuda:
        compilers.append(f"{cuda.toolkit}/bin/nvcc")
        parts += [cuda.architectures, *cuda.libraries, *cuda_rpaths(cuda)]
    parts += [f"{name} {version}" for name, version in sorted(packages.items())]
    for compiler in compilers:
        parts.append(output_of([*compiler.split(), "--version"], env=clean_environment(), otherwise=(
            f"The compiler {compiler} cannot be run: install it, or set CUSTOM_CXX or CUDA_DIR in Makefile.config.")))
    # What is built with one release of NumPy works with all that have the same first number.
    parts += [path.name.split(".")[0] for path in site_packages().glob("numpy-*.dist-info")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def digest(package):
    """Return a hash of the files of a package and their names, without what Python adds when it imports it."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.name != "build_key" and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(package)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_whole(package, key):
    """Tell whether a folder holds the caffe package of this key, and every byte is the one that was put there."""
    stamp = package / "build_key"
    return stamp.exists() and stamp.read_text() == f"{key} {digest(package)}"


def cache_folder():
    """Return the folder that clones share, or None where CACHE=0 switches it off or the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.environ.get("CACHE") == "0":
        return None
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tripletloss"
    except RuntimeError:
        return None


def keep(made):
    """Put a file or a folder into the cache; a cache that cannot be written to costs time, but stops nothing."""
    if folder := cache_folder():
        try:
            put(made, folder / made.name)
        except OSError as error:
            show(f"{made.name} is not kept in the cache: {error}")


# ------------------------------------------------------------------------------ 5. source


def fetch_source():
    """Return Caffe's source archive with the pinned hash: from .build, from the cache or from pip's index."""
    name, version, pinned = re.search(r"^(\S+)==(\S+) --hash=sha256:(\w+)", SOURCE_PIN.read_text(), re.M).groups()
    archive = BUILD / f"{name}-{version}.tar.gz"
    for folder in (BUILD, cache_folder() or BUILD):
        path = folder / archive.name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == pinned:
            return path
    show(f"Downloading Caffe's source ({name} {version}, 5 MB)")
    download, constraint = BUILD / "download", BUILD / "constraint.txt"
    remove(download)
    # pip asks the archive's setup.py for the package's name, and that one wants setuptools to have a distutils.
    constraint.write_text("setuptools<85\n")
    relative = os.path.relpath(constraint, ROOT)  # pip takes a space in these two for the end of the path
    try:
        pip("download", "--no-deps", "--no-binary", name, "--require-hashes", "-r", str(SOURCE_PIN), "-d",
            str(download), what="Downloading Caffe's source with pip", PIP_CONSTRAINT=relative,
            PIP_BUILD_CONSTRAINT=relative)
    except Refused as error:
        if "DO NOT MATCH THE HASHES" not in str(error):
            raise
        raise Refused(f"What pip downloaded as {archive.name} does not have the hash in tools/caffe_source.txt and is "
                      f"not used: check the index in pip's settings.") from error
    (download / archive.name).rename(archive)
    keep(archive)
    return archive


def unpack(archive, key, config):
    """Return the source tree of this key with its Makefile.config: that of a stopped build, or a new one."""
    tree = BUILD / f"caffe-{key}"
    # make takes away what it was writing when it is told to stop. When it is killed it cannot, and `running` stays.
    if tree.exists() and not (tree / "running").exists():
        return tree
    for old in BUILD.glob("caffe-*"):
        remove(old)
    part = BUILD / "caffe-part"
    part.mkdir()
    run_logged(["tar", "-xzf", archive, "-C", part, "--strip-components=1", "--no-same-owner"], "Unpacking the source")
    for name, changes in SOURCE_CHANGES.items():
        text = (part / name).read_text()
        for before, after in changes:
            text = text.replace(before, after)
        (part / name).write_text(text)
    (part / "Makefile.config").write_text(config)
    part.rename(tree)
    return tree


# ------------------------------------------------------------------------------ 6. compile, install


def compile_caffe(tree, cuda):
    """Compile libcaffe.so and _caffe.so in the source tree; raise Refused with the compiler's first error."""
    from tqdm import tqdm  # .venv's: run() has put it on the path

    # A link within the tree, because Caffe's Makefile takes no path with a space in it.
    remove(tree / "numpy-include")
    (tree / "numpy-include").symlink_to(next(site_packages().glob("numpy/*core/include")))
    # A library path of the old kind comes before LD_LIBRARY_PATH, in which another Caffe may lie.
    rpaths = ["$$ORIGIN", *(cuda_rpaths(cuda) if cuda else [])]
    env = clean_environment(PYTHON_VERSION=site_packages().parent.name.removeprefix("python"),
                            NUMPY_INCLUDE="numpy-include",
                            LDFLAGS=f"-Wl,--disable-new-dtags,-rpath,'{':'.join(rpaths)}'")
    for path in tree.glob(".*_release/**/*.d"):
        path.unlink()  # may be cut off, and the headers that it names do not change here
    jobs = len(os.sched_getaffinity(0))
    make = ["make", f"-j{jobs}", "--output-sync=target"]  # says what it does when it is done, not before
    if cuda:
        link_cuda(tree, cuda)
        env["CUDA_ARCH"] = cuda.architectures
        make.append("CUDA_DIR=cuda/toolkit")
    # Every source needs the header that protoc writes, which this Makefile does not say: that one goes first.
    targets = ("proto", "python/caffe/_caffe.so")
    step = re.compile(r"^(?:echo )?(?:PROTOC|CXX|NVCC|LD|CXX/LD) (?:\S+ )*(\S+)$")
    plan = "".join(output_of([*make, "-n", target], cwd=tree, env=env) for target in targets)
    total = len({line for line in plan.splitlines() if step.match(line)})
    show(f"Compiling Caffe, {jobs} files at a time")
    bar = tqdm(total=total, file=sys.stdout, mininterval=0.1 if sys.stdout.isatty() else 20, dynamic_ncols=True,
               disable=total == 0, bar_format="[{n:3d}/{total_fmt}] {elapsed}<{remaining} {desc}")

    def count(line):
        if match := step.match(line):
            bar.set_description_str(match[1].removeprefix("src/caffe/"), refresh=False)
            bar.update()

    (tree / "running").touch()
    try:
        for target in targets:
            run_logged([*make, target], "Compiling Caffe", log=tree / "build.log", env=env, cwd=tree, on_line=count)
    finally:
        bar.close()
        (tree / "running").unlink()  # make itself has ended


def cuda_rpaths(cuda):
    """Return where libcaffe.so, in site-packages/caffe, finds CUDA: the wheels' folders relative to its own."""
    return [f"$$ORIGIN/../{folder.relative_to(site_packages())}" if folder.is_relative_to(site_packages())
            else str(folder) for folder in cuda.library_folders()]


def link_cuda(tree, cuda):
    """Make the folder `cuda` of the source tree: links to what is there under names that Caffe's Makefile knows."""
    remove(tree / "cuda")
    for folder in ("include", "lib"):
        (tree / "cuda" / folder).mkdir(parents=True)
    (tree / "cuda" / "toolkit").symlink_to(cuda.toolkit.resolve())
    for name, path in cuda.libraries.items():
        (tree / "cuda" / "lib" / f"lib{name}.so").symlink_to(path)
    for path in cuda.headers:
        (tree / "cuda" / "include" / path.name).symlink_to(path)


def assemble(tree, key):
    """Put the package `caffe` together from the source tree, and return the folder that it is in."""
    folder = tree / f"caffe-{key}"
    remove(folder)
    package = folder / "caffe"
    shutil.copytree(tree / "python" / "caffe", package, ignore=shutil.ignore_patterns("__pycache__", "*_pb2.py"))
    library = next(tree.glob(".*_release/lib/libcaffe.so.*"))
    shutil.copy(library, package)
    output_of(["protoc", "--proto_path=src/caffe/proto", f"--descriptor_set_out={package}/proto/caffe.desc",
               "caffe.proto"], cwd=tree, env=clean_environment())
    (package / "proto" / "caffe_pb2.py").write_text(CAFFE_PB2)
    (package / "build_key").write_text(f"{key} {digest(package)}")
    return folder


def check_import(folder, cuda=None):
    """Import the caffe of a folder in another process; raise Refused if that fails or it has no Python layers."""
    env = clean_environment(PYTHONPATH=str(folder), GLOG_minloglevel="2")
    if cuda:  # the wheels' libraries are beside the place where it goes, not where it is
        env["LD_LIBRARY_PATH"] = ":".join(map(str, cuda.library_folders()))
    code = "import caffe; assert 'Python' in caffe.layer_type_list(), 'it was built without WITH_PYTHON_LAYER := 1'"
    child = subprocess.run([VENV / "bin" / "python", "-c", code], capture_output=True, text=True, cwd="/", env=env)
    if child.returncode:
        said = child.stderr.splitlines() or [f"it ends with status {child.returncode}"]
        reason = ([line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)] or said)[-1]
        raise Refused(f"The Caffe in {folder} cannot be used: {reason}")


def install(folder, cuda):
    """Put the package of a folder into .venv in place of what is there, once it is seen to import."""
    check_import(folder, cuda)
    put(folder / "caffe", site_packages() / "caffe")


def get_caffe(key, config, cuda):
    """Have the Caffe of this key in .venv: because it is there, because it is in the cache, or by a build."""
    if is_whole(site_packages() / "caffe", key):
        show("Caffe is in .venv already")
        return
    cached = cache_folder() and cache_folder() / f"caffe-{key}"
    if cached and is_whole(cached / "caffe", key):
        try:
            install(cached, cuda)
            show(f"Caffe is in .venv, as it was built before (CACHE=0 builds it anew): {cached}")
            return
        except Refused as error:
            show(f"{error}; it is built anew.")
    tree = unpack(fetch_source(), key, config)
    compile_caffe(tree, cuda)
    folder = assemble(tree, key)
    install(folder, cuda)
    keep(folder)
    show("Caffe is built and in .venv")


def use_caffe_root(caffe_root):
    """Have another Caffe's python folder on .venv's path, and none that was built here."""
    check_import(caffe_root / "python")
    remove(site_packages() / "caffe")
    (site_packages() / "caffe_root.pth").write_text(f"{caffe_root / 'python'}\n")
    show(f"The Caffe in {caffe_root} is used")


# ------------------------------------------------------------------------------ the commands


def lock():
    """Wait until no other build works here. The programs that it starts hold the lock too, if it is killed."""
    file = os.open(BUILD / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        show("Waiting for another make in this folder to end")
        fcntl.flock(file, fcntl.LOCK_EX)


def run(command):
    """Do `venv`, `caffe` or `test`; raise Refused if it cannot be done."""
    BUILD.mkdir(exist_ok=True)
    if command == "test":
        env = clean_environment(GLOG_minloglevel="2")
        sys.exit(subprocess.run([VENV / "bin" / "python", "-c", RUN_TESTS], env=env, cwd=BUILD).returncode)
    lock()
    if os.environ.get("CAFFE_ROOT"):
        caffe_root = Path(os.environ["CAFFE_ROOT"]).expanduser().resolve()
        make_venv(caffe_root_interpreter(caffe_root))
        if command == "caffe":
            use_caffe_root(caffe_root)
        return
    if os.environ.get("GPU") == "1":
        configure_gpu()
    config, switches = read_config()
    names = needed_packages(switches)
    installed = installed_packages(names)
    if missing := [name for name in names if name not in installed]:
        install_packages(missing, may_install())
        installed = installed_packages(names)
    interpreter = boost_interpreter()
    make_venv(interpreter)
    remove(site_packages() / "caffe_root.pth")
    if command == "caffe":
        sys.path.append(str(site_packages()))
        cuda = find_cuda(switches)
        get_caffe(build_key(config, switches, installed, interpreter, cuda), config, cuda)


if __name__ == "__main__":
    try:
        run(sys.argv[1])
    except Refused as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run make again to go on.")
