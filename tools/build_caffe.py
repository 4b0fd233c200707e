"""Build Caffe with its Python interface into .venv: `make venv`, `make caffe` and `make caffe-test` run this file.

Run by the distribution's own python3, with nothing installed: the standard library, and tqdm once .venv has it.
The steps stand below in the order in which they are taken. What is made, is made under another name and renamed
when it is whole, so that a build can be stopped at any point and run again.
"""

import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BUILD = ROOT / ".build"
SETUP_LOG = BUILD / "setup.log"
SOURCE_PIN = ROOT / "tools" / "caffe_source.txt"
SWITCHES = ("CPU_ONLY", "CUDA_DIR", "USE_LMDB", "USE_LEVELDB", "USE_OPENCV", "BLAS", "CUSTOM_CXX")

# What every build needs, by the names of Debian and Ubuntu; needed_packages adds what the configuration asks for.
PACKAGES = (
    "g++ make python3 python3-venv python3-dev libboost-python-dev libboost-thread-dev libboost-filesystem-dev "
    "libboost-system-dev libboost-regex-dev libprotobuf-dev protobuf-compiler libhdf5-dev libgoogle-glog-dev "
    "libgflags-dev"
).split()

# caffe_pb2.py is made by hand from protoc's description of caffe.proto: what an old protoc writes as Python is
# refused by a new protobuf, while the description is the same for all of them.
CAFFE_PB2 = '''"""Caffe's protocol buffer classes, made from caffe.desc (protoc's description of caffe.proto)."""
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder

_files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("caffe.desc").read_bytes())
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(_files.file[0].SerializeToString())
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, __name__, globals())
'''

# pycaffe's tests call unittest by names that Python 3.12 dropped. test_draw wants Graphviz and Caffe's examples.
RUN_TESTS = """
import pathlib, unittest, caffe
unittest.TestCase.assertEquals = unittest.TestCase.assertEqual
folder = pathlib.Path(caffe.__file__).parent / "test"
names = sorted(path.stem for path in folder.glob("test_*.py") if path.stem != "test_draw")
assert names, f"no tests in {folder}"
unittest.main(module=None, argv=["pycaffe's tests"] + ["caffe.test." + name for name in names])
"""


class Refused(Exception):
    """The reason, in one sentence, for which the work cannot go on."""


# ---------------------------------------------------------------- running other programs


def show(text):
    """Print one line of progress to the terminal at once."""
    print(text, flush=True)


def run_logged(command, what, log=SETUP_LOG, env=None, cwd=ROOT, on_line=None):
    """Run a command with its output in the log, each line also given to on_line; raise Refused if it fails."""
    with open(log, "a", encoding="utf-8", errors="replace") as file:
        file.write(f"$ {shlex.join(map(str, command))}\n")
        file.flush()
        start = file.tell()
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       errors="replace", env=env, cwd=cwd, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise Refused(f"{what} failed: cannot run {command[0]} ({error.strerror}).") from error
        try:
            for line in process.stdout:
                file.write(line)
                (on_line or show_status)(line.strip())
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has it too: let it take away its half-made files
            raise
        finally:
            file.write(process.stdout.read())
            process.wait()
            show_status("")
    if process.returncode:
        reason = first_error(log.read_bytes()[start:].decode(errors="replace"))
        raise Refused(f"{what} failed: {reason} (all of it is in {log.relative_to(ROOT)})")


def show_status(line):
    """Show the last line of a running command on one line of the terminal, and nothing where there is none."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 3
        print(f"\r\033[K  {line[:width]}" if line else "\r\033[K", end="", flush=True)


def first_error(output):
    """Return the line of a command's output that says what went wrong: the first error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|^E: |undefined reference|cannot find|\*\*\*", line, re.I)]
    return (errors or lines or ["no output"])[0 if errors else -1]


