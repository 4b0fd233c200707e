"""Two photos: the same person or not?"""

from collections.abc import Sequence

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image
from tripletloss.deploy.faces import Detector, cut, weigh
from tripletloss.deploy.onnx_model import Model, threshold_advice


def threshold_of(model: Model) -> tuple[float, str]:
    """A model's threshold, the largest squared distance of one person, and what it was measured on, in words.

    Raises InputError if the model has none.
    """
    if "threshold" not in model.about:
        pairs = model.about.get("threshold_pairs", "not known")
        raise InputError(
            f"{model.name} has no threshold (pairs that it was measured on: {pairs}): {threshold_advice(model.about)}"
        )
    known = f"FAR {model.about['threshold_far']} on {model.about['threshold_pairs']}"
    return float(model.about["threshold"]), known


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
            notes.append(f"note: {path} has {len(found)} faces; the one around {x}, {y} (pixels) was taken")
        faces.append(cut(photo, detector.find_upright(photo, taken), model.size, model.points))
    one, other = model.embed(np.stack(faces), photos)
    return float(np.sum((one - other) ** 2)), notes
