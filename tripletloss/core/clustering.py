"""Images grouped by distance, and how well the groups match the identities."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array

from tripletloss.core.distances import rounding_of, squared_distances
from tripletloss.core.verification import Roc


def threshold_of_best_f(distances: np.ndarray, same: np.ndarray, weight: float = 1.0) -> float:
    """The threshold on the distance that gives the highest pairwise F.

    distances: (P,); same: (P,) bool, with pairs of both kinds; weight: of each different pair, which is
    different_weight() for drawn pairs, as precision, and hence F, depends on the numbers of pairs of both kinds. Raises
    FloatingPointError if a distance is NaN or infinite.
    """
    roc = Roc(distances, same)
    far, tar = roc.curve()
    positives = same.sum()
    hits, false = tar * positives, far * (len(same) - positives) * weight
    return float(roc.distances[roc.last[int(np.argmax(2 * hits / (hits + false + positives)))]])


class Clustering(NamedTuple):
    """How well clusters match identities; all figures are from 0 to 1."""

    clusters: int
    nmi: float  # normalised mutual information, by the arithmetic mean (Strehl & Ghosh 2002; scikit-learn's default)
    pairwise: tuple[float, float, float]  # precision, recall, F: of pairs of images in one cluster
    # Precision, recall, F: means over images (Bagga & Baldwin 1998; Amigo et al. 2009).
    b_cubed: tuple[float, float, float]


def cluster(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster numbers (N,), of which 0 is the largest cluster: average linkage of squared distances up to a threshold.

    embeddings: (N, D), N >= 1. Time and memory grow with N^2: 10,000 images need 1.6 GB.
    """
    from sklearn.cluster import AgglomerativeClustering  # takes half a second, and most commands do not need it

    if len(embeddings) == 1:
        return np.zeros(1, np.int64)
    distances = squared_distances(embeddings)
    reach = np.square(np.sqrt(threshold) + rounding_of(embeddings))  # by rounding, copies may be as far apart
    model = AgglomerativeClustering(
        n_clusters=None, distance_threshold=np.nextafter(reach, np.inf), metric="precomputed", linkage="average"
    )
    return by_size(model.fit_predict(distances))


def by_size(clusters: np.ndarray) -> np.ndarray:
    """The same clusters (N,), numbered from the largest to the smallest; equal ones by their first images."""
    _, first, numbers, sizes = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort([first, -sizes])] = np.arange(len(sizes))
    return rank[numbers]


def clustering(clusters: np.ndarray, labels: np.ndarray) -> Clustering:
    """Clustering figures of cluster numbers (N,) against labels (N,)."""
    from sklearn.metrics import normalized_mutual_info_score  # as above

    clusters = np.unique(clusters, return_inverse=True)[1]
    labels = np.unique(labels, return_inverse=True)[1]
    together = coo_array((np.ones(len(labels)), (clusters, labels))).tocsr()
    together.sum_duplicates()
    both = together.data  # numbers of images of one identity in one cluster, where not 0
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
    return float(part / whole) if whole else 1.0  # there was nothing to get wrong


def _f_score(precision, recall):
    both = precision + recall
    return float(precision), float(recall), float(2 * precision * recall / both if both else 0)
