"""Folders of images: what is in them, whose images these are, and list files for them."""

import heapq
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.data.images import read_image
from tripletloss.data.lists import ImageList, identity_of, list_line

PROJECT_CONFIG = os.path.join(config.PROJECT, "config.py")
MODEL_CONFIGS = {"dlib_resnet": os.path.join(config.PROJECT, "models", "dlib_resnet", "config.py")}
# How faces of one's own are trained on: the settings of this file that are not about LFW go into config_for(folder).
FINETUNE_CONFIG = os.path.join(config.PROJECT, "models", "face997", "finetune_triplets.py")
OF_LFW = ("RUN_FOLDER", "FEATURE_CACHE", "IMAGEPATH", "TRAIN_LIST", "HELD_OUT_LIST", "CROP")
CUT_FOR = "cut_for.txt"  # a file in a folder of detect: the model that its faces were cut for
LEAST_HELD_OUT, LEAST_KEPT = 2, 2  # identities: with fewer there is nothing to measure, and nothing to learn
MOST_NOTE_BYTES = 100  # of CUT_FOR
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def walk(folder: str) -> tuple[list[str], list[str]]:
    """Find the files in a folder and in the folders below it.

    Links are followed, but nothing is found twice. Left out are links to something that is found without them, to a
    folder that contains `folder`, and to nothing, and folders that cannot be read. Returns the files' names relative
    to `folder`, sorted, and a sentence about each thing that is left out. Raises InputError if `folder` itself cannot
    be read.
    """
    root = os.path.realpath(folder)
    paths: list[str] = []
    links: list[str] = []
    found: set[str] = set()
    left_out: list[str] = []

    def failed(error: OSError) -> None:
        if not paths and error.filename == folder:
            raise InputError(f"the folder {folder} cannot be read ({error.strerror}): name a folder of images")
        left_out.append(f"the folder {error.filename} cannot be read ({error.strerror})")

    def enter(start: str) -> None:
        for at, folders, files in os.walk(start, onerror=failed):
            real = os.path.realpath(at)
            if real in found:  # through a link to a folder that contains it
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


def list_folder(folder: str) -> ImageList:
    """All images that walk() finds in a folder, sorted by name.

    Labels number the identities of identity_of; images without an identity have the label -1. Raises InputError if
    there is no image, or if an image's name is not UTF-8 text, which a list file must be.
    """
    names = [name for name in walk(folder)[0] if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise InputError(f"there is no image ({', '.join(IMAGE_SUFFIXES)}) in {folder}: name another folder")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"the image {name!r} in {folder} has a name that is not UTF-8 text: rename it") from None
    identities = [identity_of(name) for name in names]
    numbers = {identity: number for number, identity in enumerate(sorted(set(identities) - {""}))}
    labels = np.array([numbers.get(identity, -1) for identity in identities], np.int64)
    return ImageList(folder, folder, names, labels)


