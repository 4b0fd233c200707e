"""The interpreter that Boost.Python was built for, and the .venv that is made with it."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from caffe_build import programs
from caffe_build.programs import ROOT, Refused, remove, run_logged, show


def boost_interpreter() -> str:
    """Return the interpreter that the distribution's Boost.Python was built for, such as /usr/bin/python3.11."""
    found = sorted(int(re.search(r"python3(\d+)", path.name)[1])
                   for path in Path("/usr/lib").glob("*-linux-gnu*/libboost_python3*.so"))
    usable = [f"/usr/bin/python3.{minor}" for minor in found if Path(f"/usr/bin/python3.{minor}").exists()]
    if not usable:
        raise Refused("No Boost.Python (/usr/lib/*/libboost_python3*.so) matches a python3 in /usr/bin: "
                      "install libboost-python-dev.")
    default = os.path.realpath("/usr/bin/python3")
    return default if default in usable else usable[-1]


def caffe_root_interpreter(caffe_root: Path) -> str:
    """Return the interpreter that a Caffe built elsewhere is linked to, or python3 if its library does not say."""
    libraries = sorted((caffe_root / "python" / "caffe").glob("_caffe*.so"))
    if not libraries:
        raise Refused(f"CAFFE_ROOT is {caffe_root}, which has no python/caffe/_caffe.so: build Caffe there first.")
    linked = re.search(rb"lib(?:boost_python(?:-py)?|python)3\.?(\d+)", libraries[0].read_bytes())
    name = f"python3.{int(linked[1])}" if linked else "python3"
    path = shutil.which(name, path="/usr/bin:" + os.environ.get("PATH", ""))
    if not path:
        raise Refused(f"The Caffe in {caffe_root} was built for {name}: install that Python.")
    return os.path.realpath(path)


def make_venv(interpreter: str) -> None:
    """Make .venv and install the project and its dependencies in it, unless that is done.

    .venv/made_by holds the interpreter and the hash of the pyproject.toml that .venv was made from. While it says
    `unfinished`, .venv may be incomplete, and is made anew.
    """
    venv = programs.VENV
    wanted = f"{interpreter} {hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()}"
    stamp = venv / "made_by"
    made = stamp.read_text() if stamp.exists() else ""
    if not made and (venv / "pyvenv.cfg").exists():
        raise Refused("This project's make did not make .venv: move it away, then run make again.")
    if not made.startswith(f"{interpreter} ") or not (venv / "bin" / "python").exists():
        show(f"Making .venv with {interpreter}")
        made = "unfinished"
        remove(venv)
        venv.mkdir()
        stamp.write_text(made)
        run_logged([interpreter, "-m", "venv", venv], "Making .venv (which needs the package python3-venv)")
    if made != wanted:
        show("Installing the Python packages of pyproject.toml into .venv")
        stamp.write_text("unfinished")
        try:
            pip("install", "-e", ".[dev]", what="Installing the Python packages with pip")
        except Refused:
            stamp.write_text(made)  # pip has undone what it began
            raise
        stamp.write_text(wanted)


def pip(*arguments: str | Path, what: str, **variables: str) -> None:
    """Run .venv's pip with the user's own pip settings; raise Refused if it fails."""
    try:
        run_logged([programs.VENV / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input",
                    *arguments], what, env={**os.environ, **variables})
    except Refused as error:
        raise Refused(f"{error}; check the network and pip's settings, then run make again.") from error


def site_packages() -> Path:
    """Return .venv's folder of packages."""
    return next(programs.VENV.glob("lib/python3*/site-packages"))
