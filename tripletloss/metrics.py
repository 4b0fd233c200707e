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
