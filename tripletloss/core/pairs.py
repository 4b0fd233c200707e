"""Pairs of images, all of them or a sample, and their distances."""

from typing import NamedTuple

import numpy as np

from tripletloss.core.distances import check_finite, distance_blocks, rounding_of

NEEDS_BOTH_KINDS = "verification needs pairs of the same identity and pairs of different identities"


class Pairs(NamedTuple):
    """P pairs of images, all different, and whether they show the same identity."""

    first: np.ndarray  # (P,) int, row numbers
    second: np.ndarray  # (P,) int
    same: np.ndarray  # (P,) bool


def pairs_of(labels: np.ndarray, most: int = 1_000_000, seed: int = 0) -> Pairs:
    """All pairs of images, or, if there are more than `most`, that many of them, drawn at random.

    labels: (N,). All pairs of one kind are equally likely, and none is drawn twice. Half of the drawn pairs are same
    pairs, unless there are not enough pairs of one kind: then all of those are taken, and more of the other kind.
    If both kinds are counted together, weight them by different_weight(). Memory grows with N + most, never with N^2.
    Raises ValueError if there are no same or no different pairs.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    n, sizes = len(labels), np.bincount(labels)
    all_pairs, same_pairs = n * (n - 1) // 2, int((sizes * (sizes - 1) // 2).sum())
    different_pairs = all_pairs - same_pairs
    if not 0 < same_pairs < all_pairs:
        raise ValueError(NEEDS_BOTH_KINDS)
    if all_pairs <= most:
        first, second = np.triu_indices(n, 1)
        return Pairs(first, second, labels[first] == labels[second])
    rng = np.random.default_rng(seed)
    images = np.argsort(labels, kind="stable")  # identity by identity
    ends = np.cumsum(sizes)
    starts = ends - sizes
    drawn = min(same_pairs, max(most // 2, most - different_pairs))
    number = _draw(rng, same_pairs, drawn)
    before = np.cumsum(sizes * (sizes - 1) // 2)  # pairs up to and including each identity
    identity = np.searchsorted(before, number, side="right")
    number = number - (before - sizes * (sizes - 1) // 2)[identity]
    # Pair number k of an identity: larger index j with j (j - 1) / 2 <= k, smaller index the rest.
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    i = number - j * (j - 1) // 2
    first, second = starts[identity] + i, starts[identity] + j
    # The image at place p forms different pairs with all images of later identities, which come last.
    before = np.cumsum(n - ends[labels[images]])  # pairs up to and including each image
    number = _draw(rng, different_pairs, most - drawn)
    place = np.searchsorted(before, number, side="right")
    first, second = np.append(first, place), np.append(second, n - (before[place] - number))
    return Pairs(images[first], images[second], np.arange(most) < drawn)


def different_weight(pairs: Pairs, labels: np.ndarray) -> float:
    """The weight of a different pair of `pairs` that restores the true shares of both kinds, if a same pair counts 1.

    labels: (N,) of the images that `pairs` are all pairs of, or a sample as pairs_of draws it. It is 1 for all pairs.
    Otherwise it corrects for more same pairs being drawn than their share.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    all_same = np.sum(sizes * (sizes - 1) // 2)
    all_different = len(labels) * (len(labels) - 1) // 2 - all_same
    return float(all_different / np.sum(~pairs.same) * np.sum(pairs.same) / all_same)


def _draw(rng, among, count):
    """`count` different numbers from 0 to among - 1, in order, drawn without a list of all of them."""
    if count == among:
        return np.arange(among)
    found = np.zeros(0, np.int64)
    while len(found) < count:
        found = np.sort(np.append(found, rng.integers(0, among, count)))
        found = found[np.diff(found, prepend=-1) > 0]  # faster than np.unique, which would dominate
    return np.sort(rng.choice(found, count, replace=False))


def pair_distances(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of rows: embeddings (N, D); first, second: (P,) row numbers. Returns (P,) float64.

    Pairs that are no farther apart than rounding can put copies of one image (distances.ROUNDING) have distance 0.
    Raises FloatingPointError if an embedding contains NaN or infinity; the message names the first such row.
    """
    check_finite(embeddings)
    found = np.empty(len(first))
    step = max(1, 4_000_000 // embeddings.shape[1])
    for start in range(0, len(first), step):
        block = slice(start, start + step)
        found[block] = np.square(embeddings[first[block]].astype(np.float64) - embeddings[second[block]]).sum(axis=1)
    found[found <= rounding_of(embeddings) ** 2] = 0
    return found


class HardPairs(NamedTuple):
    """K pairs of images that are hard to tell, the hardest first."""

    first: np.ndarray  # (K,) int, row numbers
    second: np.ndarray  # (K,) int
    distances: np.ndarray  # (K,) float64, squared


def hardest_of(distances: np.ndarray, pairs: Pairs, count: int) -> tuple[HardPairs, HardPairs]:
    """The nearest different pairs and the farthest same pairs among `pairs`, `count` of each or fewer.

    distances: (P,), squared.
    """

    def first_of(which: np.ndarray, sign: int) -> HardPairs:
        chosen = which[np.argsort(sign * distances[which], kind="stable")[:count]]
        return HardPairs(pairs.first[chosen], pairs.second[chosen], distances[chosen])

    return first_of(np.flatnonzero(~pairs.same), 1), first_of(np.flatnonzero(pairs.same), -1)


def hardest_pairs(embeddings: np.ndarray, labels: np.ndarray, count: int) -> tuple[HardPairs, HardPairs]:
    """hardest_of() all pairs of images, an exact search in blocks: time grows with N^2 D, memory with N D.

    embeddings: (N, D); labels: (N,). Raises FloatingPointError as pair_distances does.
    """
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    columns = np.arange(len(labels))
    for numbers, distances in distance_blocks(embeddings, columns):
        later = columns > numbers[:, None]  # each pair once
        same = labels[numbers, None] == labels
        for values in (np.where(later & ~same, distances, np.inf), np.where(later & same, -distances, np.inf)):
            flat = values.ravel()
            few = np.argpartition(flat, min(count, len(flat) - 1))[:count]
            rows, found = np.divmod(few[np.isfinite(flat[few])], len(labels))
            first.append(numbers[rows])
            second.append(found)
    one, other = np.concatenate(first), np.concatenate(second)
    pairs = Pairs(one, other, labels[one] == labels[other])
    return hardest_of(pair_distances(embeddings, one, other), pairs, count)
