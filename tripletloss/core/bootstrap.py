"""95% intervals by resampling identities.

Intervals are percentile bootstraps over identities: images of one identity are not independent, nor are the pairs that
share one, so identities are drawn with replacement, never images or pairs.
"""

import numpy as np

RESAMPLES = 200
LEAST_IDENTITIES = 5  # with fewer, resampling says nothing: an interval needs this many


def interval(values):
    """The 95% interval of resampled values, (low, high); None where there are none."""
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def resampled_means(values, labels, resamples=RESAMPLES, seed=0):
    """Means of per-query values for resampled identities of the queries: values (Q,), labels (Q,). Returns (R,).

    Of fewer than LEAST_IDENTITIES, R is 0.
    """
    people, labels = np.unique(labels, return_inverse=True)
    resamples = resamples if len(people) >= LEAST_IDENTITIES else 0
    sums, sizes = np.bincount(labels, values), np.bincount(labels)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(people), (resamples, len(people)))
    return sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
