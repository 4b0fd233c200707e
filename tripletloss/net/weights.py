"""Weights matched with a net, loaded into it, and made from it."""

import io

import h5py
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.formats.caffemodel import shape_of
from tripletloss.net.roles import classifiers

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # that such files begin with


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


def rename_classifier(net, shapes, found):
    """Rename a classifier that the weights have with another number of outputs, so that it starts fresh.

    net: NetParameter, changed in place; shapes: layer -> parameter shapes of the net; found: of the weights.
    Returns old name -> new name.
    """
    new_names = {}
    for layer in classifiers(net):
        here, there = shapes.get(layer.name), found.get(layer.name)
        if here and there and len(here) == len(there) and here[0][1:] == there[0][-1:] and here[0][0] != there[0][-2]:
            new_names[layer.name] = f"{layer.name}_{here[0][0]}"
            layer.name = new_names[layer.name]
    return new_names


def _same_shapes(net, weights):
    """Equal, or equal to the four numbers that old weights have, padded with ones in front."""
    def padded(shape, other):
        return (1,) * (len(other) - len(shape)) + tuple(shape) if len(other) == 4 else tuple(shape)

    return len(net) == len(weights) and all(padded(a, b) == tuple(b) for a, b in zip(net, weights, strict=True))


def _text(shapes):
    return " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes) or "without parameters"
