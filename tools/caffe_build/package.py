"""Caffe compiled in its source tree, and the package `caffe` put together, checked and installed."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from caffe_build import onednn, programs, source, venv
from caffe_build.cache import digest
from caffe_build.cuda import Cuda, cuda_rpaths, link_cuda
from caffe_build.programs import Refused, clean_environment, output_of, put, remove, run_logged, show

# A newer protobuf refuses the Python code that an old protoc generates. The descriptor set that protoc writes for
# caffe.proto is the same in all versions, so this makes the classes from that.
CAFFE_PB2 = '''"""Caffe's protocol buffer classes, made from caffe.desc, protoc's description of caffe.proto."""
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder

_files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("caffe.desc").read_bytes())
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(_files.file[0].SerializeToString())
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, __name__, globals())
'''



def build_key(
    config: str, switches: dict[str, str], packages: dict[str, str], interpreter: str, cuda: Cuda | None = None
) -> str:
    """Return the hash of everything that a build depends on: a build with the same key can be used again."""
    compilers = [switches["CUSTOM_CXX"] or "g++"]
    steps = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    parts = [source.SOURCE_PIN.read_text(), *steps, config, platform.machine(), interpreter]
    if switches["USE_ONEDNN"] == "1":
        parts += onednn.parts_of_key()
    if cuda:
        compilers.append(f"{cuda.toolkit}/bin/nvcc")
        parts += [cuda.architectures, *map(str, cuda.libraries), *cuda_rpaths(cuda)]
    parts += [f"{name} {version}" for name, version in sorted(packages.items())]
    for compiler in compilers:
        parts.append(output_of([*compiler.split(), "--version"], env=clean_environment(), otherwise=(
            f"The compiler {compiler} cannot be run: install it, or set CUSTOM_CXX or CUDA_DIR in Makefile.config.")))
    # A build with one release of NumPy works with all others of the same major version.
    parts += [path.name.split(".")[0] for path in venv.site_packages().glob("numpy-*.dist-info")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def compile_caffe(tree: Path, cuda: Cuda | None) -> None:
    """Compile libcaffe.so and _caffe.so in the source tree; raise Refused with the compiler's first error."""
    # A link within the tree, because Caffe's Makefile cannot handle a path with a space in it.
    remove(tree / "numpy-include")
    (tree / "numpy-include").symlink_to(next(venv.site_packages().glob("numpy/*core/include")))
    # An rpath of the old kind takes precedence over LD_LIBRARY_PATH, which may lead to another Caffe.
    rpaths = ["$$ORIGIN", *(cuda_rpaths(cuda) if cuda else [])]
    env = clean_environment(PYTHON_VERSION=venv.site_packages().parent.name.removeprefix("python"),
                            NUMPY_INCLUDE="numpy-include",
                            LDFLAGS=f"-Wl,--disable-new-dtags,-rpath,'{':'.join(rpaths)}'")
    for path in tree.glob(".*_release/**/*.d"):
        path.unlink()  # it may be cut off, and the headers that it names do not change here
    jobs = len(os.sched_getaffinity(0))
    make = ["make", f"-j{jobs}", "--output-sync=target"]  # each line appears when its step is done
    if not (tree / "onednn").exists():
        make.append("USE_ONEDNN=0")  # it is switched on, but could not be had
    if cuda:
        link_cuda(tree, cuda)
        env["CUDA_ARCH"] = cuda.architectures
        make.append("CUDA_DIR=cuda/toolkit")
    # Every source needs the header that protoc generates, but the Makefile does not say so: it is made first.
    targets = ("proto", "python/caffe/_caffe.so")
    show(f"Compiling Caffe, {jobs} files at a time")
    (tree / "running").touch()
    try:
        make_targets(make, targets, tree, env)
    finally:
        (tree / "running").unlink()  # make has ended


def make_targets(make: list[str], targets: tuple[str, ...], tree: Path, env: dict[str, str]) -> None:
    """Make the targets one after the other under one progress bar that counts files; raise Refused if one fails."""
    from tqdm import tqdm  # .venv's: run() in build_caffe.py has put it on the path

    step = re.compile(r"^(?:echo )?(?:PROTOC|CXX|NVCC|LD|CXX/LD) (?:\S+ )*(\S+)$")
    plan = "".join(output_of([*make, "-n", target], cwd=tree, env=env) for target in targets)
    total = len({line for line in plan.splitlines() if step.match(line)})
    bar = tqdm(total=total, file=sys.stdout, mininterval=0.1 if sys.stdout.isatty() else 20, dynamic_ncols=True,
               disable=total == 0, bar_format="[{n:3d}/{total_fmt}] {elapsed}<{remaining} {desc}")

    def count(line):
        if match := step.match(line):
            bar.set_description_str(match[1].removeprefix("src/caffe/"), refresh=False)
            bar.update()

    try:
        for target in targets:
            run_logged([*make, target], "Compiling Caffe", log=tree / "build.log", env=env, cwd=tree, on_line=count)
    finally:
        bar.close()


def assemble(tree: Path, key: str) -> Path:
    """Put the package `caffe` together from the source tree, and return the folder that contains it."""
    folder = tree / f"caffe-{key}"
    remove(folder)
    package = folder / "caffe"
    shutil.copytree(tree / "python" / "caffe", package, ignore=shutil.ignore_patterns("__pycache__", "*_pb2.py"))
    library = next(tree.glob(".*_release/lib/libcaffe.so.*"))
    shutil.copy(library, package)
    if (tree / "onednn").exists():
        onednn.add_library(tree, package)
    output_of(["protoc", "--proto_path=src/caffe/proto", f"--descriptor_set_out={package}/proto/caffe.desc",
               "caffe.proto"], cwd=tree, env=clean_environment())
    (package / "proto" / "caffe_pb2.py").write_text(CAFFE_PB2)
    (package / "build_key").write_text(f"{key} {digest(package)}")
    return folder


def check_import(folder: Path, cuda: Cuda | None = None) -> None:
    """Import a folder's caffe in another process; raise Refused if that fails or it has no Python layers."""
    env = clean_environment(PYTHONPATH=str(folder), GLOG_minloglevel="2")
    if cuda:  # the wheels' libraries are next to where the package will be, not where it is now
        env["LD_LIBRARY_PATH"] = ":".join(map(str, cuda.library_folders()))
    code = "import caffe; assert 'Python' in caffe.layer_type_list(), 'it was built without WITH_PYTHON_LAYER := 1'"
    child = subprocess.run([programs.VENV / "bin" / "python", "-c", code], capture_output=True, text=True, cwd="/",
                           env=env)
    if child.returncode:
        said = child.stderr.splitlines() or [f"Python exited with status {child.returncode}"]
        reason = ([line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)] or said)[-1]
        raise Refused(f"The Caffe in {folder} cannot be used: {reason}")


def install(folder: Path, cuda: Cuda | None) -> None:
    """Check that a folder's package can be imported, and put it into .venv in place of what is there."""
    check_import(folder, cuda)
    put(folder / "caffe", venv.site_packages() / "caffe")