def output_of(command, otherwise=None, **options):
    """Return what a command prints; raise Refused with the sentence `otherwise` if it fails or is not there."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise Refused(otherwise or f"{command[0]} failed: {said}") from error


def clean_environment(**more):
    """Return the environment for Caffe's make and for import checks: only what is named here reaches them.

    A caller's CXXFLAGS, PYTHONPATH or MAKEFLAGS would make a build that its key does not tell. The distribution's
    own compiler and protoc come before those of a conda environment.
    """
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": "/usr/bin:/bin:" + os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", **kept, **more}


# ---------------------------------------------------------------- 1. configuration and packages


def read_config(root=ROOT):
    """Return (text, switches) of Makefile.config, or of the example if there is none; make itself reads it."""
    path = root / "Makefile.config"
    if not path.exists():
        path = root / "Makefile.config.example"
    printed = "".join(f"$(info {name}=$({name}))\n" for name in SWITCHES)
    lines = output_of(["make", "-s", "-f", "-"], input=f"include {path.name}\n{printed}all: ;\n", cwd=root,
                      env=clean_environment(PYTHON_VERSION="3")).splitlines()
    return path.read_text(), dict(line.split("=", 1) for line in lines if "=" in line)


def needed_packages(switches):
    """Return the distribution packages for a configuration. A switch left out has Caffe's own default."""
    names = list(PACKAGES)
    if switches["BLAS"] in ("open", "atlas", ""):
        names.append("libopenblas-dev" if switches["BLAS"] == "open" else "libatlas-base-dev")
    for switch, packages in (("USE_LMDB", ["liblmdb-dev"]), ("USE_OPENCV", ["libopencv-dev"]),
                             ("USE_LEVELDB", ["libleveldb-dev", "libsnappy-dev"])):
        if switches[switch] in ("1", ""):
            names += packages
    return names


def installed_packages(names, admin_dir="/var/lib/dpkg"):
    """Return {package: upstream version} of those of the names that are installed; raise Refused without dpkg."""
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        raise Refused("This system has no apt-get: install what the Debian packages " + " ".join(names)
                      + " are called here, build Caffe by hand and give its folder: make caffe CAFFE_ROOT=/path.")
    # dpkg-query fails when one of the names is unknown to it, which only means that it is missing.
    form = "${Package} ${db:Status-Status} ${source:Upstream-Version}\n"
    listed = subprocess.run(["dpkg-query", f"--admindir={admin_dir}", "-W", "-f", form, *names],
                            capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}


def install_packages(missing, may_install=None):
    """Install the missing packages as root or by a sudo that asks nothing; otherwise raise Refused with the command."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if may_install is None:
        may_install = not sudo or (shutil.which("sudo") is not None
                                   and subprocess.run([*sudo, "true"], capture_output=True).returncode == 0)
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not may_install:
        raise Refused(f"Caffe needs packages that are not installed; run this, then make again:\n"
                      f"  sudo apt-get update && sudo {' '.join(install)}")
    show(f"Installing {len(missing)} packages with apt-get: {' '.join(missing)}")
    quiet = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive"]
    # An update fails when one of many sources is out of reach. Whether that matters, the installation tells.
    subprocess.run([*quiet, "apt-get", "update"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run_logged([*quiet, *install], "Installing packages with apt-get")


# ---------------------------------------------------------------- 2. Python


def boost_interpreter(folders=("/usr/lib", f"/usr/lib/{platform.machine()}-linux-gnu")):
    """Return the interpreter for which the distribution's Boost.Python was made, as /usr/bin/python3.11."""
    found = [path for folder in folders for path in Path(folder).glob("libboost_python3*.so")]
    versions = sorted({int(match[1]) for path in found if (match := re.search(r"python3(\d+)\.so", path.name))})
    usable = [f"/usr/bin/python3.{minor}" for minor in versions if Path(f"/usr/bin/python3.{minor}").exists()]
    if not usable:
        raise Refused(f"No libboost_python3*.so with its /usr/bin/python3 in {' or '.join(map(str, folders))}: "
                      f"install libboost-python-dev and python3-dev.")
    default = str(Path("/usr/bin/python3").resolve())
    return default if default in usable else usable[-1]


def caffe_root_interpreter(caffe_root):
    """Return the interpreter that a Caffe built elsewhere links to; this one if it does not tell."""
    for library in sorted((caffe_root / "python" / "caffe").glob("_caffe*.so")):
        found = re.search(rb"lib(?:boost_python(?:-py)?|python)3\.?(\d+)", library.read_bytes())
        name = f"python3.{int(found[1])}" if found else None
        if name:
            path = shutil.which(name, path="/usr/bin:" + os.environ.get("PATH", ""))
            if not path:
                raise Refused(f"The Caffe in {caffe_root} was built for {name}, which is not installed here.")
            return path
    return "/usr/bin/python3"


