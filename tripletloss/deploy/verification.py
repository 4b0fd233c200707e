"""Two photos: the same person or not?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image
from tripletloss.deploy.faces import Detector, cut, weigh
from tripletloss.deploy.onnx_model import Model, threshold_advice


class Thresholds(NamedTuple):
    """Squared distances that decide, and what they were measured on. Between them, a distance does not tell."""

    same: float  # the largest of one person
    about_same: str  # how often it is wrong, in words
    different: float  # beyond it, there are two people; the same number if nothing lies between
    about_different: str
    pairs: str  # that both were measured on, or ''


def thresholds_of(model: Model) -> Thresholds:
    """A model's thresholds. Raises InputError if it has none."""
    about = model.about
    if "threshold" not in about:
        pairs = about.get("threshold_pairs", "not known")
        raise InputError(
            f"{model.name} has no threshold (pairs that it was measured on: {pairs}): {threshold_advice(about)}"
        )
    same, about_same = float(about["threshold"]), f"FAR {about['threshold_far']}"
    if "threshold_tar" in about:
        about_same += f", TAR {float(about['threshold_tar']):.3f}"
    different, about_different = same, about_same
    if "threshold_different" in about:
        different = float(about["threshold_different"])
        about_different = f"FRR {about['threshold_frr']}, TRR {float(about['threshold_trr']):.3f}"
    return Thresholds(same, about_same, different, about_different, about["threshold_pairs"])


def distance(model: Model, photos: Sequence[str]) -> tuple[float, list[str]]:
    """The squared distance between the faces in two photos, and a note about each photo with several faces.

    photos: their paths. Raises InputError if a photo cannot be read or has no face.
    """
    detector, faces, notes = Detector(), [], []
    for path in photos:
        photo = read_image(path)
        found = detector.find(photo)
        if not found:
            raise InputError(f"no face found in {path}: show it larger, upright and from the front")
        taken = found[int(np.argmax(weigh(found, photo.shape)))]
        if len(found) > 1:
            x, y = (round(number) for number in taken.box[:2] + taken.box[2:] / 2)
            notes.append(f"{path} has {len(found)} faces; the one around {x}, {y} (pixels) was taken")
        faces.append(cut(photo, detector.find_upright(photo, taken), model.size, model.points))
    one, other = model.embed(np.stack(faces), photos)
    return float(np.sum((one - other) ** 2)), notes
