"""Pairs files: pairs of images in folds, as Labeled Faces in the Wild lists them."""

import os
import re
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.core.pairs import Pairs
from tripletloss.data.lists import ImageList, leaves_folder

NUMBER = re.compile("[0-9]{1,9}")  # in a pairs file


class PairsFile(NamedTuple):
    """Pairs of images, in folds whose people differ."""

    images: ImageList
    pairs: Pairs
    folds: np.ndarray  # (P,) int


def read_pairs(source, folder):
    """Read a pairs file in the format of Labeled Faces in the Wild (README of its view 2).

    The first line holds the number of folds and that of pairs of each kind in a fold; then, fold by fold, come
    lines `name n m` of one person's images and lines `name n other m` of two people's. Image n of a person is
    folder/name/name_000n.jpg. Raises InputError, naming the line, for what does not fit and for missing images.
    """
    try:
        lines = [line.split() for line in read_file(source).decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"the pairs file {source} cannot be read ({reason}): check --pairs") from None
    if not lines or not 1 <= len(lines[0]) <= 2 or not all(NUMBER.fullmatch(word) for word in lines[0]):
        raise InputError(f"{source}, line 1: it must hold the number of folds and of pairs a fold: `10 300`")
    folds = int(lines[0][0]) if len(lines[0]) == 2 else 1
    a_fold, rest = divmod(len(lines) - 1, max(folds, 1))
    if rest or not a_fold or int(lines[0][-1]) * 2 != a_fold:
        raise InputError(f"{source} has {len(lines) - 1} pairs, which are not {folds} folds of 2 x {lines[0][-1]}")
    numbers, first, second, same = {}, [], [], []
    for number, words in enumerate(lines[1:], 2):
        if len(words) not in (3, 4) or not (NUMBER.fullmatch(words[1]) and NUMBER.fullmatch(words[-1])):
            raise InputError(f"{source}, line {number}: it must be `name n m` or `name n other m`")
        ends = ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1]))
        for side, (name, image) in zip((first, second), ends, strict=True):
            path = f"{name}/{name}_{int(image):04d}.jpg"
            if leaves_folder(path):
                raise InputError(f"{source}, line {number}: {name!r} is outside of the image folder")
            if not os.path.isfile(os.path.join(folder, path)):
                raise InputError(f"{source}, line {number}: there is no {os.path.join(folder, path)}: check --images")
            side.append(numbers.setdefault(path, len(numbers)))
        same.append(len(words) == 3)
    people = np.unique([path.partition("/")[0] for path in numbers], return_inverse=True)[1]
    images = ImageList(source, folder, list(numbers), people)
    pairs = Pairs(np.array(first), np.array(second), np.array(same))
    return PairsFile(images, pairs, np.arange(len(same)) // a_fold)