def make_venv(interpreter):
    """Make .venv with the interpreter and install the project with its dependencies, unless that is done already.

    .venv/made_by tells which interpreter and which pyproject.toml it was made by. While it says `unfinished`, what
    is there may be half of something: it is thrown away and made anew.
    """
    version = output_of([interpreter, "-c", "import sys; print(sys.version)"]).split()[0]
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    base, wanted = f"{interpreter} {version}", f"{interpreter} {version} {project}\n"
    stamp = VENV / "made_by"
    made = stamp.read_text() if stamp.exists() else ""
    if made == wanted and (VENV / "bin" / "python").exists():
        return
    if not made and (VENV / "pyvenv.cfg").exists():
        raise Refused(".venv was made by something else than this project's make: move it away, then run make again.")
    if not made.startswith(base + " ") or not (VENV / "bin" / "python").exists():
        show(f"Making .venv with {interpreter} ({version})")
        made = "unfinished"
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
        stamp.write_text(made)
        run_logged([interpreter, "-m", "venv", VENV], "Making .venv (python3-venv is needed)")
    show("Installing the Python packages of pyproject.toml into .venv")
    stamp.write_text("unfinished")
    try:
        pip("install", "-e", ".[dev]", what="Installing the Python packages with pip")
    except Refused:
        stamp.write_text(made)  # pip undid what it had begun
        raise
    stamp.write_text(wanted)


