"""Every command has the same words for the same argument."""

import importlib
import re
import sys

import pytest

from tests.helpers import ROOT
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

    def stop(parser, *_):
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
