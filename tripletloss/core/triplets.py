"""Triplets in plain NumPy: distances, selection inside a mini-batch, loss and gradients.

Distances are squared Euclidean. S(a) are the rows with the label of row a, without a itself; D(a) are the
rows with another label. A strategy takes (distances, labels, margin), or what its docstring says, and returns a
Selection; select() calls them all alike.
"""

import concurrent.futures
import os
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array

# Pairs are compared with all rows in blocks of about this many entries, which bounds memory.
BLOCK_ENTRIES = 4_000_000
COLUMN = 0xFFFFFFFF  # the bits of a key that hold a column
NO_KEY = np.iinfo(np.int64).max

# Of distance-weighted selection, not squared; Wu et al.'s own values.
CLIPPED_DISTANCE = 0.5
CUT_OFF_DISTANCE = 1.4

# A share of an embedding's length. Two copies of one image may be this far apart, as a net in single precision rounds
# differently from place to place in a mini-batch. 3.5e-7 was the most for 12 images, 79 copies each, and the shipped
# model.
ROUNDING = 2e-6


class Selection(NamedTuple):
    """The T triplets that a strategy chose, as row numbers of the mini-batch."""

    anchors: np.ndarray  # (T,) int
    positives: np.ndarray  # (T,) int
    negatives: np.ndarray  # (T,) int
    learns: np.ndarray  # (T,) bool; False: the triplet is passed on, but gets no gradient
    considered: int  # how many triplets it looked at; semi-hard and distance-weighted: how many anchor-positive pairs


def squared_distances(x, dtype=np.float64):
    """Squared Euclidean distances between all rows.

    x: (N, D) float. Returns (N, N), exactly zero on the diagonal and never negative. In float32 they are wrong by about
    1e-7 of the largest, which is enough to choose triplets by; dtype: float64 or float32.
    Raises FloatingPointError if x holds a NaN or an infinity: no comparison would mean anything.
    """
    x, norms = (part.astype(dtype, copy=False) for part in _centred(x))
    distances = x @ x.T  # (N, N)

    def finish(rows):
        block = distances[rows]
        block *= -2
        block += norms[rows, None]
        block += norms[None, :]
        np.maximum(block, 0, out=block)

    _in_threads(finish, _row_blocks(len(x)))
    np.fill_diagonal(distances, 0)
    return distances


def distance_blocks(x, rows):
    """squared_distances, some rows at a time, where N x N are too many.

    x: (N, D) float; rows: (Q,) row numbers. Yields (numbers (B,), distances (B, N) float64 of them to all rows), with
    B x N about BLOCK_ENTRIES. Raises FloatingPointError as squared_distances does.
    """
    x, norms = _centred(x)
    for block in _blocks(len(rows), len(x)):
        numbers = rows[block]
        distances = norms[numbers, None] + norms[None, :] - 2 * (x[numbers] @ x.T)  # (B, N)
        np.maximum(distances, 0, out=distances)
        distances[np.arange(len(numbers)), numbers] = 0
        yield numbers, distances


def hardest_negatives(x, labels, identities):
    """Of each image, the nearest image of each of the nearest other identities, exact, over all images.

    x: (N, D) float; labels: (N,); identities: how many other ones, at most as many as there are. Returns row numbers
    (N, identities), the nearest identity's first. Time grows with N^2 D, memory with N D and blocks of BLOCK_ENTRIES.
    Raises FloatingPointError as squared_distances does.
    """
    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    starts = np.cumsum(sizes) - sizes
    rows, norms = (part.astype(np.float32) for part in _centred(x[order]))
    own = numbers[order]
    identities = min(identities, len(sizes) - 1)
    found = np.empty((len(rows), identities), np.int64)
    for block in _blocks(len(rows), len(rows)):
        from_block = rows[block] @ rows.T  # (B, N)
        from_block *= -2
        from_block += norms  # |x|^2 of the block's own rows changes no order
        nearest = np.minimum.reduceat(from_block, starts, axis=1)  # (B, identities of the list)
        here = np.arange(len(nearest))[:, None]
        nearest[here[:, 0], own[block]] = np.inf
        some = np.argpartition(nearest, identities - 1, axis=1)[:, :identities]
        some = some[here, np.argsort(nearest[here, some], axis=1, kind="stable")]
        for row, people in enumerate(some):
            found[block.start + row] = [
                starts[one] + from_block[row, starts[one] : starts[one] + sizes[one]].argmin() for one in people
            ]
    result = np.empty_like(found)
    result[order] = order[found]
    return result


def first_not_finite(x):
    """The number of the first row of x, (N, ...) float, that holds NaN or infinity; None if all are finite."""
    if np.isfinite(x).all():
        return None
    return int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))


