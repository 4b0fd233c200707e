"""One stage of training: iterate, watch, record, write snapshots and score them."""

import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss import layers
from tripletloss.base.errors import NotFiniteError
from tripletloss.base.parallel import OneProcess
from tripletloss.base.process import caffe_log
from tripletloss.core import streams
from tripletloss.evaluation.embed import ALONE
from tripletloss.formats.caffemodel import read_prototxt
from tripletloss.net.definition import read_net, write_prototxt
from tripletloss.net.freezing import changing_blobs
from tripletloss.net.projection import start_from_components
from tripletloss.net.settings import features_of, for_process
from tripletloss.net.weights import load_weights
from tripletloss.training import health, snapshots
from tripletloss.training.mining import Miner
from tripletloss.training.passes import in_passes
from tripletloss.training.plan import Plan
from tripletloss.training.record import NoRecord, Record
from tripletloss.training.score import score, score_of_net


class Stopped(Exception):
    """A signal stopped training after a whole iteration, and its snapshot is on the disk."""

    def __init__(self, number: int, snapshot: snapshots.Snapshot):
        super().__init__(f"stopped after iteration {snapshot.iteration}, whose weights are in {snapshot.weights}")
        self.number = number


def train_stage(
    plan: Plan, team: OneProcess = ALONE, gpu: int | None = None, after_snapshot: Callable[[], None] = lambda: None
) -> str:
    """Train a planned stage to its last iteration. Returns the path of the weights.

    team: of parallel.join(); all its processes call this, and the first one writes, prints and logs. gpu: the number
    of this process's GPU, or None for the CPU. after_snapshot: is called in the first process once a snapshot has been
    written and scored.
    Raises Stopped after SIGINT, SIGTERM or SIGHUP, and InputError if the loss or the weights explode.
    """
    done = plan.snapshot
    if done and done.iteration >= plan.settings["MAX_ITERS"]:
        if is_unscored(plan):
            found = score(plan, done.weights, done.iteration, team, NoRecord())
            team.first(lambda: snapshots.note_score(plan.prefix, done, found))
        return done.weights
    with caffe_log(team.caffe_log(plan.prefix)), _signals(team.signals) as caught:
        training = _Training(plan, team, gpu, caught)
        with contextlib.closing(training.record), contextlib.closing(training.steps):
            if is_unscored(plan):
                training.score_snapshot()
            training.score_start()
            while not training.is_over():
                training.iterate()
                if is_due(training.solver.iter, plan.settings):
                    training.write_snapshot()
                    training.score_snapshot()
                    if team.rank == 0:
                        after_snapshot()
            training.steps.agree_to_stop()
            stop = training.steps.stop
            if stop and (not training.last or training.last.iteration != training.solver.iter):
                training.write_snapshot()
    if stop:
        raise Stopped(stop, training.last)
    return training.last.weights


def train_only(plan: Plan) -> caffe.Net:
    """Train a planned stage in this process, on the CPU, and do nothing else: no record, no snapshot, no score.

    Returns the trained net, whose weights are those of train_stage(). Raises InputError if the loss or the weights
    explode.
    """
    training = _Training(plan, ALONE, None, [], NoRecord())
    with contextlib.closing(training.steps):
        while not training.is_over():
            training.iterate()
    health.check_weights(plan, training.net, training.solver)
    return training.solver.net


def is_unscored(plan: Plan) -> bool:
    """Whether the run was killed after it had written the snapshot that it resumes from, and before it scored it."""
    if not plan.snapshot or plan.snapshot.score is not None or plan.settings["FEATURE"] not in plan.measured:
        return False
    return is_due(plan.snapshot.iteration, plan.settings)


def is_due(iteration: int, settings: Mapping[str, Any]) -> bool:
    """Whether an iteration gets a snapshot, even if the run is not stopped there."""
    return iteration % settings["SNAPSHOT_ITERS"] == 0 or iteration == settings["MAX_ITERS"]


