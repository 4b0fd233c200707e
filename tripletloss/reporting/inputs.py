"""What went into a run: its lists, and a part of a mini-batch as the net saw it."""

from collections.abc import Sequence

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import short
from tripletloss.data.images import Augmentation
from tripletloss.data.lists import ImageList, read_list
from tripletloss.data.loader import BatchMaker
from tripletloss.layers import DataLayer
from tripletloss.reporting import pictures
from tripletloss.reporting.folder import Stage
from tripletloss.reporting.page import Batch, Listed, Picture, Seen
from tripletloss.reporting.pictures import Thumbnails

SHOWN = 24  # images of a mini-batch
NO_CHANGE = {field: type(default)() for field, default in Augmentation._field_defaults.items() if field != "mirror"}


def lists_of(stages: Sequence[Stage]) -> list[Listed]:
    """The lists of a run. One that cannot be read any more is left out."""
    named = {(f"trained on, {stage.name} stage", stage.settings["TRAIN_LIST"]): stage for stage in stages}
    named[("held out", stages[-1].settings["HELD_OUT_LIST"])] = stages[-1]
    found = []
    for (what, source), stage in named.items():
        if not source:
            continue
        try:
            images = read_list(source, stage.settings["IMAGEPATH"], must_exist=False)
        except InputError:
            continue
        sizes = np.unique(images.labels, return_counts=True)[1]
        least, most = int(sizes.min()), int(sizes.max())
        each = f"{least}" if least == most else f"{least} to {most}, median {np.median(sizes):g}"
        found.append(Listed(what, short(source), len(images.names), len(sizes), each))
    return found


def batch_of(stages: Sequence[Stage], thumbnails: Thumbnails) -> Batch | str:
    """The first images of a run's first mini-batch, through DataLayer's own transform; or why they cannot be shown."""
    stage = next((one for one in stages if not one.cached), stages[0])
    settings = {key: stage.settings[key.upper()] for key in DataLayer.keys if key.upper() in stage.settings}
    settings.update(rank=0, ranks=1, pass_images=0)
    if stage.cached:
        settings.update(NO_CHANGE)
    try:
        images = read_list(settings["train_list"], settings["imagepath"], must_exist=False)
        maker = BatchMaker(settings, images)
        blobs = maker.pixels(0, SHOWN)
    except (InputError, KeyError) as error:
        return f"The mini-batch cannot be shown: {error}."
    seen = [
        Seen(pictures.of_net(blob, settings["pixel_means"]), _file(images, int(number), thumbnails))
        for blob, number in zip(blobs, maker.numbers(0), strict=False)
    ]
    size = settings["image_size"]
    return Batch(seen, f"{_changes(stage, settings)} The net sees {size} x {size} pixels.")


def _file(images: ImageList, number: int, thumbnails: Thumbnails) -> Picture:
    name = images.names[number]
    identity = images.identity(number) or f"label {images.labels[number]}"
    return Picture(thumbnails.of(images.path(number)), name, identity)


def _changes(stage: Stage, settings: dict) -> str:
    """A sentence about the augmentation."""
    on = [field.upper() for field in Augmentation._fields if settings[field]]
    what = ", ".join(on) if on else "no augmentation"
    if stage.cached:
        return (
            f"The {stage.name} stage was trained on features of its images, computed once, so this is its first "
            f"mini-batch with {what} only."
        )
    return f"The first mini-batch of the {stage.name} stage, with {what}."
