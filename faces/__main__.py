"""Render synthetic face identities: python -m faces --identities 997 --images 30 --out DIR."""

import argparse
import sys

from faces.dataset import render_dataset
from tripletloss.base import command


def parse_arguments(arguments=None):
    """The command line, as a namespace."""
    parser = argparse.ArgumentParser(
        prog="python -m faces",
        description="Render synthetic face identities to train on, with the list file that training reads. "
        "The same seed gives the same pictures. Stop it at any time; the same command goes on from there.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--identities", type=_positive, default=997, help="number of people")
    parser.add_argument("--images", type=_positive, default=30, help="pictures of each")
    parser.add_argument("--size", type=_positive, default=112, help="side of a picture, pixels; at least 32")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--seed", type=_natural, default=0, help="of all that is drawn at random")
    parser.add_argument("--workers", type=_positive, default=2, help="processes")
    parser.add_argument(
        "--first", type=_natural, default=0, help="number of the first person: others than a run from 0 has"
    )
    options = parser.parse_args(arguments)
    if options.size < 32:
        parser.error("argument --size: at least 32 pixels, or nobody can be told")
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


def main(arguments=None):
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)

    def render():
        made = render_dataset(**vars(options))
        total = options.identities * options.images
        print(f"{options.out}: {total} images of {options.identities} people, {made} of them rendered now")

    return command.run("faces", render, "stopped; what is rendered is kept, and the same command goes on from there")


if __name__ == "__main__":
    sys.exit(main())
