"""Two photos: the same person or not?"""

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image
from tripletloss.deploy.faces import Detector, cut, weigh
from tripletloss.deploy.onnx_model import threshold_advice


def threshold_of(model):
    """The squared distance of one person that a Model says, and what it was measured on. Raises InputError for none."""
    if "threshold" not in model.about:
        pairs = model.about.get("threshold_pairs", "not known")
        raise InputError(
            f"{model.name} has no threshold (pairs that it was measured on: {pairs}): {threshold_advice(model.about)}"
        )
    known = f"FAR {model.about['threshold_far']} on {model.about['threshold_pairs']}"
    return float(model.about["threshold"]), known


def distance(model, photos):
    """The squared distance of the faces in two photos, by their paths, and sentences about photos with several faces.

    Raises InputError if one has no face.
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
        faces.append(cut(photo, detector.find_upright(photo, taken), model.size))
    one, other = model.embed(np.stack(faces), photos)
    return float(np.sum((one - other) ** 2)), notes
