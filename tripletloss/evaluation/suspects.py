"""Images that are probably mislabelled: far from their own identity, and close to another."""

import csv
import os
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import whole_files
from tripletloss.core.distances import distance_blocks
from tripletloss.data import montage
from tripletloss.data.images import read_image
from tripletloss.data.lists import identity_of

NEIGHBOURS = 3  # an image is compared with the nearest so many of an identity, as one may be mislabelled itself


class Suspicion(NamedTuple):
    """How each image stands to its own identity and to the nearest other one. Distances are squared, each (N,)."""

    own: np.ndarray  # median distance to the other images of its identity; inf for an only image
    other: np.ndarray  # mean distance to the NEIGHBOURS nearest images of the identity that is nearest
    nearest: np.ndarray  # (N,) int: that identity's label
    score: np.ndarray  # own / (own + other): 0 at its identity's, 1 at another's; 0 for an only image


def suspicion(embeddings, labels):
    """Suspicion of all images: embeddings (N, D), labels (N,) of two identities or more. Memory: blocks of N rows."""
    names, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    starts = np.cumsum(sizes) - sizes
    n = len(labels)
    own, other, nearest = np.full(n, np.inf), np.full(n, np.inf), np.zeros(n, np.int64)
    for block, distances in distance_blocks(embeddings, np.arange(n)):
        by_identity = distances[:, order]
        for row, image in zip(by_identity, block, strict=True):
            mine = numbers[image]
            start, size = starts[mine], sizes[mine]
            others = np.delete(row[start : start + size], int(np.searchsorted(order[start : start + size], image)))
            if len(others):
                own[image] = np.median(others)
            row[start : start + size] = np.inf
            near = np.argpartition(row, min(NEIGHBOURS * 8, n - 1))[: NEIGHBOURS * 8]
            near = near[np.argsort(row[near], kind="stable")]
            # The identity that first gathers NEIGHBOURS among the nearest, or all its images, or else the nearest one.
            owners = numbers[order[near]]
            seen = {}
            for place, owner in enumerate(owners):
                seen.setdefault(owner, []).append(place)
                if len(seen[owner]) == min(NEIGHBOURS, sizes[owner]):
                    break
            else:
                owner = owners[0]
            other[image], nearest[image] = row[near[seen[owner]]].mean(), owner
    with np.errstate(invalid="ignore"):
        score = np.where(np.isfinite(own), own / np.maximum(own + other, 1e-30), 0)
    return Suspicion(own, other, names[nearest], score)


def rank(found):
    """The images from the most suspicious on: their numbers (N,)."""
    return np.argsort(-found.score, kind="stable")


def identities_of(images):
    """Label -> the name of its identity, or '' where the list has none, for all labels of an ImageList."""
    return {label: identity_of(name) for name, label in zip(images.names, images.labels.tolist(), strict=True)}


def write(out, images, found, order, top, who):
    """Write the table of all images and the contact sheet of the first `top`. who: label -> name. Raises InputError."""
    rows = []
    for i in order[:top]:
        mine = [j for j in np.flatnonzero(images.labels == images.labels[i]) if j != i][:4]
        theirs = np.flatnonzero(images.labels == found.nearest[i])[:4]
        rows.append(montage.Row(f"{images.labels[i]} or {found.nearest[i]}?", [[i], mine, theirs]))
    try:
        folder, name = os.path.split(out)
        with whole_files(folder or ".") as part:
            path = os.path.join(part, name)
            with open(f"{path}.csv", "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(["image", "label", "identity", "nearest_other_label", "nearest_other_identity", "score",
                                "d_own", "d_other"])  # fmt: skip
                for i in order:
                    mine, other = images.labels[i], found.nearest[i]
                    values = (f"{value:.6g}" for value in (found.score[i], found.own[i], found.other[i]))
                    table.writerow([images.names[i], mine, who[mine], other, who[other], *values])
            montage.draw(f"{path}.jpg", lambda number: read_image(images.path(number)), rows)
    except OSError as error:
        raise InputError(f"{out}.csv or .jpg cannot be written ({error.strerror}): choose another --out") from None
