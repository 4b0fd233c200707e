"""One stage of training: plan it and check it, then step, report and snapshot."""

import contextlib
import glob
import json
import os
import re
import signal
import tempfile
import time
from typing import NamedTuple

import caffe
import h5py
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss import features, nets, sampling
from tripletloss.compare import compare
from tripletloss.config import STAGES
from tripletloss.dataset import ImageList, read_list
from tripletloss.errors import InputError
from tripletloss.extract import extract_all
from tripletloss.metrics import pairs_of, verification
from tripletloss.mining import Miner
from tripletloss.parallel import OneProcess
from tripletloss.process import caffe_log, try_in_child
from tripletloss.record import NoRecord, Record

SOLVER_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
SCORED_IMAGES = 600  # of the held-out ones, after each snapshot: the first so many


class Plan(NamedTuple):
    """A stage that has been checked and can be trained."""

    stage: str
    settings: dict  # every setting by name, as it holds in this stage
    prefix: str  # of the stage's files in the run's folder
    images: ImageList
    held_out: ImageList | None
    weights: str  # '' for none
    measured: list  # names of the deploy net's blobs to measure, softmax stage's first
    loaded: list  # names of the layers that start from the weights,
    fresh: list  # that start fresh,
    frozen: list  # and that do not learn
    renamed: dict  # old name -> new: classifiers of other identities than the weights'
    decided: list  # (setting, value, layer's name): what the prototxt decides instead of config.py
    parameters: int  # how many numbers the net has
    cut: nets.Cut | None  # where the net is cut, to be trained on features that are computed once

    def describe(self):
        """The plan, for a person to read."""
        s = self.settings
        identities = len(np.unique(self.images.labels))
        learning = [name for name in self.loaded + self.fresh if name not in self.frozen]
        lines = [
            f"stage      {self.stage}: {s['MAX_ITERS']} iterations, learning rate {s['LEARNING_RATE']:g}, "
            f"seed {s['SEED']}",
            f"images     {len(self.images.names)} of {identities} identities ({s['TRAIN_LIST']})",
            f"batches    {s['BATCHES']}, {s['BATCH_SIZE']} images"
            + (f" = {s['BATCH_SIZE'] // s['IMAGES_PER_IDENTITY']} identities x {s['IMAGES_PER_IDENTITY']}"
               if s["BATCHES"] == "identities" else "")
            + f" of {s['IMAGE_SIZE']} x {s['IMAGE_SIZE']}"
            + (f", around hard negatives, mined every {s['MINE_ITERS']} iterations" if s["MINED"] else ""),
            f"net        {s['NET']}, {self.parameters:,} parameters",
            f"weights    {self.weights or 'none: every layer starts fresh'}",
        ]
        if self.weights:
            lines.append(f"  loaded   {', '.join(self.loaded)}")
            lines.append(f"  fresh    {', '.join(self.fresh) or 'none'}")
            lines += [
                f"  renamed  {old} to {new}: the weights have another number of identities"
                for old, new in self.renamed.items()
            ]
        if s["RANKS"] > 1:
            lines.append(f"processes  {s['RANKS']}, each with {s['BATCH_SIZE'] // s['RANKS']} images of a mini-batch")
        lines.append(f"learning   {', '.join(learning)}")
        lines.append(f"frozen     {', '.join(self.frozen) or 'none'}")
        if self.stage == "triplet":
            lines.append(f"triplets   {s['SELECTION']}, margin {s['MARGIN']:g}")
        lines += [f"prototxt   {name} {value} is {layer}'s own" for name, value, layer in self.decided]
        return "\n".join(lines)


class Stopped(Exception):
    """Training was stopped by a signal after a whole iteration; the snapshot is on disk."""

    def __init__(self, number, snapshot):
        super().__init__(f"stopped; the weights so far are in {snapshot}")
        self.number = number


def choose_device(wanted):
    """Turn the DEVICE setting into a GPU number or None for the CPU, and a sentence that says which.

    Raises InputError if a GPU is asked for and Caffe has none.
    """
    if wanted == "cpu":
        return None, "device     CPU"
    gpu = 0 if wanted in ("auto", "gpu") else wanted

    def use_it():
        caffe.set_device(gpu)
        caffe.set_mode_gpu()

    try:
        try_in_child(use_it, f"DEVICE asks for GPU {gpu}")
    except InputError as error:
        if wanted == "auto":
            return None, "device     CPU (Caffe has no GPU here)"
        raise InputError(f"{error}: set DEVICE to 'cpu' or 'auto', or build Caffe for the GPU") from None
    return gpu, f"device     GPU {gpu}"