def pip(*arguments, what, **variables):
    """Run .venv's pip with the user's own settings for it; raise Refused if it fails."""
    try:
        run_logged([VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
                   what, env={**os.environ, **variables})
    except Refused as error:
        raise Refused(f"{error}. Is the network there, and does pip reach its index?") from error


def site_packages():
    """Return .venv's folder of packages."""
    return next(VENV.glob("lib/python3*/site-packages"))


# ---------------------------------------------------------------- 3. what is wanted, and what is there already


def build_key(config, switches, packages, interpreter):
    """Return the hash of everything that a build comes from: with the same key, it can be used again."""
    compilers = [[switches["CUSTOM_CXX"] or "g++", "--version"], ["protoc", "--version"]]
    if switches["CPU_ONLY"] != "1":
        compilers.append([switches["CUDA_DIR"] + "/bin/nvcc", "--version"])
    parts = [SOURCE_PIN.read_text(), Path(__file__).read_text(), config, platform.machine(), str(interpreter)]
    parts += [output_of([interpreter, "-c", "import sys; print(sys.version)"])]
    parts += [output_of(command, f"{command[0]} cannot be run: install it, or set CUSTOM_CXX and CUDA_DIR in "
                                 f"Makefile.config to what you have.", env=clean_environment()) for command in compilers]
    parts += [f"{name} {version}" for name, version in sorted(packages.items())]
    # Built with one major version of NumPy, the interface works with all of that version.
    parts += [next(site_packages().glob("numpy-*.dist-info")).name.split(".")[0]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def digest(package):
    """Return a hash of a package folder's files and their names, without what Python adds when it imports it."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.name != "build_key" and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(package)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_whole(package, key):
    """Tell whether a caffe package folder is the one of this key, with every byte that it was made with."""
    try:
        return (package / "build_key").read_text() == f"{key} {digest(package)}\n"
    except OSError:
        return False


def cache_folder():
    """Return the folder that clones share, or None where CACHE=0 switches it off."""
    if os.environ.get("CACHE") == "0":
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tripletloss"


# ---------------------------------------------------------------- 4. the source


def fetch_source():
    """Return Caffe's source archive with the pinned hash, from .build, from the cache or by pip."""
    name, version, wanted = re.search(r"^(\S+)==(\S+) --hash=sha256:(\w+)", SOURCE_PIN.read_text(), re.M).groups()
    archive = BUILD / f"{name}-{version}.tar.gz"
    cached = cache_folder() / archive.name if cache_folder() else archive
    for path in (archive, cached):
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted:
            return path
    show(f"Downloading Caffe's source ({name} {version}, 5 MB)")
    folder = BUILD / "download"
    shutil.rmtree(folder, ignore_errors=True)
    # pip asks a source archive's setup.py for its name, and this one imports distutils, which setuptools may drop.
    constraint = BUILD / "constraint.txt"
    constraint.write_text("setuptools<85\n")
    try:
        pip("download", "--no-deps", "--no-binary", name, "--require-hashes", "-r", SOURCE_PIN, "-d", folder,
            what="Downloading Caffe's source with pip", PIP_CONSTRAINT=str(constraint),
            PIP_BUILD_CONSTRAINT=str(constraint))
    except Refused as error:
        if "DO NOT MATCH THE HASHES" in str(error):
            raise Refused(f"{archive.name} as downloaded is not the file whose sha256 tools/caffe_source.txt names: "
                          f"it is not used; look at where pip downloads from.") from error
        raise
    os.replace(folder / archive.name, archive)
    if cached != archive:
        store(archive, cached)
    return archive


def store(made, cached):
    """Copy a file or folder into the cache under its final name at once; a cache that cannot be written is no error."""
    part = cached.with_name(f"{cached.name}.{os.getpid()}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        copy(made, part)
        remove(cached)
        part.rename(cached)
    except OSError as error:
        show(f"Not kept in the cache: {error}")
        remove(part)


def copy(source, target):
    """Copy a file or a folder, without Python's caches."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def remove(path):
    """Remove a file, a folder or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unpack(archive, key, config):
    """Return the source tree for this key, with its configuration; a tree of a stopped build is used again."""
    tree = BUILD / f"caffe-{key}"
    # make takes away what it was writing when it is told to stop, but not when it is killed: then `running` is left.
    if tree.exists() and not (tree / "running").exists():
        return tree
    for old in BUILD.glob("caffe-*"):
        shutil.rmtree(old)
    part = BUILD / "caffe-unpacked"
    part.mkdir()
    run_logged(["tar", "-xzf", archive, "-C", part, "--strip-components=1", "--no-same-owner"], "Unpacking Caffe's source")
    (part / "Makefile.config").write_text(config)
    part.rename(tree)
    return tree


# ---------------------------------------------------------------- 5. compile, assemble, install


def compile_caffe(tree):
    """Compile libcaffe.so and _caffe.so in the source tree; raise Refused with the first error."""
    numpy_headers = next(site_packages().glob("numpy/*core/include"))
    version = site_packages().parent.name.removeprefix("python")
    # The link keeps a project path with a space in it out of Caffe's Makefile.
    remove(tree / "numpy-include")
    (tree / "numpy-include").symlink_to(numpy_headers)
    env = clean_environment(PYTHON_VERSION=version, NUMPY_INCLUDE="numpy-include", LDFLAGS="-Wl,-rpath,'$$ORIGIN'")
    jobs = len(os.sched_getaffinity(0))
    # --output-sync prints a target's lines when it is done, which is what the bar counts.
    make = ["make", f"-j{jobs}", "--output-sync=target"]
    for path in tree.glob(".*_release/**/*.d"):
        path.unlink()  # may be cut off, and nothing they tell can change in here
    # Objects need the headers that protoc writes, and Caffe's Makefile here does not say so: first these.
    targets = (["proto"], ["python/caffe/_caffe.so"])
    step = re.compile(r"^(?:echo )?(?:PROTOC|CXX|NVCC|LD|CXX/LD) (?:\S+ )*(\S+)$")
    plan = [output_of([*make, "-n", *target], cwd=tree, env=env) for target in targets]
    total = len({line for line in "".join(plan).splitlines() if step.match(line)})
    (tree / "running").touch()
    from tqdm import tqdm  # .venv's: see main

    show(f"Compiling Caffe with {jobs} jobs")
    bar = tqdm(total=total, file=sys.stdout, mininterval=0.1 if sys.stdout.isatty() else 20, dynamic_ncols=True,
               bar_format="[{n:3d}/{total_fmt}] {elapsed}<{remaining} {desc}")

    def count(line):
        if match := step.match(line):
            bar.set_description_str(match[1].removeprefix("src/caffe/"), refresh=False)
            bar.update()

    try:
        for target in targets:
            run_logged([*make, *target], "Compiling Caffe", log=tree / "build.log", env=env, cwd=tree, on_line=count)
    finally:
        bar.close()
        (tree / "running").unlink()  # make has ended, by itself or by Ctrl-C, and left nothing half-made


def assemble(tree, key):
    """Return a folder that holds the finished package `caffe`, put together from the source tree."""
    folder = tree / "package"
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "caffe"
    shutil.copytree(tree / "python" / "caffe", package, ignore=shutil.ignore_patterns("__pycache__", "*_pb2.py"))
    library = next(tree.glob(".*_release/lib/libcaffe.so.*"))
    shutil.copyfile(library, package / library.name)
    output_of(["protoc", "--proto_path=src/caffe/proto", f"--descriptor_set_out={package}/proto/caffe.desc",
               "caffe.proto"], cwd=tree, env=clean_environment())
    (package / "proto" / "caffe_pb2.py").write_text(CAFFE_PB2)
    (package / "build_key").write_text(f"{key} {digest(package)}\n")
    return folder


def check_import(where, folder=None):
    """Import caffe in a process of its own; raise Refused if that fails or if it has no Python layers."""
    code = "import caffe; assert 'Python' in caffe.layer_type_list(), 'it is built without WITH_PYTHON_LAYER := 1'"
    env = clean_environment(GLOG_minloglevel="2", **({"PYTHONPATH": str(folder)} if folder else {}))
    result = subprocess.run([VENV / "bin" / "python", "-c", code], capture_output=True, text=True, env=env, cwd="/")
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"it ended with status {result.returncode}"])[-1]
        raise Refused(f"The Caffe in {where} cannot be used: {reason}")


def install(folder):
    """Put the package into .venv in place of what is there, once it is seen to import."""
    check_import(folder, folder)
    target = site_packages() / "caffe"
    part = site_packages() / "caffe.part"
    remove(part)
    copy(folder / "caffe", part)
    remove(target)
    part.rename(target)


def install_caffe(config, switches, packages, interpreter):
    """Have the Caffe of this configuration in .venv: it is there already, or the cache has it, or it is built."""
    key = build_key(config, switches, packages, interpreter)
    remove(site_packages() / "caffe_root.pth")
    if is_whole(site_packages() / "caffe", key):
        return
    cached = cache_folder() / f"caffe-{key}" if cache_folder() else None
    if cached and is_whole(cached / "caffe", key):
        try:
            install(cached)
            show(f"Caffe is installed in .venv (it was built before: {cached})")
            return
        except Refused as error:
            show(f"{error}. It is built anew.")
    tree = unpack(fetch_source(), key, config)
    compile_caffe(tree)
    folder = assemble(tree, key)
    install(folder)
    if cached:
        store(folder, cached)
    show("Caffe is built and installed in .venv")


def use_caffe_root(caffe_root):
    """Put another Caffe's python folder on .venv's path, in place of one that was built here."""
    if not (caffe_root / "python" / "caffe").is_dir():
        raise Refused(f"CAFFE_ROOT is {caffe_root}, which has no folder python/caffe: give the folder of a built Caffe.")
    check_import(caffe_root, caffe_root / "python")
    remove(site_packages() / "caffe")
    (site_packages() / "caffe_root.pth").write_text(f"{caffe_root}/python\n")


# ---------------------------------------------------------------- the commands


def lock():
    """Wait until no other build works in this project. Children hold the lock too, and outlive a killed parent."""
    file = os.open(BUILD / "lock", os.O_CREAT | os.O_RDWR)
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
        sys.exit(subprocess.run([VENV / "bin" / "python", "-c", RUN_TESTS], env=clean_environment(GLOG_minloglevel="2"),
                                cwd=BUILD).returncode)
    lock()
    caffe_root = os.environ.get("CAFFE_ROOT") and Path(os.environ["CAFFE_ROOT"]).expanduser().resolve()
    if caffe_root:
        make_venv(caffe_root_interpreter(caffe_root))
        if command == "caffe":
            use_caffe_root(caffe_root)
        return
    config, switches = read_config()
    names = needed_packages(switches)
    if missing := sorted(set(names) - set(installed_packages(names))):
        install_packages(missing)
    interpreter = boost_interpreter()
    make_venv(interpreter)
    # tqdm is plain Python: .venv's copy serves this interpreter, whichever it is.
    sys.path.append(str(site_packages()))
    if command == "caffe":
        install_caffe(config, switches, installed_packages(names), interpreter)


def main():
    """Run the command that make gave; print a sentence and exit with 1 if it cannot be done."""
    try:
        run(sys.argv[1])
    except Refused as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run it again to go on.")


if __name__ == "__main__":
    main()
