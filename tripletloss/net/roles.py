"""What the layers of a net are for: which read images, classify, or select triplets."""

import importlib
from typing import Any

import yaml
from caffe.proto import caffe_pb2

from tripletloss.layers import BatchTripletLossLayer, DataLayer, SelectingLayer, TripletLossLayer


def layer_class(layer: caffe_pb2.LayerParameter) -> Any:
    """The class of a Python layer whose module can be imported."""
    return getattr(importlib.import_module(layer.python_param.module), layer.python_param.layer)


def is_a(layer: caffe_pb2.LayerParameter, kind: type | tuple[type, ...]) -> bool:
    """Whether a layer of a checked net is a Python layer of this class, or of one of these classes."""
    return layer.type == "Python" and issubclass(layer_class(layer), kind)


def data_layers(net: caffe_pb2.NetParameter) -> list[caffe_pb2.LayerParameter]:
    """This package's DataLayers in a net."""
    return [layer for layer in net.layer if is_a(layer, DataLayer)]


def classifiers(net: caffe_pb2.NetParameter) -> list[caffe_pb2.LayerParameter]:
    """The layers that make the scores of a SoftmaxWithLoss."""
    scores = {layer.bottom[0] for layer in net.layer if layer.type == "SoftmaxWithLoss" and layer.bottom}
    return [layer for layer in net.layer if scores.intersection(layer.top)]


def embeddings_of(net: caffe_pb2.NetParameter) -> tuple[str, str] | None:
    """The names of the blobs of the embeddings that a net trains and of their labels, or None.

    They are the bottoms of a layer that selects triplets, or else the feature that the classifier takes and the labels
    that the softmax loss takes.
    """
    for layer in net.layer:
        if is_a(layer, SelectingLayer) and len(layer.bottom) == 2:
            return layer.bottom[0], layer.bottom[1]
    for classifier in classifiers(net):
        loss = next(
            layer for layer in net.layer if layer.type == "SoftmaxWithLoss" and layer.bottom[0] in classifier.top
        )
        return classifier.bottom[0], loss.bottom[1]
    return None


def margin_of(net: caffe_pb2.NetParameter) -> float | None:
    """The margin of the triplet loss of a net whose settings are filled in; None if it has no such loss."""
    losses = [layer for layer in net.layer if is_a(layer, (TripletLossLayer, BatchTripletLossLayer))]
    return yaml.safe_load(losses[0].python_param.param_str)["margin"] if losses else None
