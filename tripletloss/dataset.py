"""List files: which images there are, and whose they are.

`python -m tripletloss.dataset FOLDER` writes them for a folder that has a folder of images for each identity.
"""

import argparse
import os
import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


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
    """Read a list file of lines `person@file.jpg LABEL`; empty lines are passed over.

    The identity is the text before `@` where there is one, and otherwise the label alone; an identity and its
    label must go together one to one. Every image must exist under `folder`, unless must_exist is False.

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
    name, label = parts
    try:
        number = int(label)
    except ValueError:
        raise InputError(f"{where}: the label {label!r} is not an integer: number the identities from 0") from None
    if leaves_folder(name):
        raise InputError(f"{where}: {name!r} is outside of the image folder: names are relative to it, without `..`")
    if not 0 <= number < 2**24:
        raise InputError(f"{where}: the label {number} is not between 0 and {2**24 - 1}: number the identities from 0")
    return name.strip(), number


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


def list_folder(folder):
    """All images in a folder and the folders in it, as an ImageList in the order of their names.

    Labels number the identities of identity_of; an image without one has -1. Raises InputError if there is none.
    """
    names = sorted(
        os.path.relpath(os.path.join(at, file), folder).replace(os.sep, "/")
        for at, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith(IMAGE_SUFFIXES)
    )
    if not names:
        raise InputError(f"{folder} has no image ({', '.join(IMAGE_SUFFIXES)}) in it: name another folder")
    identities = [identity_of(name) for name in names]
    numbers = {identity: number for number, identity in enumerate(sorted(set(identities) - {""}))}
    labels = np.array([numbers.get(identity, -1) for identity in identities], np.int64)
    return ImageList(folder, folder, names, labels)


class Found(NamedTuple):
    """What is in a folder that has a folder of images for each identity."""

    identities: dict  # folder name -> sorted names of its images, relative to the folder that was looked through
    left_out: list  # sentences, one a file that is no image which can be read, or whose name a list cannot hold
    others: int  # files that are not called like an image


def find_identities(folder):
    """Look through FOLDER/identity/**/image, and decode every image once. Returns Found.

    Raises InputError if the folder cannot be read, or holds fewer than two identities with an image.
    """
    identities, left_out, others = {}, [], 0
    try:
        people = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read ({error.strerror}): name one with images") from None
    for person in tqdm(people, desc="looking through", unit="identity", mininterval=0.5):
        good = []
        walk = os.walk(os.path.join(folder, person))
        for path in sorted(os.path.join(at, file) for at, _, files in walk for file in files):
            name = os.path.relpath(path, folder)
            if not name.lower().endswith(IMAGE_SUFFIXES):
                others += 1
            elif "@" in name or len(name.splitlines()) != 1 or not name.isprintable():
                left_out.append(f"the image {path!r} has an @ in its name, or what cannot be printed: rename it")
            else:
                try:
                    read_image(path)
                    good.append(name)
                except InputError as error:
                    left_out.append(str(error))
        if good:
            identities[person] = good
    if len(identities) < 2:
        raise InputError(
            f"{folder} has {len(identities)} folders with an image that can be read, but two identities are the least: "
            "it must hold a folder for each identity, with that identity's images in it"
        )
    return Found(identities, left_out, others)


def split_identities(identities, share, seed):
    """Choose the identities to hold out of training: a share of them all, from those with two images or more.

    identities: dict name -> images; share: 0..1. At least one is held out if share > 0, and at least two are kept.
    Returns (kept, held out), sorted lists of names.
    """
    able = [name for name, images in identities.items() if len(images) >= 2]
    wanted = min(max(round(share * len(identities)), share > 0), len(able), len(identities) - 2)
    chosen = np.random.default_rng(seed).permutation(len(able))[: max(wanted, 0)]
    held_out = sorted(able[i] for i in chosen)
    return sorted(set(identities) - set(held_out)), held_out


def write_list(path, identities, names, first_label):
    """Write the images of some identities as a list file, labels counted from first_label. Raises InputError."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            for label, name in enumerate(names, first_label):
                file.writelines(f"{image} {label}\n" for image in identities[name])
    except FileExistsError:
        raise InputError(f"{path} is there already: move it away, or write elsewhere with --out") from None
    except OSError as error:
        raise InputError(f"the list {path} cannot be written ({error.strerror}): write elsewhere with --out") from None


def main():
    """python -m tripletloss.dataset. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.dataset",
        description="Write train.txt and held_out.txt for a folder that has a folder of images for each identity.",
    )
    parser.add_argument("folder", help="FOLDER/identity/image.jpg")
    parser.add_argument("--out", default=".", help="where the two lists go (default: here)")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of identities to measure on (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these identities (default: 0)")
    arguments = parser.parse_args()
    if not 0 <= arguments.held_out < 1 or arguments.seed < 0:
        parser.error("--held-out is a share, from 0 to below 1, and --seed a whole number from 0")
    return command.run("tripletloss.dataset", lambda: run(arguments))


def run(arguments):
    """Write the lists that the arguments ask for, and print what is in them. Raises InputError."""
    found = find_identities(arguments.folder)
    kept, held_out = split_identities(found.identities, arguments.held_out, arguments.seed)
    lists = {"train.txt": (kept, 0), "held_out.txt": (held_out, len(kept))}
    for name, (people, first_label) in lists.items():
        if people:
            write_list(os.path.join(arguments.out, name), found.identities, people, first_label)
    for sentence in found.left_out:
        print(f"left out: {sentence}")
    sizes = [len(found.identities[name]) for name in kept]
    print(
        f"{sum(map(len, found.identities.values()))} images of {len(found.identities)} identities; left out: "
        f"{len(found.left_out)} images, {found.others} files that are not called like one"
    )
    print(f"train.txt: {sum(sizes)} images of {len(kept)} identities, {min(sizes)} to {max(sizes)} images each")
    if held_out:
        print(f"held_out.txt: {sum(len(found.identities[p]) for p in held_out)} images of {len(held_out)} identities")
    print(f"In config.py: IMAGEPATH = {os.path.abspath(arguments.folder)!r}")


if __name__ == "__main__":
    sys.exit(main())
