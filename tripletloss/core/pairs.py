"""Pairs of images: all of them or a sample, and their distances."""

from typing import NamedTuple

import numpy as np

from tripletloss.core.distances import check_finite, rounding_of


class Pairs(NamedTuple):
    """P pairs of images, all distinct, and whether they show one identity."""

    first: np.ndarray  # (P,) int, row numbers
    second: np.ndarray  # (P,) int
    same: np.ndarray  # (P,) bool


def pairs_of(labels, most=1_000_000, seed=0):
    """All pairs of images, or, where there are more than `most`, that many of them, drawn at random.

    labels: (N,). All pairs of one kind are as likely, and none is drawn twice. Half of the drawn pairs are same pairs,
    unless one kind has fewer: then all of its pairs are there, and the other kind fills up. Where both kinds are
    counted together, weigh them by different_weight(). Memory grows with N + most, never with N^2.
    Raises ValueError if there are no same or no different pairs.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    n, sizes = len(labels), np.bincount(labels)
    all_pairs, same_pairs = n * (n - 1) // 2, int((sizes * (sizes - 1) // 2).sum())
    different_pairs = all_pairs - same_pairs
    if not 0 < same_pairs < all_pairs:
        raise ValueError("verification needs pairs of one identity and pairs of two")
    if all_pairs <= most:
        first, second = np.triu_indices(n, 1)
        return Pairs(first, second, labels[first] == labels[second])
    rng = np.random.default_rng(seed)
    images = np.argsort(labels, kind="stable")  # identity by identity
    ends = np.cumsum(sizes)
    starts = ends - sizes
    drawn = min(same_pairs, max(most // 2, most - different_pairs))
    number = _draw(rng, same_pairs, drawn)
    before = np.cumsum(sizes * (sizes - 1) // 2)  # pairs up to and with each identity
    identity = np.searchsorted(before, number, side="right")
    number = number - (before - sizes * (sizes - 1) // 2)[identity]
    # Pair number k of an identity: larger index j with j (j - 1) / 2 <= k, smaller index the rest.
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    i = number - j * (j - 1) // 2
    first, second = starts[identity] + i, starts[identity] + j
    # The image in place p makes different pairs with all images of later identities, which are the last ones.
    before = np.cumsum(n - ends[labels[images]])  # pairs up to and with each image
    number = _draw(rng, different_pairs, most - drawn)
    place = np.searchsorted(before, number, side="right")
    first, second = np.append(first, place), np.append(second, n - (before[place] - number))
    return Pairs(images[first], images[second], np.arange(most) < drawn)


def different_weight(pairs, labels):
    """How many different pairs of some images one of `pairs` stands for, where a same pair of them stands for one.

    labels: (N,) of those images, which `pairs` are all pairs or a sample of, as pairs_of draws it. So it is 1 for all
    pairs, and else sets right that more same pairs are drawn than their share.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    all_same = np.sum(sizes * (sizes - 1) // 2)
    all_different = len(labels) * (len(labels) - 1) // 2 - all_same
    return float(all_different / np.sum(~pairs.same) * np.sum(pairs.same) / all_same)


def _draw(rng, among, count):
    """`count` different numbers of 0..among - 1, in order, without a list of all of them."""
    if count == among:
        return np.arange(among)
    found = np.zeros(0, np.int64)
    while len(found) < count:
        found = np.sort(np.append(found, rng.integers(0, among, count)))
        found = found[np.diff(found, prepend=-1) > 0]  # np.unique would take longer than all the rest
    return np.sort(rng.choice(found, count, replace=False))


def pair_distances(embeddings, first, second):
    """Squared distances of pairs of rows: embeddings (N, D); first, second: (P,) row numbers. Returns (P,) float64.

    What is no farther apart than rounding puts copies of one image (distances.ROUNDING) has the distance 0.
    Raises FloatingPointError, which names the first such row, if an embedding holds NaN or infinity.
    """
    check_finite(embeddings)
    found = np.empty(len(first))
    step = max(1, 4_000_000 // embeddings.shape[1])
    for start in range(0, len(first), step):
        block = slice(start, start + step)
        found[block] = np.square(embeddings[first[block]].astype(np.float64) - embeddings[second[block]]).sum(axis=1)
    found[found <= rounding_of(embeddings) ** 2] = 0
    return found
