"""A person's decisions about suspects, and the list that they make of an old one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, read_file
from tripletloss.data.lists import ImageList, identity_of, read_list

CHOICES = ("right", "other", "drop")  # the label is right; the image belongs to the other identity; leave it out


class Cleaned(NamedTuple):
    """A list to which decisions were applied."""

    images: ImageList
    counts: dict[str, int]  # choice -> how many images
    lost: list[str]  # the identities that have no image left, by name, or as "label N"


def cleaned_path(source: str) -> str:
    """Where the cleaned list goes: beside the old one, train.txt -> train_cleaned.txt."""
    path = Path(source)
    return str(path.with_name(f"{path.stem}_cleaned{path.suffix}"))


def read_decisions(path: str) -> dict[str, Any]:
    """Read a decisions file: `list`, the path of its list; `sha256`, of that list; `decisions`, records of `image`,
    `choice` and `other`, a label. Raises InputError if it is not one."""
    try:
        found = json.loads(read_file(path))
        named = isinstance(found["list"], str) and isinstance(found["sha256"], str)
        rows = found["decisions"]
        whole = all(isinstance(row["image"], str) and type(row["other"]) is int and "choice" in row for row in rows)
    except OSError as error:
        raise InputError(f"the decisions file {path} cannot be read ({error.strerror}): check its path") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        named = whole = False
    if not (named and whole):
        raise InputError(f"{path} is not a decisions file: save it anew from the page of suspects --review")
    return found


def apply(path: str, source: str) -> Cleaned:
    """Apply a decisions file to the list `source`.

    Identities keep their labels, except that where one has no image left, the labels above move down, since the
    classifier has one output per label up to the largest. An image whose name says another identity than it now has
    gets that identity in its line, see read_list. Raises InputError.
    """
    found = read_decisions(path)
    images = read_list(source, "", must_exist=False)
    if digest(source) != found["sha256"]:
        raise InputError(f"{path} is not for {source} as it is now, but for another list: review it anew")
    place = {name: number for number, name in enumerate(images.names)}
    known, labels, keep = set(images.labels.tolist()), images.labels.copy(), np.ones(len(place), bool)
    counts, seen = dict.fromkeys(CHOICES, 0), set()
    for row in found["decisions"]:
        name, choice = row["image"], row["choice"]
        if name not in place:
            raise InputError(f"{path} decides about {name!r}, which is not in {source}: save it anew")
        if name in seen:
            raise InputError(f"{path} decides about {name!r} twice: keep one of the two decisions")
        if choice not in CHOICES:
            raise InputError(f"{path} has the choice {choice!r} for {name!r}: a choice is one of {', '.join(CHOICES)}")
        seen.add(name)
        counts[choice] += 1
        keep[place[name]] = choice != "drop"
        if choice != "other":
            continue
        if row["other"] not in known:
            raise InputError(f"{path} gives {name!r} the label {row['other']}, which {source} lacks: save it anew")
        labels[place[name]] = row["other"]
    if not keep.any():
        raise InputError(f"{path} drops every image of {source}: keep some")
    who = images.identities_of_labels()
    gone = np.setdiff1d(images.labels, labels[keep])
    cleaned = images.only(keep)._replace(
        labels=labels[keep] - np.searchsorted(gone, labels[keep]), corrected=_corrected(images, labels, who)
    )
    return Cleaned(cleaned, counts, [who[label] or f"label {label}" for label in gone.tolist()])


def _corrected(images: ImageList, labels: np.ndarray, who: dict[int, str]) -> dict[str, str]:
    """The identities of images, by name, whose lines must say them once the images have new labels, (M,)."""
    corrected, owners = dict(images.corrected), Counter(who.values())
    for name, old, label in zip(images.names, images.labels.tolist(), labels.tolist(), strict=True):
        if label == old:
            continue
        corrected.pop(name, None)
        if identity_of(name) != who[label]:
            # A name that several labels share, as that of a folder of many people may be, says nothing.
            corrected[name] = who[label] if owners[who[label]] == 1 else ""
    return corrected
