"""Images grouped by distance, and how well the groups match the identities."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array

from tripletloss.core.distances import rounding_of, squared_distances
from tripletloss.core.verification import Roc


def threshold_of_best_f(distances, same, weight=1.0):
    """The distance up to which pairs are called the same with the highest pairwise F.

    distances: (P,); same: (P,) bool, one or more of each kind; weight: what a different pair counts, different_weight()
    for drawn pairs, as precision, and so F, depends on how many pairs there are of each kind. Raises FloatingPointError
    if a distance is NaN or infinite.
    """
    roc = Roc(distances, same)
    far, tar = roc.curve()
    positives = same.sum()
    hits, false = tar * positives, far * (len(same) - positives) * weight
    return float(roc.distances[roc.last[int(np.argmax(2 * hits / (hits + false + positives)))]])


class Clustering(NamedTuple):
    """How well clusters match identities; all from 0 to 1."""

    clusters: int
    nmi: float  # normalised mutual information, by the arithmetic mean (Strehl & Ghosh 2002; scikit-learn's default)
    pairwise: tuple  # precision, recall, F: of pairs of images that are put together
    b_cubed: tuple  # precision, recall, F: means over images (Bagga & Baldwin 1998; Amigo et al. 2009)


def cluster(embeddings, threshold):
    """Cluster numbers (N,), 0 the largest cluster: average linkage of squared distances, up to a threshold.

    embeddings: (N, D), N >= 1. Time and memory grow with N^2: 10,000 images need 1.6 GB.
    """
    from sklearn.cluster import AgglomerativeClustering  # half a second that most commands need not wait

    if len(embeddings) == 1:
        return np.zeros(1, np.int64)
    distances = squared_distances(embeddings)
    reach = np.square(np.sqrt(threshold) + rounding_of(embeddings))  # copies, not squared, are at most so much farther
    model = AgglomerativeClustering(
        n_clusters=None, distance_threshold=np.nextafter(reach, np.inf), metric="precomputed", linkage="average"
    )
    return by_size(model.fit_predict(distances))


def by_size(clusters):
    """The same clusters, numbered from the largest on; equal ones in the order of their first images."""
    _, first, numbers, sizes = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort([first, -sizes])] = np.arange(len(sizes))
    return rank[numbers]


def clustering(clusters, labels):
    """Clustering figures of cluster numbers (N,) against labels (N,)."""
    from sklearn.metrics import normalized_mutual_info_score  # as above

    clusters = np.unique(clusters, return_inverse=True)[1]
    labels = np.unique(labels, return_inverse=True)[1]
    together = coo_array((np.ones(len(labels)), (clusters, labels))).tocsr()
    together.sum_duplicates()
    both = together.data  # images of one identity in one cluster, wherever there are any
    by_cluster, by_label = np.bincount(clusters), np.bincount(labels)
    row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    hits = np.sum(both * (both - 1))
    pairwise = _f_score(
        _share(hits, np.sum(by_cluster * (by_cluster - 1))), _share(hits, np.sum(by_label * (by_label - 1)))
    )
    b_cubed = _f_score(
        np.sum(both**2 / by_cluster[row]) / len(labels), np.sum(both**2 / by_label[together.indices]) / len(labels)
    )
    return Clustering(len(by_cluster), float(normalized_mutual_info_score(labels, clusters)), pairwise, b_cubed)


def _share(part, whole):
    return float(part / whole) if whole else 1.0  # nothing to get wrong


def _f_score(precision, recall):
    both = precision + recall
    return float(precision), float(recall), float(2 * precision * recall / both if both else 0)
