"""Prototxt and weights, in and out: stages, settings, freezing, and what is checked before Caffe sees them."""

import difflib
import importlib
import io
import os
import tempfile
from collections import Counter
from typing import NamedTuple

import caffe
import h5py
import numpy as np
import yaml
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from tripletloss.base.errors import InputError
from tripletloss.base.process import try_in_child
from tripletloss.config import SCHEMA
from tripletloss.core.selection import STRATEGIES, WITHOUT_LABELS
from tripletloss.formats.caffemodel import made_by, read_prototxt, shape_of
from tripletloss.layers import (
    MODULE,
    BatchTripletLossLayer,
    DataLayer,
    FeatureLayer,
    SelectingLayer,
    TripletLossLayer,
    TripletSelectLayer,
)
from tripletloss.layers.settings import PROCESS_KEYS, SettingsLayer, parse_param_str

# A prototxt runs no other code than this; add() here what its user trusts.
ALLOWED_MODULES = {"tripletloss.layers", "datalayer", "norm2layer", "tripletselectlayer", "tripletlosslayer"}
SELECT_STATISTICS = ("active_share", "d_ap", "d_an")
FILE_FIELDS = ("source", "root_folder", "mean_file", "file_name")  # of layers' parameters, that name files
FILE_READERS = ("Data", "HDF5Data", "ImageData", "WindowData")  # types of layers that are nothing without a file
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # that such files begin with
DATA_SECONDS = "data_seconds"  # the top of a DataLayer that train.py adds: seconds waited


def read_net(path):
    """The NetParameter of a prototxt; raises InputError as read_prototxt, and for the layer syntax before 2014."""
    net = read_prototxt(path, caffe_pb2.NetParameter())
    if len(net.layers):
        raise InputError(
            f"{path} writes `layers`, the syntax before 2014: convert it with Caffe's upgrade_net_proto_text"
        )
    return net


def write_prototxt(message, path):
    """Write a message as text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text_format.MessageToString(message))


def open_net(source, phase, stage="", folders=None):
    """The NetParameter of a prototxt that somebody wrote, as Caffe is to build it in a phase and a stage, checked.

    Every such net comes through here, and Caffe gets what this returns, never the file itself. folders: that layers
    may read files from, besides the prototxt's own; None: layers may read no file at all.
    Raises InputError as read_net, check_wiring and check_files.
    """
    net = for_stage(read_net(source), phase, stage)
    check_wiring(net, source)
    check_files(net, source, folders)
    return net


def build(net, phase):
    """The caffe.Net of a NetParameter that was checked. Caffe ends the process where it finds something wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.prototxt")
        write_prototxt(net, path)
        return caffe.Net(path, phase)


class Deploy(NamedTuple):
    """A deploy net that was checked, and that Caffe has built and run once."""

    definition: caffe_pb2.NetParameter
    shapes: dict  # layer -> shapes of its parameters


def open_deploy(source, size, features):
    """The Deploy of a prototxt that makes features of images.

    size: of the images, pixels a side; features: names of the blobs that will be asked for.
    Raises InputError as open_net, where layers read files, where the net takes anything but images, where Caffe stops
    at it, and where a feature is not there or has no row per image.
    """
    definition = open_net(source, caffe.TEST)

    def run():
        net = build(definition, caffe.TEST)
        if len(net.inputs) != 1:
            raise InputError(
                f"{source} must take one blob of images, N x 3 x S x S, through an Input layer, but it takes "
                f"{', '.join(net.inputs) or 'none'}"
            )
        net.blobs[net.inputs[0]].reshape(2, 3, size, size)
        net.forward()
        return shapes_of(net), {name: tuple(blob.shape) for name, blob in net.blobs.items()}

    shapes, blobs = try_in_child(run, f"{source} with images of {size} x {size} pixels", limited=True)
    for feature in features:
        named = dict.fromkeys([*definition.input, *(top for layer in definition.layer for top in layer.top)])
        if feature not in named:
            raise InputError(
                f"{source} has no blob {feature!r}: --feature, or FEATURE in the config, must be one of "
                f"{', '.join(named)}"
            )
        if blobs[feature][:1] != (2,):
            raise InputError(
                f"{source}: the blob {feature!r} has the shape {blobs[feature]} for 2 images: name one with a row per "
                "image"
            )
    return Deploy(definition, shapes)


