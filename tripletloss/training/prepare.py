"""The net and the solver that a stage trains: NET and SOLVER with the settings filled in, checked, matched and frozen.

What is passed to a function stays as it is: changed nets are copies.
"""

import os
import tempfile
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import caffe
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.base.process import try_in_child
from tripletloss.data.lists import ImageList, label_gaps
from tripletloss.formats import caffemodel
from tripletloss.formats.caffemodel import read_prototxt
from tripletloss.net.definition import open_net, write_prototxt
from tripletloss.net.deploy import Deploy, check_agreement, open_deploy
from tripletloss.net.freezing import freeze, settle_frozen, store_statistics
from tripletloss.net.roles import data_layers
from tripletloss.net.settings import fill_settings, size_classifier
from tripletloss.net.weights import Shapes, load_weights, match_weights, rename_classifier, shapes_of
from tripletloss.training import snapshots

SOLVER_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
Settings = Mapping[str, Any]


class Matched(NamedTuple):
    """A net whose layers start from weights, fresh, or both."""

    net: caffe_pb2.NetParameter
    shapes: Shapes  # of its parameters, without layers that have none
    loaded: list[str]  # names of the layers that start from the weights,
    fresh: list[str]  # and of those that start fresh
    renamed: dict[str, str]  # old name -> new: classifiers of other identities than the weights'


def resolve_net(settings: Settings, stage: str) -> tuple[caffe_pb2.NetParameter, list[tuple[str, Any, str]]]:
    """The stage's layers of NET with the settings in them, and what NET decides instead, see fill_settings().

    Raises InputError like open_net and fill_settings, for a net without a loss, and for several processes (RANKS) that
    would train on the same images.
    """
    source = settings["NET"]
    net = open_net(source, caffe.TRAIN, stage, [settings["IMAGEPATH"]], settings["ALLOWED_MODULES"])
    if not loss_of(net):
        raise InputError(
            f"{source}: no layer has a loss: give the loss layer `loss_weight: 1`; a Python layer has none by default"
        )
    if settings["RANKS"] > 1 and not data_layers(net):
        raise InputError(
            f"{source} has no DataLayer, so all processes would train on the same images: train with one process"
        )
    net, decided = fill_settings(net, settings, source)
    return size_classifier(net, settings["IDENTITIES"]), decided


def loss_of(net: caffe_pb2.NetParameter) -> str:
    """The name of the last blob that is a loss, or ''."""
    losses = [layer for layer in net.layer if layer.type.endswith("Loss") or any(layer.loss_weight)]
    return losses[-1].top[0] if losses else ""


def resolve_solver(settings: Settings, prefix: str, gpu: int | None) -> tuple[caffe_pb2.SolverParameter, str]:
    """SOLVER with the settings in it, and how its weights' file names end: '' or '.h5'.

    prefix: of the stage's files; the net is PREFIX_train.prototxt. gpu: the number of the GPU, None for the CPU.
    Raises InputError for a file that cannot be read, a type that Caffe does not have, and fields about testing.
    """
    source = settings["SOLVER"]
    solver = read_prototxt(source, caffe_pb2.SolverParameter())
    for field, _ in solver.ListFields():
        if field.name.startswith("test_"):
            raise InputError(f"{source}: remove {field.name}: train.py measures HELD_OUT_LIST after the stage")
    if solver.type not in SOLVER_TYPES:
        raise InputError(f"{source}: the type {solver.type!r} must be one of {', '.join(SOLVER_TYPES)}")
    for field in ("net_param", "train_net", "train_net_param", "train_state"):
        solver.ClearField(field)
    solver.net = f"{prefix}_train.prototxt"
    solver.base_lr = settings["LEARNING_RATE"]
    if settings["WEIGHT_DECAY"] is not None:
        solver.weight_decay = settings["WEIGHT_DECAY"]
    solver.max_iter = settings["MAX_ITERS"]
    solver.random_seed = settings["SEED"]
    solver.snapshot_prefix = snapshots.caffe_prefix(prefix)
    suffix = ".h5" if solver.snapshot_format == caffe_pb2.SolverParameter.HDF5 else ""
    solver.snapshot_format = caffe_pb2.SolverParameter.BINARYPROTO  # which snapshots.write needs
    solver.snapshot = solver.display = 0  # train_stage does both
    solver.layer_wise_reduce = False  # otherwise NCCL would average layer by layer, when it is called for each
    solver.solver_mode = caffe_pb2.SolverParameter.CPU if gpu is None else caffe_pb2.SolverParameter.GPU
    solver.device_id = gpu or 0
    return solver, suffix


def build_in_child(
    net: caffe_pb2.NetParameter, solver: caffe_pb2.SolverParameter, source: str, images: ImageList
) -> tuple[Shapes, dict[str, tuple[int, ...]]]:
    """Build the solver and its net as training will, in a child process.

    Returns the shapes of the layers' parameters, and those of the blobs by name. source: path of the net; images: to
    train on. Raises InputError for what Caffe refuses, and for a label without an output.
    """

    def build():
        built = _new_solver(net, solver)
        _ = built.lr  # Caffe looks at lr_policy only when it is first used
        return shapes_of(built.net), {name: tuple(blob.shape) for name, blob in built.net.blobs.items()}

    try:
        params, blobs = try_in_child(build, source, limited=solver.solver_mode == solver.CPU)
    except InputError as error:  # Caffe does not say why
        reasons = [_unequal_sum(net, str(error))]
        if any(layer.type == "SoftmaxWithLoss" for layer in net.layer):
            reasons.append(label_gaps(images))  # which make the classifier too large
        raise InputError("; ".join([str(error), *filter(None, reasons)])) from None
    _check_labels(net, blobs, images, source)
    return params, blobs


