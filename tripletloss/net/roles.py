"""What the layers of a net are there for: which bring images, classify, select triplets."""

import importlib

import yaml

from tripletloss.layers import BatchTripletLossLayer, DataLayer, SelectingLayer, TripletLossLayer


def layer_class(layer):
    """The class of a Python layer whose module is there."""
    return getattr(importlib.import_module(layer.python_param.module), layer.python_param.layer)


def is_a(layer, kind):
    """Whether a layer of a net that was checked is a Python layer of this class, or of one of a tuple of them."""
    return layer.type == "Python" and issubclass(layer_class(layer), kind)


def data_layers(net):
    """The layers of a net that are this package's DataLayer."""
    return [layer for layer in net.layer if is_a(layer, DataLayer)]


def classifiers(net):
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
    for classifier in classifiers(net):
        loss = next(
            layer for layer in net.layer if layer.type == "SoftmaxWithLoss" and layer.bottom[0] in classifier.top
        )
        return classifier.bottom[0], loss.bottom[1]
    return None


def margin_of(net):
    """The margin of a net's triplet loss, settings filled in; None without one."""
    losses = [layer for layer in net.layer if is_a(layer, (TripletLossLayer, BatchTripletLossLayer))]
    return yaml.safe_load(losses[0].python_param.param_str)["margin"] if losses else None
