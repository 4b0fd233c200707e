"""List files: which images there are, and whose they are."""

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file

LABELS = 2**24  # Caffe keeps labels as float32, which is exact up to here
SHOWN = 3  # names in a sentence
# What may follow the label in a line: the image's identity, whatever its name says, as JSON text. Since it ends in a
# quotation mark, no line without it looks like it, whatever is in the name.
SHOWS = re.compile(r'(.*) # shows ("(?:[^"\\]|\\.)*")\s*')


class ImageList(NamedTuple):
    """The images of a list file, in its order."""

    source: str  # the list file
    folder: str  # the image folder, IMAGEPATH
    names: list[str]  # M names as written in the list: an image's path is folder + name
    labels: np.ndarray  # (M,) int64
    corrected: Mapping[str, str] = {}  # name -> identity, of the images whose line says it; never changed in place

    def path(self, number: int) -> str:
        """The path of an image. Images are counted from 0."""
        return os.path.join(self.folder, self.names[number])

    def identity(self, number: int) -> str:
        """Whom an image shows, as its line says, or else its name, see identity_of; '' if neither does."""
        name = self.names[number]
        return self.corrected.get(name, identity_of(name))

    def identities(self) -> list[str]:
        """identity() of each image."""
        return [self.identity(number) for number in range(len(self.names))]

    def identities_of_labels(self) -> dict[int, str]:
        """The identity of each label, '' if the list does not say.

        It is the one that read_list holds to the label, or else the folder of most of its images.
        """
        counted: dict[int, Counter[tuple[bool, str]]] = {}
        for name, label, identity in zip(self.names, self.labels.tolist(), self.identities(), strict=True):
            held = bool(identity) and (name in self.corrected or "@" in name)
            counted.setdefault(label, Counter())[held, identity] += 1
        return {label: max(found, key=lambda one: (one[0], found[one]))[1] for label, found in counted.items()}

    def text(self) -> str:
        """The text of a list file with these images."""
        lines = zip(self.names, self.labels.tolist(), strict=True)
        return "".join(list_line(name, label, self.corrected.get(name)) for name, label in lines)

    def only(self, which: np.ndarray) -> "ImageList":
        """The list of some of the images. which: their numbers, (K,) int, or a mask, (M,) bool."""
        numbers = np.arange(len(self.names))[which]
        return self._replace(names=[self.names[number] for number in numbers], labels=self.labels[numbers])


def read_list(source: str, folder: str, must_exist: bool = True) -> ImageList:
    """Read a list file of lines `person@file.jpg LABEL`. Empty lines and a byte order mark are skipped.

    The identity is the text before `@`; without an `@`, the label alone is the identity. Each identity has one label,
    and each label one identity. A line may end in ` # shows "PERSON"`, JSON text: then that is the identity, whatever
    the name says, and `""` leaves it to the label; `dataset --apply` writes such lines. Spaces around a name are
    ignored: write a name that begins with a space after `./`.
    Every image must exist under `folder`, unless must_exist is False.

    Raises InputError, which names the file and the line, if the file cannot be read or is empty, if a line is
    malformed, if a label is not a whole number below 2^24 (Caffe keeps labels as float32), if an identity has two
    labels or a label two identities, if an image is listed twice, or if an image is missing.
    """
    lines = read_lines(source, "the list file")
    names: list[str] = []
    labels: list[int] = []
    corrected: dict[str, str] = {}
    label_of: dict[str, int] = {}
    identity_of: dict[int, str] = {}
    line_of: dict[str, int] = {}
    twice: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        line, shows = _shows(line, where)
        name, label = _parse(line, where)
        identity, at, _ = name.partition("@")
        if shows is not None:
            identity = corrected[name] = shows
        if identity if shows is not None else at:
            _go_together(label_of, identity, label, f"{where}: identity {identity!r} has the label")
            _go_together(identity_of, label, identity, f"{where}: label {label} stands for the identity")
        before = line_of.setdefault(name, number)
        if before != number:
            twice.append(f"{where}: {name} is already in line {before}")
        names.append(name)
        labels.append(label)
    if not names:
        raise InputError(f"the list file {source} names no image: write one line `person@file.jpg LABEL` per image")
    if twice:
        more = f" ({len(twice)} such lines)" if len(twice) > 1 else ""
        raise InputError(f"{twice[0]}{more}: list each image once, under one label")
    images = ImageList(source, folder, names, np.array(labels, np.int64), corrected)
    if must_exist:
        _check_exist(images)
    return images


def read_lines(source: str, kind: str) -> list[str]:
    """The lines of a UTF-8 text file, without a byte order mark. Raises InputError, which calls the file a `kind`."""
    try:
        return read_file(source).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{kind} {source} cannot be read ({reason}): check its path") from None


