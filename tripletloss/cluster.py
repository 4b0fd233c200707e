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
from tripletloss.data.lists import notes_on_trained
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
    command.add_json(parser)
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
    """Group the images that the arguments name. Returns the answer, as text or JSON. Raises InputError."""
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
    score, notes = _score(clusters[threshold.scored], images.labels[threshold.scored]), []
    if score:
        notes = notes_on_trained(images.only(threshold.scored), settings["TRAIN_LISTS"], settings["IMAGEPATH"])
    answer = {
        "list": images.source, "images": len(images.names), "threshold": threshold.value,
        "threshold_from": threshold.origin, "out": arguments.out, "notes": notes, "score": score,
        "groups": [[images.names[one] for one in np.flatnonzero(clusters == k)] for k in range(clusters.max() + 1)],
    }  # fmt: skip
    return command.as_json(answer) if arguments.json else _describe(answer, bool((images.labels >= 0).any()))


def _score(clusters: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    """How well clusters fit labels, both (S,) int; None without any."""
    if not len(labels):
        return None
    found, names = clustering(clusters, labels), ("precision", "recall", "F")
    return {
        "images": len(labels), "identities": len(np.unique(labels)), "NMI": found.nmi,
        "pairwise": dict(zip(names, found.pairwise, strict=True)),
        "B-cubed": dict(zip(names, found.b_cubed, strict=True)),
    }  # fmt: skip


def _describe(answer: Mapping[str, Any], labelled: bool) -> str:
    """The answer as text. labelled: whether some of the images have labels."""
    sizes, score = [len(group) for group in answer["groups"]], answer["score"]
    lines = [
        f"{answer['images']} images in {len(sizes)} clusters ({sizes.count(1)} of one image), up to the squared "
        f"distance {answer['threshold']:.4g} ({answer['threshold_from']}): {answer['out']}",
        *(f"note       {note}" for note in answer["notes"]),
    ]
    if score:
        pairs = score["pairwise"]
        lines.append(
            f"score      NMI {score['NMI']:.4f}, pairwise F {pairs['F']:.4f} (precision {pairs['precision']:.3f}, "
            f"recall {pairs['recall']:.3f}), B-cubed F {score['B-cubed']['F']:.4f}; {score['images']} images of "
            f"{score['identities']} identities"
            + ("" if answer["threshold_from"] == "given" else ", none of which the threshold was chosen on")
        )
    elif labelled:
        lines.append(
            "score      none: the threshold was chosen on these identities, which are too few to divide; set one with "
            "--threshold"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
