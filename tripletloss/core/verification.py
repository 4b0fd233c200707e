"""Verification: how well distances tell same-identity pairs from others. Distances are squared Euclidean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tripletloss.core.bootstrap import LEAST_IDENTITIES, RESAMPLES
from tripletloss.core.distances import check_finite
from tripletloss.core.pairs import NEEDS_BOTH_KINDS, Pairs, pair_distances, pairs_of

FARS = (1e-1, 1e-2, 1e-3, 1e-4)  # the false accept rates that are reported
LEAST_FALSE_ACCEPTS = 10  # a FAR is resolved, and reported, if this many different pairs are accepted at it


class Verification(NamedTuple):
    """How well distances tell same-identity pairs from others. FARs are those of FARS that the pairs resolve."""

    same: int  # number of pairs of the same identity
    different: int  # number of pairs of different identities
    figures: dict[str, float]  # by name, those of FIGURES that the pairs resolve
    thresholds: dict[float, float]  # by FAR: the largest distance accepted
    accepted: dict[float, int]  # by FAR: how many different pairs are accepted

    @property
    def auc(self) -> float:
        """Area under the ROC curve."""
        return self.figures["AUC"]

    @property
    def eer(self) -> float:
        """Equal error rate: the share of same pairs rejected, where it equals the share of different pairs accepted."""
        return self.figures["EER"]

    @property
    def tar(self) -> dict[float, float]:
        """By FAR: the share of same pairs accepted when at most that share of different pairs is."""
        return {figure.far: self.figures[figure.name] for figure in FIGURES if figure.far in self.thresholds}


class Roc:
    """The ROC curve of pairs, for any weights of the pairs: they are sorted once, then each curve is cheap."""

    def __init__(self, distances: np.ndarray, same: np.ndarray) -> None:
        """distances: (P,); same: (P,) bool. Raises FloatingPointError if a distance is NaN or infinite."""
        check_finite(distances, "distances")
        self.order = np.argsort(distances, kind="stable")
        self.distances, self.same = distances[self.order], same[self.order]
        # A threshold accepts all pairs of equal distance or none, so the curve has a point at the last of them.
        self.last = np.flatnonzero(np.append(self.distances[1:] != self.distances[:-1], True))

    def curve(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """FAR and TAR, (K,) each, when pairs up to each of the K distances are accepted.

        weights: (P,) in the order of the distances that __init__ was given; None: each pair counts once. Raises
        ValueError unless there are both same and different pairs, with weights above 0.
        """
        weights = np.ones(len(self.same), np.float32) if weights is None else weights[self.order]
        true = np.cumsum(np.where(self.same, weights, 0), dtype=np.float64)[self.last]
        false = np.cumsum(np.where(self.same, 0, weights), dtype=np.float64)[self.last]
        if true[-1] == 0 or false[-1] == 0:
            raise ValueError(NEEDS_BOTH_KINDS)
        return false / false[-1], true / true[-1]


def area(far: np.ndarray, tar: np.ndarray) -> float:
    """Area under a ROC curve from (0, 0) on, by trapezoids. far, tar: (K,)."""
    far, tar = np.append(0, far), np.append(0, tar)
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2))


def equal_error_rate(far: np.ndarray, tar: np.ndarray) -> float:
    """Where FAR equals 1 - TAR, by linear interpolation between points of the curve. far, tar: (K,)."""
    far, frr = np.append(0, far), 1 - np.append(0, tar)
    after = int(np.argmax(far >= frr))
    step, gap = far[after] - far[after - 1], frr[after - 1] - far[after - 1]
    closing = step + frr[after - 1] - frr[after]
    return float(far[after - 1] + step * gap / closing)


def threshold_of_equal_errors(distances: np.ndarray, same: np.ndarray) -> float:
    """The smallest threshold at which the share of different pairs accepted reaches that of same pairs rejected.

    distances: (P,); same: (P,) bool, with pairs of both kinds.
    """
    roc = Roc(distances, same)
    far, tar = roc.curve()
    return float(roc.distances[roc.last[np.argmax(far >= 1 - tar)]])


def rejected_from(distances: np.ndarray, same: np.ndarray) -> tuple[float, float, float] | None:
    """The distance beyond which hardly any same pair lies: the other end of what a threshold at a low FAR leaves open.

    distances: (P,); same: (P,) bool, with pairs of both kinds. Returns the lowest of FARS that the same pairs resolve
    as a false reject rate; the smallest distance of theirs beyond which at most that share of them lies; and the share
    of different pairs beyond it. Returns None if LEAST_FALSE_ACCEPTS same pairs are more than the largest of FARS.
    """
    own = np.sort(distances[same])
    resolved = [frr for frr in FARS if frr * len(own) >= LEAST_FALSE_ACCEPTS]
    if not resolved:
        return None
    frr = min(resolved)
    at = own[len(own) - 1 - int(frr * len(own))]
    return frr, float(at), float(np.mean(distances[~same] > at))


def accepted_at(far: np.ndarray, tar: np.ndarray, most: float) -> tuple[float, int]:
    """(TAR, index) of the last point of the curve (K,) whose FAR is at most `most`; (0, -1) if there is none."""
    at = int(np.searchsorted(far, most, side="right")) - 1
    return (float(tar[at]) if at >= 0 else 0.0), at


def _tar_at(most: float) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda far, tar: accepted_at(far, tar, most)[0]


class Figure(NamedTuple):
    """A figure of verification, computed from a ROC curve."""

    name: str
    value: Callable[[np.ndarray, np.ndarray], float]  # from the curve's FAR and TAR, (K,) each
    higher_is_better: bool
    far: float | None  # the false accept rate that the pairs must resolve for it, if any


FIGURES = (
    Figure("AUC", area, True, None),
    Figure("EER", equal_error_rate, False, None),
    *(Figure(f"TAR@FAR={far:g}", _tar_at(far), True, far) for far in FARS),
)


def resolved_fars(far: np.ndarray, tar: np.ndarray, different: int) -> dict[float, tuple[float, int, int]]:
    """Those of FARS that pairs resolve: FAR -> (TAR, index of the point of the curve, different pairs accepted there).

    far, tar: (K,), the curve of distinct pairs that count once each; different: the number of different pairs.
    A FAR is resolved if LEAST_FALSE_ACCEPTS different pairs or more are accepted at it. That takes 10 / FAR different
    pairs, or more if so many have equal distances that the next threshold exceeds the FAR.
    """
    found = {}
    for most in FARS:
        share, at = accepted_at(far, tar, most)
        accepted = round(far[at] * different) if at >= 0 else 0
        if accepted >= LEAST_FALSE_ACCEPTS:
            found[most] = share, at, accepted
    return found


def headline_figure(labels: np.ndarray) -> str:
    """The name of the figure that embeddings of images are compared by: TAR at FAR 1%, or AUC with too few pairs.

    labels: (N,). It takes LEAST_FALSE_ACCEPTS / 1% = 1,000 different pairs to resolve that FAR.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    different = (len(labels) ** 2 - int((sizes**2).sum())) // 2
    return "TAR@FAR=0.01" if different * 0.01 >= LEAST_FALSE_ACCEPTS else "AUC"


