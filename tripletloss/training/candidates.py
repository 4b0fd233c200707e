"""Candidates for the triplet stage's settings, trained above cached features, which takes a second or so for each.

A candidate is trained by the code that trains a run, on some of the identities, and embeds the features of others. This
module is also a worker program, which answers each Job: base.workers.Workers(candidates.PROGRAM, ...).
"""

import dataclasses
import os
from typing import Any, NamedTuple

import caffe
import numpy as np
import yaml
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.base.workers import serve
from tripletloss.formats.caffemodel import read_prototxt
from tripletloss.layers.settings import SettingsLayer
from tripletloss.net.definition import copy_of, read_net, write_prototxt
from tripletloss.net.projection import of_width
from tripletloss.net.roles import is_a
from tripletloss.net.settings import dump_params, features_of
from tripletloss.training.features import cache_features
from tripletloss.training.head import Head
from tripletloss.training.plan import Plan
from tripletloss.training.stage import train_only

PROGRAM = "tripletloss.training.candidates"


class Candidate(NamedTuple):
    """Settings of the triplet stage."""

    weight_decay: float
    margin: float  # a squared distance
    selection: str
    learning_rate: float
    width: int = 0  # numbers of an embedding; 0: as in NET


class Job(NamedTuple):
    """A candidate to train."""

    plan: Plan  # of part_of()
    candidate: Candidate
    prefix: str  # of its files
    rows: str  # path of the features (N, ...) that it embeds, as .npy


def with_features(plan: Plan) -> tuple[Plan, str]:
    """The plan of a stage that can be cut, as one that is cut, with its features, and the line of cache_features()."""
    plan = dataclasses.replace(plan, cached=True)
    line = cache_features(plan)
    path = features_of(read_net(f"{plan.prefix}_train.prototxt"))
    return dataclasses.replace(plan, settings={**plan.settings, "FEATURES": path}), line


def part_of(plan: Plan, which: np.ndarray, folder: str) -> Plan:
    """The plan for some of the images of a plan with features; their list and features are written into a folder.

    which: (M,) bool. If the list has too few identities for BATCH_SIZE, mini-batches hold all of them. Raises OSError.
    """
    s, images = plan.settings, plan.images.only(which)
    features = np.load(s["FEATURES"], mmap_mode="r")
    part = images._replace(source=os.path.join(folder, "list.txt"))
    with open(part.source, "w", encoding="utf-8") as file:
        file.write(part.text())
    np.save(os.path.join(folder, "features.npy"), features[:, which])
    size = s["BATCH_SIZE"]
    if s["BATCHES"] == "identities":
        size = min(size, len(np.unique(images.labels)) * s["IMAGES_PER_IDENTITY"])
    changes = {
        "TRAIN_LIST": part.source, "FEATURES": os.path.join(folder, "features.npy"), "BATCH_SIZE": size,
        "PASS_IMAGES": 0, "RANK": 0, "RANKS": 1,
    }  # fmt: skip
    # What is left out is not needed, and takes long to send.
    return dataclasses.replace(
        plan, settings={**s, **changes}, images=part, held_out=None, deploy=None, measured=[], cut=None, snapshot=None
    )


def train(job: Job) -> np.ndarray | str:
    """Train a candidate in this process, on the CPU: its embeddings, or the reason why its training stopped."""
    caffe.set_mode_cpu()
    original = f"{job.plan.prefix}_train.prototxt", f"{job.plan.prefix}_solver.prototxt"
    c, settings = job.candidate, dict(job.plan.settings)
    settings.update(MARGIN=c.margin, SELECTION=c.selection, LEARNING_RATE=c.learning_rate, WEIGHT_DECAY=c.weight_decay)
    settings.update(MINED=f"{job.prefix}_mined.npz" if settings["MINED"] else "")
    net, components = read_net(original[0]), job.plan.components
    if c.width:
        net, components = of_width(net, c.width, np.load(settings["FEATURES"], mmap_mode="r").shape[2:])
    write_prototxt(_with_settings(net, settings), f"{job.prefix}_train.prototxt")
    solver = read_prototxt(original[1], caffe_pb2.SolverParameter())
    solver.net, solver.base_lr, solver.weight_decay = f"{job.prefix}_train.prototxt", c.learning_rate, c.weight_decay
    write_prototxt(solver, f"{job.prefix}_solver.prototxt")
    rows = np.load(job.rows, mmap_mode="r")
    try:
        trained = train_only(dataclasses.replace(job.plan, settings=settings, prefix=job.prefix, components=components))
    except InputError as error:
        return str(error)
    return Head(read_net(f"{job.prefix}_train.prototxt"), rows.shape[1:], job.prefix).embed(trained, rows)


def _with_settings(net: caffe_pb2.NetParameter, settings: dict[str, Any]) -> caffe_pb2.NetParameter:
    """A copy of a resolved net with other settings in all of its layers that have them."""
    changed = copy_of(net)
    names = (
        "TRAIN_LIST", "FEATURES", "BATCH_SIZE", "PASS_IMAGES", "RANK", "RANKS", "MARGIN", "SELECTION", "MINED",
        "SEED",
    )  # fmt: skip
    for layer in changed.layer:
        if is_a(layer, SettingsLayer):
            own = yaml.safe_load(layer.python_param.param_str) or {}
            own.update({name.lower(): settings[name] for name in names if name.lower() in own})
            layer.python_param.param_str = dump_params(own)
    return changed


if __name__ == "__main__":
    serve(train)