def for_stage(net, phase, stage):
    """A copy of a net with the layers that Caffe's rules include in a phase (TRAIN, TEST) and a stage.

    A layer with include rules needs one that is met, one with exclude rules none (Net::StateMeetsRule).
    """
    chosen = caffe_pb2.NetParameter()
    chosen.CopyFrom(net)
    del chosen.layer[:]
    for layer in net.layer:
        met = [_meets(rule, phase, stage) for rule in (layer.include or layer.exclude)]
        if any(met) if len(layer.include) else not any(met):
            kept = chosen.layer.add()
            kept.CopyFrom(layer)
            kept.ClearField("include")
            kept.ClearField("exclude")
    return chosen


def _meets(rule, phase, stage):
    return (
        (not rule.HasField("phase") or rule.phase == phase)
        and (not rule.HasField("min_level") or rule.min_level <= 0)
        and (not rule.HasField("max_level") or rule.max_level >= 0)
        and all(wanted == stage for wanted in rule.stage)
        and stage not in rule.not_stage
    )


def check_wiring(net, source):
    """Raise InputError for an unknown layer type, a bottom or a Python layer that is not there, names given twice."""
    if not net.layer:
        raise InputError(f"{source} has no layer in this stage: look at its include rules")
    types = list(caffe.layer_type_list())
    names = Counter(layer.name for layer in net.layer)
    made = set(net.input)
    for layer in net.layer:
        where = f"{source}: layer {layer.name!r}"
        if layer.type not in types:
            raise InputError(f"{where} has the unknown type {layer.type!r}{_nearest(layer.type, types)}")
        if names[layer.name] > 1:
            raise InputError(f"{where} stands there {names[layer.name]} times in one stage: give each its own name")
        if layer.type == "Python":
            python_layer(layer, source)
        for bottom in layer.bottom:
            if bottom not in made:
                raise InputError(
                    f"{where} takes the bottom {bottom!r}, which no layer above makes{_nearest(bottom, made)}"
                )
        for top in layer.top:
            if top in made and top not in layer.bottom:
                raise InputError(f"{where} makes the top {top!r}, which a layer above makes already: rename one")
        made.update(layer.top)


def check_files(net, source, folders):
    """Raise InputError for a layer that writes a file, or reads one that it may not.

    net: NetParameter; folders: as in open_net.
    """
    allowed = [os.path.realpath(folder) for folder in (os.path.dirname(source) or ".", *(folders or ())) if folder]
    for layer in net.layer:
        where = f"{source}: layer {layer.name!r}"
        if layer.type == "HDF5Output":
            raise InputError(f"{where} writes a file: take it out, and use python -m tripletloss.extract")
        paths = [
            getattr(value, name, "")
            for field, value in layer.ListFields() if field.name.endswith("_param")
            for name in FILE_FIELDS
        ]  # fmt: skip
        reads = any(paths) or layer.type in FILE_READERS or is_a(layer, (DataLayer, FeatureLayer))
        if reads and folders is None:
            raise InputError(f"{where} reads files, which a deploy net must not: let an Input layer take the images")
        for path in filter(None, paths):
            if not is_within(path, allowed):
                raise InputError(f"{where} reads {path!r}, which is outside of the prototxt's folder and IMAGEPATH")


def is_within(path, folders):
    """Whether a path lies in one of some folders, links followed; folders: real paths."""
    path = os.path.realpath(path)
    return any(path == folder or path.startswith(os.path.join(folder, "")) for folder in folders)


def _nearest(name, known):
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {nearest[0]!r}?" if nearest else ": check its spelling"


def python_layer(layer, source):
    """The class of a Python layer; raises InputError if its module or the class in it is not there, or not allowed."""
    module, name = layer.python_param.module, layer.python_param.layer
    if module not in ALLOWED_MODULES:
        raise InputError(
            f"{source}: layer {layer.name!r} would run the Python module {module!r}, which is not this package's: if "
            f"you trust it, add --allow-module {module}"
        )
    try:
        found = getattr(importlib.import_module(module), name)
        if not (isinstance(found, type) and issubclass(found, caffe.Layer)):
            raise AttributeError(f"{name} is no caffe.Layer")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source}: layer {layer.name!r} wants {name!r} from the Python module {module!r}, which fails: {error}"
        ) from None


