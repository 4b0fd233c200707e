"""List files: which images there are, and whose they are.

`python -m tripletloss.dataset FOLDER` writes them for a folder that has a folder of images for each identity.
"""

import argparse
import heapq
import os
import posixpath
import re
import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tripletloss import config
from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file, write_all
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.data.images import read_image

PROJECT_CONFIG = os.path.join(config.PROJECT, "config.py")
LEAST_HELD_OUT, LEAST_KEPT = 2, 2  # identities: with fewer there is nothing to measure, and nothing to learn
LABELS = 2**24  # Caffe keeps labels as float32, which is exact up to here
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


def walk(folder):
    """The files in a folder and in the folders in it: (names relative to it, sorted; sentences about what is left out).

    Links are followed, but nothing is found twice: left out are links to what is found without them, to a folder that
    contains `folder`, and to nothing, and folders that cannot be read. Raises InputError if `folder` itself cannot be.
    """
    root, paths, links, found, left_out = os.path.realpath(folder), [], [], set(), []

    def failed(error):
        if not paths and error.filename == folder:
            raise InputError(f"the folder {folder} cannot be read ({error.strerror}): name one with images")
        left_out.append(f"the folder {error.filename} cannot be read ({error.strerror})")

    def enter(start):
        for at, folders, files in os.walk(start, onerror=failed):
            real = os.path.realpath(at)
            if real in found:  # by a link to a folder that contains it
                folders.clear()
                continue
            found.add(real)
            linked = {name for name in folders + files if os.path.islink(os.path.join(at, name))}
            for name in linked:
                heapq.heappush(links, os.path.join(at, name))
            own = [name for name in files if name not in linked]
            paths.extend(os.path.join(at, name) for name in own)
            found.update(os.path.join(real, name) for name in own)

    enter(folder)
    while links:
        path = heapq.heappop(links)
        target = os.path.realpath(path)
        if target in found:
            left_out.append(f"{path} is a link to {target}, which is found without it")
        elif root.startswith(os.path.join(target, "")):
            left_out.append(f"{path} is a link to {target}, which contains {folder}")
        elif os.path.isdir(target):
            enter(path)
        elif os.path.exists(target):
            paths.append(path)
            found.add(target)
        else:
            left_out.append(f"{path} is a link to {target}, which does not exist")
    return sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in paths), left_out


