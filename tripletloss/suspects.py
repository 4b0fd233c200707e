"""Images that are probably mislabelled: python -m tripletloss.suspects WEIGHTS. It suggests and never deletes."""

import argparse
import os
import sys
from collections.abc import Mapping

import numpy as np
from tabulate import tabulate

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.data.lists import ImageList
from tripletloss.evaluation import review, suspects
from tripletloss.evaluation.arguments import add_arguments, add_weights, images_of, inputs_of, settings_of
from tripletloss.evaluation.embed import embed


def main() -> int:
    """Run python -m tripletloss.suspects. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.suspects",
        description="Rank the images of a list by how probably they are mislabelled: far from their own identity, and "
        "close to another. It only suggests: look at the images.",
    )
    add_weights(parser)
    add_arguments(parser, "TRAIN_LIST")
    parser.add_argument("--top", metavar="N", type=int, default=30, help="how many to show (default: 30)")
    parser.add_argument("--out", default="suspects", help="write OUT.csv, all images, and OUT.jpg (default: suspects)")
    parser.add_argument("--review", metavar="PAGE.html", help="also write a page on which to decide about the shown")
    add_force(parser)
    command.add_json(parser)
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error("--top must be 1 or more")
    return command.run("tripletloss.suspects", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Rank the images that the arguments name, write the ranking, and print its beginning. Raises InputError."""
    settings = settings_of(arguments)
    images = images_of(arguments, settings)
    if len(np.unique(images.labels)) < 2 or (images.labels < 0).any():
        raise InputError(f"{images.source} must have two identities or more, and say one for every image")
    if arguments.review and not os.path.isfile(images.source):
        raise InputError("--review needs a list file, whose labels it decides about: name one with --list")
    outputs = [f"{arguments.out}.csv", f"{arguments.out}.jpg", *filter(None, [arguments.review])]
    check_outputs(outputs, inputs_of(arguments, settings, images), arguments.force)
    rows = embed(arguments.weights, settings, settings["FEATURE"], images, arguments.mirrored).rows
    found = suspects.suspicion(rows, images.labels)
    order, who = suspects.rank(found), images.identities_of_labels()
    suspects.write(arguments.out, images, found, order, arguments.top, who)
    if arguments.review:
        review.write(arguments.review, images, found, order[: arguments.top], who)
    more = int((found.score > 0.5).sum())
    if arguments.json:
        shown = [suspects.record(images, found, who, i) for i in order[: arguments.top]]
        about = {"list": images.source, "images": len(order), "identities": len(who), "nearer_to_another": more}
        print(command.as_json({**about, "suspects": shown, "written": outputs}))
    else:
        _say(arguments, images, found, order, who, more)


def _say(
    arguments: argparse.Namespace, images: ImageList, found: suspects.Suspicion, order: np.ndarray,
    who: Mapping[int, str], more: int,
) -> None:  # fmt: skip
    """Print the first of the ranked images. more: how many images are nearer to another identity than to their own."""
    shown = [
        [images.names[i], *(f"{label} {who[label]}".rstrip() for label in (images.labels[i], found.nearest[i])),
         *(f"{value:.3f}" for value in (found.score[i], found.own[i], found.other[i]))]
        for i in order[: arguments.top]
    ]  # fmt: skip
    print(f"images     {len(order)} of {len(who)} identities ({images.source})\n")
    headers = ["image", "label", "rather", "score", "d own", "d other"]
    sides = ["left"] * 3 + ["right"] * 3
    print(tabulate(shown, headers, tablefmt="simple", disable_numparse=True, colalign=sides))
    print(f"\n{more} of {len(order)} images are nearer to another identity than to their own (score above 0.5)")
    print(f"{arguments.out}.csv ranks all images; {arguments.out}.jpg shows each suspect, its identity, and the other")
    if arguments.review:
        print(f"{arguments.review} is the page on which to decide: open it in a browser")


if __name__ == "__main__":
    sys.exit(main())
