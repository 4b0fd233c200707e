"""Get Caffe with its Python interface into .venv: `make venv`, `make caffe` and `make caffe-test` run this file.

The distribution's own python3 runs it, with nothing installed: it uses only the standard library, and tqdm once .venv
has it. The steps are in caffe_build. Whatever they make gets its name, or its stamp, only when it is complete, so
this can be interrupted at any point and run again.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from caffe_build import programs, venv
from caffe_build.cache import cache_folder, is_whole, keep
from caffe_build.cuda import Cuda, find_cuda
from caffe_build.onednn import fetch_wheels
from caffe_build.package import assemble, build_key, check_import, compile_caffe, install
from caffe_build.programs import Refused, clean_environment, remove, show
from caffe_build.source import fetch_source, unpack
from caffe_build.system import (
    configure_gpu,
    install_packages,
    installed_packages,
    may_install,
    needed_packages,
    read_config,
)

# pycaffe's tests use two names that Python 3.12 dropped. test_draw needs Graphviz and Caffe's examples.
RUN_TESTS = """
import pathlib, sys, unittest, caffe
unittest.TestCase.assertEquals = unittest.TestCase.assertEqual
unittest.TestCase.assertRaisesRegexp = unittest.TestCase.assertRaisesRegex
folder = pathlib.Path(caffe.__file__).parent / "test"
names = sorted(path.stem for path in folder.glob("test_*.py") if path.stem != "test_draw")
if not names:
    sys.exit(f"{folder} has no tests of pycaffe: run make caffe again with CACHE=0.")
sys.path.insert(0, str(folder))
unittest.main(module=None, argv=["", *names])
"""


def get_caffe(
    config: str, switches: dict[str, str], installed: dict[str, str], interpreter: str, cuda: Cuda | None
) -> None:
    """Put the Caffe of a configuration into .venv, unless it is there: from the cache, or by a build."""
    key = build_key(config, switches, installed, interpreter, cuda)
    if is_whole(venv.site_packages() / "caffe", key):
        show("Caffe is already in .venv")
        return
    cached = cache_folder() and cache_folder() / f"caffe-{key}"
    if cached and is_whole(cached / "caffe", key):
        try:
            install(cached, cuda)
            show(f"Took Caffe from the cache ({cached}); CACHE=0 builds it anew")
            return
        except Refused as error:
            show(f"{error}; building it anew")
    wheels = []
    if switches["USE_ONEDNN"] == "1":
        try:
            wheels = fetch_wheels(switches)
        except Refused as error:
            show(f"Using Caffe's own CPU layers, which are slower, as oneDNN cannot be had: {error}")
            get_caffe(config, switches | {"USE_ONEDNN": "0"}, installed, interpreter, cuda)
            return
    tree = unpack(fetch_source(), key, config, wheels)
    compile_caffe(tree, cuda)
    folder = assemble(tree, key)
    install(folder, cuda)
    keep(folder)
    show("Built Caffe and put it into .venv")


def use_caffe_root(caffe_root: Path) -> None:
    """Put another Caffe's python folder on .venv's path, and remove any Caffe that was built here."""
    check_import(caffe_root / "python")
    remove(venv.site_packages() / "caffe")
    (venv.site_packages() / "caffe_root.pth").write_text(f"{caffe_root / 'python'}\n")
    show(f"Using the Caffe in {caffe_root}")


def lock() -> None:
    """Wait until no other build is running here. If a build is killed, the programs that it started keep the lock."""
    file = os.open(programs.BUILD / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    os.set_inheritable(file, True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        show("Waiting for another make in this folder to finish")
        fcntl.flock(file, fcntl.LOCK_EX)


def run(command: str) -> None:
    """Run the command `venv`, `caffe` or `test`; raise Refused if it fails."""
    programs.BUILD.mkdir(exist_ok=True)
    if command == "test":
        env = clean_environment(GLOG_minloglevel="2")
        command = [programs.VENV / "bin" / "python", "-c", RUN_TESTS]
        sys.exit(subprocess.run(command, env=env, cwd=programs.BUILD).returncode)
    lock()
    if os.environ.get("CAFFE_ROOT"):
        caffe_root = Path(os.environ["CAFFE_ROOT"]).expanduser().resolve()
        venv.make_venv(venv.caffe_root_interpreter(caffe_root))
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
    interpreter = venv.boost_interpreter()
    venv.make_venv(interpreter)
    remove(venv.site_packages() / "caffe_root.pth")
    if command == "caffe":
        sys.path.append(str(venv.site_packages()))
        get_caffe(config, switches, installed, interpreter, find_cuda(switches))


if __name__ == "__main__":
    try:
        run(sys.argv[1])
    except Refused as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run make again to continue.")
