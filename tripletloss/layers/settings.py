"""What all layers have in common: settings from param_str, and checks of bottoms and tops."""

import math

import caffe
import yaml

from tripletloss.base.errors import InputError
from tripletloss.config import REQUIRED, SCHEMA, check_value, unknown_name

PROCESS_KEYS = ("rank", "ranks")  # which train.py writes for each process that trains


def parse_param_str(param_str, keys, where):
    """The mapping that a param_str holds: {} if it is empty.

    keys: the names that it may hold. where: what an error begins with. Raises InputError for text that is not a
    YAML mapping, an unknown key or a value that SCHEMA does not accept.
    """
    try:
        params = yaml.safe_load(param_str) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise InputError(f"{where}: param_str {param_str!r} is not a YAML mapping such as \"{{margin: 0.2}}\"")
    for key, value in params.items():
        if key not in keys:
            raise unknown_name(str(key), keys, f"{where}, param_str")
        check_value(key.upper(), value, f"{where}, param_str")
    return params


class SettingsLayer(caffe.Layer):
    """A layer that takes its settings from its own param_str and from nothing else."""

    keys: tuple[str, ...] = ()  # the settings that param_str may give, in small letters

    def read_settings(self, **defaults):
        """All of `keys` as a dict: from param_str, else from `defaults`, else SCHEMA's default.

        Raises InputError as parse_param_str does, and for a key without a value that has no default.
        """
        name = type(self).__name__
        given = {**defaults, **parse_param_str(self.param_str, self.keys, name)}
        for key in self.keys:
            default = SCHEMA[key.upper()].default
            if key not in given and (default is REQUIRED or isinstance(default, dict)):
                raise InputError(f"{name}: param_str lacks {key}: write it there, or let train.py fill it in")
            given.setdefault(key, default)
        return given

    def start_at(self, iteration):
        """Go on with the forward pass of this number, counted from 0. Most layers do the same in each."""

    def check_arity(self, bottom, top, bottoms, tops, means):
        """Raise InputError unless the numbers of bottoms and tops are among those that the layer takes."""
        if len(bottom) not in bottoms or len(top) not in tops:
            raise InputError(f"{type(self).__name__} takes {means}, not {len(bottom)} bottoms and {len(top)} tops")


def start_at(net, iteration):
    """Let a net's layers go on where a run was interrupted: after solver.restore(), they would begin anew.

    net: a caffe.Net; iteration: the mini-batch to go on with, counted from 0: solver.iter, or, where the solver has an
    iter_size, solver.iter * iter_size.
    """
    for layer in net.layers:
        if isinstance(layer, SettingsLayer):
            layer.start_at(iteration)


def check_labelled(layer, rows, bottom):
    """Raise InputError unless bottom 0 holds rows of numbers (N, ...) and bottom 1, if there is one, a label for each.

    layer: its name; rows: what the rows are called.
    """
    shapes = [tuple(bottom[i].shape) for i in range(len(bottom))]
    if len(shapes[0]) < 2:
        said = f"bottom 0 must be the {rows}, one row per image, but it has the shape {shapes[0]}"
    elif len(bottom) == 2 and bottom[1].count != shapes[0][0]:
        said = f"bottom 1 must be one label for each of the {shapes[0][0]} {rows}, but it has the shape {shapes[1]}"
    else:
        return
    raise InputError(f"{layer}: {said}: the order is `bottom: \"{rows}\" bottom: \"labels\"`")


def rows_of(array):
    """The array as a matrix with a row an item: (N, D), also where N is 0."""
    return array.reshape(len(array), math.prod(array.shape[1:]))
