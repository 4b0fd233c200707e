"""Squared Euclidean distances between embeddings, in blocks that limit memory."""

import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Pairs are compared with all rows in blocks of about this many entries, which limits memory.
BLOCK_ENTRIES = 4_000_000

# How far apart two copies of one image may be, as a share of an embedding's length: in single precision, a net rounds
# differently at different places of a mini-batch. The largest such share that was measured is 3.5e-7, for the shipped
# model and 79 copies of each of 12 images.
ROUNDING = 2e-6


def squared_distances(x: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Squared Euclidean distances between all rows.

    x: (N, D) float; dtype: float64 or float32. Returns (N, N), exactly zero on the diagonal and never negative. In
    float32 the error is about 1e-7 of the largest distance, which is accurate enough for choosing triplets.
    Raises FloatingPointError if x contains NaN or infinity, as no comparison would mean anything.
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


def distance_blocks(x: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """squared_distances, some rows at a time, for when (N, N) is too large.

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


def hardest_negatives(x: np.ndarray, labels: np.ndarray, identities: int) -> np.ndarray:
    """For each image, the nearest image of each of the nearest other identities: an exact search of all images.

    x: (N, D) float; labels: (N,); identities: how many other ones, or fewer if there are not as many. Returns row
    numbers (N, identities), the nearest identity first. Time grows with N^2 D, memory with N D, besides blocks of
    BLOCK_ENTRIES.
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
        from_block += norms  # adding |x|^2 of the block's own rows would not change the order
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


def first_not_finite(x: np.ndarray) -> int | None:
    """The number of the first row of x, (N, ...) float, that contains NaN or infinity; None if all are finite."""
    if np.isfinite(x).all():
        return None
    return int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))


def check_finite(x: np.ndarray, what: str = "embeddings") -> None:
    """Raise FloatingPointError if x, (N, ...) float, contains NaN or infinity; the message names the first such row."""
    row = first_not_finite(x)
    if row is not None:
        raise FloatingPointError(f"row {row} of the {what} holds NaN or infinity")


def rounding_of(x: np.ndarray) -> float:
    """How far apart, not squared, copies of one image may be among embeddings x, (N, D): ROUNDING of their length.

    The length is the median, so that a few very long rows do not make all others equal.
    """
    return ROUNDING * float(np.sqrt(np.median(np.einsum("nd,nd->n", x, x, dtype=np.float64))))


def _centred(x):
    """The rows in double precision with their mean subtracted, and their squared norms (N,)."""
    check_finite(x)
    # |x|^2 + |y|^2 - 2xy loses small distances in single precision, and far from the origin.
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    return x, np.einsum("nd,nd->n", x, x)


def same_and_other(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are positives and negatives: same[a, p] for p in S(a), other[a, n] for n in D(a).

    labels: (N,). Returns two (N, N) bool arrays; same is False on its diagonal.
    """
    equal = labels[:, None] == labels[None, :]
    other = ~equal
    np.fill_diagonal(equal, False)
    return equal, other


def blocks_of(pairs: int, rows: int) -> list[slice]:
    """Slices over `pairs` pairs, such that a block against `rows` rows has about BLOCK_ENTRIES entries."""
    step = max(1, BLOCK_ENTRIES // max(1, rows))
    return [slice(start, start + step) for start in range(0, pairs, step)]


def row_blocks(rows: int) -> list[slice]:
    """Slices over the rows of a (rows, rows) array, each an eighth of BLOCK_ENTRIES, for threads to share."""
    return blocks_of(rows, 8 * rows)


def in_threads(function: Callable[[slice], None], blocks: Sequence[slice]) -> None:
    """Call function(block) for all blocks, in threads: NumPy releases Python's lock while it sorts and searches."""
    threads = min(len(os.sched_getaffinity(0)), len(blocks))
    if threads < 2:
        for block in blocks:
            function(block)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, blocks):
            pass
