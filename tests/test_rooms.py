"""The rooms of the package: who may import whom, and what needs no Caffe."""

import ast
import subprocess
import sys

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "tripletloss"
# Of each room, the others that it may import; the top of the package may import them all.
MAY_IMPORT = {
    "base": set(),
    "core": {"base"},
    "config": {"core", "base"},
    "data": {"config", "core", "base"},
    "formats": {"data", "core", "base"},
    "layers": {"data", "config", "core", "base"},
    "net": {"layers", "formats", "data", "config", "core", "base"},
    "evaluation": {"net", "layers", "formats", "data", "config", "core", "base"},
    "training": {"evaluation", "net", "layers", "formats", "data", "config", "core", "base"},
    "reporting": {"training", "evaluation", "net", "layers", "formats", "data", "config", "core", "base"},
    "deploy": {"formats", "data", "config", "core", "base"},
}
WITHOUT_CAFFE = ("base", "core", "data", "formats", "deploy")


def room_of(path):
    """The room of a module; a module at the package's top is one of its own."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("tripletloss.")}


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) in MAY_IMPORT], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_the_rooms_below_its_own(path):
    room = room_of(path)
    assert imported_rooms(path) - {room} <= MAY_IMPORT[room]


def test_nothing_imports_a_command():
    commands = {path.stem for path in PACKAGE.glob("*.py")} - {"config", "__init__"}
    assert len(commands) >= 8
    for path in [*MODULES, ROOT / "train.py"]:
        assert not imported_rooms(path) & commands, path


def test_every_room_is_installed():
    listed = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path in MODULES}:
        assert f'"{".".join(folder.relative_to(ROOT).parts)}"' in listed


def imports_of(rooms):
    """A line of Python for each module of some rooms, which imports it."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES if room_of(path) in rooms
    ]
    assert len(names) > 15
    return "".join(f"import {name}\n" for name in names)


def test_the_rooms_without_caffe_import_where_there_is_none():
    code = "import sys; sys.modules['caffe'] = None\n" + imports_of((*WITHOUT_CAFFE, "config"))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_an_import_changes_no_environment():
    """Neither its variables, nor how matplotlib draws elsewhere in the process."""
    code = f"""
import os, cv2, matplotlib, sklearn.cluster  # which do change it
def state(): return dict(os.environ), dict(matplotlib.rcParams)
before = state()
{imports_of((*WITHOUT_CAFFE, "config"))}
import tripletloss.evaluation.plots
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
