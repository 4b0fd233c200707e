"""The list of commands, and their versions."""

import importlib
import subprocess
import sys

import pytest

import tripletloss
from tests.helpers import ROOT
from tripletloss.__main__ import commands

NO_COMMANDS = {"__init__", "__main__", "config"}


def test_every_module_beside_the_rooms_is_listed_as_a_command():
    assert set(commands()) == {path.stem for path in (ROOT / "tripletloss").glob("*.py")} - NO_COMMANDS


def test_the_list_has_a_line_of_words_for_each_command():
    done = subprocess.run([sys.executable, "-m", "tripletloss"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()[2:]]
    assert [name for name, _ in lines] == sorted(commands())
    assert all(len(words.split()) >= 3 for _, words in lines)


@pytest.mark.parametrize("name", [*sorted(commands()), "train"])
def test_every_command_says_its_version(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module(name if name == "train" else f"tripletloss.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert capsys.readouterr().out == f"tripletloss {tripletloss.__version__}\n"