def _unequal_sum(net, error):
    """What to do if Caffe's error is about a residual sum of blobs of different widths; '' if it is not."""
    for layer in net.layer:
        inner = [one.name for one in net.layer if one.type == "InnerProduct" and set(one.top) & set(layer.bottom)]
        if layer.type == "Eltwise" and inner and f"in layer {layer.name!r}" in error:
            return (
                f"{layer.name} adds {' to '.join(reversed(layer.bottom))}, so give {inner[-1]} as many outputs as the "
                f"other has; for fewer, remove {layer.name}, as the comment in the project's train.prototxt says"
            )
    return ""


def _new_solver(net, solver):
    """A solver of a net in a child process, without its seed: a child cannot use the generator of the parent's GPU."""
    with tempfile.TemporaryDirectory() as folder:
        unseeded = caffe_pb2.SolverParameter()
        unseeded.CopyFrom(solver)
        unseeded.ClearField("random_seed")
        unseeded.net = os.path.join(folder, "train.prototxt")
        write_prototxt(net, unseeded.net)
        write_prototxt(unseeded, os.path.join(folder, "solver.prototxt"))
        return caffe.get_solver(os.path.join(folder, "solver.prototxt"))


def _check_labels(net, blobs, images, source):
    """Raise InputError unless each label has an output of the classifier that a softmax loss takes."""
    data = data_layers(net)
    for layer in net.layer:
        if layer.type == "SoftmaxWithLoss" and data and layer.bottom[1] == data[0].top[1]:
            outputs, worst = blobs[layer.bottom[0]][1], int(images.labels.argmax())
            label = images.labels[worst]
            if label >= outputs:
                raise InputError(
                    f"{images.source}: the image {images.names[worst]} has label {label}, but {layer.bottom[0]!r} has "
                    f"{outputs} outputs, for labels 0 to {outputs - 1}: give it {label + 1} in {source}, or no number, "
                    "and it gets one per identity"
                )


def match_net(net: caffe_pb2.NetParameter, shapes: Shapes, weights: str, source: str) -> Matched:
    """Match the layers of a net with weights, if there are any ('' for none).

    shapes: of all its layers; source: its path. Raises InputError for weights that do not fit.
    """
    loaded: list[str] = []
    fresh = [name for name in shapes if shapes[name]]
    renamed: dict[str, str] = {}
    if weights:
        found = caffemodel.weight_shapes(weights)
        net, renamed = rename_classifier(net, shapes, found)
        shapes = {renamed.get(name, name): own for name, own in shapes.items()}
        loaded, fresh = match_weights(shapes, found, weights, source)
    return Matched(net, {name: own for name, own in shapes.items() if own}, loaded, fresh, renamed)


def freeze_net(matched: Matched, settings: Settings, stage: str) -> tuple[caffe_pb2.NetParameter, list[str]]:
    """A copy of a net that is frozen up to the blob FREEZE, and the names of the layers whose parameters do not learn.

    BatchNorm uses stored statistics in frozen layers, and everywhere if BATCHNORM is 'stored'.
    Raises InputError if nothing would learn, or if FREEZE would keep layers at their random start.
    """
    source, net, counts = settings["NET"], matched.net, {name: len(own) for name, own in matched.shapes.items()}
    if settings["FREEZE"]:
        net = freeze(net, settings["FREEZE"], counts, source)
    if settings["BATCHNORM"] == "stored":
        net = store_statistics(net, matched.loaded)
    net, frozen = settle_frozen(net, counts, matched.loaded)
    if len(frozen) == len(counts):
        raise InputError(f"{source}: all layers are frozen in the {stage} stage: set FREEZE to a lower blob")
    random = [name for name in frozen if name in matched.fresh]
    if settings["FREEZE"] and random:
        raise InputError(
            f"FREEZE would keep {', '.join(random)} of {source} at their random start in the {stage} stage: set "
            "WEIGHTS to weights that have them, or FREEZE to ''"
        )
    return net, frozen


def load_in_child(net: caffe_pb2.NetParameter, solver: caffe_pb2.SolverParameter, weights: str, source: str) -> None:
    """Load weights into a net in a child process. Raises InputError for what Caffe refuses. source: path of the net."""
    limited = solver.solver_mode == solver.CPU
    try_in_child(lambda: load_weights(_new_solver(net, solver).net, weights), source, limited=limited)


def open_measured(settings: Settings, features: Collection[str], net: caffe_pb2.NetParameter, shapes: Shapes) -> Deploy:
    """The Deploy of DEPLOY. features: names of its blobs to measure; net, shapes: of training.

    Raises InputError unless its layers are those of the training net, with equal shapes.
    """
    source, asked = settings["DEPLOY"], list(features)
    deploy = open_deploy(source, settings["IMAGE_SIZE"], asked or [""], settings["ALLOWED_MODULES"])
    match_weights(deploy.shapes, shapes, settings["NET"], source)
    check_agreement(net, deploy.definition, asked, source)
    return deploy
