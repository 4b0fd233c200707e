"""Folders of images: what is in them, whose they are, and the list files made of that."""

import heapq
import os
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image
from tripletloss.data.lists import ImageList, identity_of

PROJECT_CONFIG = os.path.join(config.PROJECT, "config.py")
LEAST_HELD_OUT, LEAST_KEPT = 2, 2  # identities: with fewer there is nothing to measure, and nothing to learn
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


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


def settings_for(folder, config_file, train, held_out, identities):
    """The settings that make config.py one for a folder's lists: name -> value.

    config_file: the path that it will have, or None for the project's own; train, held_out: the lists' paths, '' for
    none; identities: how many the first one has.
    """
    project = config.load(PROJECT_CONFIG)
    settings = project.stage("triplet")
    name = os.path.splitext(config_file)[0] if config_file else os.path.abspath(folder)
    found = {
        "RUN_FOLDER": os.path.join("runs", os.path.basename(name)),
        "IMAGEPATH": os.path.abspath(folder),
        "TRAIN_LIST": os.path.abspath(train),
        "HELD_OUT_LIST": held_out and os.path.abspath(held_out),
    }
    if config_file:  # what a run writes lies beside it
        beside = os.path.dirname(os.path.abspath(config_file))
        found["RUN_FOLDER"] = os.path.join(beside, found["RUN_FOLDER"])
        found["FEATURE_CACHE"] = os.path.join(beside, "runs", "features")
    most = identities * settings["IMAGES_PER_IDENTITY"]
    if settings["BATCHES"] == "identities" and settings["BATCH_SIZE"] > most:
        found["BATCH_SIZE"] = {"softmax": project.stage("softmax")["BATCH_SIZE"], "triplet": most}
    return found