class _Training:
    """A stage in one process while it trains."""

    def __init__(self, plan, team, gpu, caught, record=None):
        """caught: the list that signals are appended to; record: the one to keep, or None for the stage's own.

        Others: as in train_stage().
        """
        self.plan, self.team, self.last = plan, team, plan.snapshot
        self.solver, self.net = _start(plan, team, gpu)
        blobs = self.solver.net.blobs
        self.scalars = [name for name in self.solver.net.outputs if blobs[name].count == 1]
        if record is None:
            record = Record(plan, self.net, blobs, self.scalars, team.size) if team.rank == 0 else NoRecord()
        self.record = record
        self.mined_every = plan.settings["MINE_ITERS"] if plan.settings["MINED"] else 0
        self.miner: Miner | None = None  # in the first process only
        if self.mined_every and team.rank == 0:
            self.miner = Miner(self.net, features_of(self.net), plan.images.labels, plan.prefix)
        if self.mined_every and self.last:
            team.first(self._restore_mined)  # all wait for it
        changing = changing_blobs(self.net, self.solver.net.params)
        passes = in_passes(self.solver, self.net, plan.settings, team.rank, plan.iter_size)
        compute = passes.compute if passes else None
        self.steps = team.steps(self.solver, *changing, self.scalars, caught, gpu is not None, compute)

    def is_over(self):
        """Whether the last iteration is done, or a signal asks to stop."""
        return self.steps.stop or self.solver.iter >= self.plan.settings["MAX_ITERS"]

    def iterate(self):
        """One iteration: mine if it is due, step, record, and check that nothing explodes."""
        plan, team, solver = self.plan, self.team, self.solver
        # Caffe keeps no state of its generator, so it is seeded for each iteration by its number.
        stream = streams.random_stream(plan.settings["SEED"], streams.CAFFE, team.rank, solver.iter)
        caffe.set_random_seed(int(stream.integers(2**31)))
        rate, start = solver.lr, time.perf_counter()
        try:
            if self.mined_every and solver.iter % self.mined_every == 0:
                team.first(self._mine)
            self.steps.step()
        except NotFiniteError as error:
            team.first(functools.partial(health.stop, plan, self.net, solver, solver.iter + 1, str(error)))
        values = self.steps.values
        self.record.iteration(solver.iter, rate, time.perf_counter() - start, self.steps.waiting, values)
        if not health.are_fine(self.net, self.scalars, values):
            team.first(lambda: health.stop_for_values(plan, self.net, solver, self.scalars, values))

    def _restore_mined(self):
        assert self.miner is not None
        self.miner.restore(self.last.mined)

    def _mine(self):
        assert self.miner is not None
        self.miner.mine(self.solver.net, self.solver.iter * self.plan.iter_size)

    def write_snapshot(self):
        """Write a snapshot, unless the processes' weights differ or are not finite: then raises InputError."""
        self.record.flush()
        self.team.check_equal(self.solver.net.params, self.solver.iter)
        self.last = self.team.first(self._write)

    def _write(self):
        plan = self.plan
        health.check_weights(plan, self.net, self.solver)
        return snapshots.write(self.solver, plan.prefix, plan.suffix, plan.carried, plan.settings["MINED"])

    def score_start(self):
        """Score the weights that the stage starts from, unless it resumes."""
        if self.plan.weights and not self.plan.snapshot:
            self.record.score(0, score_of_net(self.plan, self.solver.net, self.team, self.record))

    def score_snapshot(self):
        """Score the last snapshot, then remove those that need not be kept."""
        plan, number = self.plan, self.solver.iter
        found = score(plan, self.last.weights, number, self.team, self.record)
        if self.team.rank == 0:
            self.last = snapshots.note_score(plan.prefix, self.last, found)
            snapshots.prune(plan.prefix, plan.settings["KEEP_SNAPSHOTS"], number)
            self.record.snapshot(number, found)


def _start(plan, team, gpu):
    """This process's solver, ready for its next iteration, and its net's NetParameter. Raises InputError.

    All processes read the snapshot that the plan resumes from, as each has a momentum of its own, with equal values.
    """
    paths = [f"{plan.prefix}_train.prototxt", f"{plan.prefix}_solver.prototxt"]
    net, params = team.first(lambda: (read_net(paths[0]), read_prototxt(paths[1], caffe_pb2.SolverParameter())))
    with team.together(), tempfile.TemporaryDirectory() as folder:
        # The same as in the run's folder, except for what belongs to this process.
        net = for_process(net, team.rank)
        params.net = os.path.join(folder, "train.prototxt")
        params.device_id = gpu or 0
        write_prototxt(net, params.net)
        write_prototxt(params, os.path.join(folder, "solver.prototxt"))
        solver = caffe.get_solver(os.path.join(folder, "solver.prototxt"))
        if plan.snapshot:
            snapshots.restore(solver, plan.snapshot)
            layers.start_at(solver.net, solver.iter * plan.iter_size)
        elif plan.weights and team.rank == 0:
            load_weights(solver.net, plan.weights)
            if plan.components:
                features = np.load(features_of(net), mmap_mode="r")
                start_from_components(solver.net.params[plan.components], features)
    team.start_equal(solver.net.params)
    return solver, net


class _signals:
    """Collects signals while a block runs, so that the iteration is finished first. A second signal ends the block.

    A SIGHUP that is ignored stays ignored, as nohup wants.
    """

    def __init__(self, numbers):
        self.numbers = [
            number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]

    def __enter__(self):
        caught: list[int] = []
        # Once a terminal is closed, isatty() no longer says that it is one.
        terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

        def catch(number, frame):
            if number == signal.SIGHUP:
                _discard_output(terminals)
            if caught:
                raise KeyboardInterrupt
            caught.append(number)

        self.before = {number: signal.signal(number, catch) for number in self.numbers}
        return caught

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _discard_output(terminals):
    """Discard what is written to file descriptors from now on: writing to a closed terminal would fail."""
    with open(os.devnull, "w") as nowhere:
        for terminal in terminals:
            os.dup2(nowhere.fileno(), terminal)
