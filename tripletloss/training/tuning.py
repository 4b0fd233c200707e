"""train.py --tune: the triplet stage's settings, chosen by cross-validation over the identities that it trains on.

Identities are divided into folds. Each candidate is trained on the cached features of all folds but one, and scored on
the identities of that one; the held-out identities have no part in it. Of the candidates that are within one standard
error of the best, the simplest is chosen (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3):
the one that changes the feature least. The standard error is that of the difference from the best over the folds, as
all candidates meet the same folds, and folds differ far more than candidates do.

The choice is written to PREFIX_tuned.json, which the run in that folder follows, and the table to PREFIX_tuned.txt.
"""

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import caffe
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.base.workers import Workers
from tripletloss.config import Config
from tripletloss.core import streams
from tripletloss.core.norm import l2_normalize
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.core.selection import STRATEGIES
from tripletloss.core.verification import headline_figure, verification_of_pairs
from tripletloss.data.lists import read_list, shared_identities
from tripletloss.layers import SelectingLayer
from tripletloss.net.definition import for_stage, read_net
from tripletloss.net.projection import of_width
from tripletloss.net.roles import is_a
from tripletloss.net.settings import given_settings
from tripletloss.training.candidates import PROGRAM, Candidate, Job, part_of, with_features
from tripletloss.training.plan import Plan, make_plan

FOLDS = 5
LEAST_IDENTITIES = 10  # with two images or more
SCORED_PAIRS = 100_000  # of a fold, at most
# What is tried for each setting, besides the value in the config.
DECAYS = (0.005, 0.02, 0.05, 0.2)
MARGINS = (0.2, 0.4, 0.8)
SELECTIONS = ("semi-hard", "batch-hard")
TUNED = ("WEIGHT_DECAY", "MARGIN", "SELECTION")


class Table(NamedTuple):
    """Candidates and their scores."""

    figure: str  # what the scores are
    candidates: list[Candidate]
    scores: np.ndarray  # (C, F), NaN where training stopped
    feature: str  # name of the blob
    feature_scores: np.ndarray  # (F,), of the frozen feature itself, of length one
    best: int  # number of the candidate with the highest mean
    chosen: int


def tune(settings: Config, widths: Sequence[int], processes: int = 1) -> list[str]:
    """Choose the triplet stage's settings and write the choice to the run's folder. Returns lines to print.

    widths: of embeddings, to choose among, or none; processes: how many will train. Raises InputError for fewer than
    LEAST_IDENTITIES identities, and for a stage that has no cached features or selects no triplets by labels.
    """
    plan = make_plan(settings, "triplet", None, processes)
    _check(plan)
    plan, line = with_features(plan)
    for width in widths:  # fail now rather than in a worker program
        shape = np.load(plan.settings["FEATURES"], mmap_mode="r").shape[2:]
        of_width(read_net(f"{plan.prefix}_train.prototxt"), width, shape)
    lines = [line, *_seen_before(settings, plan)]
    candidates = grid(plan, widths)
    table = choose(candidates, *cross_validate(plan, candidates))
    text = describe(table)
    chosen = table.candidates[table.chosen]
    now = {"WEIGHT_DECAY": chosen.weight_decay, "MARGIN": chosen.margin, "SELECTION": chosen.selection}
    about = {
        "chosen": now, "instead_of": _values(settings), "width": chosen.width, "figure": table.figure,
        "candidates": [
            {**one._asdict(), "scores": [None if np.isnan(score) else score for score in own]}
            for one, own in zip(table.candidates, table.scores.tolist(), strict=True)
        ],
        "feature_scores": table.feature_scores.tolist(),
    }  # fmt: skip
    write_whole(f"{plan.prefix}_tuned.txt", (text + "\n").encode())
    write_whole(_path(settings), json.dumps(about, indent=1).encode())
    return [*lines, text, *_to_do(plan, chosen, table)]


def _check(plan):
    """Raise InputError for a stage that cannot be tuned."""
    s = plan.settings
    if plan.cut is None:
        why = "FEATURE_CACHE is ''" if not s["FEATURE_CACHE"] else "FREEZE is ''" if not s["FREEZE"] else ""
        raise InputError(
            "--tune trains many times above features that are computed once, and the triplet stage has none"
            + (f", as {why}" if why else "")
            + ": set FREEZE, WEIGHTS and FEATURE_CACHE for it, or run without --tune"
        )
    net = read_net(f"{plan.prefix}_train.prototxt")
    if not any(is_a(layer, SelectingLayer) and len(layer.bottom) == 2 for layer in net.layer):
        raise InputError(f"--tune chooses how triplets are selected, and no layer of {s['NET']} selects by labels")
    several = int((np.unique(plan.images.labels, return_counts=True)[1] > 1).sum())
    if several < LEAST_IDENTITIES:
        raise InputError(
            f"--tune divides identities into {FOLDS} folds, which takes {LEAST_IDENTITIES} with two images or more, "
            f"and {s['TRAIN_LIST']} has {several}: add identities, or run without --tune"
        )


