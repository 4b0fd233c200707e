"""The same person in two photos? python -m tripletloss.verify MODEL.onnx ONE.jpg OTHER.jpg.

One face of each photo is found, cut out, and embedded by a model of tripletloss.export. The squared distance of the
two embeddings is compared with the model's threshold. This needs no Caffe.
"""

import argparse
import sys

from tripletloss.base import command
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.verification import distance, threshold_of

SAME, NOT_SAME, NO_ANSWER = 0, 1, 2  # exit statuses; argparse has 2 for wrong arguments, too


def main() -> int:
    """Run python -m tripletloss.verify. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.verify",
        description="Say whether two photos show the same person. Needs no Caffe.",
        epilog="The exit status is 0 for the same person, 1 for two people, and 2 if there is no answer.",
    )
    parser.add_argument("model", help="an .onnx file of tripletloss.export")
    parser.add_argument("photos", nargs=2, metavar="PHOTO")
    parser.add_argument("--threshold", type=float, help="largest squared distance of one person (default: the model's)")
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 <= arguments.threshold < float("inf"):
        parser.error("--threshold is a squared distance, 0 or more")
    return command.run("tripletloss.verify", lambda: run(arguments), failure=NO_ANSWER)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer for two photos. Returns SAME or NOT_SAME. Raises InputError."""
    model = Model(arguments.model)
    threshold, known = arguments.threshold, "given"
    if threshold is None:
        threshold, known = threshold_of(model)
    found, notes = distance(model, arguments.photos)
    same = found <= threshold
    answer = "the same person" if same else "not the same person"
    print(f"{answer}: squared distance {found:.3f}, threshold {threshold:.3f} ({known})")
    for note in notes:
        print(note)
    return SAME if same else NOT_SAME


if __name__ == "__main__":
    sys.exit(main())
