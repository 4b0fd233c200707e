"""What learns in a net and what does not: layers frozen, and the net cut above them."""

from typing import NamedTuple

from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.formats.caffemodel import made_by
from tripletloss.layers import MODULE, FeatureLayer
from tripletloss.net.definition import new_net
from tripletloss.net.roles import data_layers
from tripletloss.net.settings import dump_params
from tripletloss.net.wiring import nearest_name


def freeze(net, blob, blob_counts, source):
    """Set every rate to 0 in the layers that a blob is made by, from the data on.

    net: NetParameter, changed in place; blob_counts: layer name -> how many parameter blobs it has.
    Raises InputError if no layer makes the blob.
    """
    tops = {top for layer in net.layer for top in layer.top}
    if blob not in tops:
        raise InputError(f"FREEZE names the blob {blob!r}, which no layer of {source} makes{nearest_name(blob, tops)}")
    makers = made_by(net, blob)
    for layer in net.layer:
        if layer.name in makers:
            while len(layer.param) < blob_counts.get(layer.name, 0):
                layer.param.add()
            for param in layer.param:
                param.lr_mult = param.decay_mult = 0


def _still_and_moving(net, blob_counts):
    """The layers of a net in two lists: those that are frozen, and those that learn or lie above one that learns."""
    still, rest, moving = [], [], set()
    for layer in net.layer:
        if moving.intersection(layer.bottom) or _learns(layer, blob_counts.get(layer.name, 0)):
            moving.update(layer.top)
            rest.append(layer)
        else:
            moving.difference_update(layer.top)
            still.append(layer)
    return still, rest


def settle_frozen(net, blob_counts, loaded):
    """Make frozen layers work as they do after training: BatchNorm by its stored statistics, no dropout.

    A layer is frozen if neither it nor any layer below learns. net: NetParameter, changed in place; blob_counts: as
    for freeze; loaded: names of layers whose parameters come from weights. Returns the names of the frozen layers
    that have parameters.
    """
    still, _ = _still_and_moving(net, blob_counts)
    for layer in still:
        if layer.type == "Dropout":
            layer.type = "Power"  # with its default parameters, Caffe's identity
            layer.ClearField("dropout_param")
        if layer.type == "BatchNorm" and layer.name in loaded:
            layer.batch_norm_param.use_global_stats = True
    return [layer.name for layer in still if layer.name in blob_counts]


def _learns(layer, blobs):
    if layer.type == "BatchNorm":
        return False  # its blobs are statistics; Caffe gives them no rate
    return any(i >= len(layer.param) or layer.param[i].lr_mult != 0 for i in range(blobs))


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
    still, rest = _still_and_moving(net, blob_counts)
    taken, moving = set(), set()
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


def above_cut(net, cut, features, settings):
    """The NetParameter that trains on a Cut's features: a FeatureLayer, then the rest.

    net: the uncut NetParameter; features: path of the cache's file; settings: the stage's, as for fill_settings.
    """
    layer = caffe_pb2.LayerParameter(name="features", type="Python", top=[cut.blob, cut.labels])
    layer.python_param.module, layer.python_param.layer = MODULE, FeatureLayer.__name__
    params = {key: features if key == "features" else settings[key.upper()] for key in FeatureLayer.keys}
    layer.python_param.param_str = dump_params(params)
    return new_net(net.name, [layer, *cut.rest])
