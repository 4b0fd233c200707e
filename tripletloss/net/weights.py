"""Weights: matched with a net, loaded into it, and saved from it."""

import io
from collections.abc import Mapping

import caffe
import h5py
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.formats.caffemodel import shape_of
from tripletloss.net.definition import copy_of
from tripletloss.net.roles import classifiers

Shapes = Mapping[str, list[tuple[int, ...]]]  # layer name -> shapes of its parameters

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # the first bytes of such files


def load_weights(net: caffe.Net, path: str) -> None:
    """Copy the parameters of layers with equal names from a .caffemodel or .caffemodel.h5 file that was checked."""
    if h5py.is_hdf5(path):
        net.load_hdf5(path)  # copy_from would read nothing from it, silently
    else:
        net.copy_from(path)


def bare_weights(content: bytes) -> bytes:
    """The bytes of a .caffemodel with only its layers' names, types and blobs: no settings, and so no paths."""
    net, bare = caffe_pb2.NetParameter.FromString(content), caffe_pb2.NetParameter()
    bare.name = net.name
    for layer in net.layer:
        if layer.blobs:
            bare.layer.add(name=layer.name, type=layer.type).blobs.extend(layer.blobs)
    return bare.SerializeToString()


def weights_as_hdf5(content: bytes) -> bytes:
    """A .caffemodel as a .caffemodel.h5, both as bytes: data/LAYER/NUMBER, as Caffe's Net::ToHDF5 writes it."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for layer in caffe_pb2.NetParameter.FromString(content).layer:
            group = file.create_group(f"data/{layer.name}")
            for number, blob in enumerate(layer.blobs):
                group[str(number)] = np.array(blob.data, np.float32).reshape(shape_of(blob))
    return memory.getvalue()


def complete_weights(content: bytes, source: str) -> bytes:
    """Weights, with the layers added that only a file has: frozen ones, and those of other stages.

    content: bytes of a .caffemodel or .caffemodel.h5, as is the result; source: the file. If it has the other format,
    nothing is added.
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


def shapes_of(net: caffe.Net) -> Shapes:
    """The shapes of all layers' parameters; [] for a layer without parameters."""
    return {
        name: [tuple(blob.shape) for blob in layer.blobs]
        for name, layer in zip(net._layer_names, net.layers, strict=True)
    }


def match_weights(shapes: Shapes, found: Shapes, path: str, source: str) -> tuple[list[str], list[str]]:
    """Which layers of a net take their parameters from weights, and which start fresh.

    shapes: of the net; found: of the weights; path, source: of the weights and of the net, for messages. Returns
    (loaded, fresh), the names of layers that have parameters, in the net's order. Raises InputError if a layer with the
    same name has another shape, or if no layer has the same name.
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


def rename_classifier(
    net: caffe_pb2.NetParameter, shapes: Shapes, found: Shapes
) -> tuple[caffe_pb2.NetParameter, dict[str, str]]:
    """A copy of a net in which a classifier has a new name if it has another number of outputs in the weights.

    So it starts fresh. shapes: of the net; found: of the weights. Returns the copy, and old name -> new name.
    """
    renamed, new_names = copy_of(net), {}
    for layer in classifiers(renamed):
        here, there = shapes.get(layer.name), found.get(layer.name)
        if here and there and len(here) == len(there) and here[0][1:] == there[0][-1:] and here[0][0] != there[0][-2]:
            new_names[layer.name] = f"{layer.name}_{here[0][0]}"
            layer.name = new_names[layer.name]
    return renamed, new_names


def _same_shapes(net, weights):
    """Whether shapes are equal, or equal to the four numbers of old weights, which have ones in front."""

    def padded(shape, other):
        return (1,) * (len(other) - len(shape)) + tuple(shape) if len(other) == 4 else tuple(shape)

    return len(net) == len(weights) and all(padded(a, b) == tuple(b) for a, b in zip(net, weights, strict=True))


def _text(shapes):
    return " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes) or "without parameters"
