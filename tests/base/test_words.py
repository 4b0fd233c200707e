"""Every command has the same words for the same argument, and the exit statuses of docs/commands.md."""

import importlib
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.helpers import PHOTOS, ROOT, few_people
from tripletloss import verify
from tripletloss.__main__ import commands
from tripletloss.base import command

NAMES = ["train", "faces.__main__", "tripletloss.__main__", *(f"tripletloss.{name}" for name in sorted(commands()))]
# (command, argument) -> why its words are its own
OWN_WORDS = {
    ("dataset", "--config"): "writes a config file, where the others read one",
    ("evaluate", "WEIGHTS"): "also takes embeddings",
    ("export", "--threshold"): "takes a file of measured thresholds, where the others take a distance",
    ("faces", "--images"): "counts the images to make, where the others take a folder",
}
OUTPUT = "--out"  # each command says what it writes there


class Built(Exception):
    """A command has built its parser."""


@pytest.fixture(scope="module")
def arguments():
    """(argument, command) -> its action. An argument is named as users see it: --config, or WEIGHTS."""
    pytest.importorskip("caffe")
    found = {}

    def stop(parser, *_, **__):
        raise Built(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        patch.setattr(command.Parser, "parse_args", stop)
        for name in NAMES:
            patch.setattr(sys, "argv", [name])
            with pytest.raises(Built) as built:
                importlib.import_module(name).main()
            [parser] = built.value.args
            short = name.removesuffix(".__main__").removeprefix("tripletloss.")
            for action in parser._actions:
                found[(action.option_strings or [action.metavar])[-1], short] = action
    return found


def words_of(action):
    """What --help says of an argument, without the default, which may be each command's own."""
    return action.metavar, action.choices, re.sub(r" \(default.*", "", action.help)


def test_the_same_argument_has_the_same_words_in_every_command(arguments):
    seen = {}
    for (argument, name), action in arguments.items():
        if argument != OUTPUT and (name, argument) not in OWN_WORDS:
            seen.setdefault(argument, {})[name] = words_of(action)
    assert len(seen["--config"]) >= 6 and len(seen["--force"]) >= 6 and len(seen["--version"]) == len(NAMES)
    different = {argument: said for argument, said in seen.items() if len(set(map(repr, said.values()))) > 1}
    assert different == {}


def test_what_has_words_of_its_own_needs_them(arguments):
    for name, argument in OWN_WORDS:
        others = {repr(words_of(action)) for (one, other), action in arguments.items() if one == argument and other != name}
        assert others and repr(words_of(arguments[argument, name])) not in others


def test_every_argument_is_explained_and_says_what_it_takes(arguments):
    for (argument, name), action in arguments.items():
        assert action.help, (argument, name)
        takes_a_value = action.nargs != 0 and argument != OUTPUT and not action.choices
        assert not takes_a_value or action.metavar, (argument, name)


def status_of(*arguments):
    """The exit status of a command, which says on standard error what is wrong unless it is 0."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    said = re.search(r"^(python -m )?(faces|tripletloss\.\w+): \S", done.stderr, re.MULTILINE)
    assert (done.returncode == 0) == (said is None) and "Traceback" not in done.stderr, done.stderr
    return done.returncode


def test_exit_statuses_are_those_of_the_document(tmp_path):
    text = (ROOT / "docs" / "commands.md").read_text()
    table = dict(re.findall(r"^\| ([\d, ]+) \| (.*) \|$", text, re.MULTILINE))
    people, model = few_people(tmp_path / "people", [2, 2]), tmp_path / "none.onnx"
    dataset = "-m", "tripletloss.dataset"
    assert table["0"].startswith("done") and status_of(*dataset, people, "--out", tmp_path) == 0
    assert table["1"].startswith("not done") and status_of(*dataset, tmp_path / "none") == 1
    assert table["2"].startswith("the arguments are wrong") and status_of(*dataset, people, "--seed", -1) == 2
    assert status_of("-m", "faces", "--out", tmp_path / "faces", "--size", 8) == 2
    assert "for `verify`, also everything else" in table["2"] and status_of("-m", "tripletloss.verify", model, "a", "b") == 2
    said = {0: "the same person", 1: "two people", 3: "`verify` cannot tell"}
    assert all(table[str(status)].endswith(words) for status, words in said.items())
    assert (verify.SAME, verify.NOT_SAME, verify.FAILED, verify.CANNOT_TELL) == (0, 1, 2, 3)
    stopped = ", ".join(str(128 + number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    assert list(table) == ["0", "1", "2", "3", stopped]


def test_a_fault_in_verify_is_not_the_answer_two_people(tmp_path, capsys):
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(name='onnxruntime')")
    photo = str(PHOTOS / "face2033@00.jpg")
    done = subprocess.run(
        [sys.executable, "-m", "tripletloss.verify", "some.onnx", photo, photo],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == verify.FAILED
    assert done.stderr == (
        f"tripletloss.verify: {sys.executable} has no onnxruntime: run make onnx, and use .venv-onnx/bin/python\n"
    )
    assert command.run("verify", lambda: 1 // 0, failure=verify.FAILED) == verify.FAILED
    assert "ZeroDivisionError" in capsys.readouterr().err