def check_finite(x, what="embeddings"):
    """Raise FloatingPointError, which names the first such row, if x, (N, ...) float, holds NaN or infinity."""
    row = first_not_finite(x)
    if row is not None:
        raise FloatingPointError(f"row {row} of the {what} holds NaN or infinity")


def rounding_of(x):
    """How far apart, not squared, copies of one image may be among embeddings x, (N, D): ROUNDING of their length.

    It is their median length, so that a few odd rows do not make everything equal.
    """
    return ROUNDING * float(np.sqrt(np.median(np.einsum("nd,nd->n", x, x, dtype=np.float64))))


def _centred(x):
    """The rows in double precision with their mean taken off, and their squared norms (N,)."""
    check_finite(x)
    # |x|^2 + |y|^2 - 2xy loses small distances in single precision, and far from the origin.
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    return x, np.einsum("nd,nd->n", x, x)


def same_and_other(labels):
    """Who is whose positive: same[a, p] for p in S(a), other[a, n] for n in D(a).

    labels: (N,). Returns two (N, N) bool arrays; same is False on its diagonal.
    """
    equal = labels[:, None] == labels[None, :]
    other = ~equal
    np.fill_diagonal(equal, False)
    return equal, other


def _blocks(pairs, rows):
    """Slices over `pairs` pairs, such that a block against `rows` rows has about BLOCK_ENTRIES entries."""
    step = max(1, BLOCK_ENTRIES // max(1, rows))
    return [slice(start, start + step) for start in range(0, pairs, step)]


def _row_blocks(rows):
    """Slices over the rows of a (rows, rows) array, eight or more to a block of BLOCK_ENTRIES, for threads to share."""
    return _blocks(rows, 8 * rows)


def semi_hard(distances, labels, margin):
    """FaceNet's: for every (a, p), an n with d(a,p) < d(a,n) < d(a,p) + margin (arXiv 1503.03832, section 3.2).

    The paper leaves open which n of that band is taken; here it is the nearest, the hardest of the band.
    A pair without such an n gives no triplet; `considered` counts the pairs.
    """
    same, other = same_and_other(labels)
    anchors, positives = np.nonzero(same)  # (A,) each
    d_ap = distances[anchors, positives]  # (A,)
    negatives = np.empty(len(anchors), np.int64)

    def nearest_beyond(rows):
        """Of the pairs whose anchors are these rows, the negative next beyond the positive; -1 where there is none."""
        keys = _sortable(distances[rows]) << 32 | np.arange(len(labels))  # (B, N), by distance, then by column
        keys[~other[rows]] = NO_KEY  # one or more in each row: an anchor is no negative of itself
        keys.sort(axis=1)
        pairs = slice(*np.searchsorted(anchors, (rows.start, rows.stop)))
        beyond = _first_above(keys, anchors[pairs] - rows.start, _sortable(d_ap[pairs]) << 32 | COLUMN)
        negatives[pairs] = np.where(beyond == NO_KEY, -1, beyond & COLUMN)

    _in_threads(nearest_beyond, _row_blocks(len(labels)))
    found = negatives >= 0
    found[found] = distances[anchors[found], negatives[found]] < d_ap[found] + margin
    return Selection(anchors[found], positives[found], negatives[found], np.ones(found.sum(), bool), len(anchors))


def _sortable(distances):
    """Whole numbers (int64, below 2^31) in the order of distances >= 0, single precision: the bits of a float32."""
    return distances.astype(np.float32).view(np.int32).astype(np.int64)


def _first_above(keys, rows, queries):
    """In each query's row, the first key above the query: a binary search, all queries at once.

    keys: (B, N) int64, ascending in each row, the last one above every query; rows, queries: (A,). Returns (A,) int64.
    """
    size = keys.shape[1]
    count = np.zeros(len(rows), np.int64)  # of keys that are known not to be above the query
    step = 1 << (size.bit_length() - 1)
    while step:
        ahead = np.minimum(count + step, size)
        count = np.where(keys[rows, ahead - 1] <= queries, ahead, count)
        step //= 2
    return keys[rows, count]


def _in_threads(function, blocks):
    """function(block) for all blocks; NumPy sorts and searches without holding Python's lock."""
    threads = min(len(os.sched_getaffinity(0)), len(blocks))
    if threads < 2:
        for block in blocks:
            function(block)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, blocks):
            pass


def batch_hard(distances, labels, margin):
    """For every a, the farthest of S(a) and the nearest of D(a) (Hermans et al. 2017, arXiv 1703.07737, eq. 5).

    Anchors without a positive or without a negative give no triplet. The margin plays no part in the choice.
    """
    same, other = same_and_other(labels)
    positives, negatives = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)

    def hardest(rows):
        positives[rows] = np.where(same[rows], distances[rows], -1).argmax(axis=1)
        negatives[rows] = np.where(other[rows], distances[rows], np.inf).argmin(axis=1)

    _in_threads(hardest, _row_blocks(len(labels)))
    index = np.arange(len(labels))
    anchors = np.flatnonzero(same[index, positives] & other[index, negatives])  # (T,) others have none of one kind
    positives, negatives = positives[anchors], negatives[anchors]
    return Selection(anchors, positives, negatives, np.ones(len(anchors), bool), len(anchors))


