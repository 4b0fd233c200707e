"""Settings written into the layers of a net, which read nothing else."""

import os

import yaml

from tripletloss.base.errors import InputError
from tripletloss.config import SCHEMA
from tripletloss.core.selection import STRATEGIES, WITHOUT_LABELS
from tripletloss.formats.caffemodel import made_by
from tripletloss.layers import DataLayer, FeatureLayer, SelectingLayer, TripletLossLayer, TripletSelectLayer
from tripletloss.layers.settings import PROCESS_KEYS, SettingsLayer, parse_param_str
from tripletloss.net.roles import classifiers, is_a, layer_class
from tripletloss.net.wiring import is_within

SELECT_STATISTICS = ("active_share", "d_ap", "d_an")
DATA_SECONDS = "data_seconds"  # the top of a DataLayer that train.py adds: seconds waited


def fill_settings(net, settings, source):
    """Write settings into the param_str of this package's layers, where the prototxt leaves them out.

    net: NetParameter, changed in place; settings: a stage's settings by name. A selection layer gets the tops of
    its statistics as well, a DataLayer that of the seconds waited. A triplet loss and the layers that select for it
    get one margin, also where the prototxt gives it to one of them only. Returns a list of (setting, value, layer's
    name), one for each setting that the prototxt decides otherwise.
    Raises InputError for a wrong param_str, for two margins of one triplet loss, and for a rank-paired selection from
    other than anchor batches.
    """
    decided, margins = [], _shared_margins(net, source)
    named = [settings[key] for key in ("IMAGEPATH", "RUN_FOLDER", "FEATURE_CACHE", "TRAIN_LIST") if settings[key]]
    folders = [os.path.realpath(path) for path in (os.path.dirname(source) or ".", *named, os.path.dirname(named[-1]))]
    for layer in net.layer:
        if layer.type != "Python":
            continue
        kind = layer_class(layer)
        if not issubclass(kind, SettingsLayer):
            continue
        where = f"{source}: layer {layer.name!r}"
        own = parse_param_str(layer.python_param.param_str, kind.keys, where)
        filled = {key: settings[key.upper()] for key in kind.keys}
        for key in {*PROCESS_KEYS, "mined", "broken_list"} & set(own):
            del own[key]  # of the run that this prototxt was resolved for
        for key in own:
            if SCHEMA[key.upper()].is_path and not is_within(own[key], folders):
                raise InputError(f"{where} names {own[key]!r}, which is outside of the folders that config.py names")
        if issubclass(kind, SelectingLayer):
            if len(layer.bottom) == 1:
                own.setdefault("selection", WITHOUT_LABELS)
            name = own.get("selection", filled["selection"])
            batches = STRATEGIES[name].batches
            if batches and settings["BATCHES"] != batches:
                raise InputError(
                    f"{where} selects {name}, by position in the mini-batch: set BATCHES to {batches!r}, or take "
                    "another SELECTION"
                )
            if len(layer.top) == (3 if issubclass(kind, TripletSelectLayer) else 1):
                layer.top.extend(SELECT_STATISTICS)
                layer.loss_weight.extend([0] * len(SELECT_STATISTICS) if layer.loss_weight else [])
        if kind is DataLayer and len(layer.top) == 2:
            layer.top.append(DATA_SECONDS)
        decided += [(key.upper(), own[key], layer.name) for key in own if own[key] != filled[key]]
        if layer.name in margins:
            own["margin"] = margins[layer.name]
        layer.python_param.param_str = dump_params({**filled, **own})
    return decided


def _shared_margins(net, source):
    """The margins that the prototxt gives to triplet losses, or to the layers that select for them.

    Returns layer's name -> margin, of both kinds of layer. Raises InputError where they differ.
    """
    margins = {}
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
            raise InputError(f"{source}: {both}: give both the same one, or leave it out of one of them")
        margins.update((layer.name, margin) for layer in chain for margin in set(given.values()))
    return margins


def for_process(net, rank):
    """Make a resolved net, which is changed in place, that of the process with a rank."""
    for layer in net.layer:
        if is_a(layer, (DataLayer, FeatureLayer)):
            params = yaml.safe_load(layer.python_param.param_str)
            layer.python_param.param_str = dump_params({**params, "rank": rank})


def features_of(net):
    """The path of the features that the FeatureLayer of a net from above_cut() reads."""
    return yaml.safe_load(net.layer[0].python_param.param_str)["features"]


def size_classifier(net, identities):
    """Give a classifying InnerProduct layer, where the prototxt says no num_output, one output an identity."""
    for layer in classifiers(net):
        if layer.type == "InnerProduct" and not layer.inner_product_param.num_output:
            layer.inner_product_param.num_output = identities


def dump_params(params):
    """Settings as a param_str: a YAML mapping on one line."""
    return yaml.safe_dump(params, default_flow_style=True, width=10**9).strip()
