"""Prototxts of nets: read, checked, chosen by stage, built and written."""

import os
import tempfile
from collections.abc import Iterable, Sequence

import caffe
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from google.protobuf.message import Message

from tripletloss.base.errors import InputError
from tripletloss.formats.caffemodel import read_prototxt
from tripletloss.net.wiring import check_files, check_wiring


def read_net(path: str) -> caffe_pb2.NetParameter:
    """The NetParameter of a prototxt. Raises InputError like read_prototxt, and for the layer syntax before 2014."""
    net = read_prototxt(path, caffe_pb2.NetParameter())
    if len(net.layers):
        raise InputError(
            f"{path} uses `layers`, the syntax before 2014: convert it with Caffe's upgrade_net_proto_text"
        )
    return net


def write_prototxt(message: Message, path: str) -> None:
    """Write a message as text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text_format.MessageToString(message))


def copy_of(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """A copy of a net that shares nothing with it."""
    copy = caffe_pb2.NetParameter()
    copy.CopyFrom(net)
    return copy


def for_stage(net: caffe_pb2.NetParameter, phase: int, stage: str) -> caffe_pb2.NetParameter:
    """A copy of a net with the layers that Caffe's rules include in a phase (TRAIN, TEST) and a stage.

    A layer with include rules is kept if one of them is met, a layer with exclude rules if none is
    (Net::StateMeetsRule).
    """
    chosen = copy_of(net)
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


def new_net(name: str, layers: Iterable[caffe_pb2.LayerParameter] = ()) -> caffe_pb2.NetParameter:
    """A NetParameter with copies of layers."""
    net = caffe_pb2.NetParameter(name=name)
    for layer in layers:
        net.layer.add().CopyFrom(layer)
    return net


def open_net(
    source: str, phase: int, stage: str = "", folders: Sequence[str] | None = None, allowed: Sequence[str] = ()
) -> caffe_pb2.NetParameter:
    """The NetParameter of a prototxt that somebody wrote, checked, as Caffe is to build it in a phase and a stage.

    Every such net comes through here. Caffe gets what this returns, never the file itself. folders: those that layers
    may read files from, besides the prototxt's own; None: layers may read no file at all. allowed: names of Python
    modules that the net may run, besides this package's.
    Raises InputError like read_net, check_wiring and check_files.
    """
    net = for_stage(read_net(source), phase, stage)
    check_wiring(net, source, allowed)
    check_files(net, source, folders)
    return net


def build(net: caffe_pb2.NetParameter, phase: int) -> caffe.Net:
    """The caffe.Net of a NetParameter that was checked. Caffe ends the process if it finds something wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.prototxt")
        write_prototxt(net, path)
        return caffe.Net(path, phase)
