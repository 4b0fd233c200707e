"""What is checked of a net before Caffe sees it: its wiring, its files, the Python code that it runs."""

import difflib
import os
from collections import Counter

import caffe

from tripletloss.base.errors import InputError
from tripletloss.layers import DataLayer, FeatureLayer
from tripletloss.net.roles import is_a, layer_class

# The modules of this package's layers, by their names of today and of 2015: a prototxt runs no other code.
OWN_MODULES = ("tripletloss.layers", "datalayer", "norm2layer", "tripletselectlayer", "tripletlosslayer")
FILE_FIELDS = ("source", "root_folder", "mean_file", "file_name")  # of layers' parameters, that name files
FILE_READERS = ("Data", "HDF5Data", "ImageData", "WindowData")  # types of layers that are nothing without a file


def check_wiring(net, source, allowed=()):
    """Raise InputError for an unknown layer type, a bottom or a Python layer that is not there, names given twice."""
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
            raise InputError(f"{where} stands there {names[layer.name]} times in one stage: give each its own name")
        if layer.type == "Python":
            python_layer(layer, source, allowed)
        for bottom in layer.bottom:
            if bottom not in made:
                raise InputError(
                    f"{where} takes the bottom {bottom!r}, which no layer above makes{nearest_name(bottom, made)}"
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


def nearest_name(name, known):
    """What a message about an unknown name ends with: the nearest of the known ones, if one is near."""
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {nearest[0]!r}?" if nearest else ": check its spelling"


def python_layer(layer, source, allowed=()):
    """The class of a Python layer; raises InputError if its module or the class in it is not there, or not allowed."""
    module, name = layer.python_param.module, layer.python_param.layer
    if module not in OWN_MODULES and module not in allowed:
        raise InputError(
            f"{source}: layer {layer.name!r} would run the Python module {module!r}, which is not this package's: if "
            f"you trust it, add --allow-module {module}"
        )
    try:
        found = layer_class(layer)
        if not (isinstance(found, type) and issubclass(found, caffe.Layer)):
            raise AttributeError(f"{name} is no caffe.Layer")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source}: layer {layer.name!r} wants {name!r} from the Python module {module!r}, which fails: {error}"
        ) from None
