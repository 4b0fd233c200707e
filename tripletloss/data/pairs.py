"""Pairs files: pairs of images in folds, as Labeled Faces in the Wild lists them."""

import os
import re
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core.pairs import Pairs
from tripletloss.data.lists import ImageList, leaves_folder, read_lines

NUMBER = re.compile("[0-9]{1,9}")  # in a pairs file


class PairsFile(NamedTuple):
    """P pairs of images, in folds that share no person."""

    images: ImageList
    pairs: Pairs
    folds: np.ndarray  # (P,) int


def read_pairs(source: str, folder: str) -> PairsFile:
    """Read a pairs file in the format of Labeled Faces in the Wild (README of its view 2).

    The first line has the number of folds and the number of pairs of each kind in a fold. Then, fold by fold, come
    lines `name n m`, two images of one person, and lines `name n other m`, images of two people. Image n of a person
    is folder/name/name_000n.jpg. Raises InputError, which names the line, if a line is malformed, if the number of
    lines does not fit the first line, or if an image is missing.
    """
    lines = [line.split() for line in read_lines(source, "the pairs file")]
    if not lines or not 1 <= len(lines[0]) <= 2 or not all(NUMBER.fullmatch(word) for word in lines[0]):
        raise InputError(f"{source}, line 1: it must have the number of folds, and of pairs per fold: `10 300`")
    folds = int(lines[0][0]) if len(lines[0]) == 2 else 1
    per_fold, rest = divmod(len(lines) - 1, max(folds, 1))
    if rest or not per_fold or int(lines[0][-1]) * 2 != per_fold:
        raise InputError(
            f"{source} has {len(lines) - 1} pairs, but line 1 says {folds} folds of 2 x {lines[0][-1]}: correct one of "
            "them"
        )
    numbers: dict[str, int] = {}  # of the images, by path
    pairs: list[list[int]] = []
    for line, words in enumerate(lines[1:], 2):
        where = f"{source}, line {line}"
        if len(words) not in (3, 4) or not (NUMBER.fullmatch(words[1]) and NUMBER.fullmatch(words[-1])):
            raise InputError(f"{where}: it must be `name n m` or `name n other m`")
        ends = ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1]))
        paths = [_path(name, image, folder, where) for name, image in ends]
        pairs.append([numbers.setdefault(path, len(numbers)) for path in paths])
    people = np.unique([path.partition("/")[0] for path in numbers], return_inverse=True)[1]
    first, second = np.array(pairs).T
    same = np.array([len(words) == 3 for words in lines[1:]])
    return PairsFile(
        ImageList(source, folder, list(numbers), people), Pairs(first, second, same), np.arange(len(same)) // per_fold
    )


def _path(name: str, number: str, folder: str, where: str) -> str:
    """The path of an image relative to `folder`, where it must be."""
    path = f"{name}/{name}_{int(number):04d}.jpg"
    if leaves_folder(path):
        raise InputError(f"{where}: {name!r} is outside the image folder")
    if not os.path.isfile(os.path.join(folder, path)):
        raise InputError(f"{where}: there is no {os.path.join(folder, path)}: check --images")
    return path