def fill_settings(net, settings, source):
    """Write settings into the param_str of this package's layers, where the prototxt leaves them out.

    net: NetParameter, changed in place; settings: a stage's settings by name. A selection layer gets the tops of
    its statistics as well, a DataLayer that of the seconds waited. A triplet loss and the layers that select for it
    get one margin, also where the prototxt gives it to one of them only. Returns a list of (setting, value, layer's
    name), one for each setting that the prototxt decides otherwise.
    Raises InputError for a wrong param_str, for two margins of one triplet loss, and for a rank-paired selection from
    other than anchor batches.
    """
    decided, margins = [], _shared_margins(net, source)
    named = [settings[key] for key in ("IMAGEPATH", "RUN_FOLDER", "FEATURE_CACHE", "TRAIN_LIST") if settings[key]]
    folders = [os.path.realpath(path) for path in (os.path.dirname(source) or ".", *named, os.path.dirname(named[-1]))]
    for layer in net.layer:
        if layer.type != "Python":
            continue
        kind = python_layer(layer, source)
        if not issubclass(kind, SettingsLayer):
            continue
        where = f"{source}: layer {layer.name!r}"
        own = parse_param_str(layer.python_param.param_str, kind.keys, where)
        filled = {key: settings[key.upper()] for key in kind.keys}
        for key in {*PROCESS_KEYS, "mined", "broken_list"} & set(own):
            del own[key]  # of the run that this prototxt was resolved for
        for key in own:
            if SCHEMA[key.upper()].is_path and not is_within(own[key], folders):
                raise InputError(f"{where} names {own[key]!r}, which is outside of the folders that config.py names")
        if issubclass(kind, SelectingLayer):
            if len(layer.bottom) == 1:
                own.setdefault("selection", WITHOUT_LABELS)
            name = own.get("selection", filled["selection"])
            batches = STRATEGIES[name].batches
            if batches and settings["BATCHES"] != batches:
                raise InputError(
                    f"{where} selects {name}, by position in the mini-batch: set BATCHES to {batches!r}, or take "
                    "another SELECTION"
                )
            if len(layer.top) == (3 if issubclass(kind, TripletSelectLayer) else 1):
                layer.top.extend(SELECT_STATISTICS)
                layer.loss_weight.extend([0] * len(SELECT_STATISTICS) if layer.loss_weight else [])
        if kind is DataLayer and len(layer.top) == 2:
            layer.top.append(DATA_SECONDS)
        decided += [(key.upper(), own[key], layer.name) for key in own if own[key] != filled[key]]
        if layer.name in margins:
            own["margin"] = margins[layer.name]
        layer.python_param.param_str = _dump({**filled, **own})
    return decided


def _shared_margins(net, source):
    """The margins that the prototxt gives to triplet losses, or to the layers that select for them.

    Returns layer's name -> margin, of both kinds of layer. Raises InputError where they differ.
    """
    margins = {}
    for loss in net.layer:
        if not is_a(loss, TripletLossLayer):
            continue
        makers = made_by(net, loss.bottom[0]) if loss.bottom else ()
        chain = [layer for layer in net.layer if layer.name in makers and is_a(layer, TripletSelectLayer)] + [loss]
        given = {}
        for layer in chain:
            where, kind = f"{source}: layer {layer.name!r}", python_layer(layer, source)
            own = parse_param_str(layer.python_param.param_str, kind.keys, where)
            if "margin" in own:
                given[layer.name] = own["margin"]
        if len(set(given.values())) > 1:
            both = " and ".join(f"layer {name!r} has the margin {margin:g}" for name, margin in given.items())
            raise InputError(f"{source}: {both}: give both the same one, or leave it out of one of them")
        margins.update((layer.name, margin) for layer in chain for margin in set(given.values()))
    return margins


def for_process(net, rank, iteration):
    """Make a resolved net that of one process: its rank, and the iteration that it goes on from. Changed in place."""
    for layer in net.layer:
        if is_a(layer, (DataLayer, FeatureLayer, SelectingLayer)):
            params = yaml.safe_load(layer.python_param.param_str)
            mine = {"rank": rank, "first_iteration": iteration}
            params.update({key: value for key, value in mine.items() if key in params})
            layer.python_param.param_str = _dump(params)


