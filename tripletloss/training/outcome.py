"""What a run brought: which weights and which feature are best on the held-out identities, and what to do with them."""

import functools
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tripletloss.base.parallel import OneProcess
from tripletloss.core import bootstrap
from tripletloss.core.pairs import Pairs, pair_distances, pairs_of
from tripletloss.core.verification import headline_figure, resampled_verification, verification_of_pairs
from tripletloss.training import snapshots
from tripletloss.training.plan import Plan
from tripletloss.training.score import embed_held_out


class Candidate(NamedTuple):
    """A feature of weights, which can be used."""

    stage: str  # that trained the weights; '' for those that the run began with
    weights: str  # path
    feature: str
    rows: np.ndarray  # (N, D), of the held-out images

    def __str__(self) -> str:
        """For example: runs/my/triplet_iter_300.caffemodel, embedding."""
        return f"{_short(self.weights)}, {self.feature}"


def candidates(plans: Sequence[Plan], ends: Sequence[str], team: OneProcess) -> list[Candidate]:
    """What there is to choose from after a run: all measured features of its weights.

    plans: of the stages that were trained, in order; ends: their last weights, whose best snapshots count, too; team:
    its processes all call this. [] if there is nothing to measure with, and in processes other than the first.
    """
    found = [Candidate("", *one) for one in _features(plans[0], plans[0].weights, team)]
    for plan, end in zip(plans, ends, strict=True):
        best = team.first(functools.partial(snapshots.chosen, plan.prefix, "best"))
        for weights in dict.fromkeys(filter(None, [end, best and best.weights])):
            found += [Candidate(plan.stage, *one) for one in _features(plan, weights, team)]
    return found


def _features(plan: Plan, weights: str, team: OneProcess) -> list[tuple[str, str, np.ndarray]]:
    rows = embed_held_out(plan, weights, team) if weights else {}
    return [(weights, feature, of_feature) for feature, of_feature in rows.items()]


def describe(
    found: Sequence[Candidate], labels: np.ndarray, default_feature: str, config_file: str, run_folder: str
) -> list[str]:
    """Lines that name the best candidate, the stages that made it worse, and the command that exports it.

    found: of candidates(); labels: (N,) of the held-out images; default_feature: what commands take without --feature;
    config_file: of the run, '' if commands find it themselves. [] without candidates.
    """
    if not found:
        return []
    figure, pairs = headline_figure(labels), pairs_of(labels)
    distances = [pair_distances(one.rows, pairs.first, pairs.second) for one in found]
    values = [verification_of_pairs(own, pairs.same).figures.get(figure, float("nan")) for own in distances]

    def best_of(numbers: Iterable[int]) -> int:
        return max(numbers, key=lambda number: np.nan_to_num(values[number], nan=-1.0))  # the first of equals

    def change(later: int, earlier: int) -> str:
        return _change(values[later] - values[earlier], figure, [distances[later], distances[earlier]], pairs, labels)

    best, began = best_of(range(len(found))), [number for number, one in enumerate(found) if not one.stage]
    line = f"best       {found[best]}: {figure} {values[best]:.4f} on the held-out identities"
    if best in began:
        line += "; training did not improve on these, with which the run began"
    elif began:
        start = best_of(began)
        line += f", {change(best, start)} from where the run began, {found[start]}"
    lines = [line]
    for stage in dict.fromkeys(one.stage for one in found if one.stage):
        own = best_of(number for number, one in enumerate(found) if one.stage == stage)
        before = [number for number in range(len(found)) if number < own and found[number].stage != stage]
        if before and values[own] < values[(earlier := best_of(before))]:
            lines.append(
                f"worse      the {stage} stage, {found[own]}: {change(own, earlier)} from {found[earlier]}: use those"
            )
    return [*lines, f"next       {_export(found[best], default_feature, config_file, run_folder)}"]


def _change(
    difference: float, figure: str, distances: list[np.ndarray], pairs: Pairs, labels: np.ndarray
) -> str:
    """A difference between two candidates with its 95% interval, identities resampled. distances: theirs, (P,) each."""
    later, earlier = resampled_verification(distances, pairs, labels)
    known = figure in later and figure in earlier
    spread = bootstrap.interval(later[figure] - earlier[figure]) if known else None
    said = f"95% interval {spread[0]:+.4f} to {spread[1]:+.4f}" if spread else "too few identities"
    return f"{difference:+.4f} ({said})"


def _export(best: Candidate, default_feature: str, config_file: str, run_folder: str) -> str:
    """The command that exports a candidate."""
    words = ["python", "-m", "tripletloss.export", _short(best.weights)]
    words += ["--config", config_file] if config_file else []
    words += ["--feature", best.feature] if best.feature != default_feature else []
    return shlex.join([*words, "--out", f"{os.path.basename(run_folder)}.onnx"])


def _short(path: str) -> str:
    """A path relative to the current folder if it is in there."""
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside
