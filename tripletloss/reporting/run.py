"""The page of a run, from what is in its folder."""

import math
import os
import time
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from tripletloss.base.files import amount, short
from tripletloss.config import COUNTED
from tripletloss.data.lists import ImageList
from tripletloss.reporting import charts, following, history, inputs, page
from tripletloss.reporting.folder import Stage, stages_of
from tripletloss.reporting.measured import Measured, measure
from tripletloss.reporting.page import Curves, Page, Score, Scores, Table, Verdict
from tripletloss.reporting.pictures import Thumbnails
from tripletloss.training import outcome
from tripletloss.training.outcome import Kept, load
from tripletloss.training.record import clock

COLUMNS = ("AUC", "EER", "TAR@FAR=0.1", "TAR@FAR=0.01", "TAR@FAR=0.001")
SHARE = 0.05  # of a run's time that is spent on its page at snapshots
USUAL_SECONDS = 0.5  # that it takes
UNFINISHED = "The run has not ended, so there is no verdict yet."


def write(folder: str, kept: Kept | None = None) -> str:
    """Write report.html into a run's folder. Returns a line with its path. Raises InputError.

    kept: the run's outcome; None for what its folder has. A page that is there is replaced, another file is not.
    """
    path = os.path.join(folder, page.NAME)
    page.check_replaceable(path)
    page.write(path, gather(folder, kept))
    return f"{short(path)} ({amount(os.path.getsize(path))})"


class Ongoing:
    """The page of a run that goes on."""

    def __init__(self, folder: str, config_file: str, device: str, processes: int) -> None:
        """The arguments are those of history.note()."""
        self.folder, self.note = folder, (config_file, device, processes)
        self.has_begun, self.seconds, self.last = False, USUAL_SECONDS, time.monotonic()

    def begin(self) -> None:
        """Note the command, once it is sure to train, and forget an earlier outcome. Raises OSError."""
        if not self.has_begun:
            outcome.forget(self.folder)
            history.note(self.folder, *self.note)
        self.has_begun = True

    def write(self) -> None:
        """Write the page at a snapshot, if that takes no more than SHARE of the time. The run's end says what fails."""
        start = time.monotonic()
        if start - self.last < self.seconds / SHARE:
            return
        page.attempt(lambda: write(self.folder))
        self.last = time.monotonic()
        self.seconds = self.last - start


def gather(folder: str, kept: Kept | None = None) -> Page:
    """The page of a run. The arguments are those of write(). Raises InputError if the folder is not that of a run."""
    stages, kept, commands = stages_of(folder), kept or load(folder), history.read(folder)
    thumbnails = Thumbnails()
    measured = _measured(stages, kept, thumbnails)
    batch = inputs.batch_of(stages, thumbnails)
    versions, config_file = history.versions(), ""
    if commands:
        last = commands[-1]
        versions, config_file = {**last["versions"], "device": last["device"]}, last["config"]
    return Page(
        title=os.path.basename(os.path.abspath(folder)),
        subtitle=f"{short(os.path.abspath(folder))}: {_state(stages)}",
        verdict=_verdict(stages, kept), scores=_scores(stages, kept), batch=batch, lists=inputs.lists_of(stages),
        warnings=[f"{stage.name} stage: {said}" for stage in stages for said in stage.warnings],
        curves=[_curves(stage) for stage in stages if stage.log] or "No iteration was recorded.",
        comparison=comparison_table(kept.about["comparison"]) if kept and kept.about["comparison"] else None,
        measured=measured, settings=_settings(stages), versions=list(versions.items()),
        made=[page.Command(one["started"], one["line"]) for one in commands],
        following=following.commands(folder, stages, kept, config_file), lost=thumbnails.lost,
    )  # fmt: skip


