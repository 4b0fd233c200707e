"""Triplets selected within a mini-batch, in plain NumPy.

Distances are squared Euclidean. S(a) is the set of rows with the label of row a, except a itself; D(a) is the set of
rows with other labels. A strategy is a function of distances (N, N), labels (N,) and the margin, unless its docstring
says otherwise, and returns a Selection. select() calls any of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tripletloss.core.distances import blocks_of, in_threads, row_blocks, same_and_other

COLUMN = 0xFFFFFFFF  # the bits of a key that hold a column
NO_KEY = np.iinfo(np.int64).max

# Distances, not squared, of distance-weighted selection; the values are those of Wu et al.
CLIPPED_DISTANCE = 0.5
CUT_OFF_DISTANCE = 1.4


class Selection(NamedTuple):
    """The T triplets that a strategy chose, as row numbers of the mini-batch."""

    anchors: np.ndarray  # (T,) int
    positives: np.ndarray  # (T,) int
    negatives: np.ndarray  # (T,) int
    learns: np.ndarray  # (T,) bool; False: the triplet counts in the loss, but gets no gradient
    considered: int  # number of triplets; for semi-hard and distance-weighted, of anchor-positive pairs


def semi_hard(distances: np.ndarray, labels: np.ndarray, margin: float) -> Selection:
    """For every (a, p), an n with d(a,p) < d(a,n) < d(a,p) + margin (FaceNet, arXiv 1503.03832, section 3.2).

    The paper does not say which n of that band to take; this takes the nearest, which is the hardest of the band.
    A pair without such an n gives no triplet. `considered` counts the pairs.
    """
    same, other = same_and_other(labels)
    anchors, positives = np.nonzero(same)  # (A,) each
    d_ap = distances[anchors, positives]  # (A,)
    negatives = np.empty(len(anchors), np.int64)

    def nearest_beyond(rows):
        """For the pairs whose anchors are these rows, the nearest negative beyond the positive, or -1."""
        keys = _sortable(distances[rows]) << 32 | np.arange(len(labels))  # (B, N), by distance, then by column
        keys[~other[rows]] = NO_KEY  # at least one per row, as an anchor is not its own negative
        keys.sort(axis=1)
        pairs = slice(*np.searchsorted(anchors, (rows.start, rows.stop)))
        beyond = _first_above(keys, anchors[pairs] - rows.start, _sortable(d_ap[pairs]) << 32 | COLUMN)
        negatives[pairs] = np.where(beyond == NO_KEY, -1, beyond & COLUMN)

    in_threads(nearest_beyond, row_blocks(len(labels)))
    found = negatives >= 0
    found[found] = distances[anchors[found], negatives[found]] < d_ap[found] + margin
    return Selection(anchors[found], positives[found], negatives[found], np.ones(found.sum(), bool), len(anchors))


def _sortable(distances):
    """Whole numbers (int64, below 2^31) that sort like distances >= 0 in single precision: the bits of a float32."""
    return distances.astype(np.float32).view(np.int32).astype(np.int64)


def _first_above(keys, rows, queries):
    """The first key in each query's row that is above the query: a binary search for all queries at once.

    keys: (B, N) int64, ascending in each row, the last above all queries; rows, queries: (A,). Returns (A,).
    """
    size = keys.shape[1]
    count = np.zeros(len(rows), np.int64)  # number of keys known not to be above the query
    step = 1 << (size.bit_length() - 1)
    while step:
        ahead = np.minimum(count + step, size)
        count = np.where(keys[rows, ahead - 1] <= queries, ahead, count)
        step //= 2
    return keys[rows, count]


def batch_hard(distances: np.ndarray, labels: np.ndarray, margin: float) -> Selection:
    """For every a, the farthest of S(a) and the nearest of D(a) (Hermans et al. 2017, arXiv 1703.07737, eq. 5).

    Anchors without a positive or without a negative give no triplet. The margin does not matter.
    """
    same, other = same_and_other(labels)
    positives, negatives = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)

    def hardest(rows):
        positives[rows] = np.where(same[rows], distances[rows], -1).argmax(axis=1)
        negatives[rows] = np.where(other[rows], distances[rows], np.inf).argmin(axis=1)

    in_threads(hardest, row_blocks(len(labels)))
    index = np.arange(len(labels))
    anchors = np.flatnonzero(same[index, positives] & other[index, negatives])  # (T,) those with both
    positives, negatives = positives[anchors], negatives[anchors]
    return Selection(anchors, positives, negatives, np.ones(len(anchors), bool), len(anchors))


def batch_all(distances: np.ndarray, labels: np.ndarray, margin: float) -> Selection:
    """Every valid triplet whose loss is not zero: d(a,n) < d(a,p) + margin (Hermans et al. 2017, eq. 6, BA!=0).

    `considered` counts all valid triplets, so that the active share is known. The number of triplets grows with the
    cube of the mini-batch's size, so use another strategy for large batches.
    """
    same, other = same_and_other(labels)
    anchors, positives = np.nonzero(same)  # (A,) each
    limit = distances[anchors, positives] + margin  # (A,)
    every_pair, every_negative = [np.zeros(0, int)], [np.zeros(0, int)]
    for block in blocks_of(len(anchors), len(labels)):
        active = other[anchors[block]] & (distances[anchors[block]] < limit[block, None])  # (B, N)
        pair, negative = np.nonzero(active)
        every_pair.append(pair + block.start)
        every_negative.append(negative)
    pairs, negatives = np.concatenate(every_pair), np.concatenate(every_negative)  # (T,) each
    considered = int(other.sum(axis=1)[anchors].sum())
    return Selection(anchors[pairs], positives[pairs], negatives, np.ones(len(pairs), bool), considered)


def rank_paired(distances: np.ndarray, labels: np.ndarray, margin: float) -> Selection:
    """The selection of the 2015 toolkit, which goes by position, not by label, in a mini-batch of `anchor` batches.

    The rows are n copies of one anchor, then n positives, then n negatives. Positives and negatives are both sorted by
    their distance from the first row, farthest first, and paired rank by rank. A triplet with d(a,p) >= d(a,n) counts
    in the loss, but does not learn. `labels` and `margin` are not used.
    Raises ValueError if the number of rows is not a multiple of three.
    """
    if len(distances) % 3:
        raise ValueError(f"rank-paired needs a mini-batch of three equal parts, not of {len(distances)} rows")
    n = len(distances) // 3
    from_anchor = distances[0]  # (3n,)
    farthest_first = -from_anchor
    positives = n + np.argsort(farthest_first[n : 2 * n], kind="stable")  # (n,)
    negatives = 2 * n + np.argsort(farthest_first[2 * n :], kind="stable")  # (n,)
    learns = from_anchor[positives] < from_anchor[negatives]
    return Selection(np.arange(n), positives, negatives, learns, n)


def distance_weighted(distances: np.ndarray, labels: np.ndarray, dimension: int, rng: np.random.Generator) -> Selection:
    """For every (a, p), an n drawn so that all distances are equally likely (Wu et al. 2017, arXiv 1706.07567, 4.2).

    n has the weight 1 / q(d), where q is the density of the distance d (not squared) between random points on the unit
    sphere: q(d) ~ d^(D-2) (1 - d^2 / 4)^((D-3) / 2). Distances below CLIPPED_DISTANCE are treated as equal to it, so
    that the few nearest negatives, which are the noisiest, are not drawn all the time. Negatives at CUT_OFF_DISTANCE or
    beyond are never drawn: 1 / q grows without bound towards d = 2, and such distant negatives seldom have a loss. An
    anchor without a nearer negative gives no triplet, but `considered` counts its pairs.
    distances: (N, N), squared, of embeddings of length one; dimension: D, 2 or more; rng: numpy Generator.
    """
    same, other = same_and_other(labels)
    anchors, positives = np.nonzero(same & other.any(axis=1, keepdims=True))  # (A,) each
    allowed = other & (distances < CUT_OFF_DISTANCE**2)  # (N, N)
    d = np.sqrt(np.clip(distances, CLIPPED_DISTANCE**2, CUT_OFF_DISTANCE**2))  # (N, N)
    log_weights = (2 - dimension) * np.log(d) + (3 - dimension) / 2 * np.log(1 - d * d / 4)
    log_weights[~allowed] = -np.inf
    highest = log_weights.max(axis=1, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(highest), highest, 0))  # the largest of each row is 1
    considered, able = len(anchors), np.asarray(allowed.any(axis=1))[anchors]
    anchors, positives = anchors[able], positives[able]  # (T,) each
    # One running sum over all rows: a draw for row a lies between the sums before and after that row.
    sums = np.cumsum(weights.ravel())  # (N * N,)
    after = sums[len(labels) - 1 :: len(labels)]  # (N,)
    before = np.concatenate([[0.0], after[:-1]])
    drawn = before[anchors] + (1 - rng.random(len(anchors))) * (after - before)[anchors]  # above before, up to after
    place = np.searchsorted(sums, drawn)
    negatives = place - anchors * len(labels)
    return Selection(anchors, positives, negatives, np.ones(len(anchors), bool), considered)


class Strategy(NamedTuple):
    """How triplets are selected, and what that needs."""

    # A function of (distances, labels, margin), or, if it draws, of (distances, labels, dimension, rng).
    select: Callable[..., Selection]
    needs_labels: bool = True
    needs_unit_length: bool = False  # of the embeddings
    draws: bool = False  # at random
    batches: str = ""  # the only kind of mini-batch (BATCHES in config.py) that it works with; '' for any


STRATEGIES = {
    "semi-hard": Strategy(semi_hard),
    "batch-hard": Strategy(batch_hard),
    "batch-all": Strategy(batch_all),
    "distance-weighted": Strategy(distance_weighted, needs_unit_length=True, draws=True),
    "rank-paired": Strategy(rank_paired, needs_labels=False, batches="anchor"),
}
[WITHOUT_LABELS] = [name for name, strategy in STRATEGIES.items() if not strategy.needs_labels]


def select(
    name: str, distances: np.ndarray, labels: np.ndarray | None, margin: float, dimension: int,
    rng: np.random.Generator,
) -> Selection:  # fmt: skip
    """The Selection of a strategy in STRATEGIES.

    labels: None for a strategy that needs none; dimension: of the embeddings; rng: for a strategy that draws.
    """
    strategy = STRATEGIES[name]
    if strategy.draws:
        return strategy.select(distances, labels, dimension, rng)
    return strategy.select(distances, labels, margin)


def active_share(selection: Selection, distances: np.ndarray, margin: float) -> float:
    """The share of the considered triplets that have a loss and learn from it; 0 if none was considered."""
    if selection.considered == 0:
        return 0.0
    d_ap = distances[selection.anchors, selection.positives]
    d_an = distances[selection.anchors, selection.negatives]
    return float(np.sum(selection.learns & (d_ap + margin > d_an)) / selection.considered)
