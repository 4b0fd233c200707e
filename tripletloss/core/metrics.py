"""How good embeddings are: verification, retrieval, clustering. Distances are squared Euclidean.

Intervals are percentile bootstraps over identities: images of one identity are not independent, nor are the pairs that
share one, so identities are drawn with replacement, never images or pairs.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array

from tripletloss.core.triplets import check_finite, distance_blocks, rounding_of, squared_distances

FARS = (1e-1, 1e-2, 1e-3, 1e-4)  # false accept rates that are reported
LEAST_FALSE_ACCEPTS = 10  # a FAR is resolved, and reported, where so many different pairs are accepted at it
RESAMPLES = 200
LEAST_IDENTITIES = 5  # from fewer, resampling tells nothing: an interval needs so many


# --- pairs of images -------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """P pairs of images, all distinct, and whether they show one identity."""

    first: np.ndarray  # (P,) int, row numbers
    second: np.ndarray  # (P,) int
    same: np.ndarray  # (P,) bool


def pairs_of(labels, most=1_000_000, seed=0):
    """All pairs of images, or, where there are more than `most`, that many of them, drawn at random.

    labels: (N,). All pairs of one kind are as likely, and none is drawn twice. Half of the drawn pairs are same pairs,
    unless one kind has fewer: then all of its pairs are there, and the other kind fills up. Where both kinds are
    counted together, weigh them by different_weight(). Memory grows with N + most, never with N^2.
    Raises ValueError if there are no same or no different pairs.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    n, sizes = len(labels), np.bincount(labels)
    all_pairs, same_pairs = n * (n - 1) // 2, int((sizes * (sizes - 1) // 2).sum())
    different_pairs = all_pairs - same_pairs
    if not 0 < same_pairs < all_pairs:
        raise ValueError("verification needs pairs of one identity and pairs of two")
    if all_pairs <= most:
        first, second = np.triu_indices(n, 1)
        return Pairs(first, second, labels[first] == labels[second])
    rng = np.random.default_rng(seed)
    images = np.argsort(labels, kind="stable")  # identity by identity
    ends = np.cumsum(sizes)
    starts = ends - sizes
    drawn = min(same_pairs, max(most // 2, most - different_pairs))
    number = _draw(rng, same_pairs, drawn)
    before = np.cumsum(sizes * (sizes - 1) // 2)  # pairs up to and with each identity
    identity = np.searchsorted(before, number, side="right")
    number = number - (before - sizes * (sizes - 1) // 2)[identity]
    # Pair number k of an identity: larger index j with j (j - 1) / 2 <= k, smaller index the rest.
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    i = number - j * (j - 1) // 2
    first, second = starts[identity] + i, starts[identity] + j
    # The image in place p makes different pairs with all images of later identities, which are the last ones.
    before = np.cumsum(n - ends[labels[images]])  # pairs up to and with each image
    number = _draw(rng, different_pairs, most - drawn)
    place = np.searchsorted(before, number, side="right")
    first, second = np.append(first, place), np.append(second, n - (before[place] - number))
    return Pairs(images[first], images[second], np.arange(most) < drawn)


def different_weight(pairs, labels):
    """How many of all different pairs one of `pairs` stands for, where a same pair of them stands for one.

    pairs: Pairs of pairs_of(labels); labels: (N,). It is 1 where `pairs` has all, and else sets right that pairs_of
    draws more same pairs than their share.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    all_same = np.sum(sizes * (sizes - 1) // 2)
    all_different = len(labels) * (len(labels) - 1) // 2 - all_same
    return float(all_different / np.sum(~pairs.same) * np.sum(pairs.same) / all_same)


def _draw(rng, among, count):
    """`count` different numbers of 0..among - 1, in order, without a list of all of them."""
    if count == among:
        return np.arange(among)
    found = np.zeros(0, np.int64)
    while len(found) < count:
        found = np.sort(np.append(found, rng.integers(0, among, count)))
        found = found[np.diff(found, prepend=-1) > 0]  # np.unique would take longer than all the rest
    return np.sort(rng.choice(found, count, replace=False))


def pair_distances(embeddings, first, second):
    """Squared distances of pairs of rows: embeddings (N, D); first, second: (P,) row numbers. Returns (P,) float64.

    What is no farther apart than rounding puts copies of one image (triplets.ROUNDING) has the distance 0.
    Raises FloatingPointError, which names the first such row, if an embedding holds NaN or infinity.
    """
    check_finite(embeddings)
    found = np.empty(len(first))
    step = max(1, 4_000_000 // embeddings.shape[1])
    for start in range(0, len(first), step):
        block = slice(start, start + step)
        found[block] = np.square(embeddings[first[block]].astype(np.float64) - embeddings[second[block]]).sum(axis=1)
    found[found <= rounding_of(embeddings) ** 2] = 0
    return found


# --- verification ----------------------------------------------------------------------------------------------------


class Verification(NamedTuple):
    """How well distances tell same-identity pairs from others."""

    same: int  # pairs of one identity
    different: int  # pairs of two identities
    auc: float  # area under the ROC curve
    eer: float  # equal error rate: where as large a share of same pairs is rejected as of different pairs accepted
    # By FAR, of FARS that the pairs resolve: those at which LEAST_FALSE_ACCEPTS different pairs or more are accepted.
    tar: dict  # share of the same pairs accepted when that share of the different pairs is, or less
    thresholds: dict  # the largest distance accepted there
    accepted: dict  # how many different pairs are


class Roc:
    """The ROC curve of pairs, for any weights of the pairs: sorted once, then cheap."""

    def __init__(self, distances, same):
        """distances: (P,); same: (P,) bool. Raises FloatingPointError if a distance is NaN or infinite."""
        check_finite(distances, "distances")
        self.order = np.argsort(distances, kind="stable")
        self.distances, self.same = distances[self.order], same[self.order]
        # A threshold accepts all pairs of one distance or none, so the curve has a point at the last of each.
        self.last = np.flatnonzero(np.append(self.distances[1:] != self.distances[:-1], True))

    def curve(self, weights=None):
        """FAR and TAR (both (K,), from 0 to 1) at accepting up to each of the K distances; None without both kinds.

        weights: (P,) in the order of the distances that the curve was made from; None: each pair once.
        """
        weights = np.ones(len(self.same), np.float32) if weights is None else weights[self.order]
        true = np.cumsum(np.where(self.same, weights, 0), dtype=np.float64)[self.last]
        false = np.cumsum(np.where(self.same, 0, weights), dtype=np.float64)[self.last]
        if true[-1] == 0 or false[-1] == 0:
            return None
        return false / false[-1], true / true[-1]


def area(far, tar):
    """Area under a ROC curve, by trapezoids from (0, 0) on."""
    far, tar = np.append(0, far), np.append(0, tar)
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def equal_error_rate(far, tar):
    """Where FAR and 1 - TAR meet, on the straight line between the two points of the curve that they cross between."""
    far, frr = np.append(0, far), 1 - np.append(0, tar)
    after = int(np.argmax(far >= frr))
    step, gap = far[after] - far[after - 1], frr[after - 1] - far[after - 1]
    closing = step + frr[after - 1] - frr[after]
    return float(far[after - 1] + step * gap / closing)


def accepted_at(far, tar, most):
    """(TAR, index) of the last point of the curve whose FAR is at most `most`; (0, -1) where there is none."""
    at = int(np.searchsorted(far, most, side="right")) - 1
    return (float(tar[at]) if at >= 0 else 0.0), at


def resolved_fars(far, tar, different):
    """Those of FARS that pairs resolve: FAR -> (TAR, index of the point of the curve, different pairs accepted there).

    far, tar: (K,), the curve of distinct pairs, each counted once; different: how many of them are of two identities.
    A FAR is resolved if LEAST_FALSE_ACCEPTS different pairs or more are accepted at it. So it takes 10 / FAR different
    pairs, and more where so many have equal distances that the next threshold goes beyond the FAR.
    """
    found = {}
    for most in FARS:
        share, at = accepted_at(far, tar, most)
        accepted = round(far[at] * different) if at >= 0 else 0
        if accepted >= LEAST_FALSE_ACCEPTS:
            found[most] = share, at, accepted
    return found


def verification_of_pairs(distances, same):
    """Verification from pairs: distances (P,), same (P,) bool.

    TAR and FAR as FaceNet (arXiv 1503.03832, section 4) defines them: shares of the same and of the different pairs
    up to a distance. Raises ValueError if there are no same or no different pairs, and FloatingPointError as Roc does.
    """
    roc = Roc(distances, same)
    curve = roc.curve()
    if curve is None:
        raise ValueError("verification needs pairs of one identity and pairs of two")
    different = int((~same).sum())
    resolved = resolved_fars(*curve, different)
    return Verification(
        int(same.sum()), different, area(*curve), equal_error_rate(*curve),
        tar={far: tar for far, (tar, _, _) in resolved.items()},
        thresholds={far: float(roc.distances[roc.last[at]]) for far, (_, at, _) in resolved.items()},
        accepted={far: accepted for far, (_, _, accepted) in resolved.items()},
    )  # fmt: skip


def verification(embeddings, labels):
    """Verification over the pairs of pairs_of(labels). embeddings: (N, D); labels: (N,). Raises ValueError as that."""
    pairs = pairs_of(labels)
    return verification_of_pairs(pair_distances(embeddings, pairs.first, pairs.second), pairs.same)


def figures(verified):
    """The figures of a Verification by name: AUC, EER, TAR@FAR=..."""
    return {"AUC": verified.auc, "EER": verified.eer, **{f"TAR@FAR={far:g}": tar for far, tar in verified.tar.items()}}


def resampled_verification(distances, pairs, labels, resamples=RESAMPLES, seed=0):
    """The figures of verification_of_pairs for resampled identities: name -> (R,), for intervals.

    distances: (P,), or a list of them, for several embeddings of the same images: then a list is returned, and the
    same identities were drawn for all, so that differences can be taken. pairs: Pairs; labels: (N,). A pair counts
    as often as both its identities were drawn, a pair of one identity as often as that one was. A draw without same
    or without different pairs is left out; of fewer than LEAST_IDENTITIES, all are.
    """
    several = isinstance(distances, list)
    people, labels = np.unique(labels, return_inverse=True)
    first, second = labels[pairs.first], labels[pairs.second]
    rocs = [Roc(d, pairs.same) for d in (distances if several else [distances])]
    different = int(np.sum(~pairs.same))
    fars = [list(resolved_fars(*roc.curve(), different)) for roc in rocs]
    found = [{name: [] for name in ("AUC", "EER", *(f"TAR@FAR={far:g}" for far in own))} for own in fars]
    rng = np.random.default_rng(seed)
    for _ in range(resamples if len(people) >= LEAST_IDENTITIES else 0):
        drawn = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people)).astype(np.float32)
        weights = np.where(pairs.same, drawn[first], drawn[first] * drawn[second])
        curves = [roc.curve(weights) for roc in rocs]
        if curves[0] is None:
            continue
        for values, curve, own in zip(found, curves, fars, strict=True):
            values["AUC"].append(area(*curve))
            values["EER"].append(equal_error_rate(*curve))
            for far in own:
                values[f"TAR@FAR={far:g}"].append(accepted_at(*curve, far)[0])
    arrays = [{name: np.array(values) for name, values in one.items()} for one in found]
    return arrays if several else arrays[0]


def interval(values):
    """The 95% interval of resampled values, (low, high); None where there are none."""
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


# --- verification accuracy in folds ----------------------------------------------------------------------------------


class PairAccuracy(NamedTuple):
    """How often a threshold on the distance is right about a pair."""

    folds: int
    mean: float  # over the folds, 0..1
    standard_error: float | None  # of that mean; None with one fold


def cross_validated_accuracy(distances, same, folds):
    """Verification accuracy by LFW's protocol (Huang et al., UMass TR 07-49, 2007): view 2, image-restricted.

    distances: (P,); same: (P,) bool; folds: (P,) int. The pairs of a fold are judged by the threshold that is right
    about most pairs of all the other folds; with one fold, by its own best, which is too good. Raises ValueError if
    there are no same or no different pairs, and FloatingPointError if a distance is NaN or infinite.
    """
    check_finite(distances, "distances")
    if same.all() or not same.any():
        raise ValueError("verification needs pairs of one identity and pairs of two")
    accuracies = []
    for fold in np.unique(folds):
        held_out = folds == fold
        others = ~held_out if not held_out.all() else held_out
        threshold = best_threshold(distances[others], same[others])
        accuracies.append(np.mean((distances[held_out] <= threshold) == same[held_out]))
    count = len(accuracies)
    error = float(np.std(accuracies, ddof=1) / np.sqrt(count)) if count > 1 else None
    return PairAccuracy(count, float(np.mean(accuracies)), error)


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


# --- retrieval -------------------------------------------------------------------------------------------------------


class Retrieval(NamedTuple):
    """Figures of Q queries: each image that has another of its identity, against all other images. Each (Q,)."""

    labels: np.ndarray  # of the query
    rank_1: np.ndarray  # bool: the nearest other image is of the query's identity
    average_precision: np.ndarray  # mean of the precision at each image of the query's identity
    r_precision: np.ndarray  # share of the query's R images among the R nearest


def retrieval(embeddings, labels):
    """Retrieval figures, query by query; their means are rank-1 (recall at 1), mAP and mean R-precision.

    embeddings: (N, D); labels: (N,). Average precision as in Manning, Raghavan, Schuetze, Introduction to Information
    Retrieval, section 8.4 (mAP over queries), R-precision in the same place. An image of another identity at the same
    distance comes first; so does one that is farther by no more than rounding can do (triplets.ROUNDING), so that all
    copies of one image are equally near. Memory: blocks of N rows, never N^2.
    Raises FloatingPointError, which names the first such row, if an embedding holds NaN or infinity.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(labels)
    queries = np.flatnonzero(sizes[labels] > 1)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    rank_1, average, r_precision = np.zeros(len(queries), bool), np.zeros(len(queries)), np.zeros(len(queries))
    done, rounding = 0, rounding_of(embeddings)
    for block, distances in distance_blocks(embeddings, queries):  # (B, N)
        distances[np.arange(len(block)), block] = np.inf  # not itself
        for query, row in zip(block, distances, strict=True):
            mine = members[labels[query]]
            mine = np.sort(row[mine[mine != query]])  # (R,)
            row.sort()
            reach = np.square(np.sqrt(mine) + rounding)  # (R,) a copy, not squared, is at most so much farther
            ranks = np.searchsorted(row, reach, side="right")  # (R,) images at that distance or nearer
            hits = np.searchsorted(mine, reach, side="right")  # (R,) of them of the query's identity
            rank_1[done] = ranks[0] == hits[0]
            average[done] = np.mean(hits / ranks)
            r_precision[done] = np.mean(ranks <= len(mine))
            done += 1
    return Retrieval(labels[queries], rank_1, average, r_precision)


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


# --- clustering ------------------------------------------------------------------------------------------------------


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
