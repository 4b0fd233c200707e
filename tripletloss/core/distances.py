"""Squared Euclidean distances between embeddings, in blocks that bound memory."""

import concurrent.futures
import os

import numpy as np

# Pairs are compared with all rows in blocks of about this many entries, which bounds memory.
BLOCK_ENTRIES = 4_000_000

# A share of an embedding's length. Two copies of one image may be this far apart, as a net in single precision rounds
# differently from place to place in a mini-batch. 3.5e-7 was the most for 12 images, 79 copies each, and the shipped
# model.
ROUNDING = 2e-6


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

    in_threads(finish, row_blocks(len(x)))
    np.fill_diagonal(distances, 0)
    return distances


def distance_blocks(x, rows):
    """squared_distances, some rows at a time, where N x N are too many.

    x: (N, D) float; rows: (Q,) row numbers. Yields (numbers (B,), distances (B, N) float64 of them to all rows), with
    B x N about BLOCK_ENTRIES. Raises FloatingPointError as squared_distances does.
    """
    x, norms = _centred(x)
    for block in blocks_of(len(rows), len(x)):
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
    for block in blocks_of(len(rows), len(rows)):
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


def blocks_of(pairs, rows):
    """Slices over `pairs` pairs, such that a block against `rows` rows has about BLOCK_ENTRIES entries."""
    step = max(1, BLOCK_ENTRIES // max(1, rows))
    return [slice(start, start + step) for start in range(0, pairs, step)]


def row_blocks(rows):
    """Slices over the rows of a (rows, rows) array, eight or more to a block of BLOCK_ENTRIES, for threads to share."""
    return blocks_of(rows, 8 * rows)


def in_threads(function, blocks):
    """function(block) for all blocks; NumPy sorts and searches without holding Python's lock."""
    threads = min(len(os.sched_getaffinity(0)), len(blocks))
    if threads < 2:
        for block in blocks:
            function(block)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, blocks):
            pass
