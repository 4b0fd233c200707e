"""What a stage is going to do, checked before it starts: its settings, net, weights, and what it goes on from."""

import contextlib
import fcntl
import functools
import glob
import json
import os
import tempfile
from typing import NamedTuple

import caffe
import h5py
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, write_whole
from tripletloss.base.process import try_in_child
from tripletloss.config import COUNTED, SCHEMA, STAGES, default_of, need_files
from tripletloss.data.lists import ImageList, label_gaps, read_list
from tripletloss.formats import caffemodel
from tripletloss.formats.caffemodel import read_prototxt
from tripletloss.net.definition import open_net, write_prototxt
from tripletloss.net.deploy import Deploy, check_agreement, open_deploy
from tripletloss.net.freezing import Cut, find_cut, freeze, settle_frozen
from tripletloss.net.roles import data_layers, embeddings_of
from tripletloss.net.settings import fill_settings, size_classifier
from tripletloss.net.weights import load_weights, match_weights, rename_classifier, shapes_of
from tripletloss.training import snapshots

LONG_RUN = 5  # layers in a row, which a plan shows by the first and the last
SOLVER_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")


class Plan(NamedTuple):
    """A stage that has been checked and can be trained."""

    stage: str
    settings: dict  # every setting by name, as it holds in this stage
    prefix: str  # of the stage's files in the run's folder
    images: ImageList
    held_out: ImageList | None
    weights: str  # '' for none
    deploy: Deploy | None  # the net to measure with,
    measured: list  # and names of its blobs, softmax stage's first
    loaded: list  # names of the layers that start from the weights,
    fresh: list  # that start fresh,
    frozen: list  # and that do not learn
    renamed: dict  # old name -> new: classifiers of other identities than the weights'
    decided: list  # (setting, value, layer's name): what the prototxt decides instead of config.py
    parameters: int  # how many numbers the net has
    cut: Cut | None  # where the net is cut, to be trained on features that are computed once
    snapshot: snapshots.Snapshot | None  # that the stage goes on from
    shapes: dict  # layer -> shapes of its parameters
    cached: bool  # whether it is cut there
    cut_size: int  # numbers of an image at the cut
    loss: str  # the blob
    suffix: str  # of snapshots: '' or '.h5'
    iter_size: int  # passes of an iteration, as SOLVER says

    def describe(self):
        """The plan, for a person to read."""
        s = self.settings
        identities = len(np.unique(self.images.labels))
        named = functools.partial(layers_text, order=list(self.shapes))
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
        if self.snapshot:
            lines.insert(0, f"goes on    from iteration {self.snapshot.iteration}, {self.snapshot.weights}")
        if self.weights:
            lines.append(f"  loaded   {named(self.loaded)}")
            lines.append(f"  fresh    {named(self.fresh)}")
            lines += [
                f"  renamed  {old} to {new}: the weights have another number of identities"
                for old, new in self.renamed.items()
            ]
        if s["RANKS"] > 1:
            gathered = "; triplets among the images of all" if self.stage == "triplet" and s["GATHER"] else ""
            share = s["BATCH_SIZE"] // s["RANKS"]
            lines.append(f"processes  {s['RANKS']}, each with {share} images of a mini-batch{gathered}")
        lines.append(f"learning   {named(learning)}")
        lines.append(f"frozen     {named(self.frozen)}")
        if self.stage == "triplet":
            lines.append(f"triplets   {s['SELECTION']}, margin {s['MARGIN']:g}")
        lines += [f"prototxt   {name} {value} is {layer}'s own" for name, value, layer in self.decided]
        return "\n".join(lines)


def layers_text(names, order):
    """Names of layers as text: of LONG_RUN or more in a row, the first and the last. order: of all the net's layers."""
    place, runs = {name: number for number, name in enumerate(order)}, []
    for name in sorted(names, key=place.get):
        if runs and place[name] == place[runs[-1][-1]] + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(
        f"{run[0]} to {run[-1]} ({len(run)} layers)" if len(run) >= LONG_RUN else ", ".join(run) for run in runs
    ) or "none"  # fmt: skip


def check_folder(folder, stages, resume):
    """Raise InputError where claim_folder() would, but make and change nothing."""
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        reason = "Permission denied" if os.path.isdir(there) else f"{there} is not a folder"
        raise InputError(f"the run's folder {folder} cannot be written ({reason}): set RUN_FOLDER")
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, ".lock"), "r+") as lock:
        _lock(lock, folder)
    _refuse_begun(folder, stages, resume)


