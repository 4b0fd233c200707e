"""List files: which images there are, and whose they are."""

import os
import posixpath
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file

LABELS = 2**24  # Caffe keeps labels as float32, which is exact up to here
SHOWN = 3  # names in a sentence


class ImageList(NamedTuple):
    """The images of a list file, in its order."""

    source: str  # the list file
    folder: str  # the image folder, IMAGEPATH
    names: list[str]  # M names as written in the list: an image's path is folder + name
    labels: np.ndarray  # (M,) int64

    def path(self, number: int) -> str:
        """The path of an image. Images are counted from 0."""
        return os.path.join(self.folder, self.names[number])

    def only(self, which: np.ndarray) -> "ImageList":
        """The list of some of the images. which: their numbers, (K,) int, or a mask, (M,) bool."""
        numbers = np.arange(len(self.names))[which]
        return self._replace(names=[self.names[number] for number in numbers], labels=self.labels[numbers])


def read_list(source: str, folder: str, must_exist: bool = True) -> ImageList:
    """Read a list file of lines `person@file.jpg LABEL`. Empty lines and a byte order mark are skipped.

    The identity is the text before `@`; without an `@`, the label alone is the identity. Each identity has one label,
    and each label one identity. Spaces around a name are ignored: write a name that begins with a space after `./`.
    Every image must exist under `folder`, unless must_exist is False.

    Raises InputError, which names the file and the line, if the file cannot be read or is empty, if a line is
    malformed, if a label is not a whole number below 2^24 (Caffe keeps labels as float32), if an identity has two
    labels or a label two identities, if an image is listed twice, or if an image is missing.
    """
    lines = read_lines(source, "the list file")
    names: list[str] = []
    labels: list[int] = []
    label_of: dict[str, int] = {}
    identity_of: dict[int, str] = {}
    line_of: dict[str, int] = {}
    twice: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        name, label = _parse(line, where)
        identity, at, _ = name.partition("@")
        if at:
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
    images = ImageList(source, folder, names, np.array(labels, np.int64))
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


def shared_identities(one: ImageList, other: ImageList) -> list[str]:
    """The names of the identities that are in both lists, sorted."""
    mine, yours = ({identity_of(name) for name in images.names} for images in (one, other))
    return sorted((mine & yours) - {""})


def show_one_of(images: ImageList, others: ImageList) -> np.ndarray:
    """Which images are in another list, or show an identity of it, (N,) bool. Compares paths and identities' names."""
    names = {identity_of(name) for name in others.names} - {""}
    paths = {os.path.abspath(others.path(number)) for number in range(len(others.names))}
    return np.array([
        identity_of(name) in names or os.path.abspath(images.path(number)) in paths
        for number, name in enumerate(images.names)
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
