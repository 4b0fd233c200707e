"""One stage of training: step, watch, report, snapshot, and measure."""

import contextlib
import functools
import os
import signal
import sys
import tempfile
import time

import caffe
from caffe.proto import caffe_pb2

from tripletloss import layers
from tripletloss.base.errors import InputError, NotFiniteError
from tripletloss.base.process import caffe_log, try_in_child
from tripletloss.core import streams
from tripletloss.core.pairs import pairs_of
from tripletloss.core.verification import verification
from tripletloss.data.images import Augmentation, Preprocessing
from tripletloss.evaluation.compare import compare
from tripletloss.evaluation.embed import ALONE, extract_all
from tripletloss.formats import caffemodel
from tripletloss.formats.caffemodel import made_by, read_prototxt
from tripletloss.net.definition import build, read_net, write_prototxt
from tripletloss.net.freezing import above_cut, changing_blobs
from tripletloss.net.settings import features_of, for_process
from tripletloss.net.weights import load_weights
from tripletloss.training import features, health, snapshots
from tripletloss.training.mining import Miner
from tripletloss.training.record import NoRecord, Record

# A matrix product and a kernel of Caffe's own.
GPU_TRIAL = """
layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 1 } } }
layer { name: "y" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
"""
SCORED_IMAGES = 600  # of the held-out ones, after each snapshot: the first so many


class Stopped(Exception):
    """Training was stopped by a signal after a whole iteration; the snapshot is on disk."""

    def __init__(self, number, snapshot):
        super().__init__(f"stopped after iteration {snapshot.iteration}, whose weights are in {snapshot.weights}")
        self.number = number


def choose_device(wanted, local_rank=0):
    """Turn the DEVICE setting into a GPU number or None for the CPU, and a sentence that says which.

    local_rank: of several processes on a machine, each takes the next GPU. A child process computes something on it, as
    Caffe ends the process where it has no GPU, the driver is missing or too old, or Caffe was compiled for other GPUs.
    Raises InputError if a GPU is asked for and cannot be used.
    """
    if wanted == "cpu":
        return None, "device     CPU"
    gpu = local_rank + (0 if wanted in ("auto", "gpu") else wanted)
    try:
        try_in_child(lambda: _try_gpu(gpu), "no GPU" if wanted == "auto" else f"DEVICE asks for GPU {gpu}")
    except InputError as error:
        if wanted == "auto":
            return None, f"device     CPU ({error})"
        raise InputError(f"{error}: set DEVICE to 'cpu' or 'auto', or build Caffe for the GPU") from None
    return gpu, f"device     GPU {gpu}"


def _try_gpu(gpu):
    use_device(gpu)
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(GPU_TRIAL)
        file.flush()
        net = caffe.Net(file.name, caffe.TEST)
    net.forward()
    return float(net.blobs["y"].data[0, 0])  # what went wrong on the GPU comes out when a result is fetched


def choose_devices(wanted, team):
    """choose_device for each process of a team: all learn on GPUs, a GPU each, or all on the CPU."""
    with team.together():
        gpu, sentence = choose_device(wanted, team.local_rank)
    gpus = team.gather(gpu)
    without = team.first(lambda: gpus.count(None))
    if 0 < without < team.size:
        return None, f"device     CPU ({without} of {team.size} processes have no GPU of their own)"
    return gpu, sentence


def use_device(gpu):
    """Tell Caffe in this process which device to use: a GPU number, or None for the CPU."""
    if gpu is None:
        with caffe_log(os.devnull):  # built for GPUs, it looks for one all the same, and complains where it has none
            caffe.set_mode_cpu()
    else:
        caffe.set_device(gpu)
        caffe.set_mode_gpu()


def _start(plan, team, gpu):
    """This process's solver, ready for its next iteration, and its net's NetParameter. Raises InputError.

    All processes read the snapshot that the plan goes on from, as each has a momentum of its own, the same one.
    """
    paths = [f"{plan.prefix}_train.prototxt", f"{plan.prefix}_solver.prototxt"]
    net, params = team.first(
        lambda: (read_net(paths[0]), read_prototxt(paths[1], caffe_pb2.SolverParameter()))
    )
    with team.together(), tempfile.TemporaryDirectory() as folder:
        # What the run's folder holds, but for what is this process's own.
        params.net = os.path.join(folder, "train.prototxt")
        for_process(net, team.rank)
        params.device_id = gpu or 0
        write_prototxt(net, params.net)
        write_prototxt(params, os.path.join(folder, "solver.prototxt"))
        solver = caffe.get_solver(os.path.join(folder, "solver.prototxt"))
        if plan.snapshot:
            snapshots.restore(solver, plan.snapshot)
            layers.start_at(solver.net, solver.iter * plan.iter_size)
        elif plan.weights and team.rank == 0:
            load_weights(solver.net, plan.weights)
    team.start_equal(solver.net.params)
    return solver, net