def _lock(file, folder):
    """Lock the file that belongs to a run's folder. Raises InputError while another run has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by children
    except BlockingIOError:
        raise InputError(f"another run is at work in {folder}: wait for it, or set RUN_FOLDER to a new one") from None


def _refuse_begun(folder, stages, resume):
    """Raise InputError if a folder has snapshots of one of the stages, unless the run is to resume."""
    for stage in () if resume else stages:
        if glob.glob(os.path.join(glob.escape(folder), f"{stage}_iter_*.caffemodel*")):
            raise InputError(
                f"{folder} has snapshots of a {stage} stage already: resume it with --resume, set RUN_FOLDER to a new "
                "folder, or move that one away"
            )


def claim_folder(folder, stages, resume):
    """Make the run's folder and lock it; returns the lock, which holds as long as it is referred to.

    Raises InputError if the folder cannot be written, if another run is at work in it, or, unless the run is to
    resume, if it has snapshots of one of the stages.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(os.path.join(folder, ".lock"), "w")  # its end, however the process ends, unlocks
        _lock(lock, folder)
        snapshots.clear(folder)
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be written ({error.strerror}): set RUN_FOLDER") from None
    _refuse_begun(folder, stages, resume)
    return lock


# Settings that may change when a run goes on, as they do not change what is learnt, or are to. Of paths, the contents
# count; of what train.py counts, the settings that it is counted from.
MAY_CHANGE = {
    "STAGES", "MAX_ITERS", "SNAPSHOT_ITERS", "KEEP_SNAPSHOTS", "FEATURE", "WORKERS", "DEVICE", "BROKEN_IMAGES", *COUNTED
}  # fmt: skip


def _inputs(settings, weights):
    """What a run must have in common with the one that it goes on with: name -> value or digest of a file."""
    inputs = {name: value for name, value in settings.items() if name not in MAY_CHANGE and not SCHEMA[name].is_path}
    inputs["FEATURE_CACHE"] = bool(settings["FEATURE_CACHE"])
    for name, path in {**settings, "WEIGHTS": weights}.items():
        if name in ("NET", "SOLVER", "TRAIN_LIST", "WEIGHTS") and path:
            try:
                inputs[f"content of {name}"] = digest(path)
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}): the run began with this {name}") from None
    return json.loads(json.dumps(inputs))  # as it is read again


