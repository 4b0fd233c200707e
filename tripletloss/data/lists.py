"""List files: which images there are, and whose they are."""

import os
import posixpath
import re
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file

LABELS = 2**24  # Caffe keeps labels as float32, which is exact up to here


class ImageList(NamedTuple):
    """The images of a list file, in its order."""

    source: str  # the list file
    folder: str  # the image folder, IMAGEPATH
    names: list  # M names as written in the list: the image is folder + name
    labels: np.ndarray  # (M,) int64

    def path(self, number):
        """The path of an image, counted from 0."""
        return os.path.join(self.folder, self.names[number])

    def only(self, which):
        """Those images of the list that `which` names: (K,) int, numbers, or (M,) bool."""
        numbers = np.arange(len(self.names))[which]
        return self._replace(names=[self.names[number] for number in numbers], labels=self.labels[numbers])


def read_list(source, folder, must_exist=True):
    """Read a list file of lines `person@file.jpg LABEL`; empty lines and a byte order mark are passed over.

    The identity is the text before `@` where there is one, and otherwise the label alone; an identity and its
    label must go together one to one. Spaces around a name do not count: a name that begins with one is written after
    `./`. Every image must exist under `folder`, unless must_exist is False.

    Raises InputError, naming file and line, for a file that cannot be read or is empty, a malformed line, a label
    that is not a whole number below 2^24 (Caffe keeps labels as float32), an identity with two labels, a label with
    two identities, an image that is listed twice, a missing image.
    """
    try:
        lines = read_file(source).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list file {source} cannot be read ({_reason(error)}): check its path") from None
    names, labels, label_of, identity_of, line_of, twice = [], [], {}, {}, {}, []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        name, label = _parse(line, where)
        identity, at, _ = name.partition("@")
        if at:
            _go_together(label_of, identity, label, f"{where}: identity {identity!r} has label")
            _go_together(identity_of, label, identity, f"{where}: label {label} has identity")
        before = line_of.setdefault(name, number)
        if before != number:
            twice.append(f"{where}: {name} is in line {before} already")
        names.append(name)
        labels.append(label)
    if not names:
        raise InputError(f"the list file {source} names no image: write one line `person@file.jpg LABEL` per image")
    if twice:
        more = f" ({len(twice)} such lines)" if len(twice) > 1 else ""
        raise InputError(f"{twice[0]}{more}: list each image once, under one label")
    images = ImageList(source, folder, names, np.array(labels, np.int64))
    for number in range(len(names)) if must_exist else ():
        if not os.path.isfile(images.path(number)):
            raise InputError(
                f"{source} names the image {names[number]}, but there is no {images.path(number)}: "
                "check IMAGEPATH, or take the line out"
            )
    return images


def _parse(line, where):
    parts = line.rsplit(None, 1)
    if len(parts) != 2:
        raise InputError(f"{where}: {line.strip()!r} is not `person@file.jpg LABEL`: write name, space, label")
    name, label = parts[0].strip(), parts[1]
    if not re.fullmatch("-?[0-9]+", label):
        raise InputError(f"{where}: the label {label!r} is not a whole number: number the identities from 0")
    if leaves_folder(name):
        raise InputError(f"{where}: {name!r} is outside of the image folder: names are relative to it, without `..`")
    number = int(label) if len(label) < 20 else LABELS
    if not 0 <= number < LABELS:
        raise InputError(f"{where}: the label {label} is not between 0 and {LABELS - 1}: number the identities from 0")
    return posixpath.normpath(name), number


def label_gaps(images):
    """A sentence about the labels of a list, from 0 to its largest, that no image has, or ''."""
    labels = np.unique(images.labels)
    missing = int(labels[-1]) + 1 - len(labels)
    if not missing:
        return ""
    first = int(np.argmax(np.append(labels, -1) != np.arange(len(labels) + 1)))
    return (
        f"{images.source} has no image for {missing} of the labels up to {labels[-1]}, from {first} on, whose outputs "
        "learn nothing: number the identities from 0 without gaps"
    )


def leaves_folder(name):
    """Whether a name, taken relative to a folder, may be outside of it."""
    return os.path.isabs(name) or ".." in name.split("/") or "\0" in name


def _go_together(seen, key, value, sentence):
    first = seen.setdefault(key, value)
    if first != value:
        raise InputError(f"{sentence} {value!r} here and {first!r} before: an identity has one label of its own")


def _reason(error):
    return error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"


def identity_of(name):
    """Who an image shows, by its name in a list: the text before `@`, else its first folder, else ''."""
    identity, at, _ = name.partition("@")
    return identity if at else name.partition("/")[0] if "/" in name else ""


def shared_identities(one, other):
    """The identities that two ImageLists have in common, by name, sorted."""
    mine, yours = ({identity_of(name) for name in images.names} for images in (one, other))
    return sorted((mine & yours) - {""})


def show_one_of(images, others):
    """Which images of a list show an identity of another list, by its name, or are in it, by their path: (N,) bool."""
    names = {identity_of(name) for name in others.names} - {""}
    paths = {os.path.abspath(others.path(number)) for number in range(len(others.names))}
    return np.array([
        identity_of(name) in names or os.path.abspath(images.path(number)) in paths
        for number, name in enumerate(images.names)
    ], bool)  # fmt: skip


def notes_on_trained(images, train_list, folder):
    """Sentences about identities of a training list among images, which make figures on them better than they are.

    train_list, folder: as for read_list. One sentence where the list cannot be read, as nothing is known then.
    """
    try:
        trained = read_list(train_list, folder)
    except InputError:
        return [f"{train_list} cannot be read: identities that were trained on may be among these, unnoticed"]
    shared = shared_identities(images, trained)
    if not shared:
        return []
    return [
        f"{len(shared)} identities have names that {trained.source} has too ({', '.join(shared[:3])}"
        f"{' ...' if len(shared) > 3 else ''}): if they were trained on, the figures are too good"
    ]
