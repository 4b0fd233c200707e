"""How good embeddings are. Plain NumPy and scikit-learn; distances are squared Euclidean."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from tripletloss.triplets import squared_distances


class Verification(NamedTuple):
    """How well distances tell same-identity pairs from others."""

    same: int  # pairs of one identity
    different: int  # pairs of two identities
    auc: float  # area under the ROC curve
    tar_at_far_1: float  # share of same pairs accepted when 1% of the different pairs are


class PairAccuracy(NamedTuple):
    """How often a threshold on the distance is right about a pair."""

    folds: int
    mean: float  # over the folds, 0..1
    standard_error: float  # of that mean
    auc: float  # over all pairs


def verification(embeddings, labels):
    """Verification over all pairs of images.

    embeddings: (N, D); labels: (N,). AUC and TAR@FAR are read off the ROC curve of -distance (FaceNet,
    arXiv 1503.03832, section 4, defines TAR and FAR). Raises ValueError if there are no same or no different pairs.
    """
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    if same.all() or not same.any():
        raise ValueError("verification needs pairs of one identity and pairs of two")
    closeness = -squared_distances(embeddings)[first, second]
    false_accepts, true_accepts, _ = roc_curve(same, closeness)
    tar = true_accepts[np.searchsorted(false_accepts, 0.01, side="right") - 1]
    return Verification(int(same.sum()), int((~same).sum()), float(roc_auc_score(same, closeness)), float(tar))


def verification_intervals(embeddings, labels, resamples=200, seed=0):
    """95% intervals of AUC and TAR at FAR 1%, by resampling identities with replacement (percentile bootstrap).

    embeddings: (N, D); labels: (N,). A pair counts as often as both its identities were drawn, a pair of one identity
    as often as that one was; images and pairs of one identity are not independent, so they are never drawn singly.
    Returns ((low, high), (low, high)).
    """
    people, labels = np.unique(labels, return_inverse=True)
    first, second = np.triu_indices(len(labels), 1)
    order = np.argsort(squared_distances(embeddings)[first, second], kind="stable")
    first, second = labels[first[order]], labels[second[order]]
    same = first == second
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people)).astype(np.float32)
        true_accepts = np.cumsum(np.where(same, drawn[first], 0), dtype=np.float64)
        false_accepts = np.cumsum(np.where(same, 0, drawn[first] * drawn[second]), dtype=np.float64)
        if true_accepts[-1] == 0 or false_accepts[-1] == 0:
            continue  # one identity alone was drawn, or none with two images
        tar, far = true_accepts / true_accepts[-1], false_accepts / false_accepts[-1]
        at = np.searchsorted(far, 0.01, side="right") - 1
        found.append((np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2), tar[at] if at >= 0 else 0.0))
    return tuple((float(low), float(high)) for low, high in np.percentile(found, (2.5, 97.5), axis=0).T)


def pair_distances(embeddings, first, second):
    """Squared distances of pairs of rows: embeddings (N, D); first, second: (P,) row numbers. Returns (P,) float64."""
    return np.square(embeddings[first].astype(np.float64) - embeddings[second]).sum(axis=1)


def cross_validated_accuracy(distances, same, folds):
    """Verification accuracy by LFW's protocol (Huang et al., UMass TR 07-49, 2007): view 2, image-restricted.

    distances: (P,); same: (P,) bool; folds: (P,) int. The pairs of a fold are judged by the threshold that is right
    about most pairs of all the other folds; with one fold, by its own best. Raises ValueError if there are no same
    or no different pairs.
    """
    if same.all() or not same.any():
        raise ValueError("verification needs pairs of one identity and pairs of two")
    accuracies = []
    for fold in np.unique(folds):
        held_out = folds == fold
        others = ~held_out if not held_out.all() else held_out
        threshold = best_threshold(distances[others], same[others])
        accuracies.append(np.mean((distances[held_out] <= threshold) == same[held_out]))
    count = len(accuracies)
    error = np.std(accuracies, ddof=1) / np.sqrt(count) if count > 1 else float("nan")
    return PairAccuracy(count, float(np.mean(accuracies)), float(error), float(roc_auc_score(same, -distances)))


def best_threshold(distances, same):
    """The distance up to which pairs are called the same with the fewest mistakes: half way to the next pair's."""
    order = np.argsort(distances, kind="stable")
    gained = np.where(same[order], 1, -1)  # by accepting one more pair
    right = np.concatenate([[0], np.cumsum(gained)])  # up to a constant, after accepting 0..P pairs
    edges = np.concatenate([[-np.inf], distances[order], [np.inf]])
    between = edges[:-1] < edges[1:]  # no threshold parts equal distances
    best = int(np.argmax(np.where(between, right, -len(right))))
    below, above = edges[best], edges[best + 1]
    return float((below + above) / 2) if np.isfinite(above - below) else float(below)