def use_device(gpu):
    """Tell Caffe in this process which device to use: a GPU number, or None for the CPU."""
    if gpu is None:
        caffe.set_mode_cpu()
    else:
        caffe.set_device(gpu)
        caffe.set_mode_gpu()


def claim_folder(folder, stages):
    """Make the run's folder; raises InputError if it cannot be written or holds weights of one of the stages."""
    try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, ".writable")
        with open(probe, "w"):
            os.remove(probe)
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be written ({error.strerror}): set RUN_FOLDER") from None
    for stage in stages:
        if last_snapshot(folder, stage):
            raise InputError(
                f"{folder} holds a {stage} stage already: set RUN_FOLDER to a new folder, or move that one away"
            )


def last_snapshot(folder, stage):
    """The weights of a stage's latest iteration in a run's folder, or '' if there are none."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), f"{stage}_iter_*.caffemodel*")):
        number = re.search(r"_iter_(\d+)\.caffemodel(\.h5)?$", path)
        if number:
            found[int(number.group(1))] = path
    return found[max(found)] if found else ""


def make_plan(config, stage, gpu, processes=1):
    """Resolve a stage's net and solver into the run's folder, and check all that can be checked before training.

    processes: how many will train; the files are the first one's.
    Raises InputError for whatever does not fit, naming the file, line or setting.
    """
    settings = config.stage(stage)
    prefix = os.path.join(settings["RUN_FOLDER"], stage)
    source = settings["NET"]
    images = read_list(settings["TRAIN_LIST"], settings["IMAGEPATH"])
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"]) if settings["HELD_OUT_LIST"] else None
    if held_out:
        sizes = np.unique(held_out.labels, return_counts=True)[1]
        if len(sizes) < 2 or sizes.max() < 2:
            raise InputError(f"{held_out.source} needs two identities or more, one of them with two images, to measure")

    net = nets.for_stage(nets.read_net(source), caffe.TRAIN, stage)
    nets.check_wiring(net, source)
    _check_loss(net, source)
    if processes > 1:
        _check_divisible(net, gpu, source)
    settings["RANK"], settings["RANKS"] = 0, processes
    settings["MINED"] = f"{prefix}_mined.npz" if stage == "triplet" and settings["MINE_ITERS"] else ""
    settings["IDENTITIES"] = int(images.labels.max()) + 1
    decided = nets.fill_settings(net, settings, source)
    nets.size_classifier(net, settings["IDENTITIES"])
    settings.update({name: value for name, value, _ in decided})
    solver = _resolve_solver(settings, prefix, gpu)
    nets.write_prototxt(net, f"{prefix}_train.prototxt")
    nets.write_prototxt(solver, f"{prefix}_solver.prototxt")
    params, blobs = try_in_child(lambda: _build_solver(f"{prefix}_solver.prototxt"), source)
    _check_labels(net, blobs, images, source)

    weights = settings["WEIGHTS"]
    if stage == "triplet" and not weights:
        weights = last_snapshot(settings["RUN_FOLDER"], "softmax")
        if not weights and "softmax" in config["STAGES"]:
            raise InputError(
                f"there are no softmax weights in {settings['RUN_FOLDER']} to start the triplet stage from: train the "
                "softmax stage first, or set WEIGHTS"
            )
    loaded, fresh = [], list(params)
    renamed = {}
    if weights:
        found = nets.weight_shapes(weights)
        renamed = nets.rename_classifier(net, params, found)
        params = {renamed.get(name, name): shapes for name, shapes in params.items()}
        loaded, fresh = nets.match_weights(params, found, weights, source)
    counts = {name: len(shapes) for name, shapes in params.items()}
    if settings["FREEZE"]:
        nets.freeze(net, settings["FREEZE"], counts, source)
    frozen = nets.settle_frozen(net, counts, loaded)
    if len(frozen) == len(params):
        raise InputError(f"{source}: every layer is frozen in the {stage} stage: set FREEZE to a lower blob")
    random = [name for name in frozen if name in fresh]
    if settings["FREEZE"] and random:
        raise InputError(
            f"FREEZE would keep {', '.join(random)} of {source} at their random start in the {stage} stage: set "
            "WEIGHTS to weights that have them, or FREEZE to ''"
        )
    nets.write_prototxt(net, f"{prefix}_train.prototxt")
    measured = []
    if settings["DEPLOY"] and held_out:
        named = [config.stage(name)["FEATURE"] for name in STAGES]
        measured = [feature for feature in dict.fromkeys(named) if feature]
        _check_deploy(settings, measured, params)
    total = sum(int(np.prod(shape)) for shapes in params.values() for shape in shapes)
    cut = nets.find_cut(net, counts) if settings["FEATURE_CACHE"] and _can_be_completed(weights, solver) else None
    if settings["MINED"] and not (cut and nets.embeddings_of(net) and settings["BATCHES"] == "identities"):
        raise InputError(
            "MINE_ITERS looks for negatives in cached features, for batches of identities: set FREEZE, FEATURE_CACHE "
            "and BATCHES 'identities' for the triplet stage, or MINE_ITERS to 0"
        )
    with open(f"{prefix}_settings.json", "w") as file:
        json.dump({**settings, "WEIGHTS": weights}, file, indent=2)
    return Plan(
        stage, settings, prefix, images, held_out, weights, measured, loaded, fresh, frozen, renamed, decided, total,
        cut,
    )  # fmt: skip


def _can_be_completed(weights, solver):
    """Whether snapshots have the format of the weights, so that frozen layers can be added to them."""
    as_hdf5 = solver.snapshot_format == caffe_pb2.SolverParameter.HDF5
    return bool(weights) and h5py.is_hdf5(weights) == as_hdf5


def _check_loss(net, source):
    losses = [layer for layer in net.layer if layer.type.endswith("Loss") or any(layer.loss_weight)]
    if not losses:
        raise InputError(
            f"{source}: no layer has a loss: give the loss layer `loss_weight: 1`; a Python layer has none by itself"
        )


def _check_divisible(net, gpu, source):
    if gpu is not None:
        raise InputError("several processes train on the CPU only so far: set DEVICE to 'cpu'")
    if not nets.data_layers(net):
        raise InputError(
            f"{source} takes its images from no DataLayer, so all processes would see the same: train with one process"
        )


def _check_labels(net, blobs, images, source):
    """Raise InputError unless every label has an output of the classifier in front of a softmax loss."""
    data = nets.data_layers(net)
    for layer in net.layer:
        if layer.type == "SoftmaxWithLoss" and data and layer.bottom[1] == data[0].top[1]:
            outputs, worst = blobs[layer.bottom[0]][1], int(images.labels.argmax())
            if images.labels[worst] >= outputs:
                raise InputError(
                    f"{images.source}: the image {images.names[worst]} has label {images.labels[worst]}, but "
                    f"{layer.bottom[0]!r} has {outputs} outputs, for labels 0 to {outputs - 1}: give it "
                    f"{images.labels[worst] + 1} in {source}, or say no number there, and they are counted"
                )


def _resolve_solver(settings, prefix, gpu):
    """solver.prototxt with the settings of config.py in it."""
    source = settings["SOLVER"]
    solver = nets.read_prototxt(source, caffe_pb2.SolverParameter())
    for field, _ in solver.ListFields():
        if field.name.startswith("test_"):
            raise InputError(f"{source}: take {field.name} out: train.py measures HELD_OUT_LIST after the stage")
    if solver.type not in SOLVER_TYPES:
        raise InputError(f"{source}: the type {solver.type!r} must be one of {', '.join(SOLVER_TYPES)}")
    for field in ("net_param", "train_net", "train_net_param", "train_state"):
        solver.ClearField(field)
    solver.net = f"{prefix}_train.prototxt"
    solver.base_lr = settings["LEARNING_RATE"]
    solver.max_iter = settings["MAX_ITERS"]
    solver.random_seed = settings["SEED"]
    solver.snapshot_prefix = prefix
    solver.snapshot = solver.display = 0  # train_stage does both
    solver.solver_mode = caffe_pb2.SolverParameter.CPU if gpu is None else caffe_pb2.SolverParameter.GPU
    solver.device_id = gpu or 0
    return solver


def _build_solver(path):
    """Build a solver and its net, as training will; returns the shapes of its parameters and of its blobs."""
    solver = caffe.get_solver(path)
    _ = solver.lr  # Caffe looks at lr_policy only when it is first used
    params = {name: [tuple(blob.shape) for blob in blobs] for name, blobs in solver.net.params.items()}
    return params, {name: tuple(blob.shape) for name, blob in solver.net.blobs.items()}


def _check_deploy(settings, measured, params):
    """The deploy net builds, holds the features, and its layers have the training net's shapes."""
    source, size = settings["DEPLOY"], settings["IMAGE_SIZE"]
    nets.check_wiring(nets.read_net(source), source)

    def build():
        net = caffe.Net(source, caffe.TEST)
        net.blobs[net.inputs[0]].reshape(1, 3, size, size)
        net.reshape()
        return list(net.blobs), {name: [tuple(blob.shape) for blob in blobs] for name, blobs in net.params.items()}

    blobs, shapes = try_in_child(build, source)
    for feature in measured or [""]:
        if feature not in blobs:
            raise InputError(f"{source} has no blob {feature!r}: set FEATURE to one of {', '.join(blobs)}")
    nets.match_weights(shapes, params, settings["NET"], source)


