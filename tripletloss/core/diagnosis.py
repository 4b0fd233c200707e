"""Is training failing? Figures of a mini-batch's embeddings, and a diagnosis with advice. Plain NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tripletloss.core.distances import same_and_other, squared_distances

WINDOW = 10  # how many of the latest reports a diagnosis compares with as many earlier ones
SHORT_WINDOW = 3  # how many show a collapse, which takes few iterations and does not mend itself


class Report(NamedTuple):
    """Figures of the embeddings of one mini-batch. Distances are squared."""

    mean_distance: float  # of all pairs
    distance_spread: float  # their standard deviation
    norm: float  # mean length of the embeddings
    effective_rank: float  # of the centred embeddings: how many directions they use
    far_positives: float  # share of the same-identity pairs that are farther apart than half the other pairs
    d_ap: float  # median distance of the same-identity pairs
    d_an: float  # 5th percentile of the distances of the other pairs

    # NaN if no triplets are selected.
    active_share: float = float("nan")
    loss: float = float("nan")


def report(
    embeddings: np.ndarray, labels: np.ndarray, active_share: float = float("nan"), loss: float = float("nan")
) -> Report:
    """The Report of a mini-batch: embeddings (N, D), labels (N,). Raises FloatingPointError for NaN and infinity."""
    distances = squared_distances(embeddings)
    same, other = same_and_other(labels)
    upper = np.triu(np.ones_like(same), 1)
    everyone, positives, negatives = distances[upper], distances[same & upper], distances[other & upper]
    both = len(positives) and len(negatives)
    return Report(
        mean_distance=float(everyone.mean()) if len(everyone) else 0.0,
        distance_spread=float(everyone.std()) if len(everyone) else 0.0,
        norm=float(np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64)).mean()),
        effective_rank=effective_rank(embeddings),
        far_positives=float(np.mean(positives > np.median(negatives))) if both else 0.0,
        d_ap=float(np.median(positives)) if both else float("nan"),
        d_an=float(np.percentile(negatives, 5)) if both else float("nan"),
        active_share=float(active_share), loss=float(loss),
    )  # fmt: skip


def effective_rank(embeddings: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of the centred rows (Roy & Vetterli, EUSIPCO 2007).

    embeddings: (N, D). It is 1 if all lie on a line, min(N - 1, D) if all directions are used equally, 0 for one point.
    """
    x = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 1e-12]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def diagnose(reports: Sequence[Report], margin: float) -> tuple[str, str] | None:
    """The problem as (name, sentence with advice), or None if there is none.

    reports: all Reports of a triplet stage so far; margin: of squared distances. A collapsed embedding has the loss
    margin / 2, as every hinge equals the margin.
    """
    if len(reports) < SHORT_WINDOW:
        return None
    first, late = _means(reports[:WINDOW]), _means(reports[-SHORT_WINDOW:])
    # Collapsed to one point, at zero or elsewhere; not merely small compared with an oversized margin.
    together = late.mean_distance < 0.05 * late.norm**2 or late.mean_distance < 0.1 * first.mean_distance
    if together and late.mean_distance < 0.1 * margin and abs(late.loss - margin / 2) < 0.1 * margin:
        return "collapsed", (
            f"all embeddings are within {late.mean_distance:.2g} of each other, and the loss is that of one point, "
            f"MARGIN / 2 = {margin / 2:g}: start again with semi-hard selection, trained weights, and, if it still "
            "collapses, a lower LEARNING_RATE"
        )
    if len(reports) < WINDOW:
        return None
    late = _means(reports[-WINDOW:])
    if len(reports) >= 2 * WINDOW and (late.norm > 10 * first.norm or late.loss > 2 * max(first.loss, margin / 2)):
        return "learning rate too high", (
            f"the loss went from {first.loss:.3g} to {late.loss:.3g}, and the embeddings' length from {first.norm:.3g} "
            f"to {late.norm:.3g}: divide LEARNING_RATE by ten"
        )
    if late.active_share < 0.005:
        return "no active triplets", (
            f"only {late.active_share:.1%} of the triplets have a loss, so nothing is learnt: raise MARGIN, or put "
            "more identities into a mini-batch"
        )
    if late.d_ap < 0.5 * late.d_an and 0.002 < late.far_positives < 0.25:
        return "suspected label noise", (
            f"{late.far_positives:.1%} of the same-identity pairs are farther apart than strangers, but the others are "
            "close together: find wrong labels with `python -m tripletloss.suspects`"
        )
    stuck = len(reports) >= 3 * WINDOW and late.loss > 0.98 * _means(reports[-2 * WINDOW : -WINDOW]).loss
    if stuck and late.active_share > 0.95 and late.loss > margin / 4:
        return "margin unreachable", (
            f"{late.active_share:.0%} of the triplets do not reach MARGIN {margin:g}, and the loss of {late.loss:.3g} "
            f"no longer falls, with a mean distance of {late.mean_distance:.3g}: lower MARGIN"
        )
    return None


def _means(reports):
    return Report(*np.nanmean(np.array(reports, dtype=np.float64), axis=0))
