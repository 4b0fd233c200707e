"""A page as plain records, and the file that it becomes."""

import base64
import hashlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from tripletloss.base.errors import InputError
from tripletloss.base.files import amount, write_whole
from tripletloss.reporting.measured import Measured, Picture

NAME = "report.html"
MADE_BY = b'<!doctype html>\n<html lang="en">\n<meta name="generator" content="tripletloss">\n'
MOST_BYTES = 5_000_000


class Verdict(NamedTuple):
    """What to do with a run's weights."""

    kind: str  # 'good', 'even' or 'bad': whether training gained something
    headline: str
    weights: str  # path
    feature: str
    sentences: list[str]


class Score(NamedTuple):
    """A row of the table of what there is to choose from."""

    when: str
    weights: str
    feature: str
    cells: list[str]  # one per column
    best: bool


class Scores(NamedTuple):
    """Figures before and after, stage by stage."""

    columns: list[str]
    rows: list[Score]
    note: str


class Seen(NamedTuple):
    """An image as the net saw it, beside its file."""

    net: str  # data URI
    file: Picture


class Batch(NamedTuple):
    """A part of a mini-batch."""

    seen: list[Seen]
    note: str


class Listed(NamedTuple):
    """A list of images."""

    what: str
    source: str
    images: int
    identities: int
    each: str  # images of an identity


class Curves(NamedTuple):
    """A stage's curves."""

    title: str
    note: str
    charts: list[tuple[str, Markup]]  # caption, chart


class Table(NamedTuple):
    """A table of text."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""


class Command(NamedTuple):
    """A command to copy."""

    what: str
    line: str


class Page(NamedTuple):
    """What a page shows, in its order. A sentence stands for a missing part, None for an unwanted one."""

    title: str
    subtitle: str
    verdict: Verdict | str | None = None
    scores: Scores | str | None = None
    batch: Batch | str | None = None
    lists: list[Listed] | None = None
    warnings: list[str] | None = None
    curves: list[Curves] | str | None = None
    figures: Table | None = None  # with intervals
    comparison: Table | None = None
    measured: Measured | str | None = None
    charts: list[tuple[str, Markup]] | None = None  # of a comparison
    settings: Table | None = None
    versions: list[tuple[str, str]] | None = None
    made: list[Command] | None = None
    following: list[Command] | None = None
    lost: list[str] | None = None  # sentences about pictures that cannot be read


def render(page: Page) -> bytes:
    """The page as HTML."""
    here = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    parts = {}
    for name in ("page.css", "page.js"):
        with open(os.path.join(here, name), encoding="utf-8") as file:
            parts[name] = file.read()
    # The browser runs this script and no other, whatever a name in the page may hold.
    script = base64.b64encode(hashlib.sha256(parts["page.js"].encode()).digest()).decode()
    text = environment.get_template("page.html").render(
        page=page, style=Markup(parts["page.css"]), script=Markup(parts["page.js"]), script_digest=script,
        written=time.strftime("%Y-%m-%d %H:%M"),
    )  # fmt: skip
    return MADE_BY + text.encode()


def write(path: str, page: Page) -> None:
    """Write a page to a file, which it may replace. Raises InputError."""
    content = render(page)
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} would have {amount(len(content))}, and a page has {amount(MOST_BYTES)} at most")
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): make room, or repair its folder") from None


def check_replaceable(path: str) -> None:
    """Raise InputError if there is a file at a path that is not a page of this package."""
    try:
        with open(path, "rb") as file:
            ours = file.read(len(MADE_BY)) == MADE_BY
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be replaced ({error.strerror}): move it away") from None
    if not ours:
        raise InputError(f"{path} is not a page of this package, so it is not replaced: move it away")


def attempt(work: Callable[[], str]) -> str:
    """Do what writes a page, and return a line with its path, which work() returns, or with why there is none.

    Nothing that goes wrong here is worth a run or a measurement: what they are for is on the disk already.
    """
    try:
        return f"report     {work()}"
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return f"report     not written: {' '.join(reason.split())}"
