"""Measure how cost grows: selection with the mini-batch, mini-batches and verification with the list.

    .venv/bin/python benchmarks/growth.py
"""

import resource
import time

import numpy as np
from tabulate import tabulate

from tripletloss.core import batches, losses, selection, verification
from tripletloss.core.distances import squared_distances

DIMENSION, MARGIN, REPEATS = 256, 0.2, 3


def timed(function):
    """The median of REPEATS calls in milliseconds, after one that does not count."""
    function()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * np.median(seconds)


def clouds(identities, images, rng):
    """Unit embeddings of identities x images, and labels."""
    labels = np.repeat(np.arange(identities), images)
    x = 0.3 * rng.normal(size=(identities, DIMENSION))[labels] + rng.normal(size=(len(labels), DIMENSION))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def by_batch():
    """Measure selection, loss and gradient of 30 to 7,200 embeddings."""
    rows = []
    for identities, images in ((5, 6), (16, 6), (40, 6), (45, 40), (90, 40), (180, 40)):
        x, labels = clouds(identities, images, np.random.default_rng(0))
        row = [f"{identities} x {images} = {len(labels)}"]
        for name in ("semi-hard", "batch-hard", "distance-weighted"):
            def run(name=name, x=x, labels=labels):
                distances = squared_distances(x, np.float32)
                chosen = selection.select(name, distances, labels, MARGIN, DIMENSION, np.random.default_rng(0))
                losses.selected_loss(x, distances, chosen, MARGIN)

            row.append(f"{timed(run):.1f}")
        rows.append([*row, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}"])
    print(tabulate(rows, ["mini-batch", "semi-hard ms", "batch-hard ms", "distance-weighted ms", "peak MB"]), "\n")


def by_list():
    """Measure how mini-batches of 40 x 20 are chosen, and verification, for 1,000 to 100,000 images."""
    rows = []
    for images in (1000, 10_000, 100_000):
        x, labels = clouds(images // 20, 20, np.random.default_rng(0))
        start = time.perf_counter()
        made = batches.IdentityBatches(labels, 40 * 20, 20, 0)
        made.batch(0)
        first = 1e3 * (time.perf_counter() - start)
        numbers = iter(range(1, 10**9))
        each = timed(lambda made=made, numbers=numbers: made.batch(next(numbers)))
        start = time.perf_counter()
        verification.verification(x, labels)
        rows.append([images, f"{first:.1f}", f"{each:.2f}", f"{time.perf_counter() - start:.2f}",
                     f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}"])  # fmt: skip
    print(tabulate(rows, ["images", "first mini-batch ms", "others ms", "verification s", "peak MB"]))


if __name__ == "__main__":
    by_batch()
    by_list()
