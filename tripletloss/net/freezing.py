"""What learns in a net and what does not: layers frozen, and the net cut above them."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import caffe
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.formats.caffemodel import made_by
from tripletloss.layers import MODULE, FeatureLayer
from tripletloss.net.definition import copy_of, new_net
from tripletloss.net.roles import data_layers
from tripletloss.net.settings import dump_params
from tripletloss.net.wiring import nearest_name


def freeze(
    net: caffe_pb2.NetParameter, blob: str, blob_counts: Mapping[str, int], source: str
) -> caffe_pb2.NetParameter:
    """A copy of a net with all rates at 0 in the layers that a blob depends on.

    blob_counts: layer name -> number of its parameter blobs; source: the prototxt's path.
    Raises InputError if no layer makes the blob.
    """
    tops = {top for layer in net.layer for top in layer.top}
    if blob not in tops:
        raise InputError(f"FREEZE names the blob {blob!r}, which no layer of {source} makes{nearest_name(blob, tops)}")
    makers, frozen = made_by(net, blob), copy_of(net)
    for layer in frozen.layer:
        if layer.name in makers:
            while len(layer.param) < blob_counts.get(layer.name, 0):
                layer.param.add()
            for param in layer.param:
                param.lr_mult = param.decay_mult = 0
    return frozen


def _still_and_moving(net, blob_counts):
    """The layers of a net in two lists: those that are frozen, and those that learn or are above one that learns."""
    still, rest = [], []
    moving: set[str] = set()  # blobs that depend on what learns
    for layer in net.layer:
        if moving.intersection(layer.bottom) or _learns(layer, blob_counts.get(layer.name, 0)):
            moving.update(layer.top)
            rest.append(layer)
        else:
            moving.difference_update(layer.top)
            still.append(layer)
    return still, rest


def settle_frozen(
    net: caffe_pb2.NetParameter, blob_counts: Mapping[str, int], loaded: Collection[str]
) -> tuple[caffe_pb2.NetParameter, list[str]]:
    """A copy of a net whose frozen layers work as after training: BatchNorm uses stored statistics, nothing drops out.

    A layer is frozen if neither it nor any layer below it learns. blob_counts: as in freeze; loaded: names of layers
    whose parameters come from weights. Returns the copy and the names of the frozen layers that have parameters.
    """
    settled = copy_of(net)
    still, _ = _still_and_moving(settled, blob_counts)
    for layer in still:
        if layer.type == "Dropout":
            layer.type = "Power"  # with its default parameters, Caffe's identity
            layer.ClearField("dropout_param")
        if layer.type == "BatchNorm" and layer.name in loaded:
            layer.batch_norm_param.use_global_stats = True
    return settled, [layer.name for layer in still if layer.name in blob_counts]


def store_statistics(net: caffe_pb2.NetParameter, loaded: Collection[str]) -> caffe_pb2.NetParameter:
    """A copy of a net whose BatchNorm layers use the statistics that the weights have, and leave them as they are.

    A layer of which the net itself says `use_global_stats`, true or false, stays so, and a layer that starts fresh has
    no statistics to use. loaded: names of layers whose parameters come from weights.
    """
    stored = copy_of(net)
    for layer in stored.layer:
        if layer.type == "BatchNorm" and layer.name in loaded:
            if not layer.batch_norm_param.HasField("use_global_stats"):
                layer.batch_norm_param.use_global_stats = True
    return stored


def batch_statistics(net: caffe_pb2.NetParameter) -> list[str]:
    """The names of the BatchNorm layers that use the statistics of a mini-batch."""
    return [
        layer.name for layer in net.layer
        if layer.type == "BatchNorm" and not layer.batch_norm_param.use_global_stats
    ]  # fmt: skip


def _learns(layer, blobs):
    if layer.type == "BatchNorm":
        return False  # its blobs are statistics; Caffe gives them no rate
    return any(i >= len(layer.param) or layer.param[i].lr_mult != 0 for i in range(blobs))


def changing_blobs(
    net: caffe_pb2.NetParameter, params: Mapping[str, Any]
) -> tuple[list[caffe._caffe.Blob], list[caffe._caffe.Blob]]:
    """What training changes in a net: (blobs that have a gradient and a rate, BatchNorm's running statistics).

    params: layer name -> blobs.
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


class Cut(NamedTuple):
    """Where a net whose lower layers are frozen can be cut."""

    blob: str  # the only frozen blob, apart from the labels, that layers above take
    data: str  # the blob of images that it depends on
    labels: str
    frozen: list[caffe_pb2.LayerParameter]  # from the images to the blob
    rest: list[caffe_pb2.LayerParameter]  # those that learn, or are above one that learns


def find_cut(net: caffe_pb2.NetParameter, blob_counts: Mapping[str, int]) -> Cut | None:
    """The Cut of a net whose frozen layers were settled, or None if there is none.

    blob_counts: as in freeze. There is none if nothing is frozen, if the images do not come from a single DataLayer,
    or if the layers that learn take several blobs of the frozen ones.
    """
    data = data_layers(net)
    if len(data) != 1:
        return None
    pixels, labels = data[0].top[:2]
    still, rest = _still_and_moving(net, blob_counts)
    taken: set[str] = set()
    moving: set[str] = set()
    for layer in rest:
        taken.update(set(layer.bottom) - moving)
        moving.update(layer.top)
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


def above_cut(
    net: caffe_pb2.NetParameter, cut: Cut, features: str, settings: Mapping[str, Any]
) -> caffe_pb2.NetParameter:
    """The net that trains on a Cut's features: a FeatureLayer, then the rest.

    net: uncut; features: path of the cache's file; settings: the stage's, as in fill_settings.
    """
    layer = caffe_pb2.LayerParameter(name="features", type="Python", top=[cut.blob, cut.labels])
    layer.python_param.module, layer.python_param.layer = MODULE, FeatureLayer.__name__
    params = {key: features if key == "features" else settings[key.upper()] for key in FeatureLayer.keys}
    layer.python_param.param_str = dump_params(params)
    return new_net(net.name, [layer, *cut.rest])