def _state(stages: Sequence[Stage]) -> str:
    """How far a run has come."""
    said = []
    for stage in stages:
        most = stage.settings["MAX_ITERS"]
        part = f"{most} iterations" if stage.is_complete else f"iteration {stage.done} of {most}"
        said.append(f"{stage.name} stage, {part}" + (f" in {clock(stage.seconds)}" if stage.seconds else ""))
    missing = [name for name in stages[0].settings["STAGES"] if name not in {stage.name for stage in stages}]
    return "; ".join([*said, *(f"{name} stage, not begun" for name in missing)])


def _ended(stages: Sequence[Stage]) -> bool:
    wanted = set(stages[0].settings["STAGES"])
    return all(stage.is_complete for stage in stages) and wanted <= {stage.name for stage in stages}


def in_words(figure: str) -> str:
    """The name of a figure: 'TAR at FAR 1%' for TAR@FAR=0.01."""
    far = figure.removeprefix("TAR@FAR=")
    return figure if far == figure else f"TAR at FAR {100 * float(far):g}%"


def _verdict(stages: Sequence[Stage], kept: Kept | None) -> Verdict | str:
    if not kept:
        if not stages[-1].settings["HELD_OUT_LIST"]:
            return "Nothing was measured: HELD_OUT_LIST names no list of identities that are not trained on."
        return UNFINISHED if not _ended(stages) else "The run's held-out images were not measured at its end."
    about = kept.about
    candidates, figure = about["candidates"], in_words(about["figure"])
    best = candidates[about["best"]]
    value = best["figures"].get(about["figure"], math.nan)
    people = len(np.unique(kept.labels))
    sentences = [f"On {people} identities that were never trained on, {figure} is {value:.3f}."]
    kind, headline = "good", "Use these weights"
    if about["gain"]:
        start, gain, spread = candidates[about["start"]], about["gain"]["value"], about["gain"]["interval"]
        before = start["figures"].get(about["figure"], math.nan)
        began = f"Where the run began, it was {before:.3f} ({os.path.basename(start['weights'])}, {start['feature']})."
        sentences.append(f"{began} The gain is {gain:+.3f}" + (
            f", with a 95% interval from {spread[0]:+.3f} to {spread[1]:+.3f}." if spread
            else "; there are too few identities for an interval."
        ))  # fmt: skip
        if not spread or spread[0] <= 0:
            kind, headline = "even", "Use these weights, although the gain is not certain"
    elif about["start"] is not None:
        kind, headline = "bad", "Keep the weights that you began with"
        sentences.append("Training did not improve on them.")
    for worse in about["worse"]:
        change, lost = worse["change"], candidates[worse["number"]]
        spread = change["interval"]
        within = f" (95% interval {spread[0]:+.3f} to {spread[1]:+.3f})" if spread else ""
        sentences.append(
            f"The {worse['stage']} stage made it worse: {change['value']:+.3f}{within} with "
            f"{os.path.basename(lost['weights'])}, {lost['feature']}."
        )
    if about["gain"]:
        sentences.append("The weights were chosen on the same identities, so expect a little less on others.")
    return Verdict(kind, headline, short(best["weights"]), best["feature"], sentences)


def _scores(stages: Sequence[Stage], kept: Kept | None) -> Scores | str:
    if kept:
        about, seen = kept.about, []
        headline = about["figure"]
        columns = [headline, *(name for name in COLUMNS if name != headline)]
        columns = [name for name in columns if any(name in one["figures"] for one in about["candidates"])]
        rows = []
        for number, one in enumerate(about["candidates"]):
            if (one["feature"], one["figures"]) in seen:
                continue  # a stage that froze what makes the feature
            seen.append((one["feature"], one["figures"]))
            cells = [f"{one['figures'][name]:.4f}" if name in one["figures"] else "" for name in columns]
            when = f"after the {one['stage']} stage" if one["stage"] else "before"
            name = os.path.basename(one["weights"])
            rows.append(Score(when, name, one["feature"], cells, number == about["best"]))
        return Scores([in_words(name) for name in columns], rows, (
            f"All held-out images: {about['same_pairs']:,} same and {about['different_pairs']:,} different pairs. "
            "EER is better where it is lower."
        ))  # fmt: skip
    rows = [
        Score(f"{stage.name} stage", f"iteration {at}", stage.settings["FEATURE"], [f"{value:.4f}"], False)
        for stage in stages for at, value in dict.fromkeys([stage.scores[0], stage.scores[-1]] if stage.scores else [])
    ]  # fmt: skip
    if not rows:
        return "Nothing was measured."
    figure = next(stage.figure for stage in stages if stage.scores)
    return Scores([in_words(figure)], rows, "On the first held-out images, 600 at most, as after every snapshot.")


