"""What the documents name is there: files, tests, commands and make targets."""

import re

import pytest

from tests.helpers import ROOT
from tripletloss import config

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "models/*/*.md", "benchmarks/*.md", "data/*.md")
    for path in ROOT.glob(pattern)
)
MADE = {"models/dlib_resnet/dlib_resnet.onnx"}  # by a make target
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
TEST = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")
MODULE = re.compile(r"-m ((?:tripletloss|faces)(?:\.\w+)*)")
SCRIPT = re.compile(r"\b(?:python3?|sh) ((?:\w+/)*\w+\.(?:py|sh))\b")
FILE = re.compile(r"`((?:tripletloss|faces|tests|tools|benchmarks|examples|compat|models|data)/[\w/]+\.[a-z]+)`")
NAME = re.compile(r"`(\w+)`\s+(?:in|of)\s+`([\w/]+\.py)`")
TARGET = re.compile(r"(?:^ {4,}|`)make(?: \w+=\S+)* ([\w-]+)", re.MULTILINE)


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def anchor_of(heading):
    """The name that forges give a heading: small letters, blanks as hyphens, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def missing_links(document):
    """The relative links of a document whose file, or whose heading in it, is not there."""
    missing = []
    for link in LINK.findall(text_of(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists():
            missing.append(link)
        elif anchor and anchor not in map(anchor_of, HEADING.findall(target.read_text(encoding="utf-8"))):
            missing.append(link)
    return missing


def test_there_are_documents():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/guarantees.md"} <= set(DOCUMENTS)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_every_promise_names_a_test():
    sections = re.split(r"^\*\*", text_of("docs/guarantees.md"), flags=re.MULTILINE)[1:]
    assert len(sections) > 10
    for section in sections:
        assert any(name for _, name in TEST.findall(section)), section


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    assert missing_links(document) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_tests_exist(document):
    for path, name in TEST.findall(text_of(document)):
        assert (ROOT / path).is_file(), path
        if name:
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_commands_exist(document):
    text = text_of(document)
    for module in MODULE.findall(text):
        path = ROOT / module.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert path.is_file(), module
        assert '__name__ == "__main__"' in path.read_text(encoding="utf-8"), module
    for script in SCRIPT.findall(text):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_and_the_names_in_them_exist(document):
    text = text_of(document)
    for path in set(FILE.findall(text)) - MADE:
        assert (ROOT / path).is_file(), path
    for name, path in NAME.findall(text):
        assert re.search(rf"^(?:(?:def|class) )?{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_make_targets_exist(document):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(TARGET.findall(text_of(document))) <= set(targets)


def test_config_lists_every_setting_that_it_may_give():
    written = re.findall(r"^([A-Z_]+) = ", text_of("config.py"), re.MULTILINE)
    assert len(written) == len(set(written)) and set(written) == set(config.SCHEMA) - set(config.COUNTED)


def test_a_name_that_is_not_there_is_found():
    text = "see [x](docs/none.md); `tests/test_none.py::test_none`; run `make none`, `python -m tripletloss.none`"
    assert LINK.findall(text) == ["docs/none.md"] and not (ROOT / "docs/none.md").exists()
    assert TEST.findall(text) == [("tests/test_none.py", "test_none")]
    assert TARGET.findall(text) == ["none"]
    assert MODULE.findall(text) == ["tripletloss.none"]