def batch_all(distances, labels, margin):
    """Every valid triplet whose loss is not zero: d(a,n) < d(a,p) + margin (Hermans et al. 2017, eq. 6, BA!=0).

    `considered` counts all valid triplets, so that the active share can be told. The number of triplets grows
    with the cube of the mini-batch: for large batches take another strategy.
    """
    same, other = same_and_other(labels)
    anchors, positives = np.nonzero(same)  # (A,) each
    limit = distances[anchors, positives] + margin  # (A,)
    pairs, negatives = [np.zeros(0, int)], [np.zeros(0, int)]
    for block in _blocks(len(anchors), len(labels)):
        active = other[anchors[block]] & (distances[anchors[block]] < limit[block, None])  # (B, N)
        pair, negative = np.nonzero(active)
        pairs.append(pair + block.start)
        negatives.append(negative)
    pairs, negatives = np.concatenate(pairs), np.concatenate(negatives)  # (T,) each
    considered = int(other.sum(axis=1)[anchors].sum())
    return Selection(anchors[pairs], positives[pairs], negatives, np.ones(len(pairs), bool), considered)


def rank_paired(distances, labels, margin):
    """The selection of the 2015 toolkit: by position, not by label, in a mini-batch made for it.

    The rows are n copies of one anchor, then n positives, then n negatives. Positives and negatives are both
    sorted by their distance from the first row, farthest first, and paired rank by rank. A triplet with
    d(a,p) >= d(a,n) is kept, so that the loss counts it, but does not learn. `labels` and `margin` play no part.
    Raises ValueError if the number of rows is not a multiple of three.
    """
    if len(distances) % 3:
        raise ValueError(f"rank-paired needs a mini-batch in three equal parts, not {len(distances)} rows")
    n = len(distances) // 3
    from_anchor = distances[0]  # (3n,)
    farthest_first = -from_anchor
    positives = n + np.argsort(farthest_first[n : 2 * n], kind="stable")  # (n,)
    negatives = 2 * n + np.argsort(farthest_first[2 * n :], kind="stable")  # (n,)
    learns = from_anchor[positives] < from_anchor[negatives]
    return Selection(np.arange(n), positives, negatives, learns, n)


def distance_weighted(distances, labels, dimension, rng):
    """For every (a, p), an n drawn so that all distances are equally likely (Wu et al. 2017, arXiv 1706.07567, 4.2).

    n has the weight 1 / q(d), where q is the density of the distance d (not squared) between random points of the unit
    sphere: q(d) ~ d^(D-2) (1 - d^2 / 4)^((D-3) / 2). Distances below CLIPPED_DISTANCE have its weight, so that the few
    nearest negatives, which are the noisiest, are not drawn all the time. Negatives at CUT_OFF_DISTANCE or beyond are
    never drawn: 1 / q grows without bound towards d = 2, and a negative so far away seldom has a loss. An anchor
    without a nearer negative gives no triplet; `considered` counts its pairs all the same.
    distances: (N, N), squared, of embeddings of length one; dimension: D, 2 or more; rng: numpy Generator.
    """
    same, other = same_and_other(labels)
    anchors, positives = np.nonzero(same & other.any(axis=1)[:, None])  # (A,) each
    allowed = other & (distances < CUT_OFF_DISTANCE**2)  # (N, N)
    d = np.sqrt(np.clip(distances, CLIPPED_DISTANCE**2, CUT_OFF_DISTANCE**2))  # (N, N)
    log_weights = (2 - dimension) * np.log(d) + (3 - dimension) / 2 * np.log(1 - d * d / 4)
    log_weights[~allowed] = -np.inf
    highest = log_weights.max(axis=1, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(highest), highest, 0))  # the largest of each row is 1
    considered, able = len(anchors), allowed.any(axis=1)[anchors]
    anchors, positives = anchors[able], positives[able]  # (T,) each
    # One running sum through all rows: a draw of row a lies between its sum before and after that row.
    sums = np.cumsum(weights.ravel())  # (N * N,)
    after = sums[len(labels) - 1 :: len(labels)]  # (N,)
    before = np.concatenate([[0.0], after[:-1]])
    drawn = before[anchors] + (1 - rng.random(len(anchors))) * (after - before)[anchors]  # above before, up to after
    place = np.searchsorted(sums, drawn)
    negatives = place - anchors * len(labels)
    return Selection(anchors, positives, negatives, np.ones(len(anchors), bool), considered)