def cache_features(plan, team=ALONE):
    """Compute the features of a plan that is cut, and resolve its net to train on them. Returns a sentence, or ''.

    team: its processes divide the images; the first has the sentence. Raises InputError as features.compute.
    """
    s = plan.settings
    if not plan.cached:
        return ""
    shown = s["MAX_ITERS"] * s["BATCH_SIZE"] * plan.iter_size
    cache = features.compute(plan.cut, plan.weights, plan.images, s, team.caffe_log(plan.prefix), team)
    if cache is None:
        return ""
    path = f"{plan.prefix}_train.prototxt"
    whole = read_net(path)
    write_prototxt(whole, f"{plan.prefix}_uncut.prototxt")
    passes = {**s, "MINE_ITERS": s["MINE_ITERS"] * plan.iter_size}  # in which the layers count
    write_prototxt(above_cut(whole, plan.cut, cache.path, passes), path)
    jitters = [field.upper() for field in Augmentation._fields if field != "mirror" and s[field.upper()]]
    return (
        f"features   {plan.cut.blob} of {len(plan.images.names)} images x {cache.views} views, {cache.computed} "
        f"computed now in {cache.seconds:.0f} s; saves {max(0, shown * cache.seconds_per_row - cache.seconds):.0f} s"
        + (f"; without {', '.join(jitters)}" if jitters else "")
    )


def train_stage(plan, team=ALONE, gpu=None):
    """Train a planned stage to its last iteration; returns the path of the weights.

    team: of parallel.join(): all its processes call this. The first one writes, shows and logs. gpu: the number of
    this process's, or None for the CPU.
    Raises Stopped after SIGINT, SIGTERM or SIGHUP, and InputError if the loss or the weights explode.
    """
    s, writes = plan.settings, team.rank == 0
    last = plan.snapshot
    if last and last.iteration >= s["MAX_ITERS"]:
        return last.weights
    with caffe_log(team.caffe_log(plan.prefix)), _signals(team.signals) as caught:
        solver, net = _start(plan, team, gpu)
        scalars = [name for name in solver.net.outputs if solver.net.blobs[name].count == 1]
        record = Record(plan, net, solver.net.blobs, scalars, team.size) if writes else NoRecord()
        mine = s["MINED"] and s["MINE_ITERS"]
        miner = Miner(net, features_of(net), plan.images.labels, plan.prefix) if mine and writes else None
        if mine and last:
            team.first(lambda: miner.put_back(last.mined))
        steps = team.steps(solver, *changing_blobs(net, solver.net.params), scalars, caught, gpu is not None)
        with contextlib.closing(record), contextlib.closing(steps):
            if plan.weights and not last:
                record.score(0, _score_of_net(plan, solver.net, team, record))
            while solver.iter < s["MAX_ITERS"] and not steps.stop:
                # Caffe keeps no state of its generator, so that of each iteration is made from its number.
                stream = streams.random_stream(s["SEED"], streams.CAFFE, team.rank, solver.iter)
                caffe.set_random_seed(int(stream.integers(2**31)))
                rate, start = solver.lr, time.perf_counter()
                try:
                    if mine and solver.iter % mine == 0:
                        team.first(lambda: miner.mine(solver.net, solver.iter * plan.iter_size))
                    steps.step()
                except NotFiniteError as error:
                    team.first(functools.partial(health.stop, plan, net, solver, solver.iter + 1, str(error)))
                record.iteration(solver.iter, rate, time.perf_counter() - start, steps.waiting, steps.values)
                if not health.are_fine(net, scalars, steps.values):
                    team.first(lambda: health.stop_for_values(plan, net, solver, scalars, steps.values))
                if solver.iter % s["SNAPSHOT_ITERS"] == 0 or solver.iter == s["MAX_ITERS"]:
                    record.flush()
                    last = _snapshot(plan, net, solver, team)
                    score = _score(plan, last.weights, solver.iter, team, record)
                    if writes:
                        last = snapshots.note_score(plan.prefix, last, score)
                        snapshots.prune(plan.prefix, s["KEEP_SNAPSHOTS"], solver.iter)
                        record.snapshot(solver.iter, last.score)
            steps.agree_to_stop()
            if steps.stop and (not last or last.iteration != solver.iter):
                record.flush()
                last = _snapshot(plan, net, solver, team)
    if steps.stop:
        raise Stopped(steps.stop, last)
    return last.weights