def list_folder(folder):
    """All images that walk() finds in a folder, as an ImageList in the order of their names.

    Labels number the identities of identity_of; an image without one has -1. Raises InputError if there is no image,
    or one whose name no file can list.
    """
    names = [name for name in walk(folder)[0] if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise InputError(f"{folder} has no image ({', '.join(IMAGE_SUFFIXES)}) in it: name another folder")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"the image {name!r} in {folder} has a name that is not UTF-8 text: rename it") from None
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

    Raises InputError if the folder cannot be read, or has fewer than two identities with an image.
    """
    names, left_out = walk(folder)
    people, others = {}, 0
    for name in names:
        person, slash, _ = name.partition("/")
        if slash:
            people.setdefault(person, []).append(name)
    identities = {}
    for person in tqdm(sorted(people), desc="looking through", unit="identity", mininterval=0.5):
        good = []
        for name in people[person]:
            path = os.path.join(folder, name)
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
            "it must have a folder for each identity, with the images of that identity in it"
        )
    return Found(identities, left_out, others)


def split_identities(identities, share, seed):
    """Choose the identities to hold out of training: a share of them all, from those with two images or more.

    identities: dict name -> images; share: 0..1. Held out are two or more, as fewer cannot be measured, so that two or
    more are kept; or none, if share is 0 or there are too few. Returns (kept, held out), sorted lists of names.
    """
    able = [name for name, images in identities.items() if len(images) >= 2]
    wanted = min(max(round(share * len(identities)), LEAST_HELD_OUT), len(able), len(identities) - LEAST_KEPT)
    if not share or wanted < LEAST_HELD_OUT:
        wanted = 0
    held_out = sorted(able[i] for i in np.random.default_rng(seed).permutation(len(able))[:wanted])
    return sorted(set(identities) - set(held_out)), held_out


def list_text(identities, names, first_label):
    """The lines of a list file of some identities, labels counted from first_label.

    identities: dict name -> images; names: of those to list. A name that begins with a space is written after `./`.
    """
    return "".join(
        f"{'./' if image[0].isspace() else ''}{image} {label}\n"
        for label, name in enumerate(names, first_label)
        for image in identities[name]
    )


def settings_for(arguments, train, held_out, identities):
    """The settings that make config.py one for a folder's lists: name -> value.

    train, held_out: the lists' paths, '' for none; identities: how many the first one has.
    """
    project = config.load(PROJECT_CONFIG)
    settings = project.stage("triplet")
    name = os.path.splitext(arguments.config)[0] if arguments.config else os.path.abspath(arguments.folder)
    found = {
        "RUN_FOLDER": os.path.join("runs", os.path.basename(name)),
        "IMAGEPATH": os.path.abspath(arguments.folder),
        "TRAIN_LIST": os.path.abspath(train),
        "HELD_OUT_LIST": held_out and os.path.abspath(held_out),
    }
    if arguments.config:  # what a run writes lies beside it
        beside = os.path.dirname(os.path.abspath(arguments.config))
        found["RUN_FOLDER"] = os.path.join(beside, found["RUN_FOLDER"])
        found["FEATURE_CACHE"] = os.path.join(beside, "runs", "features")
    most = identities * settings["IMAGES_PER_IDENTITY"]
    if settings["BATCHES"] == "identities" and settings["BATCH_SIZE"] > most:
        found["BATCH_SIZE"] = {"softmax": project.stage("softmax")["BATCH_SIZE"], "triplet": most}
    return found


def run(arguments):
    """What the arguments ask for; returns what to say. Raises InputError."""
    paths = [os.path.normpath(os.path.join(arguments.out, name)) for name in ("train.txt", "held_out.txt")]
    outputs = [*paths[: 2 if arguments.held_out else 1], *filter(None, [arguments.config])]
    check_outputs(outputs, [PROJECT_CONFIG], arguments.force)
    found = find_identities(arguments.folder)
    kept, held_out = split_identities(found.identities, arguments.held_out, arguments.seed)
    settings = settings_for(arguments, paths[0], paths[1] if held_out else "", len(kept))
    contents = {paths[0]: list_text(found.identities, kept, 0)}
    if held_out:
        contents[paths[1]] = list_text(found.identities, held_out, len(kept))
    if arguments.config:
        contents[arguments.config] = config.copy_text(PROJECT_CONFIG, arguments.config, settings)
    try:
        write_all({path: text.encode() for path, text in contents.items()})
    except OSError as error:
        raise InputError(f"the lists cannot be written ({error.strerror}): make room, or write elsewhere") from None
    sizes = [len(found.identities[name]) for name in kept]
    lines = [
        *(f"left out: {sentence}" for sentence in found.left_out),
        f"{sum(map(len, found.identities.values()))} images of {len(found.identities)} identities; left out: "
        f"{len(found.left_out)} images or links, {found.others} files with another suffix",
        f"train.txt: {sum(sizes)} images of {len(kept)} identities, {min(sizes)} to {max(sizes)} images each",
    ]
    if held_out:
        images = sum(len(found.identities[name]) for name in held_out)
        lines.append(f"held_out.txt: {images} images of {len(held_out)} identities, to measure on")
    elif arguments.held_out:
        lines.append(
            f"no held_out.txt: it takes {LEAST_HELD_OUT} identities with two images or more to measure on, and "
            f"{LEAST_KEPT} others to train on"
        )
    if arguments.config:
        name = arguments.config
        lines.append(f"{name}: settings for these lists; next, python train.py --config {name} --check")
    else:
        lines += ["Set these in config.py:", *(f"{name} = {value!r}" for name, value in settings.items())]
    return "\n".join(lines)


def main():
    """python -m tripletloss.dataset. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.dataset",
        description="Write train.txt and held_out.txt for a folder that has a folder of images for each identity.",
    )
    parser.add_argument("folder", help="FOLDER/identity/image.jpg")
    parser.add_argument("--out", default=".", help="where the two lists go (default: here)")
    add_force(parser)
    parser.add_argument("--held-out", type=float, default=0.2, help="share of identities to measure on (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of these identities (default: 0)")
    parser.add_argument("--config", metavar="FILE", help="also write a config file for these lists, a new one")
    arguments = parser.parse_args()
    if not 0 <= arguments.held_out < 1 or arguments.seed < 0:
        parser.error("--held-out is a share, from 0 to below 1, and --seed a whole number from 0")
    return command.run("tripletloss.dataset", lambda: print(run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
