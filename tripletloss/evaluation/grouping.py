"""Group images by identity."""

import os
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import whole_folder
from tripletloss.base.outputs import distinct
from tripletloss.config import need_files
from tripletloss.core import clustering
from tripletloss.core.distances import rounding_of
from tripletloss.core.pairs import different_weight, pair_distances, pairs_of
from tripletloss.data import montage
from tripletloss.data.folders import check_cut
from tripletloss.data.images import read_image
from tripletloss.data.lists import ImageList, read_list, show_one_of
from tripletloss.evaluation.embed import embed

MOST_IMAGES = 20_000  # since the distances of all pairs are kept
LONGEST_NAME = 200  # bytes, of the 255 that file systems allow
SHOWN_CLUSTERS, SHOWN_IMAGES = 12, 12


class Threshold(NamedTuple):
    """The squared distance up to which images are grouped, where it comes from, and which images may score it."""

    value: float
    origin: str  # in words
    scored: np.ndarray  # (N,) bool: the images that have a label and that the threshold was not chosen on


def threshold_of(weights: str, settings: Mapping[str, Any], mirrored: bool, images: ImageList) -> Threshold:
    """The threshold with the highest pairwise F on the pairs of HELD_OUT_LIST.

    weights, settings, mirrored: as for embed(); images: those to group. If two or more identities of `images` are not
    in HELD_OUT_LIST, these are scored. Otherwise the threshold is chosen on half of the list's identities, drawn with
    SEED, and the other half is scored; if half of them is too few, none are scored. Raises InputError if there is no
    HELD_OUT_LIST, or if all its pairs are of one kind.
    """
    source = settings["HELD_OUT_LIST"]
    if not source:
        raise InputError("the config has no HELD_OUT_LIST to choose a threshold on: set one with --threshold")
    need_files(settings, "IMAGEPATH", "HELD_OUT_LIST")
    check_cut(settings["IMAGEPATH"], settings)
    held_out = read_list(source, settings["IMAGEPATH"])
    known = images.labels >= 0
    scored, chosen_on = known & ~show_one_of(images, held_out), held_out
    people = np.unique(held_out.labels)
    if known.any() and _identities(images, scored) < 2:
        scored = np.zeros(len(known), bool)
        half = np.random.default_rng(settings["SEED"]).permutation(people)[: -(-len(people) // 2)]
        some = held_out.only(np.isin(held_out.labels, half))
        others = known & ~show_one_of(images, some)
        if _has_pairs(some) and _identities(images, others) >= 2:
            scored, chosen_on = others, some
    if not _has_pairs(chosen_on):
        raise InputError(
            f"no threshold can be chosen on {source}, which needs two identities or more, one of them with two images: "
            "set one with --threshold"
        )
    rows = embed(weights, settings, settings["FEATURE"], chosen_on, mirrored).rows
    pairs = pairs_of(chosen_on.labels)
    distances = pair_distances(rows, pairs.first, pairs.second)
    value = clustering.threshold_of_best_f(distances, pairs.same, different_weight(pairs, chosen_on.labels))
    count = _identities(chosen_on, chosen_on.labels >= 0)
    which = f"{count} of the {len(people)}" if count < len(people) else f"the {count}"
    return Threshold(value, f"best pairwise F of {which} identities of {source}", scored)


def _has_pairs(images: ImageList) -> bool:
    """Whether a list has pairs of both kinds."""
    sizes = np.unique(images.labels, return_counts=True)[1]
    return len(sizes) > 1 and sizes.max() > 1


def _identities(images: ImageList, which: np.ndarray) -> int:
    """How many identities some of the images have. which: (N,) bool."""
    return len(np.unique(images.labels[which]))


def group(rows: np.ndarray, method: str, threshold: float) -> np.ndarray:
    """Group embeddings (N, D) up to a squared distance. Returns cluster numbers (N,), with 0 for the largest cluster.

    method: 'average', agglomerative clustering with average linkage; or 'dbscan', chains of images that each have a
    neighbour (an image without one is a cluster by itself).
    """
    if method == "average":
        return clustering.cluster(rows, threshold)
    from sklearn.cluster import DBSCAN  # takes half a second, and train.py imports this module

    reach = np.nextafter(np.sqrt(threshold) + rounding_of(rows), np.inf)  # as in clustering.cluster
    found = DBSCAN(eps=reach, min_samples=2).fit_predict(rows)
    alone = np.flatnonzero(found < 0)
    found[alone] = found.max() + 1 + np.arange(len(alone))
    return clustering.by_size(found)


def write(out: str, images: ImageList, clusters: np.ndarray, copy: bool, force: bool = False) -> None:
    """Write clusters into a new folder: one list per cluster, and a contact sheet of the largest ones.

    clusters: (N,), the images' cluster numbers; copy: write one folder of images per cluster, not a list; force:
    whether `out` may be replaced. Raises InputError.
    """
    try:
        with whole_folder(out, force) as part:
            for number in range(clusters.max() + 1):
                members = np.flatnonzero(clusters == number)
                name = os.path.join(part, f"cluster{number:04d}")
                if copy:
                    os.mkdir(name)
                    for member, copied in zip(members, _flat_names(images, members), strict=True):
                        shutil.copy(images.path(int(member)), os.path.join(name, copied))
                else:
                    with open(f"{name}.txt", "w", encoding="utf-8") as file:
                        file.writelines(f"{images.names[member]}\n" for member in members)
            draw_clusters(os.path.join(part, "clusters.jpg"), images, clusters)
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be read or written ({error.strerror}): choose another --out"
        ) from None


def _flat_names(images: ImageList, members: np.ndarray) -> list[str]:
    """Names for copies of some images in one folder; the folders that they come from become part of the names."""
    flat = [images.names[member].replace("/", "__") for member in members]
    return distinct([os.fsencode(name)[-LONGEST_NAME:].decode(errors="ignore") for name in flat])


def draw_clusters(path: str, images: ImageList, clusters: np.ndarray) -> None:
    """Draw the first images of the largest clusters. Raises OSError, and InputError if an image cannot be read."""
    rows = []
    for number in range(min(SHOWN_CLUSTERS, clusters.max() + 1)):
        members = np.flatnonzero(clusters == number)
        rows.append(montage.Row(f"cluster {number}: {len(members)} images", [members[:SHOWN_IMAGES]]))
    montage.draw(path, lambda number: read_image(images.path(number)), rows)
