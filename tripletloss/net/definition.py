"""Prototxts of nets: read, checked, chosen by stage, built and written."""

import os
import tempfile

import caffe
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from tripletloss.base.errors import InputError
from tripletloss.formats.caffemodel import read_prototxt
from tripletloss.net.wiring import check_files, check_wiring


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


def new_net(name, layers=()):
    """A NetParameter of copies of layers."""
    net = caffe_pb2.NetParameter(name=name)
    for layer in layers:
        net.layer.add().CopyFrom(layer)
    return net


def open_net(source, phase, stage="", folders=None, allowed=()):
    """The NetParameter of a prototxt that somebody wrote, as Caffe is to build it in a phase and a stage, checked.

    Every such net comes through here, and Caffe gets what this returns, never the file itself. folders: that layers
    may read files from, besides the prototxt's own; None: layers may read no file at all.
    Raises InputError as read_net, check_wiring and check_files.
    """
    net = for_stage(read_net(source), phase, stage)
    check_wiring(net, source, allowed)
    check_files(net, source, folders)
    return net


def build(net, phase):
    """The caffe.Net of a NetParameter that was checked. Caffe ends the process where it finds something wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.prototxt")
        write_prototxt(net, path)
        return caffe.Net(path, phase)
