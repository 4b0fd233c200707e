"""Settings written into the layers of a net, which read nothing else."""

import os
from collections.abc import Mapping
from typing import Any

import yaml
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.config import SCHEMA
from tripletloss.core.selection import STRATEGIES, WITHOUT_LABELS
from tripletloss.formats.caffemodel import made_by
from tripletloss.layers import DataLayer, FeatureLayer, SelectingLayer, TripletLossLayer, TripletSelectLayer
from tripletloss.layers.settings import PROCESS_KEYS, SettingsLayer, parse_param_str
from tripletloss.net.definition import copy_of
from tripletloss.net.roles import classifiers, is_a, layer_class
from tripletloss.net.wiring import is_within

SELECT_STATISTICS = ("active_share", "d_ap", "d_an")
DATA_SECONDS = "data_seconds"  # the top of a DataLayer that train.py adds: seconds waited
OF_ONE_RUN = {*PROCESS_KEYS, "mined", "broken_list"}  # keys that belong to the run that a prototxt was resolved for


def fill_settings(
    net: caffe_pb2.NetParameter, settings: Mapping[str, Any], source: str
) -> tuple[caffe_pb2.NetParameter, list[tuple[str, Any, str]]]:
    """A copy of a net in which this package's layers have in their param_str what the prototxt leaves out.

    settings: a stage's settings by name; source: the prototxt's path. A selection layer also gets the tops of its
    statistics, and a DataLayer the top of the seconds waited. A triplet loss and the layers that select for it have one
    margin, even if the prototxt gives it to only one of them.
    Returns the copy and a list of (setting, value, layer's name), one for each setting for which the prototxt has
    another value than `settings`.
    Raises InputError for a wrong param_str, for two margins of one triplet loss, for a path outside the folders that
    the settings name, and for a selection that needs other batches than BATCHES.
    """
    filled, decided, margins = copy_of(net), [], _shared_margins(net, source)
    for layer in filled.layer:
        if not is_a(layer, SettingsLayer):
            continue
        kind, where = layer_class(layer), f"{source}: layer {layer.name!r}"
        own = parse_param_str(layer.python_param.param_str, kind.keys, where)
        own = {key: value for key, value in own.items() if key not in OF_ONE_RUN}
        _check_paths(own, settings, source, where)
        if issubclass(kind, SelectingLayer):
            if len(layer.bottom) == 1:
                own.setdefault("selection", WITHOUT_LABELS)
            _check_batches(own.get("selection", settings["SELECTION"]), settings, where)
        _add_statistics(layer, kind)
        general = {key: settings[key.upper()] for key in kind.keys}
        decided += [(key.upper(), own[key], layer.name) for key in own if own[key] != general[key]]
        if layer.name in margins:
            own["margin"] = margins[layer.name]
        layer.python_param.param_str = dump_params({**general, **own})
    return filled, decided


def given_settings(net: caffe_pb2.NetParameter, source: str) -> set[str]:
    """The names of the settings that the layers of a net give themselves, before fill_settings(), which keeps them.

    source: the prototxt's path. Raises InputError for a wrong param_str.
    """
    found: set[str] = set()
    for layer in net.layer:
        if is_a(layer, SettingsLayer):
            where = f"{source}: layer {layer.name!r}"
            own = parse_param_str(layer.python_param.param_str, layer_class(layer).keys, where)
            found.update(key.upper() for key in own)
    return found


def _check_paths(own, settings, source, where):
    """Raise InputError for a path in a layer's own settings that is outside the folders that config.py names."""
    named = [settings[key] for key in ("IMAGEPATH", "RUN_FOLDER", "FEATURE_CACHE", "TRAIN_LIST") if settings[key]]
    named += [os.path.dirname(settings["TRAIN_LIST"]), os.path.dirname(source) or "."]
    folders = [os.path.realpath(path) for path in named]
    for key, value in own.items():
        if SCHEMA[key.upper()].is_path and not is_within(value, folders):
            raise InputError(f"{where} names {value!r}, which is outside the folders that config.py names")


def _check_batches(selection, settings, where):
    """Raise InputError if a selection needs other batches than BATCHES."""
    batches = STRATEGIES[selection].batches
    if batches and settings["BATCHES"] != batches:
        raise InputError(
            f"{where} selects {selection}, by position in the mini-batch: set BATCHES to {batches!r}, or choose "
            "another SELECTION"
        )


def _add_statistics(layer, kind):
    """Add to a layer, in place, the tops that are recorded: a selection's statistics, a DataLayer's waiting time."""
    if issubclass(kind, SelectingLayer) and len(layer.top) == (3 if issubclass(kind, TripletSelectLayer) else 1):
        layer.top.extend(SELECT_STATISTICS)
        layer.loss_weight.extend([0] * len(SELECT_STATISTICS) if layer.loss_weight else [])
    if kind is DataLayer and len(layer.top) == 2:
        layer.top.append(DATA_SECONDS)


def _shared_margins(net, source):
    """The margins that the prototxt gives to triplet losses, or to the layers that select for them.

    Returns layer's name -> margin, for both kinds of layer. Raises InputError where they differ.
    """
    margins: dict[str, float] = {}
    for loss in net.layer:
        if not is_a(loss, TripletLossLayer):
            continue
        makers = made_by(net, loss.bottom[0]) if loss.bottom else ()
        chain = [layer for layer in net.layer if layer.name in makers and is_a(layer, TripletSelectLayer)] + [loss]
        given = {}
        for layer in chain:
            where, kind = f"{source}: layer {layer.name!r}", layer_class(layer)
            own = parse_param_str(layer.python_param.param_str, kind.keys, where)
            if "margin" in own:
                given[layer.name] = own["margin"]
        if len(set(given.values())) > 1:
            both = " and ".join(f"layer {name!r} has the margin {margin:g}" for name, margin in given.items())
            raise InputError(f"{source}: {both}: give both the same margin, or remove one")
        margins.update((layer.name, margin) for layer in chain for margin in set(given.values()))
    return margins


def for_process(net: caffe_pb2.NetParameter, rank: int) -> caffe_pb2.NetParameter:
    """A copy of a resolved net for the process with a rank."""
    own = copy_of(net)
    for layer in own.layer:
        if is_a(layer, (DataLayer, FeatureLayer)):
            params = yaml.safe_load(layer.python_param.param_str)
            layer.python_param.param_str = dump_params({**params, "rank": rank})
    return own


def features_of(net: caffe_pb2.NetParameter) -> str:
    """The path of the features that the FeatureLayer of a net from above_cut() reads."""
    return yaml.safe_load(net.layer[0].python_param.param_str)["features"]


def size_classifier(net: caffe_pb2.NetParameter, identities: int) -> caffe_pb2.NetParameter:
    """A copy of a net whose classifying InnerProduct layer, if it has no num_output, has one output per identity."""
    sized = copy_of(net)
    for layer in classifiers(sized):
        if layer.type == "InnerProduct" and not layer.inner_product_param.num_output:
            layer.inner_product_param.num_output = identities
    return sized


def dump_params(params: Mapping[str, Any]) -> str:
    """Settings as a param_str: a YAML mapping on one line."""
    return yaml.safe_dump(dict(params), default_flow_style=True, width=10**9).strip()
