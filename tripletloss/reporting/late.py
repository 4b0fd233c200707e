"""The outcome of a run whose end has not been measured: it was stopped, is going on, or is from an earlier version."""

import os
from collections.abc import Iterator, Sequence

from tripletloss.base.errors import InputError, MissingLayersError
from tripletloss.data.images import Preprocessing
from tripletloss.data.lists import read_list
from tripletloss.evaluation.embed import extract_all, open_net
from tripletloss.reporting import history
from tripletloss.reporting.folder import Stage, stages_of
from tripletloss.training import snapshots
from tripletloss.training.outcome import Candidate, Kept, export, judge, kept, load


def outcome_of(folder: str, allowed: Sequence[str] = ()) -> Kept | None:
    """What the run's folder keeps, or else what its snapshots bring, which are measured now, with a progress bar.

    allowed: names of modules that DEPLOY may run. None if there is nothing to measure with, or nothing to measure.
    Raises InputError.
    """
    known = load(folder)
    if known:
        return known
    stages = stages_of(folder)
    settings = stages[-1].settings
    if not settings["HELD_OUT_LIST"] or not settings.get("DEPLOY"):
        return None
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    features = list(dict.fromkeys(stage.settings["FEATURE"] for stage in stages if stage.settings["FEATURE"]))
    found = []
    for stage, name, weights in _weights(stages):
        own = {**stage.settings, "ALLOWED_MODULES": list(allowed)}
        for feature in features:
            try:
                net = open_net(weights, own, [feature])
            except MissingLayersError:
                continue
            [rows] = extract_all(net, [feature], held_out, Preprocessing.of(own), show=True)
            found.append(Candidate(name, weights, feature, rows))
    try:
        outcome = judge(found, held_out.labels)
    except ValueError:
        raise InputError(
            f"{held_out.source} needs two identities or more, one of them with two images, to measure"
        ) from None
    if not outcome:
        return None
    commands = history.read(folder)
    config_file = commands[-1]["config"] if commands else ""
    line = export(outcome.found[outcome.best], features[-1], config_file, os.path.abspath(folder))
    return kept(outcome, held_out, line, None)


def _weights(stages: Sequence[Stage]) -> Iterator[tuple[Stage, str, str]]:
    """Weights to choose from: a stage whose settings fit them, the stage that trained them or '', and their path."""
    start = stages[0].settings["WEIGHTS"]
    if start and os.path.exists(start):
        yield stages[0], "", start
    for stage in stages:
        both = snapshots.last_whole(stage.prefix), snapshots.chosen(stage.prefix, "best")
        for weights in dict.fromkeys(snapshot.weights for snapshot in both if snapshot):
            yield stage, stage.name, weights