def cut_for(folder: str) -> str:
    """The model that the faces in a folder were cut for, as tripletloss.detect noted it; '' without a note."""
    try:
        return read_file(os.path.join(folder, CUT_FOR), MOST_NOTE_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def config_for(folder: str) -> str:
    """The path of the config file to begin with for the faces in a folder: that of the model they were cut for."""
    return MODEL_CONFIGS.get(cut_for(folder), PROJECT_CONFIG)


def check_cut(folder: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError if the faces in a folder were cut for another model than the settings are about."""
    model, wanted = cut_for(folder), settings["ALIGNMENT"]
    if model and model != wanted:
        raise InputError(
            f"the faces in {folder} were cut for {model}, but ALIGNMENT is {wanted!r}: cut them again with detect "
            f"--for {wanted}, or use the settings of {model}"
        )


class Found(NamedTuple):
    """What is in a folder that has a folder of images for each identity."""

    identities: dict[str, list[str]]  # folder name -> sorted names of its images, relative to the outer folder
    left_out: list[str]  # a sentence about each link, unreadable image, and image whose name no list can hold
    others: int  # how many files have no image suffix


def find_identities(folder: str) -> Found:
    """Look through FOLDER/identity/**/image, and decode every image once.

    Raises InputError if the folder cannot be read, or has fewer than two identities with an image.
    """
    names, left_out = walk(folder)
    named: dict[str, list[str]] = {}
    for name in names:
        identity, slash, _ = name.partition("/")
        if slash:
            named.setdefault(identity, []).append(name)
    identities, others = {}, 0
    for identity in tqdm(sorted(named), desc="looking through", unit="identity", mininterval=0.5):
        images = [name for name in named[identity] if name.lower().endswith(IMAGE_SUFFIXES)]
        others += len(named[identity]) - len(images)
        sentences = [_why_not(folder, name) for name in images]
        left_out += filter(None, sentences)
        good = [name for name, sentence in zip(images, sentences, strict=True) if not sentence]
        if good:
            identities[identity] = good
    if len(identities) < 2:
        raise InputError(
            f"{folder} has {len(identities)} folders with an image that can be read, but needs two or more: give each "
            "identity a folder in it, with that identity's images"
        )
    return Found(identities, left_out, others)


def _why_not(folder: str, name: str) -> str:
    """A sentence about why an image cannot be listed, or ''."""
    path = os.path.join(folder, name)
    if "@" in name or len(name.splitlines()) != 1 or not name.isprintable():
        return f"the image {path!r} has an @ or an unprintable character in its name: rename it"
    try:
        read_image(path)
    except InputError as error:
        return str(error)
    return ""


def split_identities(identities: dict[str, list[str]], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Choose the identities to hold out of training: a share of all, drawn from those with two images or more.

    identities: name -> images; share: 0..1. At least two are held out, since one alone cannot be measured, and at
    least two are kept. None are held out if share is 0, or if there are too few for that. Returns the names of those
    kept and of those held out, sorted.
    """
    able = [name for name, images in identities.items() if len(images) >= 2]
    wanted = min(max(round(share * len(identities)), LEAST_HELD_OUT), len(able), len(identities) - LEAST_KEPT)
    if not share or wanted < LEAST_HELD_OUT:
        wanted = 0
    held_out = sorted(able[i] for i in np.random.default_rng(seed).permutation(len(able))[:wanted])
    return sorted(set(identities) - set(held_out)), held_out


def lists_by_stage(identities: dict[str, list[str]], kept: list[str], enough: int) -> tuple[list[str], list[str]]:
    """Choose the identities that each stage trains on: the softmax stage's, and the triplet stage's.

    identities: name -> images; kept: names of those that are not held out; enough: images that an identity needs for
    the softmax stage, which learns an output for each. The triplet stage takes those with two images or more: any of
    them teaches it what one identity looks like. The softmax stage's come first, in both. If they are all of `kept`, or
    fewer than LEAST_KEPT, both stages have `kept`.
    """
    softmax = [name for name in kept if len(identities[name]) >= enough]
    if len(softmax) in (len(kept), *range(LEAST_KEPT)):
        return kept, kept
    return softmax, softmax + [name for name in kept if 2 <= len(identities[name]) < enough]


def list_text(identities: dict[str, list[str]], names: Iterable[str], first_label: int) -> str:
    """The text of a list file of some identities, whose labels count from first_label.

    identities: name -> images; names: of the identities to list.
    """
    return "".join(
        list_line(image, label) for label, name in enumerate(names, first_label) for image in identities[name]
    )


def settings_for(
    folder: str, config_file: str | None, train: Mapping[str, str], held_out: str, identities: int
) -> dict[str, Any]:
    """The settings, by name, that must change in config_for(folder) for the lists of a folder.

    config_file: the path of the new config file, or None for settings to enter by hand; train: stage -> path of its
    list; held_out: path of the list, '' for none; identities: how many the triplet stage's list has. A config file
    for the shipped model also gets the settings of FINETUNE_CONFIG.
    """
    project = config.load(config_for(folder))
    finetunes = config_file and project.source == PROJECT_CONFIG
    settings = config.load(FINETUNE_CONFIG if finetunes else project.source).stage("triplet")
    name = os.path.splitext(config_file)[0] if config_file else os.path.abspath(folder)
    lists = {stage: os.path.abspath(path) for stage, path in train.items()}
    found: dict[str, Any] = {
        "RUN_FOLDER": os.path.join("runs", os.path.basename(name)),
        "IMAGEPATH": os.path.abspath(folder),
        "TRAIN_LIST": lists["softmax"] if lists["softmax"] == lists["triplet"] else lists,
        "HELD_OUT_LIST": held_out and os.path.abspath(held_out),
    }
    if config_file:  # what a run writes goes beside it
        beside = os.path.dirname(os.path.abspath(config_file))
        found["RUN_FOLDER"] = os.path.join(beside, found["RUN_FOLDER"])
        found["FEATURE_CACHE"] = os.path.join(beside, "runs", "features")
    if finetunes:
        found.update(_finetuning(project))
    most = identities * settings["IMAGES_PER_IDENTITY"]
    if settings["BATCHES"] == "identities" and settings["BATCH_SIZE"] > most:
        found["BATCH_SIZE"] = {"softmax": project.stage("softmax")["BATCH_SIZE"], "triplet": most}
    return found


def _finetuning(project: config.Config) -> dict[str, Any]:
    """The settings of FINETUNE_CONFIG that differ from the project's and are not about LFW."""
    found = {}
    for name, value in config.load(FINETUNE_CONFIG).values.items():
        before = project.values[name]
        if isinstance(value, dict) and isinstance(before, dict):
            value = {**before, "triplet": value["triplet"]}  # the softmax stage, which is not run, stays as it was
        if name not in OF_LFW and value != before:
            found[name] = value
    return found