def _seen_before(settings, plan):
    """A line about identities that the softmax stage learns, too, if there are any."""
    if "softmax" not in settings["STAGES"]:
        return []
    s = plan.settings
    learnt = read_list(settings.stage("softmax")["TRAIN_LIST"], s["IMAGEPATH"], must_exist=False)
    shared = shared_identities(plan.images, learnt)
    if not shared:
        return []
    return [
        f"advice     the softmax stage learns {len(shared)} of these identities, too, so the feature knows them too "
        "well for a fair choice: give the triplet stage a TRAIN_LIST of others"
    ]


def grid(plan: Plan, widths: Sequence[int]) -> list[Candidate]:
    """The candidates for a plan, the simplest first. What NET decides itself is not varied.

    Simplest means: the fewest numbers in an embedding, then the highest decay, then the lowest margin, then the
    strategies in the order of STRATEGIES.
    """
    s = plan.settings
    given = given_settings(for_stage(read_net(s["NET"]), caffe.TRAIN, "triplet"), s["NET"])
    margins = {s["MARGIN"]} | (set() if "MARGIN" in given else set(MARGINS))
    selections = {s["SELECTION"]} | (set() if "SELECTION" in given else set(SELECTIONS))
    decay = float(f"{plan.weight_decay:g}")  # Caffe's is in single precision
    found = itertools.product(
        sorted(set(widths)) or [0], sorted({decay, *DECAYS}, reverse=True), sorted(margins),
        sorted(selections, key=list(STRATEGIES).index),
    )  # fmt: skip
    return [Candidate(decay, margin, how, s["LEARNING_RATE"], width) for width, decay, margin, how in found]