def _measured(stages: Sequence[Stage], kept: Kept | None, thumbnails: Thumbnails) -> Measured | str:
    if not kept:
        if not stages[-1].settings["HELD_OUT_LIST"]:
            return "There is nothing to show without a HELD_OUT_LIST."
        return "This comes at the end of the run; python -m tripletloss.report makes it from the snapshots so far."
    images = ImageList(kept.about["list"], stages[-1].settings["IMAGEPATH"], kept.names, kept.labels, kept.corrected)
    named = {"before": kept.rows.get("start"), "after": kept.rows["best"]}
    if kept.about["start"] == kept.about["best"]:
        named = {"the weights that the run began with": kept.rows["best"]}
    try:
        return measure({name: rows for name, rows in named.items() if rows is not None}, images, thumbnails)
    except (ValueError, FloatingPointError) as error:
        return f"The held-out images cannot be compared: {error}."


def _curves(stage: Stage) -> Curves:
    x = stage.log["iteration"]
    found: list[tuple[str, Markup]] = []

    def add(caption: str, columns: Sequence[str]) -> None:
        lines = {name: stage.log[name] for name in columns if name in stage.log}
        if lines:
            found.append((caption, charts.curve(f"{stage.name} stage: {caption}", x, lines)))

    add("loss", ["loss"])
    add("accuracy on the mini-batch", ["accuracy"])
    if len(stage.scores) > 1:
        at, scores = np.transpose(stage.scores)
        caption = f"held out: {in_words(stage.figure)}"
        found.append((caption, charts.curve(caption, at, {stage.figure: scores}, smooth=False, dots=True)))
    add("share of active triplets", ["active_share"])
    add("squared distances of triplets, to the positive (d_ap) and the negative (d_an)", ["d_ap", "d_an"])
    s = stage.settings
    note = f"{s['BATCH_SIZE']} images per iteration, learning rate {s['LEARNING_RATE']:g}"
    return Curves(f"{stage.name} stage", f"{note}, {clock(stage.seconds)}" if stage.seconds else note, found)


def comparison_table(about: dict) -> Table:
    """The table of a Comparison.report()."""
    features, first = about["features"], about["differences_from"]
    headline = "TAR@FAR=0.01" if "TAR@FAR=0.01" in features[first] else "AUC"
    columns = [headline, *(name for name in COLUMNS if name in features[first] and name != headline)]
    rows = []
    for name, figures in features.items():
        rows.append([name, *(f"{figures[column]['value']:.4f}" for column in columns)])
        if name == first:
            continue
        spreads = [(figures[column]["difference"], figures[column]["difference_interval"]) for column in columns]
        cells = [f"{value:+.4f}" + (f"\n{own[0]:+.4f} to {own[1]:+.4f}" if own else "") for value, own in spreads]
        rows.append([f"minus {first}", *cells])
    verdict = about["verdict"].replace(headline, in_words(headline))
    note = f"{verdict[0].upper()}{verdict[1:]}. Intervals are of 95%, with identities resampled."
    return Table(["", *map(in_words, columns)], rows, note)


def _settings(stages: Sequence[Stage]) -> Table:
    names = dict.fromkeys(name for stage in stages for name in stage.settings if name not in COUNTED)
    rows = [[name, *(repr(stage.settings.get(name)) for stage in stages)] for name in names]
    rows = [row[:2] + [""] * (len(row) - 2) if len(set(row[1:])) == 1 else row for row in rows]
    return Table(["setting", *(f"{stage.name} stage" for stage in stages)], rows)