def _start(plan, team):
    """This process's solver with the first one's weights, and its net's NetParameter. Raises InputError."""
    paths = [f"{plan.prefix}_train.prototxt", f"{plan.prefix}_solver.prototxt"]
    net, params = team.first(
        lambda: (nets.read_net(paths[0]), nets.read_prototxt(paths[1], caffe_pb2.SolverParameter()))
    )
    with team.together(), tempfile.TemporaryDirectory() as folder:
        if team.rank > 0:
            # The same, but for the rank, the draws of dropout, and files of its own, which only Caffe reads.
            paths = [os.path.join(folder, "train.prototxt"), os.path.join(folder, "solver.prototxt")]
            params.net, params.snapshot_prefix = paths[0], os.path.join(folder, "none")
            nets.set_rank(net, team.rank)
            params.random_seed = int(
                sampling.random_stream(plan.settings["SEED"], sampling.PROCESS, team.rank).integers(2**31)
            )
            nets.write_prototxt(net, paths[0])
            nets.write_prototxt(params, paths[1])
        solver = caffe.get_solver(paths[1])
        if plan.weights and team.rank == 0:
            nets.load_weights(solver.net, plan.weights)
    team.start_equal(solver.net.params)
    return solver, net


def cache_features(plan):
    """Compute the features of a plan that is cut, and resolve its net to train on them. Returns a sentence, or ''.

    Nothing is done where training shows fewer images than there are to compute, and none are mined. Raises InputError
    as features.compute.
    """
    s = plan.settings
    shown, rows = s["MAX_ITERS"] * s["BATCH_SIZE"], len(plan.images.names) * (1 + s["MIRROR"])
    if not plan.cut or (shown <= rows and not s["MINED"]):
        return ""
    cache = features.compute(plan.cut, plan.weights, plan.images, s, f"{plan.prefix}_caffe.log")
    path = f"{plan.prefix}_train.prototxt"
    whole = nets.read_net(path)
    nets.write_prototxt(whole, f"{plan.prefix}_uncut.prototxt")
    nets.write_prototxt(nets.above_cut(whole, plan.cut, cache.path, s), path)
    jitters = [name for name in ("CROP_JITTER", "ZOOM_JITTER", "LIGHT_JITTER", "GREY_SHARE") if s[name]]
    return (
        f"features   {plan.cut.blob} of {len(plan.images.names)} images x {cache.views} views, {cache.computed} "
        f"computed now in {cache.seconds:.0f} s; saves {max(0, shown * cache.seconds_per_row - cache.seconds):.0f} s"
        + (f"; without {', '.join(jitters)}" if jitters else "")
    )