def verification_of_pairs(distances: np.ndarray, same: np.ndarray) -> Verification:
    """Verification of pairs: distances (P,), same (P,) bool.

    TAR and FAR are defined as by FaceNet (arXiv 1503.03832, section 4): the shares of same and of different pairs up to
    a distance. Raises ValueError if there are no same or no different pairs, and FloatingPointError as Roc does.
    """
    roc = Roc(distances, same)
    curve = roc.curve()
    different = int((~same).sum())
    resolved = resolved_fars(*curve, different)
    return Verification(
        int(same.sum()), different,
        figures={figure.name: figure.value(*curve) for figure in FIGURES if figure.far in (None, *resolved)},
        thresholds={far: float(roc.distances[roc.last[at]]) for far, (_, at, _) in resolved.items()},
        accepted={far: accepted for far, (_, _, accepted) in resolved.items()},
    )  # fmt: skip


def verification(embeddings: np.ndarray, labels: np.ndarray) -> Verification:
    """Verification of the pairs of pairs_of(labels). embeddings: (N, D); labels: (N,). Raises ValueError as it does."""
    pairs = pairs_of(labels)
    return verification_of_pairs(pair_distances(embeddings, pairs.first, pairs.second), pairs.same)


def resampled_verification(
    distances: Any, pairs: Pairs, labels: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Any:
    """The figures of verification_of_pairs for resampled identities: name -> (R,), for intervals.

    distances: (P,), or a list of such arrays for several embeddings of the same images. For a list, a list is returned,
    and the same identities are drawn for all, so that their figures can be subtracted. pairs: Pairs; labels: (N,). A
    different pair is weighted by the product of how often its identities were drawn, a same pair by how often its
    identity was. Draws without same or different pairs are left out; with fewer than LEAST_IDENTITIES, all are.
    """
    several = isinstance(distances, list)
    people, labels = np.unique(labels, return_inverse=True)
    first, second = labels[pairs.first], labels[pairs.second]
    rocs = [Roc(d, pairs.same) for d in (distances if several else [distances])]
    different = int(np.sum(~pairs.same))
    fars = [resolved_fars(*roc.curve(), different) for roc in rocs]
    wanted = [[figure for figure in FIGURES if figure.far in (None, *own)] for own in fars]
    found: list[dict[str, list[float]]] = [{figure.name: [] for figure in own} for own in wanted]
    rng = np.random.default_rng(seed)
    for _ in range(resamples if len(people) >= LEAST_IDENTITIES else 0):
        drawn = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people)).astype(np.float32)
        weights = np.where(pairs.same, drawn[first], drawn[first] * drawn[second])
        try:
            curves = [roc.curve(weights) for roc in rocs]
        except ValueError:
            continue
        for values, curve, own in zip(found, curves, wanted, strict=True):
            for figure in own:
                values[figure.name].append(figure.value(*curve))
    arrays = [{name: np.array(values) for name, values in one.items()} for one in found]
    return arrays if several else arrays[0]