def _begun(path, stage, inputs):
    """How a stage began that goes on: whether it is cached, its MAX_ITERS and its processes, from its settings.json.

    inputs: those of now. A setting that the file lacks is newer than the run, so that it was at its default then.
    Raises InputError where the inputs are not those that the run began with, or the file says nothing.
    """
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        before, began = about["inputs"], (about["cached"], about["MAX_ITERS"], about["RANKS"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is missing or damaged, so nothing says how the run began: start a new one") from None
    for name in sorted({*before, *inputs} - MAY_CHANGE):
        was = before.get(name, default_of(name, stage) if name in SCHEMA else None)
        if was != inputs.get(name):
            values = "" if name.startswith("content") else f" from {was!r} to {inputs.get(name)!r}"
            raise InputError(
                f"{name} changed{values} since the run began, so it cannot go on as it was: change it back, or start "
                "another run, with WEIGHTS set to a snapshot of this one and a new RUN_FOLDER"
            )
    return began


def make_plan(config, stage, gpu, processes=1, resume=False, say=print):
    """Resolve a stage's net and solver into the run's folder, and check all that can be checked before training.

    processes: how many will train; the files are the first one's. resume: go on from the last whole snapshot of the
    folder, if there is one; say: is told of damaged ones.
    Raises InputError for whatever does not fit, naming the file, line or setting.
    """
    settings = config.stage(stage)
    need_files(settings, "NET", "SOLVER", "DEPLOY", "IMAGEPATH", "TRAIN_LIST", "HELD_OUT_LIST", "WEIGHTS")
    prefix = os.path.join(settings["RUN_FOLDER"], stage)
    source = settings["NET"]
    snapshot = snapshots.last_whole(prefix, lambda said: say(f"snapshot   {said}")) if resume else None
    images = read_list(settings["TRAIN_LIST"], settings["IMAGEPATH"], settings["BROKEN_IMAGES"] == "stop")
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"]) if settings["HELD_OUT_LIST"] else None
    if held_out:
        sizes = np.unique(held_out.labels, return_counts=True)[1]
        if len(sizes) < 2 or sizes.max() < 2:
            raise InputError(f"{held_out.source} needs two identities or more, one of them with two images, to measure")

    net = open_net(source, caffe.TRAIN, stage, [settings["IMAGEPATH"]], settings["ALLOWED_MODULES"])
    _check_loss(net, source)
    if processes > 1:
        _check_divisible(net, source)
    settings["RANK"], settings["RANKS"] = 0, processes
    settings["MINED"] = f"{prefix}_mined.npz" if stage == "triplet" and settings["MINE_ITERS"] else ""
    settings["BROKEN_LIST"] = f"{prefix}_broken.txt" if settings["BROKEN_IMAGES"] == "skip" else ""
    settings["IDENTITIES"] = int(images.labels.max()) + 1
    decided = fill_settings(net, settings, source)
    size_classifier(net, settings["IDENTITIES"])
    settings.update({name: value for name, value, _ in decided})
    weights = settings["WEIGHTS"]
    if stage == "triplet" and not weights:
        softmax = snapshots.last_whole(os.path.join(settings["RUN_FOLDER"], "softmax"), say)
        weights = softmax.weights if softmax else ""
    if snapshot:  # before any file of the run is written anew
        was_cached, end, ranks = _begun(f"{prefix}_settings.json", stage, _inputs(settings, weights))
        if ranks != processes:
            say(
                f"processes  {processes} instead of {ranks} from now on: the same weights but for rounding, unless "
                "dropout, BatchNorm or, with GATHER False, the selection of triplets works on each one's share"
            )
        after = snapshots.described(os.path.join(settings["RUN_FOLDER"], "triplet")) if stage == "softmax" else []
        if after and settings["MAX_ITERS"] > end:
            raise InputError(
                f"MAX_ITERS grew from {end} to {settings['MAX_ITERS']} in the softmax stage, from whose end the "
                "triplet stage has begun: change it back, or start another run, with WEIGHTS set to a snapshot of this"
            )

    solver, suffix = _resolve_solver(settings, prefix, gpu)
    write_prototxt(net, f"{prefix}_train.prototxt")
    write_prototxt(solver, f"{prefix}_solver.prototxt")
    try:
        params, blobs = try_in_child(lambda: _build_solver(f"{prefix}_solver.prototxt"), source, limited=gpu is None)
    except InputError as error:  # where labels make the classifier too large, Caffe does not know why
        gaps = label_gaps(images) if stage == "softmax" else ""
        raise InputError(f"{error}; {gaps}" if gaps else str(error)) from None
    _check_labels(net, blobs, images, source)

    if stage == "triplet" and not weights and "softmax" in config["STAGES"]:
        raise InputError(
            "WEIGHTS is '' for the triplet stage: that stands for the softmax stage's last weights, but RUN_FOLDER has "
            "none: train the softmax stage first, set WEIGHTS to a file, or start fresh with STAGES = ['triplet']"
        )
    loaded, fresh = [], [name for name, shapes in params.items() if shapes]
    renamed = {}
    if weights:
        found = caffemodel.weight_shapes(weights)
        renamed = rename_classifier(net, params, found)
        params = {renamed.get(name, name): shapes for name, shapes in params.items()}
        loaded, fresh = match_weights(params, found, weights, source)
    params = {name: shapes for name, shapes in params.items() if shapes}
    counts = {name: len(shapes) for name, shapes in params.items()}
    if settings["FREEZE"]:
        freeze(net, settings["FREEZE"], counts, source)
    frozen = settle_frozen(net, counts, loaded)
    if len(frozen) == len(params):
        raise InputError(f"{source}: every layer is frozen in the {stage} stage: set FREEZE to a lower blob")
    random = [name for name in frozen if name in fresh]
    if settings["FREEZE"] and random:
        raise InputError(
            f"FREEZE would keep {', '.join(random)} of {source} at their random start in the {stage} stage: set "
            "WEIGHTS to weights that have them, or FREEZE to ''"
        )
    write_prototxt(net, f"{prefix}_train.prototxt")
    deploy, measured = None, []
    if settings["DEPLOY"] and held_out:
        named = [config.stage(name)["FEATURE"] for name in STAGES]
        measured = [feature for feature in dict.fromkeys(named) if feature]
        deploy = _open_deploy(settings, measured, params, net)
    total = sum(int(np.prod(shape)) for shapes in params.values() for shape in shapes)
    # Snapshots are completed with the frozen layers of the weights, which must have the same format for that.
    able = settings["FEATURE_CACHE"] and weights and h5py.is_hdf5(weights) == bool(suffix)
    cut = find_cut(net, counts) if able else None
    if settings["MINED"] and not (cut and embeddings_of(net) and settings["BATCHES"] == "identities"):
        raise InputError(
            "MINE_ITERS looks for negatives in cached features, for batches of identities: set FREEZE, FEATURE_CACHE "
            "and BATCHES 'identities' for the triplet stage, or MINE_ITERS to 0"
        )
    if weights:
        try_in_child(
            lambda: load_weights(_unseeded_solver(f"{prefix}_solver.prototxt").net, weights), source,
            limited=gpu is None,
        )  # fmt: skip
    # Features are worth it where training shows more images than there are to compute.
    shown, rows = settings["MAX_ITERS"] * settings["BATCH_SIZE"] * solver.iter_size, len(images.names)
    cached = cut is not None and (shown > rows * (1 + settings["MIRROR"]) or bool(settings["MINED"]))
    if snapshot:
        cached = was_cached
    about = {**settings, "WEIGHTS": weights, "inputs": _inputs(settings, weights), "cached": cached}
    write_whole(f"{prefix}_settings.json", json.dumps(about, indent=2).encode())
    return Plan(
        stage, settings, prefix, images, held_out, weights, deploy, measured, loaded, fresh, frozen, renamed, decided,
        total, cut, snapshot, params, cached, int(np.prod(blobs[cut.blob][1:])) if cut else 0, _loss_of(net),
        suffix, solver.iter_size,
    )  # fmt: skip


def skipped(plan):
    """A sentence about the images that a stage skipped, or ''."""
    path = plan.settings["BROKEN_LIST"]
    if not path or not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        names = {line.partition("\t")[0] for line in file}
    return f"broken     {len(names)} images were skipped, others of their identities stood in: {path}"


def _loss_of(net):
    """The name of the last blob that is a loss, or ''."""
    losses = [layer for layer in net.layer if layer.type.endswith("Loss") or any(layer.loss_weight)]
    return losses[-1].top[0] if losses else ""


def _check_loss(net, source):
    if not _loss_of(net):
        raise InputError(
            f"{source}: no layer has a loss: give the loss layer `loss_weight: 1`; a Python layer has none by itself"
        )


def _check_divisible(net, source):
    if not data_layers(net):
        raise InputError(
            f"{source} takes its images from no DataLayer, so all processes would see the same: train with one process"
        )


def _check_labels(net, blobs, images, source):
    """Raise InputError unless every label has an output of the classifier in front of a softmax loss."""
    data = data_layers(net)
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
    """solver.prototxt with the settings of config.py in it, and what weights' file names end with."""
    source = settings["SOLVER"]
    solver = read_prototxt(source, caffe_pb2.SolverParameter())
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
    solver.snapshot_prefix = snapshots.caffe_prefix(prefix)
    suffix = ".h5" if solver.snapshot_format == caffe_pb2.SolverParameter.HDF5 else ""
    solver.snapshot_format = caffe_pb2.SolverParameter.BINARYPROTO  # which snapshots.write wants
    solver.snapshot = solver.display = 0  # train_stage does both
    solver.layer_wise_reduce = False  # else NCCL would average layer by layer, when it is called for each
    solver.solver_mode = caffe_pb2.SolverParameter.CPU if gpu is None else caffe_pb2.SolverParameter.GPU
    solver.device_id = gpu or 0
    return solver, suffix


def _unseeded_solver(path):
    """The solver of a file without its seed: a child cannot reach the generator of a GPU that its parent uses."""
    params = read_prototxt(path, caffe_pb2.SolverParameter())
    params.ClearField("random_seed")
    with tempfile.TemporaryDirectory() as folder:
        write_prototxt(params, os.path.join(folder, "solver.prototxt"))
        return caffe.get_solver(os.path.join(folder, "solver.prototxt"))


def _build_solver(path):
    """Build a solver and its net, as training will; returns the shapes of its parameters and of its blobs."""
    solver = _unseeded_solver(path)
    _ = solver.lr  # Caffe looks at lr_policy only when it is first used
    return shapes_of(solver.net), {name: tuple(blob.shape) for name, blob in solver.net.blobs.items()}


def _open_deploy(settings, measured, params, net):
    """The Deploy of DEPLOY. Raises InputError unless its layers are those of the training net, of equal shapes."""
    source = settings["DEPLOY"]
    deploy = open_deploy(source, settings["IMAGE_SIZE"], measured or [""], settings["ALLOWED_MODULES"])
    match_weights(deploy.shapes, params, settings["NET"], source)
    check_agreement(net, deploy.definition, measured, source)
    return deploy