def train_stage(plan, team=OneProcess()):  # noqa: B008 (it holds nothing)
    """Train a planned stage to its last iteration; returns the path of the weights.

    team: of parallel.join(): all its processes call this. The first one writes, shows and logs.
    Raises Stopped after SIGINT or SIGTERM, and InputError if the loss stops being a number.
    """
    s, writes = plan.settings, team.rank == 0
    with caffe_log(f"{plan.prefix}_caffe.log" if writes else os.devnull), _signals(team.signals) as caught:
        solver, net = _start(plan, team)
        scalars = [name for name in solver.net.outputs if solver.net.blobs[name].count == 1]
        record = Record(plan, net, solver.net.blobs, scalars, team.size) if writes else NoRecord()
        mined = s["MINED"] and s["MINE_ITERS"]
        miner = Miner(net, nets.features_of(net), plan.images.labels, plan.prefix) if mined and writes else None
        steps = team.steps(solver, *nets.changing_blobs(net, solver.net.params), scalars, caught)
        with contextlib.closing(record), contextlib.closing(steps):
            while solver.iter < s["MAX_ITERS"] and not steps.stop:
                if mined and solver.iter % mined == 0:
                    team.first(lambda: miner.mine(solver.net))
                rate, start = solver.lr, time.perf_counter()
                steps.step()
                record.iteration(solver.iter, rate, time.perf_counter() - start, steps.waiting, steps.values)
                if not np.isfinite(steps.values).all():
                    with team.together():
                        raise InputError(
                            f"the {plan.stage} stage stops at iteration {solver.iter}, where "
                            f"{scalars[int(np.argmin(np.isfinite(steps.values)))]} is not a number any more: "
                            "lower LEARNING_RATE"
                        )
                if solver.iter % s["SNAPSHOT_ITERS"] == 0 or solver.iter == s["MAX_ITERS"]:
                    _snapshot(solver, team, plan)
                    if writes:
                        record.snapshot(solver.iter, _score(plan))
            steps.agree_to_stop()
            if steps.stop:
                _snapshot(solver, team, plan)
    weights = team.first(lambda: last_snapshot(s["RUN_FOLDER"], plan.stage))
    if steps.stop:
        raise Stopped(steps.stop, weights)
    return weights


