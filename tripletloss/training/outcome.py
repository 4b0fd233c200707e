"""What a run brought: which weights and which feature are best on the held-out identities, and what to do with them."""

import contextlib
import functools
import io
import json
import os
import shlex
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.files import short, write_all
from tripletloss.core import bootstrap
from tripletloss.core.pairs import Pairs, pair_distances, pairs_of
from tripletloss.core.verification import headline_figure, resampled_verification, verification_of_pairs
from tripletloss.data.lists import ImageList
from tripletloss.training import snapshots
from tripletloss.training.plan import Plan
from tripletloss.training.score import HeldOut


class Candidate(NamedTuple):
    """A feature of weights, which can be used."""

    stage: str  # that trained the weights; '' for those that the run began with
    weights: str  # path
    feature: str
    rows: np.ndarray  # (N, D), of the held-out images

    def __str__(self) -> str:
        """For example: runs/my/triplet_iter_300.caffemodel, embedding."""
        return f"{short(self.weights)}, {self.feature}"


class Change(NamedTuple):
    """How much higher the figure of one candidate is than that of another."""

    value: float
    interval: tuple[float, float] | None  # 95%, identities resampled; None with too few identities

    def __str__(self) -> str:
        """For example: +0.0120 (95% interval +0.0030 to +0.0200)."""
        spread = f"95% interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f}" if self.interval else ""
        return f"{self.value:+.4f} ({spread or 'too few identities'})"


class Worse(NamedTuple):
    """A stage that made it worse. The numbers are of candidates."""

    stage: str
    number: int  # the stage's best candidate,
    earlier: int  # the best one from before the stage,
    change: Change  # and what was lost, below 0


class Outcome(NamedTuple):
    """The candidates of a run, judged by one figure on the held-out identities. The numbers are of candidates."""

    figure: str  # the name: of headline_figure()
    found: Sequence[Candidate]  # one or more
    figures: list[dict[str, float]]  # of each candidate: those of verification, by name
    same: int  # pairs
    different: int  # pairs
    best: int
    start: int | None  # the best one that the run began with, if it began with any
    gain: Change | None  # of the best one from there; None if it is the same one, or if there is no such one
    worse: list[Worse]

    def value(self, number: int) -> float:
        """The figure of a candidate; NaN if its pairs do not resolve it."""
        return self.figures[number].get(self.figure, float("nan"))


def candidates(plans: Sequence[Plan], ends: Sequence[str], held_out: HeldOut) -> list[Candidate]:
    """What there is to choose from after a run: all measured features of its weights.

    plans: of the stages that were trained, in order; ends: their last weights, whose best snapshots count, too. All
    processes call this. [] if there is nothing to measure with, and in processes other than the first.
    """
    found = [Candidate("", *one) for one in _features(plans[0], plans[0].weights, held_out)]
    for plan, end in zip(plans, ends, strict=True):
        best = held_out.team.first(functools.partial(snapshots.chosen, plan.prefix, "best"))
        for weights in dict.fromkeys(filter(None, [end, best and best.weights])):
            found += [Candidate(plan.stage, *one) for one in _features(plan, weights, held_out)]
    return found


def _features(plan: Plan, weights: str, held_out: HeldOut) -> list[tuple[str, str, np.ndarray]]:
    rows = held_out.embed(plan, weights) if weights else {}
    return [(weights, feature, of_feature) for feature, of_feature in rows.items()]


def judge(found: Sequence[Candidate], labels: np.ndarray) -> Outcome | None:
    """Compare candidates on the held-out identities. labels: (N,) of the images. None without candidates."""
    if not found:
        return None
    figure, pairs = headline_figure(labels), pairs_of(labels)
    distances = [pair_distances(one.rows, pairs.first, pairs.second) for one in found]
    measured = [verification_of_pairs(own, pairs.same) for own in distances]
    values = [one.figures.get(figure, float("nan")) for one in measured]

    def best_of(numbers: Iterable[int]) -> int:
        return max(numbers, key=lambda number: np.nan_to_num(values[number], nan=-1.0))  # the first of equals

    def change(later: int, earlier: int) -> Change:
        return _change(values[later] - values[earlier], figure, [distances[later], distances[earlier]], pairs, labels)

    best, began = best_of(range(len(found))), [number for number, one in enumerate(found) if not one.stage]
    start = best_of(began) if began else None
    gain = change(best, start) if start is not None and best not in began else None
    worse = []
    for stage in dict.fromkeys(one.stage for one in found if one.stage):
        own = best_of(number for number, one in enumerate(found) if one.stage == stage)
        before = [number for number in range(len(found)) if number < own and found[number].stage != stage]
        if before and values[own] < values[(earlier := best_of(before))]:
            worse.append(Worse(stage, own, earlier, change(own, earlier)))
    same = int(pairs.same.sum())
    figures = [one.figures for one in measured]
    return Outcome(figure, found, figures, same, len(pairs.same) - same, best, start, gain, worse)