class PairAccuracy(NamedTuple):
    """How often a threshold on the distance is right."""

    folds: int
    mean: float  # over the folds, from 0 to 1
    standard_error: float | None  # of that mean; None with one fold


def cross_validated_accuracy(distances: np.ndarray, same: np.ndarray, folds: np.ndarray) -> PairAccuracy:
    """Verification accuracy by LFW's protocol (Huang et al., UMass TR 07-49, 2007): view 2, image-restricted.

    distances: (P,); same: (P,) bool; folds: (P,) int. The pairs of a fold are judged by the threshold that is best for
    all the other folds. A single fold is judged by its own best threshold, which is optimistic. Raises ValueError if
    there are no same or no different pairs, and FloatingPointError if a distance is NaN or infinite.
    """
    check_finite(distances, "distances")
    if same.all() or not same.any():
        raise ValueError(NEEDS_BOTH_KINDS)
    accuracies = []
    for fold in np.unique(folds):
        held_out = folds == fold
        others = ~held_out if not held_out.all() else held_out
        threshold = best_threshold(distances[others], same[others])
        accuracies.append(np.mean((distances[held_out] <= threshold) == same[held_out]))
    count = len(accuracies)
    error = float(np.std(accuracies, ddof=1) / np.sqrt(count)) if count > 1 else None
    return PairAccuracy(count, float(np.mean(accuracies)), error)


def best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The threshold with the fewest mistakes, halfway between two distances. distances: (P,); same: (P,) bool."""
    order = np.argsort(distances, kind="stable")
    gained = np.where(same[order], 1, -1)  # by accepting one more pair
    right = np.concatenate([[0], np.cumsum(gained)])  # up to a constant, after accepting 0..P pairs
    edges = np.concatenate([[-np.inf], distances[order], [np.inf]])
    between = edges[:-1] < edges[1:]  # no threshold separates equal distances
    best = int(np.argmax(np.where(between, right, -len(right))))
    below, above = edges[best], edges[best + 1]
    return float((below + above) / 2) if np.isfinite(above - below) else float(below)
