"""Group a folder of images by identity: python -m tripletloss.cluster WEIGHTS --images FOLDER --out DIR."""

import argparse
import os
import shutil
import sys

import numpy as np
from sklearn.cluster import DBSCAN

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.core import metrics
from tripletloss.dataset import read_list
from tripletloss.evaluation import montage
from tripletloss.extract import add_arguments, embed, images_of, settings_of

MOST_IMAGES = 20_000  # distances of all pairs are kept
SHOWN_CLUSTERS, SHOWN_IMAGES = 12, 12


def threshold_of(weights, settings, mirrored):
    """The squared distance up to which pairs of HELD_OUT_LIST are called the same with the highest F.

    Raises InputError if there is no such list.
    """
    source = settings["HELD_OUT_LIST"]
    if not source:
        raise InputError("the config has no HELD_OUT_LIST to take the threshold from: give --threshold")
    held_out = read_list(source, settings["IMAGEPATH"])
    rows = embed(weights, settings, settings["FEATURE"], held_out, mirrored).rows
    pairs = metrics.pairs_of(held_out.labels)
    return metrics.threshold_of_best_f(metrics.pair_distances(rows, pairs.first, pairs.second), pairs.same)


def group(rows, method, threshold):
    """Cluster numbers (N,) of embeddings (N, D), 0 the largest; up to a squared distance.

    method: 'average', agglomerative with average linkage; or 'dbscan', chains of near images, each with one or more
    neighbours (a lone image is a cluster of its own).
    """
    if method == "average":
        return metrics.cluster(rows, threshold)
    found = DBSCAN(eps=np.sqrt(threshold), min_samples=2).fit_predict(rows)
    alone = np.flatnonzero(found < 0)
    found[alone] = found.max() + 1 + np.arange(len(alone))
    return metrics.by_size(found)


def write(out, images, clusters, copy):
    """Write one list a cluster, or with copy one folder of images; and the montage of the largest clusters."""
    try:
        os.makedirs(out)
        for number in range(clusters.max() + 1):
            members = np.flatnonzero(clusters == number)
            name = os.path.join(out, f"cluster{number:04d}")
            if copy:
                os.makedirs(name)
                for member in members:
                    shutil.copy(images.path(member), os.path.join(name, images.names[member].replace("/", "__")))
            else:
                with open(f"{name}.txt", "w", encoding="utf-8") as file:
                    file.writelines(f"{images.names[member]}\n" for member in members)
    except FileExistsError:
        raise InputError(f"{out} is there already: move it away, or choose another --out") from None
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be written ({error.strerror}): choose another --out"
        ) from None
    rows = []
    for number in range(min(SHOWN_CLUSTERS, clusters.max() + 1)):
        members = np.flatnonzero(clusters == number)
        rows.append(montage.Row(f"cluster {number}: {len(members)} images", [members[:SHOWN_IMAGES]]))
    montage.draw(os.path.join(out, "clusters.jpg"), images, rows)


def main():
    """python -m tripletloss.cluster. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.cluster",
        description="Group the images of a list, or of a folder, by identity, and score that where they are labelled.",
    )
    parser.add_argument("weights", help="a .caffemodel of this project's")
    add_arguments(parser)
    parser.add_argument("--out", required=True, help="folder to write, a new one: lists, or folders, and clusters.jpg")
    parser.add_argument("--method", choices=("average", "dbscan"), default="average", help="(default: average linkage)")
    parser.add_argument("--threshold", type=float, help="squared distance (default: the best F's on HELD_OUT_LIST)")
    parser.add_argument("--copy", action="store_true", help="copy images into a folder a cluster, instead of lists")
    arguments = parser.parse_args()
    if arguments.threshold is not None and not 0 < arguments.threshold < float("inf"):
        parser.error("--threshold is a squared distance above 0")
    return command.run("tripletloss.cluster", lambda: print(run(arguments)))


def run(arguments):
    """What the arguments ask for; returns what to say. Raises InputError."""
    settings = settings_of(arguments)
    images = images_of(arguments, settings)
    if os.path.exists(arguments.out):
        raise InputError(f"{arguments.out} is there already: move it away, or choose another --out")
    if len(images.names) > MOST_IMAGES:
        raise InputError(f"{len(images.names)} images are more than the {MOST_IMAGES} that are clustered at once")
    threshold = arguments.threshold or threshold_of(arguments.weights, settings, arguments.mirrored)
    rows = embed(arguments.weights, settings, settings["FEATURE"], images, arguments.mirrored).rows
    clusters = group(rows, arguments.method, threshold)
    write(arguments.out, images, clusters, arguments.copy)
    sizes = np.bincount(clusters)
    lines = [
        f"{len(images.names)} images in {len(sizes)} clusters ({(sizes == 1).sum()} of one image), up to the squared "
        f"distance {threshold:.4g}: {arguments.out}"
    ]
    known = images.labels >= 0
    if known.any():
        of = metrics.clustering(clusters[known], images.labels[known])
        people = len(np.unique(images.labels[known]))
        lines.append(
            f"score      NMI {of.nmi:.4f}, pairwise F {of.pairwise[2]:.4f} (precision {of.pairwise[0]:.3f}, recall "
            f"{of.pairwise[1]:.3f}), B-cubed F {of.b_cubed[2]:.4f}; {known.sum()} images of {people} identities"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