def _snapshot(plan, net, solver, team):
    """Write a snapshot, once all processes are found to have the same weights, and finite ones; returns it to all.

    Raises InputError.
    """
    team.check_equal(solver.net.params, solver.iter)
    return team.first(lambda: _write(plan, net, solver))


def _write(plan, net, solver):
    health.check_weights(plan, net, solver)
    return snapshots.write(solver, plan.prefix, plan.suffix, plan.weights, plan.settings["MINED"])


class _signals:
    """Collects signals while a block runs, so that an iteration is finished first; a second one ends.

    A SIGHUP that is ignored stays so: that is what nohup is for.
    """

    def __init__(self, numbers):
        self.numbers = [
            number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]

    def __enter__(self):
        caught = []
        # Once a terminal is closed, it does not say any more that it is one.
        terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

        def catch(number, frame):
            if number == signal.SIGHUP:
                _send_nowhere(terminals)
            if caught:
                raise KeyboardInterrupt
            caught.append(number)

        self.before = {number: signal.signal(number, catch) for number in self.numbers}
        return caught

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _send_nowhere(terminals):
    """Drop what is printed to file descriptors from now on: writing to a closed terminal would fail."""
    with open(os.devnull, "w") as nowhere:
        for terminal in terminals:
            os.dup2(nowhere.fileno(), terminal)


def _score_of_net(plan, net, team, record):
    """_score of the weights that a net has before the first iteration."""
    if plan.settings["FEATURE"] not in plan.measured:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "start.caffemodel")
        with team.together():
            snapshots.write_weights(net, path, plan.suffix, plan.weights)
        return _score(plan, path, 0, team, record)


def _score(plan, weights, iteration, team, record):
    """TAR at FAR 1% of the stage's feature on some of the held-out images, or None where there is no way to tell.

    weights: those of an iteration. If the feature of an image holds NaN or infinity, there is no score, and the record
    says so: then the iteration's snapshot is never the best.
    """
    s, feature, images = plan.settings, plan.settings["FEATURE"], plan.held_out
    if feature not in plan.measured:
        return None
    within = images.labels[:SCORED_IMAGES]
    some = images._replace(names=images.names[: len(within)], labels=within)
    with _deploy_net(plan, weights, team) as (net, made):
        if feature not in made:
            return None
        try:
            [rows] = extract_all(net, [feature], some, Preprocessing.of(s), team=team)
        except NotFiniteError as error:
            record.say(f"no score   for iteration {iteration}: {error}")
            return None
    try:
        return verification(rows, within).tar.get(1e-2) if team.rank == 0 else None
    except ValueError:
        return None  # one identity alone, or images of one each


def measure(plan, weights, team=ALONE):
    """Verification on the held-out identities with weights: feature -> Verification.

    Measured are the features of both stages, as far as the weights have the layers that make them. {} if there is
    nothing to measure with, and at other processes than the first.
    """
    if not plan.measured:
        return {}
    held_out = plan.held_out
    with _deploy_net(plan, weights, team) as (net, made):
        rows = extract_all(net, made, held_out, Preprocessing.of(plan.settings), team=team) if made else []
        if team.rank > 0:
            return {}
        return {name: verification(row, held_out.labels) for name, row in zip(made, rows, strict=True)}


def compare_stages(plan, weights, team=ALONE):
    """What the triplet stage added on the held-out identities: Comparison, or None if there are not two features."""
    if len(plan.measured) < 2:
        return None
    with _deploy_net(plan, weights, team) as (net, made):
        if made != plan.measured:
            return None
        return compare(net, plan.settings, made[0], plan.held_out, pairs_of(plan.held_out.labels), team=team)


@contextlib.contextmanager
def _deploy_net(plan, weights, team):
    """The deploy net with weights, and those of the plan's features that they make."""
    deploy, have = plan.deploy.definition, caffemodel.weight_shapes(weights)
    with caffe_log(team.caffe_log(plan.prefix)):
        net = build(deploy, caffe.TEST)
        load_weights(net, weights)
        yield net, [name for name in plan.measured if made_by(deploy, name).intersection(net.params) <= set(have)]