def data_layers(net):
    """The layers of a net that are this package's DataLayer."""
    return [layer for layer in net.layer if is_a(layer, DataLayer)]


def features_of(net):
    """The path of the features that the FeatureLayer of a net from above_cut() reads."""
    return yaml.safe_load(net.layer[0].python_param.param_str)["features"]


def is_a(layer, kind):
    """Whether a layer of a net that was checked is a Python layer of this class, or of one of a tuple of them."""
    return layer.type == "Python" and issubclass(python_layer(layer, "the net"), kind)


def changing_blobs(net, params):
    """What training changes in a net: (blobs that have a gradient and a rate, BatchNorm's running statistics).

    net: NetParameter; params: layer name -> blobs.
    """
    learning, statistics = [], []
    for layer in net.layer:
        for i, blob in enumerate(params.get(layer.name, ())):
            if layer.type == "BatchNorm":
                if not layer.batch_norm_param.use_global_stats:
                    statistics.append(blob)
            elif i >= len(layer.param) or layer.param[i].lr_mult != 0:
                learning.append(blob)
    return learning, statistics


def _classifiers(net):
    """The layers that make the scores of a SoftmaxWithLoss."""
    scores = {layer.bottom[0] for layer in net.layer if layer.type == "SoftmaxWithLoss" and layer.bottom}
    return [layer for layer in net.layer if scores.intersection(layer.top)]


def embeddings_of(net):
    """The names of the blobs of embeddings and labels that a net trains, or None.

    They are the bottoms of a layer that selects triplets, or the feature in front of the classifier and the softmax's
    labels.
    """
    for layer in net.layer:
        if is_a(layer, SelectingLayer) and len(layer.bottom) == 2:
            return layer.bottom[0], layer.bottom[1]
    for classifier in _classifiers(net):
        loss = next(
            layer for layer in net.layer if layer.type == "SoftmaxWithLoss" and layer.bottom[0] in classifier.top
        )
        return classifier.bottom[0], loss.bottom[1]
    return None


def margin_of(net):
    """The margin of a net's triplet loss, settings filled in; None without one."""
    losses = [layer for layer in net.layer if is_a(layer, (TripletLossLayer, BatchTripletLossLayer))]
    return yaml.safe_load(losses[0].python_param.param_str)["margin"] if losses else None


def size_classifier(net, identities):
    """Give a classifying InnerProduct layer, where the prototxt says no num_output, one output an identity."""
    for layer in _classifiers(net):
        if layer.type == "InnerProduct" and not layer.inner_product_param.num_output:
            layer.inner_product_param.num_output = identities


def rename_classifier(net, shapes, found):
    """Rename a classifier that the weights have with another number of outputs, so that it starts fresh.

    net: NetParameter, changed in place; shapes: layer -> parameter shapes of the net; found: of the weights.
    Returns old name -> new name.
    """
    new_names = {}
    for layer in _classifiers(net):
        here, there = shapes.get(layer.name), found.get(layer.name)
        if here and there and len(here) == len(there) and here[0][1:] == there[0][-1:] and here[0][0] != there[0][-2]:
            new_names[layer.name] = f"{layer.name}_{here[0][0]}"
            layer.name = new_names[layer.name]
    return new_names


def freeze(net, blob, blob_counts, source):
    """Set every rate to 0 in the layers that a blob is made by, from the data on.

    net: NetParameter, changed in place; blob_counts: layer name -> how many parameter blobs it has.
    Raises InputError if no layer makes the blob.
    """
    tops = {top for layer in net.layer for top in layer.top}
    if blob not in tops:
        raise InputError(f"FREEZE names the blob {blob!r}, which no layer of {source} makes{_nearest(blob, tops)}")
    makers = made_by(net, blob)
    for layer in net.layer:
        if layer.name in makers:
            while len(layer.param) < blob_counts.get(layer.name, 0):
                layer.param.add()
            for param in layer.param:
                param.lr_mult = param.decay_mult = 0


class Cut(NamedTuple):
    """Where a net that is frozen below can be cut."""

    blob: str  # the only one, labels apart, that layers take which are not frozen
    data: str  # the blob of images that it is made from
    labels: str
    frozen: list  # LayerParameters from the images to the blob
    rest: list  # LayerParameters of what learns, or lies above what learns


