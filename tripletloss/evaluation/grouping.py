"""Group images by identity."""

import os
import shutil
from typing import NamedTuple

import numpy as np
from sklearn.cluster import DBSCAN

from tripletloss.base.errors import InputError
from tripletloss.base.files import whole_folder
from tripletloss.base.outputs import distinct
from tripletloss.config import need_files
from tripletloss.core import clustering
from tripletloss.core.distances import rounding_of
from tripletloss.core.pairs import different_weight, pair_distances, pairs_of
from tripletloss.data import montage
from tripletloss.data.images import read_image
from tripletloss.data.lists import read_list, show_one_of
from tripletloss.evaluation.embed import embed

MOST_IMAGES = 20_000  # distances of all pairs are kept
LONGEST_NAME = 200  # bytes, of the 255 that file systems allow
SHOWN_CLUSTERS, SHOWN_IMAGES = 12, 12


class Threshold(NamedTuple):
    """The squared distance up to which images are put together, where it comes from, and whom it may be judged by."""

    value: float
    origin: str  # in words
    scored: np.ndarray  # (N,) bool: the images that have a label and took no part in the choice


def threshold_of(weights, settings, mirrored, images):
    """The Threshold for images that gives pairs of HELD_OUT_LIST the highest pairwise F.

    Where two identities or more of the images are not in that list, they are scored. Else the threshold is chosen on a
    half of the list's identities, drawn with SEED, and the others are scored; none are if a half is too few.
    Raises InputError if there is no such list, or if its pairs are all of one kind.
    """
    source = settings["HELD_OUT_LIST"]
    if not source:
        raise InputError("the config has no HELD_OUT_LIST to take the threshold from: give --threshold")
    need_files(settings, "IMAGEPATH", "HELD_OUT_LIST")
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
        raise InputError(f"{source} needs two identities or more, one of them with two images: give --threshold")
    rows = embed(weights, settings, settings["FEATURE"], chosen_on, mirrored).rows
    pairs = pairs_of(chosen_on.labels)
    distances = pair_distances(rows, pairs.first, pairs.second)
    value = clustering.threshold_of_best_f(distances, pairs.same, different_weight(pairs, chosen_on.labels))
    count = _identities(chosen_on, chosen_on.labels >= 0)
    which = f"{count} of the {len(people)}" if count < len(people) else f"the {count}"
    return Threshold(value, f"best pairwise F of {which} identities of {source}", scored)


def _has_pairs(images):
    sizes = np.unique(images.labels, return_counts=True)[1]
    return len(sizes) > 1 and sizes.max() > 1


def _identities(images, which):
    return len(np.unique(images.labels[which]))


def group(rows, method, threshold):
    """Cluster numbers (N,) of embeddings (N, D), 0 the largest; up to a squared distance.

    method: 'average', agglomerative with average linkage; or 'dbscan', chains of near images, each with one or more
    neighbours (a lone image is a cluster of its own).
    """
    if method == "average":
        return clustering.cluster(rows, threshold)
    reach = np.nextafter(np.sqrt(threshold) + rounding_of(rows), np.inf)  # as of clustering.cluster
    found = DBSCAN(eps=reach, min_samples=2).fit_predict(rows)
    alone = np.flatnonzero(found < 0)
    found[alone] = found.max() + 1 + np.arange(len(alone))
    return clustering.by_size(found)


def write(out, images, clusters, copy, force=False):
    """Write one list per cluster, or with copy one folder of images, and a montage of the largest clusters.

    out: a new folder; force: whether it may replace one. Raises InputError.
    """
    try:
        with whole_folder(out, force) as part:
            for number in range(clusters.max() + 1):
                members = np.flatnonzero(clusters == number)
                name = os.path.join(part, f"cluster{number:04d}")
                if copy:
                    os.mkdir(name)
                    for member, copied in zip(members, _flat_names(images, members), strict=True):
                        shutil.copy(images.path(member), os.path.join(name, copied))
                else:
                    with open(f"{name}.txt", "w", encoding="utf-8") as file:
                        file.writelines(f"{images.names[member]}\n" for member in members)
            draw_clusters(os.path.join(part, "clusters.jpg"), images, clusters)
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be read or written ({error.strerror}): choose another --out"
        ) from None


def _flat_names(images, members):
    """Names of copies of some images in one folder: the folders that they come from are part of the name."""
    flat = [images.names[member].replace("/", "__") for member in members]
    return distinct([os.fsencode(name)[-LONGEST_NAME:].decode(errors="ignore") for name in flat])


def draw_clusters(path, images, clusters):
    """Draw the first images of the largest clusters. Raises OSError, and InputError for an image."""
    rows = []
    for number in range(min(SHOWN_CLUSTERS, clusters.max() + 1)):
        members = np.flatnonzero(clusters == number)
        rows.append(montage.Row(f"cluster {number}: {len(members)} images", [members[:SHOWN_IMAGES]]))
    montage.draw(path, lambda number: read_image(images.path(number)), rows)
