"""What a stage shows and records while it trains: progress bar, tables, diagnosis, curves, TensorBoard events."""

import collections
import contextlib
import csv
import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from caffe.proto import caffe_pb2
from tqdm import tqdm

from tripletloss.base.errors import InputError
from tripletloss.core import diagnosis
from tripletloss.core.verification import headline_figure
from tripletloss.evaluation import plots
from tripletloss.net.roles import embeddings_of, margin_of
from tripletloss.net.settings import DATA_SECONDS
from tripletloss.training import snapshots
from tripletloss.training.plan import Plan

AVERAGED_ITERATIONS = 20  # over which the progress bar shows means
DIAGNOSED_ITERATIONS = 10  # between two looks at the embeddings
MOST_ROWS = 4_000  # of a table that are kept in memory; the file has all rows


def clock(seconds: float) -> str:
    """A duration as text: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class NoRecord:
    """The record of a process that is not the first: it keeps and shows nothing."""

    def iteration(self, *ignored: Any) -> None:
        """See Record."""

    def say(self, line: str) -> None:
        """See Record."""

    def flush(self) -> None:
        """See Record."""

    def score(self, *ignored: Any) -> None:
        """See Record."""

    def snapshot(self, *ignored: Any) -> None:
        """See Record."""

    def close(self) -> None:
        """See Record."""


def _explained(method):
    """The method, but its OSError becomes an InputError: the disk is full, or the folder is gone."""

    @functools.wraps(method)
    def writing(self, *arguments):
        try:
            return method(self, *arguments)
        except OSError as error:
            folder = os.path.dirname(self.plan.prefix)
            raise InputError(
                f"the run's tables cannot be written to {folder} ({error.strerror}): make room, then resume with "
                "--resume; earlier snapshots are whole"
            ) from None

    return writing


class Record:
    """The record of one stage, in the run's folder.

    It has PREFIX_log.csv, _embeddings.csv, _held_out.csv, _curves.png, and events for TensorBoard. What is not private
    raises InputError if a file cannot be written.
    """

    @_explained
    def __init__(
        self, plan: Plan, net: caffe_pb2.NetParameter, blobs: Mapping[str, Any], scalars: Sequence[str], processes: int
    ):
        """net, blobs: of the solver; scalars: names of blobs that hold one number; processes: how many train."""
        self.plan, self.blobs, self.scalars, self.processes = plan, blobs, scalars, processes
        done = plan.snapshot.iteration if plan.snapshot else 0
        self.source = embeddings_of(net)
        self.batch_size, self.margin = plan.settings["BATCH_SIZE"], margin_of(net)
        self.log = _Table(f"{plan.prefix}_log.csv", ["iteration", "learning_rate", "images_per_s", *scalars], done)
        self.looks = _Table(f"{plan.prefix}_embeddings.csv", ["iteration", *diagnosis.Report._fields], done)
        self.recent: collections.deque[list[float]] = collections.deque(maxlen=AVERAGED_ITERATIONS)
        self.reports = [diagnosis.Report(*row[1:]) for row in self.looks.rows]
        self.scores: _Table | None = None
        self.figure = ""  # that the scores are
        if plan.settings["FEATURE"] in plan.measured:
            self.figure = headline_figure(plan.scored.labels)
            self.scores = _Table(f"{plan.prefix}_held_out.csv", ["iteration", self.figure], done)
            known = {iteration for iteration, _ in self.scores.rows}
            for one in snapshots.described(plan.prefix):  # a run can be killed before its score is in the table
                if one.score is not None and one.iteration <= done and one.iteration not in known:
                    self.scores.add([one.iteration, one.score])
        self.diagnosed, self.time_said = "", False
        self.events = _events(plan.prefix, done)
        self.bar = tqdm(total=plan.settings["MAX_ITERS"], initial=done, desc=plan.stage, unit="it",
                        mininterval=0.2 if sys.stderr.isatty() else 15)  # fmt: skip

    @_explained
    def iteration(self, number: int, rate: float, seconds: float, waiting: float, values: Sequence[float]) -> None:
        """Record an iteration that is done.

        rate: its learning rate; seconds: that it took; waiting: of these, the seconds spent waiting for other
        processes; values: of the scalars.
        """
        self.log.add([number, rate, round(self.batch_size / seconds, 1), *values])
        self.recent.append([seconds, waiting, *values])
        mean_seconds, mean_waiting, *means = np.mean(self.recent, axis=0)
        shown = dict(zip(self.scalars, (f"{value:.4g}" for value in means), strict=True))
        if DATA_SECONDS in shown:
            del shown[DATA_SECONDS]
            shown["data"] = f"{means[self.scalars.index(DATA_SECONDS)] / mean_seconds:.0%}"
        shown.update({"lr": f"{rate:.3g}", "images/s": f"{self.batch_size / mean_seconds:.0f}"})
        if self.processes > 1:
            shown["comm"] = f"{mean_waiting / mean_seconds:.0%}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        left = self.plan.settings["MAX_ITERS"] - number
        if len(self.recent) == AVERAGED_ITERATIONS and not self.time_said:
            self.time_said = True
            self.say(f"time       about {clock(left * mean_seconds)} for the remaining {left} iterations")
        if number % DIAGNOSED_ITERATIONS == 0 and self.source and np.isfinite(values).all():
            self._look(number, self.source, dict(zip(self.scalars, means, strict=True)))
            self._write_events(number, {**dict(zip(self.scalars, values, strict=True)), "learning_rate": rate})

    def _look(self, number, source, means):
        embeddings, labels = (self.blobs[name].data for name in source)
        rows = embeddings.reshape(len(embeddings), -1)
        if not np.isfinite(rows).all():
            return  # the loss shows it in the next iteration
        active = means.get("active_share", float("nan"))
        found = diagnosis.report(rows, labels.ravel(), active, means.get("loss", float("nan")))
        self.looks.add([number, *found])
        self.reports.append(found)
        if len(self.reports) > MOST_ROWS:
            del self.reports[diagnosis.WINDOW : -MOST_ROWS // 2]  # the first and the last are compared
        if self.margin is None:
            return
        problem = diagnosis.diagnose(self.reports, self.margin)
        if problem and problem[0] != self.diagnosed:
            self.say(f"diagnosis  iteration {number}, {problem[0]}: {problem[1]}")
        self.diagnosed = problem[0] if problem else ""

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.clear()
        print(line, flush=True)
        self.bar.refresh()

    @_explained
    def flush(self) -> None:
        """Write to the files what led to a snapshot, before it is written."""
        self.log.flush()
        self.looks.flush()

    @_explained
    def score(self, number: int, held_out: float | None) -> None:
        """Record the score of held-out identities at an iteration; None if it is not known."""
        if held_out is not None and self.scores is not None:
            self.scores.add([number, held_out])
            self.scores.flush()
            self._write_events(number, {f"held_out_{self.figure}": held_out})

    @_explained
    def snapshot(self, number: int, held_out: float | None) -> None:
        """Record the snapshot of an iteration, and draw the curves. held_out: as in score()."""
        self.score(number, held_out)
        title = f"{self.plan.stage} stage, {os.path.basename(self.plan.settings['RUN_FOLDER'])}"
        scores = [(int(at), score) for at, score in self.scores.rows] if self.scores else []
        plots.curves(f"{self.plan.prefix}_curves.png", title, self.log.columns(), scores, self.figure)

    def _write_events(self, number, values):
        if self.events:
            writer, summary, event = self.events
            parts = [summary.Value(tag=f"{self.plan.stage}/{name}", simple_value=value)
                     for name, value in values.items()]  # fmt: skip
            writer.add_event(event(step=number, wall_time=time.time(), summary=summary(value=parts)))

    def close(self) -> None:
        """Write what is left, if there is room, and end the bar."""
        self.bar.close()
        parts = [self.log, self.looks, *filter(None, [self.scores]), *(self.events[:1] if self.events else ())]
        for part in parts:
            with contextlib.suppress(OSError):
                part.close()


class _Table:
    """A CSV file with all rows, and as many of them in memory, evenly spread, as a plot can show."""

    def __init__(self, path, header, done):
        """done: the iteration up to which the rows of an existing file are kept; 0: none."""
        self.header, self.every = header, 1
        self.rows: list[list[float]] = []
        kept = list(_rows_until(path, header, done)) if done else []
        self.file = open(f"{path}.part", "w", newline="", encoding="utf-8")  # closed by close()
        self.writer = csv.writer(self.file)
        self.writer.writerow(header)
        for row in kept:
            self.add(row)
        self.flush()
        os.replace(f"{path}.part", path)

    def add(self, row):
        """Write a row, its first cell the iteration."""
        self.writer.writerow(row)
        if int(row[0]) % self.every == 0:
            self.rows.append([float(value) for value in row])
        if len(self.rows) > MOST_ROWS:
            self.every *= 2
            self.rows = [kept for kept in self.rows if int(kept[0]) % self.every == 0]

    def columns(self):
        return dict(zip(self.header, np.array(self.rows, np.float64).T, strict=True)) if self.rows else {}

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()


def _rows_until(path, header, done):
    """The rows of a CSV file up to an iteration, without a row that a killed run cut off."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= done:
                    yield row
    except (OSError, UnicodeDecodeError, csv.Error):
        return


def _events(folder, done):
    """A writer of TensorBoard's event files and the messages it takes, or None if tensorboard is not installed.

    done: the iteration that a run resumes from; its later events are withdrawn.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    writer = EventFileWriter(f"{folder}_tensorboard")
    if done:
        writer.add_event(Event(step=done + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
    return writer, Summary, Event
