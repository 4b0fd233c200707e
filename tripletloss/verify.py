"""The same person in two photos? python -m tripletloss.verify [MODEL.onnx] ONE.jpg OTHER.jpg.

One face of each photo is found, cut out as the model takes it, and embedded by a model of tripletloss.export. The
squared distance of the two embeddings is compared with the model's thresholds. This needs no Caffe.
"""

import argparse
import os
import sys

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.config import PROJECT
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.verification import Thresholds, distance, thresholds_of

SAME, NOT_SAME, FAILED, CANNOT_TELL = 0, 1, 2, 3  # exit statuses; argparse has 2 for wrong arguments, too
IN_JSON = {SAME: "same", NOT_SAME: "different", CANNOT_TELL: "cannot tell"}
DEFAULT_MODEL = os.path.join(PROJECT, "models", "dlib_resnet", "dlib_resnet.onnx")


def main() -> int:
    """Run python -m tripletloss.verify. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.verify",
        description="Say whether two photos show the same person. Needs no Caffe.",
        epilog="The exit status is 0 for the same person, 1 for two people, 2 if something is wrong, such as a photo "
        "without a face, and 3 if the distance does not tell.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", default=DEFAULT_MODEL,
        help="an .onnx file of tripletloss.export (default: dlib_resnet, as make onnx makes it)",
    )  # fmt: skip
    parser.add_argument("photos", nargs=2, metavar="PHOTO", help="a photo with a face")
    parser.add_argument(
        "--threshold", metavar="DISTANCE", type=float,
        help="largest squared distance of one person (default: the model's)",
    )  # fmt: skip
    command.add_json(parser)
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 <= arguments.threshold < float("inf"):
        parser.error("--threshold is a squared distance, 0 or more")
    return command.run(command.VERIFY, lambda: run(arguments), failure=FAILED)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer for two photos. Returns SAME, NOT_SAME or CANNOT_TELL. Raises InputError."""
    if arguments.model == DEFAULT_MODEL and not os.path.exists(DEFAULT_MODEL):
        raise InputError(f"{os.path.relpath(DEFAULT_MODEL)} is not there yet: run make onnx, or name a model first")
    model, given = Model(arguments.model), arguments.threshold
    thresholds = thresholds_of(model) if given is None else Thresholds(given, "given", given, "given", "")
    found, notes = distance(model, arguments.photos)
    status, answer = answer_of(found, thresholds)
    if arguments.json:
        print(command.as_json({
            "answer": IN_JSON[status], "distance": found, "threshold": thresholds.same,
            "threshold_different": thresholds.different, "threshold_pairs": thresholds.pairs, "notes": notes,
        }))  # fmt: skip
        return status
    print(answer)
    for note in notes:
        print(f"note: {note}")
    return status


def answer_of(found: float, thresholds: Thresholds) -> tuple[int, str]:
    """The exit status and the answer for a squared distance."""
    same, about_same, different, about_different, pairs = thresholds
    on = f"; on {pairs}" if pairs else ""
    if found <= same:
        return SAME, f"the same person: squared distance {found:.3f}, threshold {same:.3f} ({about_same}{on})"
    if found > different or same == different:
        return NOT_SAME, f"two people: squared distance {found:.3f}, threshold {different:.3f} ({about_different}{on})"
    return CANNOT_TELL, (
        f"cannot tell: squared distance {found:.3f}, between the thresholds {same:.3f} ({about_same}) and "
        f"{different:.3f} ({about_different}{on})"
    )


if __name__ == "__main__":
    sys.exit(main())
