"""What all layers have in common: settings from param_str, and checks of bottoms and tops."""

import math
from collections.abc import Collection
from typing import Any

import caffe
import numpy as np
import yaml

from tripletloss.base.errors import InputError
from tripletloss.config import REQUIRED, SCHEMA, check_value, unknown_name

PROCESS_KEYS = ("rank", "ranks")  # which train.py writes for each process that trains
RETIRED_KEYS = ("first_iteration",)  # in the nets of runs that earlier versions trained; without effect
Blobs = Any  # Caffe's vector of the bottoms or tops of a layer: index it, as it has no iterator


def parse_param_str(param_str: str, keys: Collection[str], where: str) -> dict[str, Any]:
    """The mapping in a param_str; {} if it is empty.

    keys: the names that it may have; where: the beginning of an error message. RETIRED_KEYS are left out. Raises
    InputError for text that is not a YAML mapping, for an unknown key, and for a value that SCHEMA does not accept.
    """
    try:
        params = yaml.safe_load(param_str) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise InputError(f'{where}: param_str {param_str!r} is not a YAML mapping such as "{{margin: 0.2}}"')
    params = {key: value for key, value in params.items() if key not in RETIRED_KEYS}
    for key, value in params.items():
        if key not in keys:
            raise unknown_name(str(key), keys, f"{where}, param_str")
        check_value(key.upper(), value, f"{where}, param_str")
    return params


class SettingsLayer(caffe.Layer):
    """A layer that takes its settings from its own param_str only."""

    keys: tuple[str, ...] = ()  # the settings that param_str may have, in small letters

    def read_settings(self, **defaults: Any) -> dict[str, Any]:
        """All of `keys` with their values: from param_str, else from `defaults`, else from SCHEMA.

        Raises InputError like parse_param_str, and for a key that has neither a value nor a default.
        """
        name = type(self).__name__
        given = {**defaults, **parse_param_str(self.param_str, self.keys, name)}
        for key in self.keys:
            default = SCHEMA[key.upper()].default
            if key not in given and (default is REQUIRED or isinstance(default, dict)):
                raise InputError(f"{name}: param_str has no {key}: write it there, or let train.py fill it in")
            given.setdefault(key, default)
        return given

    def start_at(self, iteration: int) -> None:
        """Continue with the pass of this number, counted from 0. Most layers do the same in each pass."""

    def check_arity(
        self, bottom: Blobs, top: Blobs, bottoms: Collection[int], tops: Collection[int], wanted: str
    ) -> None:
        """Raise InputError unless the layer takes as many bottoms and tops. wanted: the same in words."""
        if len(bottom) not in bottoms or len(top) not in tops:
            raise InputError(f"{type(self).__name__} takes {wanted}, not {len(bottom)} bottoms and {len(top)} tops")


def start_at(net: caffe.Net, iteration: int) -> None:
    """Let a net's layers continue where a run was interrupted. After solver.restore(), they would begin anew.

    iteration: the pass to continue with, counted from 0: solver.iter, or, if the solver has an iter_size,
    solver.iter * iter_size.
    """
    for layer in net.layers:
        if isinstance(layer, SettingsLayer):
            layer.start_at(iteration)


def check_labelled(layer: str, rows: str, bottom: Blobs) -> None:
    """Raise InputError unless bottom 0 has rows (N, ...) and bottom 1, if there is one, has one label per row.

    layer: its name; rows: what the rows are called.
    """
    shapes = [tuple(bottom[i].shape) for i in range(len(bottom))]
    if len(shapes[0]) < 2:
        said = f"bottom 0 must be the {rows}, one row per image, but has the shape {shapes[0]}"
    elif len(bottom) == 2 and bottom[1].count != shapes[0][0]:
        said = f"bottom 1 must be one label for each of the {shapes[0][0]} {rows}, but has the shape {shapes[1]}"
    else:
        return
    raise InputError(f'{layer}: {said}: the order is `bottom: "{rows}" bottom: "labels"`')


def rows_of(array: np.ndarray) -> np.ndarray:
    """An array (N, ...) as a matrix (N, D), even if N is 0."""
    return array.reshape(len(array), math.prod(array.shape[1:]))
