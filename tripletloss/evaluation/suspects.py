"""Images that are probably mislabelled: far from their own identity and close to another."""

import csv
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import whole_files
from tripletloss.core.distances import distance_blocks
from tripletloss.data import montage
from tripletloss.data.images import read_image
from tripletloss.data.lists import ImageList

NEIGHBOURS = 3  # of an identity, with which an image is compared, since one may itself be mislabelled


class Suspicion(NamedTuple):
    """How far each image is from its own identity and from the nearest other one. All are (N,), distances squared."""

    own: np.ndarray  # median distance to the other images of its identity; inf if there are none
    other: np.ndarray  # mean distance to the NEIGHBOURS nearest images of the nearest other identity
    nearest: np.ndarray  # int: the label of that identity
    score: np.ndarray  # own / (own + other): near 0 at its own identity, near 1 at another; 0 if `own` is inf


def suspicion(embeddings: np.ndarray, labels: np.ndarray) -> Suspicion:
    """Compare each image with its own identity and with the others.

    embeddings: (N, D); labels: (N,), of two identities or more. The distances are computed in blocks of rows, so memory
    grows with N, not N^2.
    """
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
            other[image], nearest[image] = _nearest_identity(row, numbers[order], sizes)
    with np.errstate(invalid="ignore"):
        score = np.where(np.isfinite(own), own / np.maximum(own + other, 1e-30), 0)
    return Suspicion(own, other, names[nearest], score)


def _nearest_identity(distances: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> tuple[float, int]:
    """The mean distance of the NEIGHBOURS nearest images of the nearest identity, and that identity.

    distances: (N,), to all images, inf for those that do not count; owners: (N,), the images' identities, 0..I - 1;
    sizes: (I,), how many images an identity has.
    """
    near = np.argpartition(distances, min(NEIGHBOURS * 8, len(distances) - 1))[: NEIGHBOURS * 8]
    near = near[np.argsort(distances[near], kind="stable")]
    # The first identity with NEIGHBOURS images, or all of its own, among the nearest images; else that of the nearest.
    seen: dict[int, list[int]] = {}
    for image in near:
        mine = seen.setdefault(owners[image], [])
        mine.append(image)
        if len(mine) == min(NEIGHBOURS, sizes[owners[image]]):
            break
    else:
        mine = seen[owners[near[0]]]
    return float(distances[mine].mean()), owners[mine[0]]


def rank(found: Suspicion) -> np.ndarray:
    """The images' numbers, (N,), the most suspicious first."""
    return np.argsort(-found.score, kind="stable")


def record(images: ImageList, found: Suspicion, who: Mapping[int, str], image: int) -> dict[str, Any]:
    """What is known of an image, by the names that OUT.csv gives its columns. who: of identities_of_labels()."""
    mine, other = int(images.labels[image]), int(found.nearest[image])
    return {
        "image": images.names[image], "label": mine, "identity": who[mine], "nearest_other_label": other,
        "nearest_other_identity": who[other], "score": float(found.score[image]), "d_own": float(found.own[image]),
        "d_other": float(found.other[image]),
    }  # fmt: skip


def write(
    out: str, images: ImageList, found: Suspicion, order: np.ndarray, top: int, who: Mapping[int, str]
) -> None:  # fmt: skip
    """Write OUT.csv, a table of all images, and OUT.jpg, a contact sheet of the first `top`. Raises InputError.

    order: of rank(); who: of identities_of_labels().
    """
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
                table = csv.DictWriter(file, record(images, found, who, 0))
                table.writeheader()
                for i in order:
                    row = record(images, found, who, i)
                    rounded = {name: f"{row[name]:.6g}" for name in ("score", "d_own", "d_other")}
                    table.writerow({**row, **rounded})
            montage.draw(f"{path}.jpg", lambda number: read_image(images.path(number)), rows)
    except OSError as error:
        raise InputError(f"{out}.csv or .jpg cannot be written ({error.strerror}): choose another --out") from None
