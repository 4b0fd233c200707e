"""Render synthetic face identities: python -m faces --identities 997 --images 30 --out DIR."""

import argparse
import sys

from faces.dataset import CAMERAS, render_dataset
from tripletloss.base import command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = command.Parser(
        prog="python -m faces",
        description="Render synthetic face identities to train on, with the list file that training reads. "
        "The same seed gives the same pictures. You can stop it at any time; the same command resumes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--identities", metavar="N", type=_positive, default=997, help="number of people")
    parser.add_argument("--images", metavar="N", type=_positive, default=30, help="pictures per person")
    parser.add_argument(
        "--size", metavar="PIXELS", type=_positive, default=112, help="side of each picture that is written"
    )
    parser.add_argument(
        "--camera", choices=CAMERAS, default="press",
        help="whose pictures: a press photographer's, or a ceiling camera's, which are grey, grainy and from above",
    )  # fmt: skip
    parser.add_argument("--out", required=True, default=argparse.SUPPRESS, help="folder to write to")
    parser.add_argument(
        "--seed", metavar="N", type=_natural, default=0, help="seed of everything that is drawn at random"
    )
    parser.add_argument("--workers", metavar="N", type=_positive, default=2, help="number of processes")
    parser.add_argument(
        "--first", metavar="N", type=_natural, default=0,
        help="number of the first person; a run from 0 has the people 0, 1, ...",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.size < 32:
        parser.error("argument --size: must be at least 32, as smaller faces cannot be told apart")
    return options


def _natural(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    options = parse_arguments(arguments)

    def render():
        made = render_dataset(**vars(options))
        total = options.identities * options.images
        print(f"{options.out}: {total} images of {options.identities} people, {made} of them rendered now")

    return command.run("faces", render, "stopped; finished images are kept, and the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
