"""How good a stage's weights are: the held-out images, through the deploy net."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import caffe

from tripletloss.base.errors import NotFiniteError
from tripletloss.base.parallel import OneProcess
from tripletloss.base.process import caffe_log
from tripletloss.core.pairs import pairs_of
from tripletloss.core.verification import Verification, verification
from tripletloss.data.images import Preprocessing
from tripletloss.evaluation.compare import Comparison, compare
from tripletloss.evaluation.embed import ALONE, extract_all
from tripletloss.formats import caffemodel
from tripletloss.formats.caffemodel import made_by
from tripletloss.net.definition import build
from tripletloss.net.weights import load_weights
from tripletloss.training import snapshots
from tripletloss.training.plan import Plan
from tripletloss.training.record import NoRecord, Record

SCORED_IMAGES = 600  # held-out images that are measured after each snapshot: the first ones


def score(plan: Plan, weights: str, iteration: int, team: OneProcess, record: Record | NoRecord) -> float | None:
    """TAR at FAR 1% of the stage's feature on some of the held-out images, or None if it cannot be measured.

    weights: the path of an iteration's weights. If the feature of an image is NaN or infinite, there is no score, and
    the record says so: so the iteration's snapshot is never the best one.
    """
    feature, held_out = plan.settings["FEATURE"], plan.held_out
    if feature not in plan.measured or held_out is None:
        return None
    labels = held_out.labels[:SCORED_IMAGES]
    images = held_out._replace(names=held_out.names[: len(labels)], labels=labels)
    with _deploy_net(plan, weights, team) as (net, features):
        if feature not in features:
            return None
        try:
            [rows] = extract_all(net, [feature], images, Preprocessing.of(plan.settings), team=team)
        except NotFiniteError as error:
            record.say(f"no score   for iteration {iteration}: {error}")
            return None
    try:
        return verification(rows, labels).tar.get(1e-2) if team.rank == 0 else None
    except ValueError:
        return None  # a single identity, or one image of each


def score_of_net(plan: Plan, net: caffe.Net, team: OneProcess, record: Record | NoRecord) -> float | None:
    """score() of the weights that a net has before the first iteration."""
    if plan.settings["FEATURE"] not in plan.measured:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "start.caffemodel")
        with team.together():
            snapshots.write_weights(net, path, plan.suffix, plan.weights)
        return score(plan, path, 0, team, record)


def measure(plan: Plan, weights: str, team: OneProcess = ALONE) -> dict[str, Verification]:
    """Verification on the held-out identities: feature -> Verification. weights: path.

    Measured are the features of both stages, if the weights have all layers that they depend on. {} if there is
    nothing to measure with, and in processes other than the first.
    """
    held_out = plan.held_out
    if not plan.measured or held_out is None:
        return {}
    with _deploy_net(plan, weights, team) as (net, features):
        found = extract_all(net, features, held_out, Preprocessing.of(plan.settings), team=team) if features else []
    if team.rank > 0:
        return {}
    return {feature: verification(rows, held_out.labels) for feature, rows in zip(features, found, strict=True)}


def compare_stages(plan: Plan, weights: str, team: OneProcess = ALONE) -> Comparison | None:
    """What the triplet stage added on the held-out identities, or None if there are not two features to compare."""
    if len(plan.measured) < 2 or plan.held_out is None:
        return None
    with _deploy_net(plan, weights, team) as (net, features):
        if features != plan.measured:
            return None
        return compare(net, plan.settings, features[0], plan.held_out, pairs_of(plan.held_out.labels), team=team)


@contextlib.contextmanager
def _deploy_net(plan: Plan, weights: str, team: OneProcess) -> Iterator[tuple[caffe.Net, list[str]]]:
    """The deploy net with weights, and those of the plan's features for which the weights have all layers."""
    assert plan.deploy is not None  # as plan.measured names features of it
    definition, found = plan.deploy.definition, caffemodel.weight_shapes(weights)
    with caffe_log(team.caffe_log(plan.prefix)):
        net = build(definition, caffe.TEST)
        load_weights(net, weights)
        yield net, [name for name in plan.measured if made_by(definition, name).intersection(net.params) <= set(found)]
