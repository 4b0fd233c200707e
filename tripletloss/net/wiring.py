"""Checks of a net before Caffe sees it: its wiring, its files, and the Python code that it runs."""

import difflib
import os
from collections import Counter
from collections.abc import Collection, Sequence

import caffe
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.layers import DataLayer, FeatureLayer
from tripletloss.net.roles import is_a, layer_class

# The modules of this package's layers, by their names of today and of 2015: a prototxt runs no other code.
OWN_MODULES = ("tripletloss.layers", "datalayer", "norm2layer", "tripletselectlayer", "tripletlosslayer")
FILE_FIELDS = ("source", "root_folder", "mean_file", "file_name")  # of layers' parameters; they name files
FILE_READERS = ("Data", "HDF5Data", "ImageData", "WindowData")  # types of layers that need a file


def check_wiring(net: caffe_pb2.NetParameter, source: str, allowed: Sequence[str] = ()) -> None:
    """Raise InputError for unknown layer types, bottoms or Python layers that do not exist, and names given twice.

    source: the prototxt's path; allowed: as in open_net.
    """
    if not net.layer:
        raise InputError(f"{source} has no layer in this stage: look at its include rules")
    types = list(caffe.layer_type_list())
    names = Counter(layer.name for layer in net.layer)
    made = set(net.input)
    for layer in net.layer:
        where = f"{source}: layer {layer.name!r}"
        if layer.type not in types:
            raise InputError(f"{where} has the unknown type {layer.type!r}{nearest_name(layer.type, types)}")
        if names[layer.name] > 1:
            raise InputError(f"{where} appears {names[layer.name]} times in this stage: give each its own name")
        if layer.type == "Python":
            python_layer(layer, source, allowed)
        for bottom in layer.bottom:
            if bottom not in made:
                raise InputError(
                    f"{where} takes the bottom {bottom!r}, which no layer above makes{nearest_name(bottom, made)}"
                )
        for top in layer.top:
            if top in made and top not in layer.bottom:
                raise InputError(f"{where} makes the top {top!r}, which a layer above already makes: rename one")
        made.update(layer.top)


def check_files(net: caffe_pb2.NetParameter, source: str, folders: Sequence[str] | None) -> None:
    """Raise InputError for a layer that writes a file, or reads one that it may not. folders: as in open_net."""
    allowed = [os.path.realpath(folder) for folder in (os.path.dirname(source) or ".", *(folders or ())) if folder]
    for layer in net.layer:
        where = f"{source}: layer {layer.name!r}"
        if layer.type == "HDF5Output":
            raise InputError(f"{where} writes a file: remove it, and use python -m tripletloss.extract")
        paths = [
            getattr(value, name, "")
            for field, value in layer.ListFields() if field.name.endswith("_param")
            for name in FILE_FIELDS
        ]  # fmt: skip
        reads = any(paths) or layer.type in FILE_READERS or is_a(layer, (DataLayer, FeatureLayer))
        if reads and folders is None:
            raise InputError(f"{where} reads files, which a deploy net must not: take the images from an Input layer")
        for path in filter(None, paths):
            if not is_within(path, allowed):
                raise InputError(f"{where} reads {path!r}, which is outside the prototxt's folder and IMAGEPATH")


def is_within(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is in one of some folders, after following links; folders: real paths."""
    path = os.path.realpath(path)
    return any(path == folder or path.startswith(os.path.join(folder, "")) for folder in folders)


def nearest_name(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, if one is near."""
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {nearest[0]!r}?" if nearest else ": check its spelling"


def python_layer(layer: caffe_pb2.LayerParameter, source: str, allowed: Sequence[str] = ()) -> type:
    """The class of a Python layer. Raises InputError if its module or class does not exist, or is not allowed."""
    module, name = layer.python_param.module, layer.python_param.layer
    if module not in OWN_MODULES and module not in allowed:
        raise InputError(
            f"{source}: layer {layer.name!r} would run the Python module {module!r}, which is not from this package: "
            f"if you trust it, add --allow-module {module}"
        )
    try:
        found = layer_class(layer)
        if not (isinstance(found, type) and issubclass(found, caffe.Layer)):
            raise AttributeError(f"{name} is not a caffe.Layer")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source}: layer {layer.name!r} wants {name!r} from the Python module {module!r}, which fails: {error}"
        ) from None