def _check_exist(images: ImageList) -> None:
    for number, name in enumerate(images.names):
        if not os.path.isfile(images.path(number)):
            raise InputError(
                f"{images.source} names the image {name}, but there is no {images.path(number)}: check IMAGEPATH, or "
                "remove the line"
            )


def list_line(name: str, label: int, shows: str | None = None) -> str:
    """The line of a list file for an image. shows: its identity, if its name says another.

    A name that begins with a space is written after `./`.
    """
    line = f"{'./' if name[0].isspace() else ''}{name} {label}"
    return f"{line}\n" if shows is None else f"{line} # shows {json.dumps(shows, ensure_ascii=False)}\n"


def _shows(line: str, where: str) -> tuple[str, str | None]:
    """A line without the identity that follows its label, and that identity, None if there is none."""
    match = SHOWS.fullmatch(line)
    if not match:
        return line, None
    try:
        return match[1], json.loads(match[2])
    except ValueError:
        raise InputError(f"{where}: {match[2]} after `# shows` is not JSON text: write \"PERSON\"") from None


def _parse(line: str, where: str) -> tuple[str, int]:
    parts = line.rsplit(None, 1)
    if len(parts) != 2:
        raise InputError(f"{where}: {line.strip()!r} is not `person@file.jpg LABEL`: write name, space, label")
    name, label = parts[0].strip(), parts[1]
    if not re.fullmatch("-?[0-9]+", label):
        raise InputError(f"{where}: the label {label!r} is not a whole number: number the identities from 0")
    if leaves_folder(name):
        raise InputError(f"{where}: {name!r} is outside the image folder: names are relative to it, without `..`")
    number = int(label) if len(label) < 20 else LABELS
    if not 0 <= number < LABELS:
        raise InputError(f"{where}: the label {label} is not between 0 and {LABELS - 1}: number the identities from 0")
    return posixpath.normpath(name), number


def label_gaps(images: ImageList) -> str:
    """A sentence about labels between 0 and a list's largest label that have no image, or '' if there are none."""
    labels = np.unique(images.labels)
    missing = int(labels[-1]) + 1 - len(labels)
    if not missing:
        return ""
    first = int(np.argmax(np.append(labels, -1) != np.arange(len(labels) + 1)))
    return (
        f"{images.source} has no image for {missing} of the labels up to {labels[-1]} (the first is {first}), whose "
        "outputs learn nothing: number the identities from 0 without gaps"
    )


def leaves_folder(name: str) -> bool:
    """Whether a name, relative to a folder, may lead out of that folder."""
    return os.path.isabs(name) or ".." in name.split("/") or "\0" in name


def _go_together(seen: dict, key: Any, value: Any, sentence: str) -> None:
    first = seen.setdefault(key, value)
    if first != value:
        raise InputError(f"{sentence} {value!r} here, but {first!r} in an earlier line: give each identity one label")


def identity_of(name: str) -> str:
    """Whom an image shows, by its name in a list: the text before `@`, else its first folder, else ''."""
    identity, at, _ = name.partition("@")
    return identity if at else name.partition("/")[0] if "/" in name else ""


def corrections(names: Iterable[str], identities: Iterable[str]) -> dict[str, str]:
    """The identities that names in a list do not say, by name: ImageList's `corrected`."""
    return {name: who for name, who in zip(names, identities, strict=True) if who != identity_of(name)}


def shared_identities(one: ImageList, other: ImageList) -> list[str]:
    """The names of the identities that are in both lists, sorted."""
    mine, yours = (set(images.identities()) for images in (one, other))
    return sorted((mine & yours) - {""})


def show_one_of(images: ImageList, others: ImageList) -> np.ndarray:
    """Which images are in another list, or show an identity of it, (N,) bool. Compares paths and identities' names."""
    names = set(others.identities()) - {""}
    paths = {os.path.abspath(others.path(number)) for number in range(len(others.names))}
    return np.array([
        identity in names or os.path.abspath(images.path(number)) in paths
        for number, identity in enumerate(images.identities())
    ], bool)  # fmt: skip


def some(names: Iterable[str]) -> str:
    """The first names as text, with dots if there are more."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def notes_on_trained(images: ImageList, train_lists: Iterable[str], folder: str) -> list[str]:
    """Sentences about identities of training lists among images. Figures on these are better than on others.

    train_lists: one or more of read_list's `source`; folder: as for read_list. If a list cannot be read, a sentence
    says so.
    """
    notes = []
    for source in train_lists:
        try:
            shared = shared_identities(images, read_list(source, folder))
        except InputError:
            notes.append(f"{source} cannot be read, so some of these identities may have been trained on")
            continue
        if shared:
            notes.append(
                f"{len(shared)} identities have the same names as identities of {source} "
                f"({some(shared)}): if they were trained on, the figures are too good"
            )
    return notes