def _change(
    difference: float, figure: str, distances: list[np.ndarray], pairs: Pairs, labels: np.ndarray
) -> Change:
    """A difference between two candidates, identities resampled. distances: theirs, (P,) each."""
    later, earlier = resampled_verification(distances, pairs, labels)
    known = figure in later and figure in earlier
    return Change(difference, bootstrap.interval(later[figure] - earlier[figure]) if known else None)


def describe(found: Outcome, export: str) -> list[str]:
    """Lines that name the best candidate, the stages that made it worse, and the next command. export: of export()."""
    best = found.found[found.best]
    line = f"best       {best}: {found.figure} {found.value(found.best):.4f} on the held-out identities"
    if found.gain and found.start is not None:
        line += f", {found.gain} from where the run began, {found.found[found.start]}"
    elif found.start is not None:
        line += "; the run began with these weights, and training did not improve on them"
    lines = [
        f"worse      the {one.stage} stage, {found.found[one.number]}: {one.change} from {found.found[one.earlier]}: "
        "use those"
        for one in found.worse
    ]
    return [line, *lines, f"next       {export}"]


def export(best: Candidate, default_feature: str, config_file: str, run_folder: str) -> str:
    """The command that exports a candidate.

    default_feature: what commands take without --feature; config_file: of the run, '' if commands find it themselves.
    """
    words = ["python", "-m", "tripletloss.export", short(best.weights)]
    words += ["--config", config_file] if config_file else []
    words += ["--feature", best.feature] if best.feature != default_feature else []
    return shlex.join([*words, "--out", f"{os.path.basename(run_folder)}.onnx"])


class Kept(NamedTuple):
    """The outcome of a run as it is kept in its folder, with what a page about it needs."""

    about: dict[str, Any]  # plain values: see facts()
    rows: dict[str, np.ndarray]  # 'best', and 'start' if there is one: (N, D), of the held-out images
    names: list[str]  # N, of the images
    labels: np.ndarray  # (N,)
    corrected: Mapping[str, str] = {}  # of the list, see ImageList


def kept(found: Outcome, held_out: ImageList, export: str, comparison: dict[str, Any] | None) -> Kept:
    """What to keep of an Outcome. held_out: its images; export: of export(); comparison: of Comparison.report()."""
    about = {
        "figure": found.figure, "best": found.best, "start": found.start,
        "candidates": [
            {"stage": one.stage, "weights": one.weights, "feature": one.feature, "figures": figures}
            for one, figures in zip(found.found, found.figures, strict=True)
        ],
        "gain": found.gain and found.gain._asdict(),
        "worse": [{**one._asdict(), "change": one.change._asdict()} for one in found.worse],
        "same_pairs": found.same, "different_pairs": found.different, "list": held_out.source,
        "export": export, "comparison": comparison,
    }  # fmt: skip
    rows = {"best": found.found[found.best].rows}
    if found.start is not None:
        rows["start"] = found.found[found.start].rows
    return Kept(about, rows, held_out.names, held_out.labels, held_out.corrected)


def save(folder: str, this: Kept) -> None:
    """Write outcome.json and outcome.npz into a run's folder. Raises OSError."""
    memory = io.BytesIO()
    np.savez(memory, names=np.array(this.names), labels=this.labels, **this.rows)  # type: ignore[arg-type]
    text = json.dumps({**this.about, "corrected": this.corrected}, indent=1)
    write_all({_path(folder, "npz"): memory.getvalue(), _path(folder, "json"): text.encode()})


def load(folder: str) -> Kept | None:
    """What save() wrote; None if it is not there, or damaged."""
    try:
        with open(_path(folder, "json"), encoding="utf-8") as file:
            about = json.load(file)
        with np.load(_path(folder, "npz")) as arrays:
            rows = {name: arrays[name] for name in ("best", "start") if name in arrays}
            return Kept(about, rows, arrays["names"].tolist(), arrays["labels"], about.pop("corrected", {}))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def forget(folder: str) -> None:
    """Remove what save() wrote: another run begins in the folder, or goes on."""
    for kind in ("json", "npz"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(_path(folder, kind))


def _path(folder, kind):
    return os.path.join(folder, f"outcome.{kind}")