def find_cut(net, blob_counts):
    """The Cut of a net whose frozen layers were settled, or None where there is none.

    net: NetParameter; blob_counts: as for freeze. There is none where nothing is frozen, where images come from
    another layer than one DataLayer, or where what learns takes several blobs of what is frozen.
    """
    data = data_layers(net)
    if len(data) != 1:
        return None
    pixels, labels = data[0].top[:2]
    still, rest, moving, taken = [], [], set(), set()
    for layer in net.layer:
        if moving.intersection(layer.bottom) or _learns(layer, blob_counts.get(layer.name, 0)):
            taken.update(set(layer.bottom) - moving)
            moving.update(layer.top)
            rest.append(layer)
        else:
            moving.difference_update(layer.top)
            still.append(layer)
    blobs = taken - {labels}
    if len(blobs) != 1 or pixels in blobs:
        return None
    blob = blobs.pop()
    below = new_net("below", still)
    makers = made_by(below, blob) - {data[0].name}
    frozen = [layer for layer in still if layer.name in makers]
    if any(labels in layer.bottom for layer in frozen):
        return None
    return Cut(blob, pixels, labels, frozen, rest)


def new_net(name, layers=()):
    """A NetParameter of copies of layers."""
    net = caffe_pb2.NetParameter(name=name)
    for layer in layers:
        net.layer.add().CopyFrom(layer)
    return net


def above_cut(net, cut, features, settings):
    """The NetParameter that trains on a Cut's features: a FeatureLayer, then the rest.

    net: the uncut NetParameter; features: path of the cache's file; settings: the stage's, as for fill_settings.
    """
    layer = caffe_pb2.LayerParameter(name="features", type="Python", top=[cut.blob, cut.labels])
    layer.python_param.module, layer.python_param.layer = MODULE, FeatureLayer.__name__
    params = {key: features if key == "features" else settings[key.upper()] for key in FeatureLayer.keys}
    layer.python_param.param_str = _dump(params)
    return new_net(net.name, [layer, *cut.rest])


def _dump(params):
    """Settings as a param_str: a YAML mapping on one line."""
    return yaml.safe_dump(params, default_flow_style=True, width=10**9).strip()


def settle_frozen(net, blob_counts, loaded):
    """Make frozen layers work as they do after training: BatchNorm by its stored statistics, no dropout.

    A layer is frozen if neither it nor any layer below learns. net: NetParameter, changed in place; blob_counts: as
    for freeze; loaded: names of layers whose parameters come from weights. Returns the names of the frozen layers
    that have parameters.
    """
    frozen, moving = [], set()
    for layer in net.layer:
        if moving.intersection(layer.bottom) or _learns(layer, blob_counts.get(layer.name, 0)):
            moving.update(layer.top)
            continue
        moving.difference_update(layer.top)
        if layer.type == "Dropout":
            layer.type = "Power"  # with its default parameters, Caffe's identity
            layer.ClearField("dropout_param")
        if layer.type == "BatchNorm" and layer.name in loaded:
            layer.batch_norm_param.use_global_stats = True
        if layer.name in blob_counts:
            frozen.append(layer.name)
    return frozen


def _learns(layer, blobs):
    if layer.type == "BatchNorm":
        return False  # its blobs are statistics; Caffe gives them no rate
    return any(i >= len(layer.param) or layer.param[i].lr_mult != 0 for i in range(blobs))


def check_agreement(net, deploy, features, source):
    """Raise InputError where a layer that makes a measured feature is another one in the training net.

    net, deploy: NetParameters; features: blobs of deploy; source: its path.
    """
    makers = set().union(*(made_by(deploy, feature) for feature in features)) if features else set()
    trained = {layer.name: layer for layer in net.layer}
    for layer in deploy.layer:
        other = trained.get(layer.name)
        if layer.name in makers and other is not None and layer.type == other.type:
            one, two = _what_it_does(layer), _what_it_does(other)
            if one != two:
                raise InputError(
                    f"{source}: layer {layer.name!r} is {one or 'plain'} there and {two or 'plain'} in the training "
                    "net: make them the same"
                )