def folds_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each image, (M,) int from 0 to FOLDS - 1: an identity's images are all in one.

    Identities with a single image, which make no same pairs, are divided on their own, so that all folds have others.
    """
    identities, where, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = streams.random_stream(seed, streams.FOLDS, 0).permutation(len(identities))
    order = order[np.argsort(sizes[order] == 1, kind="stable")]
    folds = np.empty(len(identities), int)
    folds[order] = np.arange(len(identities)) % FOLDS
    return folds[where]


def cross_validate(plan: Plan, candidates: Sequence[Candidate]) -> tuple[str, np.ndarray, str, np.ndarray]:
    """Train and score all candidates on all folds: what choose() takes after the candidates.

    plan: with features. Images are scored as they are, not mirrored. Raises InputError if training stopped for all
    candidates.
    """
    labels, folder = plan.images.labels, os.path.join(os.path.dirname(plan.prefix), ".tuning")
    folds, features = folds_of(labels, plan.settings["SEED"]), np.load(plan.settings["FEATURES"], mmap_mode="r")
    names = {headline_figure(labels[folds == fold]) for fold in range(FOLDS)}
    figure = names.pop() if len(names) == 1 else "AUC"
    scores, of_feature, problem = np.full((len(candidates), FOLDS), np.nan), np.empty(FOLDS), ""
    programs = min(len(candidates), len(os.sched_getaffinity(0)))
    with (
        Workers(PROGRAM, programs, f"{plan.prefix}_caffe.log") as workers,
        tqdm(total=scores.size, desc="tuning", unit="run", mininterval=0.5) as bar,
    ):
        for fold in range(FOLDS):
            shutil.rmtree(folder, ignore_errors=True)  # of the fold before, or of a run that was killed
            os.makedirs(folder)
            out = folds == fold
            pairs = pairs_of(labels[out], SCORED_PAIRS)

            def score(rows, pairs=pairs):
                found = verification_of_pairs(pair_distances(rows, pairs.first, pairs.second), pairs.same)
                return found.figures.get(figure, np.nan)

            part, rows = part_of(plan, ~out, folder), os.path.join(folder, "rows.npy")
            np.save(rows, features[0, out])
            flat = features[0, out].reshape(out.sum(), -1)
            of_feature[fold] = score(l2_normalize(flat.astype(np.float32))[0])
            jobs = [Job(part, one, os.path.join(folder, str(n)), rows) for n, one in enumerate(candidates)]
            for number, answer in enumerate(workers.answers(jobs)):
                if isinstance(answer, str):
                    problem = answer
                else:
                    scores[number, fold] = score(answer)
                bar.update()
    shutil.rmtree(folder, ignore_errors=True)
    if np.isnan(scores).any(axis=1).all():
        raise InputError(f"--tune: no candidate could be trained: {problem or 'the folds have too few pairs'}")
    return figure, scores, read_net(f"{plan.prefix}_train.prototxt").layer[0].top[0], of_feature


def choose(
    candidates: list[Candidate], figure: str, scores: np.ndarray, feature: str, feature_scores: np.ndarray
) -> Table:
    """The Table with the choice: the first candidate within one standard error of the best.

    candidates: the simplest first; others: as in Table. A candidate whose training stopped in a fold is never chosen.
    """
    means = np.where(np.isnan(scores).any(axis=1), -np.inf, scores.mean(axis=1))
    best = int(means.argmax())
    behind = scores[best] - scores  # (C, F)
    errors = behind.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    near = np.isfinite(means) & (behind.mean(axis=1) <= errors)
    return Table(figure, candidates, scores, feature, feature_scores, best, int(near.argmax()))


def describe(table: Table) -> str:
    """The table as text, the highest mean first."""

    def cell(values, sign=""):
        error = values.std(ddof=1) / np.sqrt(len(values))
        return f"{values.mean():{sign}.4f} ± {error:.4f}" if np.isfinite(error) else "stopped"

    width = any(one.width for one in table.candidates)
    rows = []
    for number in np.argsort(-np.nan_to_num(table.scores.mean(axis=1), nan=-1.0), kind="stable"):
        one, own = table.candidates[number], table.scores[number]
        marks = [word for word, at in (("best", table.best), ("chosen", table.chosen)) if at == number]
        settings = ([one.width] if width else []) + [f"{one.weight_decay:g}", f"{one.margin:g}", one.selection]
        rows.append([
            *settings, cell(own), cell(own - table.feature_scores, "+"), cell(own - table.scores[table.best], "+"),
            ", ".join(marks),
        ])  # fmt: skip
    rows.append([*[""] * (2 + width), table.feature, cell(table.feature_scores), "", "", ""])
    heads = ["decay", "margin", "selection", table.figure, f"over {table.feature}", "to the best", ""]
    return tabulate(rows, ["width"] * width + heads, tablefmt="github", disable_numparse=True)


def _to_do(plan, chosen, table):
    """Lines about the choice: where it stands, what NET must get for it, and that there may be nothing to gain."""
    lines = []
    gains = table.scores[table.chosen] - table.feature_scores
    if gains.mean() <= gains.std(ddof=1) / np.sqrt(len(gains)):
        lines.append(f"advice     no gain over {table.feature} is certain: these identities may teach it nothing")
    if chosen.width:
        lines.append(
            f"width      {chosen.width} numbers of {table.feature}: edit the projection of NET and DEPLOY for it, as "
            "the comment in the project's train.prototxt says; this run trains NET as it is"
        )
    return lines


def applied(settings: Config) -> tuple[Config, str]:
    """The settings with the choice in the run's folder in place of its own, and a line about it; '' if there is none.

    Raises InputError if the settings have changed since the choice was made, and for a file that cannot be read.
    """
    path = _path(settings)
    if not os.path.exists(path):
        return settings, ""
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        chosen, before = ({name: about[key][name] for name in TUNED} for key in ("chosen", "instead_of"))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: remove it, or choose again with --tune") from None
    for name, value in _values(settings).items():
        if value != before[name]:
            raise InputError(
                f"{name} is {value!r} in the config, but was {before[name]!r} when --tune chose {chosen[name]!r} "
                f"instead: change it back, choose again with --tune, or remove {path}"
            )
    decay = settings["WEIGHT_DECAY"]
    decays = decay if isinstance(decay, dict) else dict.fromkeys(("softmax", "triplet"), decay)
    values = {**chosen, "WEIGHT_DECAY": {**decays, "triplet": chosen["WEIGHT_DECAY"]}}
    said = ", ".join(f"{name} {chosen[name]!r}" for name in TUNED)
    return settings.changed(values), f"tuned      {said} (chosen by --tune: {path})"


def _values(settings: Config) -> dict[str, Any]:
    """The values that the config gives to what is tuned, in the triplet stage."""
    own = settings.stage("triplet")
    return {name: own[name] for name in TUNED}


def _path(settings):
    return os.path.join(settings["RUN_FOLDER"], "triplet_tuned.json")

