"""What a stage shows and keeps while it trains: progress bar, tables, diagnosis, curves, TensorBoard events."""

import collections
import csv
import os
import sys
import time

import numpy as np
from tqdm import tqdm

from tripletloss import diagnosis, nets, plots

AVERAGED_ITERATIONS = 20  # the progress bar shows means over so many
DIAGNOSED_ITERATIONS = 10  # between two looks at the embeddings


class NoRecord:
    """That of a process that is not the first: it keeps and shows nothing."""

    def iteration(self, *ignored):
        """See Record."""

    def snapshot(self, *ignored):
        """See Record."""

    def close(self):
        """See Record."""


class Record:
    """Of one stage, in the run's folder: PREFIX_log.csv, _embeddings.csv, _curves.png, and events for TensorBoard."""

    def __init__(self, plan, net, blobs, scalars, processes):
        """plan: solver.Plan; net: its NetParameter; blobs: of the solver's net; scalars: names of its numbers."""
        self.plan, self.blobs, self.scalars, self.processes = plan, blobs, scalars, processes
        self.source = nets.embeddings_of(net)  # names of the blobs of embeddings and labels, or None
        self.batch_size, self.margin = plan.settings["BATCH_SIZE"], nets.margin_of(net)
        self.log = _Table(f"{plan.prefix}_log.csv", ["iteration", "learning_rate", "images_per_s", *scalars])
        self.looks = _Table(f"{plan.prefix}_embeddings.csv", ["iteration", *diagnosis.Report._fields])
        self.recent = collections.deque(maxlen=AVERAGED_ITERATIONS)
        self.reports, self.held_out, self.said = [], [], None
        self.events = _events(plan.prefix)
        self.bar = tqdm(total=plan.settings["MAX_ITERS"], desc=plan.stage, unit="it",
                        mininterval=0.2 if sys.stderr.isatty() else 15)  # fmt: skip

    def iteration(self, number, rate, seconds, waiting, values):
        """One more iteration is done. seconds: it took; waiting: of them, for other processes; values: the scalars."""
        speed = self.batch_size / seconds
        self.log.add([number, rate, round(speed, 1), *values])
        self.recent.append([speed, waiting / seconds, *values])
        mean_speed, mean_waiting, *means = np.mean(self.recent, axis=0)
        shown = dict(zip(self.scalars, (f"{value:.4g}" for value in means), strict=True))
        if nets.DATA_SECONDS in shown:
            waited = means[self.scalars.index(nets.DATA_SECONDS)] * mean_speed / self.batch_size
            del shown[nets.DATA_SECONDS]
            shown["data"] = f"{waited:.0%}"
        shown.update({"lr": f"{rate:.3g}", "images/s": f"{mean_speed:.0f}"})
        if self.processes > 1:
            shown["comm"] = f"{mean_waiting:.0%}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if number % DIAGNOSED_ITERATIONS == 0 and self.source and np.isfinite(values).all():
            self._look(number, dict(zip(self.scalars, means, strict=True)))
            self._write_events(number, {**dict(zip(self.scalars, values, strict=True)), "learning_rate": rate})

    def _look(self, number, means):
        embeddings, labels = (self.blobs[name].data for name in self.source)
        rows = embeddings.reshape(len(embeddings), -1)
        if not np.isfinite(rows).all():
            return  # the loss says so in the next iteration
        active = means.get("active_share", float("nan"))
        found = diagnosis.report(rows, labels.ravel(), active, means.get("loss", float("nan")))
        self.reports.append(found)
        self.looks.add([number, *found])
        if self.margin is None:
            return
        problem = diagnosis.diagnose(self.reports, self.margin)
        if problem and problem[0] != self.said:
            self.say(f"diagnosis  iteration {number}, {problem[0]}: {problem[1]}")
        self.said = problem[0] if problem else None

    def say(self, line):
        """Print a line above the bar."""
        self.bar.clear()
        print(line, flush=True)
        self.bar.refresh()

    def snapshot(self, number, held_out):
        """A snapshot of an iteration was written. held_out: TAR at FAR 1% on held-out identities, or None."""
        self.log.flush()
        self.looks.flush()
        if held_out is not None:
            self.held_out.append((number, held_out))
            self._write_events(number, {"held_out_tar": held_out})
        title = f"{self.plan.stage} stage, {os.path.basename(self.plan.settings['RUN_FOLDER'])}"
        plots.curves(f"{self.plan.prefix}_curves.png", title, self.log.columns(), self.held_out)

    def _write_events(self, number, values):
        if self.events:
            writer, summary, event = self.events
            parts = [summary.Value(tag=f"{self.plan.stage}/{name}", simple_value=value)
                     for name, value in values.items()]  # fmt: skip
            writer.add_event(event(step=number, wall_time=time.time(), summary=summary(value=parts)))

    def close(self):
        """Write what is left, and end the bar."""
        self.bar.close()
        self.log.close()
        self.looks.close()
        if self.events:
            self.events[0].close()


class _Table:
    """A CSV file, row by row, and the rows in memory."""

    def __init__(self, path, header):
        self.header, self.rows = header, []
        self.file = open(path, "w", newline="", encoding="utf-8")  # closed by close()
        self.writer = csv.writer(self.file)
        self.writer.writerow(header)

    def add(self, row):
        self.rows.append(row)
        self.writer.writerow(row)

    def columns(self):
        return dict(zip(self.header, np.array(self.rows, np.float64).T, strict=True)) if self.rows else {}

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()


def _events(folder):
    """A writer of TensorBoard's event files and the messages it takes, or None if tensorboard is not installed."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    return EventFileWriter(f"{folder}_tensorboard"), Summary, Event
