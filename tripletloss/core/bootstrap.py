"""95% intervals by resampling identities.

These are percentile bootstraps over identities. Images of one identity are not independent, and neither are pairs that
share an identity, so identities are drawn with replacement, never images or pairs.
"""

import numpy as np

RESAMPLES = 200
LEAST_IDENTITIES = 5  # that an interval needs; with fewer, resampling says nothing


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval, (low, high), of resampled values (R,); None if there are none."""
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def resampled_means(values: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of per-query values (Q,) for resampled identities of the queries, labels (Q,). Returns (R,).

    R is `resamples`, or 0 with fewer than LEAST_IDENTITIES identities.
    """
    people, labels = np.unique(labels, return_inverse=True)
    resamples = resamples if len(people) >= LEAST_IDENTITIES else 0
    sums, sizes = np.bincount(labels, values), np.bincount(labels)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(people), (resamples, len(people)))
    return sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