def _snapshot(solver, team, plan):
    """Write weights and state, once all processes are found to have the same. Raises InputError if they have not."""
    team.check_equal(solver.net.params, solver.iter)
    if team.rank == 0:
        solver.snapshot()
        if plan.weights:
            nets.add_weights(last_snapshot(plan.settings["RUN_FOLDER"], plan.stage), plan.weights)


class _signals:
    """Collects signals while a block runs, so that an iteration is finished first; a second one ends."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __enter__(self):
        caught = []

        def catch(number, frame):
            if caught:
                raise KeyboardInterrupt
            caught.append(number)

        self.before = {number: signal.signal(number, catch) for number in self.numbers}
        return caught

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _score(plan):
    """TAR at FAR 1% of the stage's feature on some of the held-out images, or None where there is no way to tell."""
    s, feature, images = plan.settings, plan.settings["FEATURE"], plan.held_out
    if feature not in plan.measured:
        return None
    within = images.labels[:SCORED_IMAGES]
    some = images._replace(names=images.names[: len(within)], labels=within)
    with _deploy_net(plan, last_snapshot(s["RUN_FOLDER"], plan.stage)) as (net, _):
        [rows] = extract_all(net, [feature], some, s["CROP"], s["IMAGE_SIZE"], s["PIXEL_MEANS"])
    try:
        return verification(rows, within).tar.get(1e-2)
    except ValueError:
        return None  # one identity alone, or images of one each


def measure(plan, weights):
    """Verification on the held-out identities with weights: feature -> Verification.

    Measured are the features of both stages, as far as the weights have the layers that make them. {} if there is
    nothing to measure with.
    """
    if not plan.measured:
        return {}
    s, held_out = plan.settings, plan.held_out
    with _deploy_net(plan, weights) as (net, made):
        rows = extract_all(net, made, held_out, s["CROP"], s["IMAGE_SIZE"], s["PIXEL_MEANS"]) if made else []
        return {name: verification(row, held_out.labels) for name, row in zip(made, rows, strict=True)}


def compare_stages(plan, weights):
    """What the triplet stage added on the held-out identities: Comparison, or None if there are not two features."""
    if len(plan.measured) < 2:
        return None
    with _deploy_net(plan, weights) as (net, made):
        if made != plan.measured:
            return None
        return compare(net, plan.settings, made[0], plan.held_out, pairs_of(plan.held_out.labels))


@contextlib.contextmanager
def _deploy_net(plan, weights):
    """The deploy net with weights, and those of the plan's features that they make."""
    source = plan.settings["DEPLOY"]
    deploy, have = nets.read_net(source), nets.weight_shapes(weights)
    with caffe_log(f"{plan.prefix}_caffe.log"):
        net = caffe.Net(source, caffe.TEST)
        nets.load_weights(net, weights)
        yield net, [name for name in plan.measured if nets.made_by(deploy, name).intersection(net.params) <= set(have)]
