"""Group a folder of images by identity: python -m tripletloss.cluster WEIGHTS --images FOLDER --out DIR."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.outputs import add_force, check_folder
from tripletloss.core.clustering import clustering
from tripletloss.data.lists import ImageList, notes_on_trained
from tripletloss.evaluation import grouping
from tripletloss.evaluation.arguments import add_arguments, add_weights, images_of, inputs_of, settings_of
from tripletloss.evaluation.embed import embed


def main() -> int:
    """Run python -m tripletloss.cluster. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.cluster",
        description="Group the images of a list or a folder by identity, and score that where they have labels.",
    )
    add_weights(parser)
    add_arguments(parser)
    parser.add_argument("--out", required=True, help="new folder for the groups' lists or folders, and clusters.jpg")
    add_force(parser)
    parser.add_argument(
        "--method", choices=("average", "dbscan"), default="average", help="of grouping (default: average linkage)"
    )
    parser.add_argument(
        "--threshold", metavar="DISTANCE", type=float,
        help="largest squared distance of one person (default: the best for HELD_OUT_LIST, by F)",
    )  # fmt: skip
    parser.add_argument("--copy", action="store_true", help="copy images into one folder per cluster, instead of lists")
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 < arguments.threshold < float("inf"):
        parser.error("--threshold is a squared distance above 0")
    return command.run("tripletloss.cluster", lambda: print(run(arguments)))


def run(arguments: argparse.Namespace) -> str:
    """Group the images that the arguments name. Returns text for the terminal. Raises InputError."""
    settings = settings_of(arguments)
    images = images_of(arguments, settings)
    check_folder(arguments.out, inputs_of(arguments, settings, images), arguments.force)
    if len(images.names) > grouping.MOST_IMAGES:
        raise InputError(
            f"{len(images.names)} images are too many: cluster groups {grouping.MOST_IMAGES} at most, so name fewer"
        )
    if arguments.threshold:
        threshold = grouping.Threshold(arguments.threshold, "given", images.labels >= 0)
    else:
        threshold = grouping.threshold_of(arguments.weights, settings, arguments.mirrored, images)
    rows = embed(arguments.weights, settings, settings["FEATURE"], images, arguments.mirrored).rows
    clusters = grouping.group(rows, arguments.method, threshold.value)
    grouping.write(arguments.out, images, clusters, arguments.copy, arguments.force)
    sizes = np.bincount(clusters)
    return "\n".join([
        f"{len(images.names)} images in {len(sizes)} clusters ({(sizes == 1).sum()} of one image), up to the squared "
        f"distance {threshold.value:.4g} ({threshold.origin}): {arguments.out}",
        *_score(arguments, settings, images, clusters, threshold.scored),
    ])  # fmt: skip


def _score(
    arguments: argparse.Namespace, settings: Mapping[str, Any], images: ImageList, clusters: np.ndarray,
    scored: np.ndarray,
) -> list[str]:  # fmt: skip
    """Lines about how well the clusters fit the labels of some of the images. clusters: (N,) int; scored: (N,) bool."""
    if not scored.any():
        if (images.labels < 0).all():
            return []
        return [
            "score      none: the threshold was chosen on these identities, which are too few to divide; set one with "
            "--threshold"
        ]
    notes = notes_on_trained(images.only(scored), settings["TRAIN_LISTS"], settings["IMAGEPATH"])
    of = clustering(clusters[scored], images.labels[scored])
    identities = len(np.unique(images.labels[scored]))
    return [
        *(f"note       {note}" for note in notes),
        f"score      NMI {of.nmi:.4f}, pairwise F {of.pairwise[2]:.4f} (precision {of.pairwise[0]:.3f}, recall "
        f"{of.pairwise[1]:.3f}), B-cubed F {of.b_cubed[2]:.4f}; {scored.sum()} images of {identities} identities"
        + ("" if arguments.threshold else ", none of which the threshold was chosen on"),
    ]


if __name__ == "__main__":
    sys.exit(main())