STRATEGIES = {
    "semi-hard": semi_hard,
    "batch-hard": batch_hard,
    "batch-all": batch_all,
    "distance-weighted": distance_weighted,
    "rank-paired": rank_paired,
}


def select(name, distances, labels, margin, dimension, rng):
    """The Selection of a strategy in STRATEGIES. dimension: of the embeddings; rng: for a strategy that draws."""
    if name == "distance-weighted":
        return distance_weighted(distances, labels, dimension, rng)
    return STRATEGIES[name](distances, labels, margin)


def active_share(selection, distances, margin):
    """Share of the considered triplets that have a loss and learn from it; 0 where none was considered."""
    if selection.considered == 0:
        return 0.0
    d_ap = distances[selection.anchors, selection.positives]
    d_an = distances[selection.anchors, selection.negatives]
    return float(np.sum(selection.learns & (d_ap + margin > d_an)) / selection.considered)


def scatter_gradients(selection, anchor_diff, positive_diff, negative_diff, rows):
    """Sum the gradients of triplets into the rows of the mini-batch that they came from.

    selection: T triplets; the diffs: (T, D) each; rows: N, rows of the mini-batch. Returns (N, D), like the
    diffs; a row that no learning triplet uses gets zeros.
    """
    learns = selection.learns
    take = np.concatenate([selection.anchors[learns], selection.positives[learns], selection.negatives[learns]])
    diffs = np.concatenate([anchor_diff[learns], positive_diff[learns], negative_diff[learns]])  # (3T, D)
    # Row i of the matrix picks take[i]; its transpose adds diffs[i] to that row.
    picks = csr_array((np.ones(len(take), diffs.dtype), take, np.arange(len(take) + 1)), shape=(len(take), rows))
    return picks.T @ diffs


def triplet_loss(anchor, positive, negative, margin):
    """FaceNet's triplet loss (arXiv 1503.03832, eq. 3), averaged and halved.

    L = sum_i max(0, margin + |a_i - p_i|^2 - |a_i - n_i|^2) / (2 N)

    anchor, positive, negative: (N, D) float; margin: a squared distance. Returns the loss, a float, and active:
    (N,) bool, the triplets with a positive hinge. Without triplets the loss is 0.
    """
    d_ap = np.sum(np.square(anchor - positive), axis=1, dtype=np.float64)  # (N,)
    d_an = np.sum(np.square(anchor - negative), axis=1, dtype=np.float64)  # (N,)
    hinge = np.maximum(0, margin + d_ap - d_an)  # (N,)
    return float(hinge.sum() / (2 * max(1, len(hinge)))), hinge > 0


def triplet_loss_gradients(anchor, positive, negative, active, loss_diff):
    """Gradients of triplet_loss: (n - p)/N, (p - a)/N, (a - n)/N for active triplets, times loss_diff, else 0.

    anchor, positive, negative: (N, D); active: (N,) bool from triplet_loss; loss_diff: dL_total/dL, the loss's
    top diff. Returns three (N, D) arrays.
    """
    scale = (loss_diff / max(1, len(active)) * active)[:, None].astype(anchor.dtype)  # (N, 1)
    return (negative - positive) * scale, (positive - anchor) * scale, (anchor - negative) * scale


def selected_loss(embeddings, distances, selection, margin, loss_diff=1.0):
    """triplet_loss of a Selection and its gradient with respect to the embeddings, without copying rows.

    The sum over triplets is one over pairs: d(a,p) counts for, d(a,n) against, and the gradient of c |x_i - x_j|^2 / 2
    with respect to x_i is c (x_i - x_j). So the pairs' counts, a sparse (N, N), times the embeddings is all it takes.

    embeddings: (N, D); distances: (N, N), squared; selection: T triplets; margin: a squared distance; loss_diff: as in
    triplet_loss_gradients. Returns the loss, a float, and the gradient (N, D), like the embeddings.
    """
    a, p, n = selection.anchors, selection.positives, selection.negatives
    hinge = margin + distances[a, p] - distances[a, n]  # (T,)
    loss = float(np.maximum(hinge, 0).sum() / (2 * max(1, len(a))))
    learns = selection.learns & (hinge > 0)
    a, p, n = a[learns], p[learns], n[learns]
    each = np.full(len(a), loss_diff / max(1, len(hinge)), embeddings.dtype)
    rows, columns, counts = np.concatenate([a, a]), np.concatenate([p, n]), np.concatenate([each, -each])
    pairs = coo_array((counts, (rows, columns)), shape=distances.shape).tocsr()
    pairs = pairs + pairs.T
    return loss, pairs.sum(axis=1)[:, None] * embeddings - pairs @ embeddings
