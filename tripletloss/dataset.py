"""List files: which images there are, and whose they are."""

import os
from typing import NamedTuple

import numpy as np

from tripletloss.errors import InputError


class ImageList(NamedTuple):
    """The images of a list file, in its order."""

    source: str  # the list file
    folder: str  # the image folder, IMAGEPATH
    names: list  # M names as written in the list: the image is folder + name
    labels: np.ndarray  # (M,) int64

    def path(self, number):
        """The path of an image, counted from 0."""
        return os.path.join(self.folder, self.names[number])


def read_list(source, folder):
    """Read a list file of lines `person@file.jpg LABEL`; empty lines are passed over.

    The identity is the text before `@` where there is one, and otherwise the label alone; an identity and its
    label must go together one to one. Every image must exist under `folder`.

    Raises InputError, naming file and line, for a file that cannot be read or is empty, a malformed line, a label
    that is no integer from 0 to 2^24 (Caffe keeps labels as float32), an identity with two labels, a label with
    two identities, a missing image.
    """
    try:
        with open(source, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the list file {source} cannot be read ({_reason(error)}): check the setting that names it"
        ) from None
    names, labels, label_of, identity_of = [], [], {}, {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, label = _parse(line, f"{source}, line {number}")
        identity, at, _ = name.partition("@")
        if at:
            _go_together(label_of, identity, label, f"{source}, line {number}: identity {identity!r} has label")
            _go_together(identity_of, label, identity, f"{source}, line {number}: label {label} has identity")
        names.append(name)
        labels.append(label)
    if not names:
        raise InputError(f"the list file {source} names no image: write one line `person@file.jpg LABEL` an image")
    images = ImageList(source, folder, names, np.array(labels, np.int64))
    for number in range(len(names)):
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
    name, label = parts
    try:
        number = int(label)
    except ValueError:
        raise InputError(f"{where}: the label {label!r} is not an integer: number the identities from 0") from None
    if not 0 <= number < 2**24:
        raise InputError(f"{where}: the label {number} is not between 0 and {2**24 - 1}: number the identities from 0")
    return name.strip(), number


def _go_together(seen, key, value, sentence):
    first = seen.setdefault(key, value)
    if first != value:
        raise InputError(f"{sentence} {value!r} here and {first!r} before: an identity has one label of its own")


def _reason(error):
    return error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
