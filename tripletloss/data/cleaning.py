"""A person's decisions about suspects, and the list that they make of an old one."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, read_file
from tripletloss.data.lists import ImageList, read_list

CHOICES = ("right", "other", "drop")  # the label is right; the image belongs to the other identity; leave it out


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


def apply(path: str, source: str) -> tuple[ImageList, dict[str, int], int]:
    """Apply a decisions file to the list `source`.

    Returns the cleaned list, how often each choice was made, and how many identities lost all their images. The labels
    are numbered anew from 0 without gaps, in their old order, because the classifier has one output per label up to the
    largest. Raises InputError.
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
        if "@" in name:
            raise InputError(f"{name!r} says its identity before the @, so {path} cannot move it: rename or drop it")
        labels[place[name]] = row["other"]
    if not keep.any():
        raise InputError(f"{path} drops every image of {source}: keep some")
    left, numbered = np.unique(labels[keep], return_inverse=True)
    cleaned = images.only(keep)._replace(labels=numbered.astype(np.int64))
    return cleaned, counts, len(known) - len(left)


def text_of(images: ImageList) -> str:
    """The text of a list file. A name that begins with a space keeps it after `./`."""
    names = (f"./{name}" if name != name.strip() else name for name in images.names)
    return "".join(f"{name} {label}\n" for name, label in zip(names, images.labels.tolist(), strict=True))
