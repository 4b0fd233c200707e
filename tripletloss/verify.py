"""Two photos: the same person or not? python -m tripletloss.verify MODEL.onnx ONE.jpg OTHER.jpg.

From a camera's photo to the answer, without Caffe: one face is found and cut out (deploy/faces.py), embedded by a
model of tripletloss.export, and the squared distance compared with the model's threshold.
"""

import argparse
import sys

import numpy as np

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image
from tripletloss.deploy.faces import Detector, cut, weigh
from tripletloss.deploy.onnx_model import Model, threshold_advice

SAME, NOT_SAME, NO_ANSWER = 0, 1, 2  # exit statuses; argparse has 2 for wrong arguments, too


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


def main():
    """python -m tripletloss.verify. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.verify",
        description="Say whether two photos show the same person. Needs no Caffe.",
        epilog="The exit status is 0 for the same person, 1 for two people, and 2 if there is no answer.",
    )
    parser.add_argument("model", help="an .onnx file of tripletloss.export")
    parser.add_argument("photos", nargs=2, metavar="PHOTO")
    parser.add_argument("--threshold", type=float, help="squared distance of the same person (default: the model's)")
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 <= arguments.threshold < float("inf"):
        parser.error("--threshold is a squared distance, 0 or more")
    return command.run("tripletloss.verify", lambda: run(arguments), failure=NO_ANSWER)


def run(arguments):
    """Print the answer for two photos. Returns SAME or NOT_SAME; raises InputError."""
    model = Model(arguments.model)
    threshold, known = arguments.threshold, "given"
    if threshold is None:
        if "threshold" not in model.about:
            pairs = model.about.get("threshold_pairs", "not known")
            raise InputError(
                f"{arguments.model} has no threshold (pairs that it was measured on: {pairs}): "
                f"{threshold_advice(model.about)}"
            )
        threshold = float(model.about["threshold"])
        known = f"FAR {model.about['threshold_far']} on {model.about['threshold_pairs']}"
    found, notes = distance(model, arguments.photos)
    same = found <= threshold
    answer = "the same person" if same else "not the same person"
    print(f"{answer}: squared distance {found:.3f}, threshold {threshold:.3f} ({known})")
    for note in notes:
        print(note)
    return SAME if same else NOT_SAME


if __name__ == "__main__":
    sys.exit(main())