def _what_it_does(layer):
    """A layer's own settings as text, without what matters in training alone."""
    kept = type(layer)()
    for field, value in layer.ListFields():
        if field.name.endswith("_param") and field.name not in ("python_param", "batch_norm_param", "transform_param"):
            getattr(kept, field.name).CopyFrom(value)
            for filler in ("weight_filler", "bias_filler", "filler"):
                if filler in value.DESCRIPTOR.fields_by_name:
                    getattr(kept, field.name).ClearField(filler)
    return " ".join(text_format.MessageToString(kept, as_one_line=True).split())


def load_weights(net, path):
    """Copy the parameters of equally named layers from a .caffemodel or .caffemodel.h5 file, checked before."""
    if h5py.is_hdf5(path):
        net.load_hdf5(path)  # copy_from would read nothing of it, and say nothing
    else:
        net.copy_from(path)


def bare_weights(content):
    """The bytes of a .caffemodel with its layers' names, types and blobs alone: no settings, and so no paths."""
    net, bare = caffe_pb2.NetParameter.FromString(content), caffe_pb2.NetParameter()
    bare.name = net.name
    for layer in net.layer:
        if layer.blobs:
            bare.layer.add(name=layer.name, type=layer.type).blobs.extend(layer.blobs)
    return bare.SerializeToString()


def weights_as_hdf5(content):
    """The bytes of a .caffemodel as those of a .caffemodel.h5: data/LAYER/NUMBER, as Caffe's Net::ToHDF5 writes it."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for layer in caffe_pb2.NetParameter.FromString(content).layer:
            group = file.create_group(f"data/{layer.name}")
            for number, blob in enumerate(layer.blobs):
                group[str(number)] = np.array(blob.data, np.float32).reshape(shape_of(blob))
    return memory.getvalue()


def complete_weights(content, source):
    """Weights with the layers that they lack and a file has: frozen ones, and other stages'.

    content: bytes of a .caffemodel or .caffemodel.h5; returns such. If the file has another format, nothing is added.
    """
    as_hdf5 = content.startswith(HDF5_SIGNATURE)
    if as_hdf5 != h5py.is_hdf5(source):
        return content
    if as_hdf5:
        memory = io.BytesIO(content)
        with h5py.File(memory, "a") as file, h5py.File(source, "r") as other:
            for name in other["data"]:
                if name not in file["data"]:
                    other.copy(f"data/{name}", file["data"])
        return memory.getvalue()
    net, other = caffe_pb2.NetParameter.FromString(content), _read_weights(source)
    have = {layer.name for layer in net.layer}
    net.layer.extend(layer for layer in other.layer if layer.blobs and layer.name not in have)
    return net.SerializeToString()


def _read_weights(path):
    net = caffe_pb2.NetParameter()
    with open(path, "rb") as file:
        net.ParseFromString(file.read())
    return net


def shapes_of(net):
    """Layer name -> shapes of its parameters, of all layers of a caffe.Net; [] for a layer without parameters."""
    return {
        name: [tuple(blob.shape) for blob in layer.blobs]
        for name, layer in zip(net._layer_names, net.layers, strict=True)
    }


def match_weights(shapes, found, path, source):
    """Which layers of a net take their parameters from weights, and which start fresh.

    shapes: of shapes_of(net); found: layer -> parameter shapes of the weights. Returns (loaded, fresh), lists of names
    of layers that have parameters, in the net's order. Raises InputError if a layer of one name differs in shape, or
    none has the same name.
    """
    loaded = [name for name in shapes if name in found]
    for name in loaded:
        if not _same_shapes(shapes[name], found[name]):
            raise InputError(
                f"{path} does not fit {source}: layer {name!r} is {_text(found[name])} in the weights and "
                f"{_text(shapes[name])} in the net: rename the layer in the prototxt to start it without them"
            )
    if not loaded:
        raise InputError(f"no layer of {path} has the name of a layer with parameters in {source}: check WEIGHTS")
    return loaded, [name for name in shapes if shapes[name] and name not in found]


def _same_shapes(net, weights):
    """Equal, or equal to the four numbers that old weights have, padded with ones in front."""
    def padded(shape, other):
        return (1,) * (len(other) - len(shape)) + tuple(shape) if len(other) == 4 else tuple(shape)

    return len(net) == len(weights) and all(padded(a, b) == tuple(b) for a, b in zip(net, weights, strict=True))


def _text(shapes):
    return " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes) or "without parameters"
