"""How good a stage's weights are: the held-out images, through the deploy net."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import caffe
import numpy as np

from tripletloss.base.errors import NotFiniteError
from tripletloss.base.parallel import OneProcess
from tripletloss.base.process import caffe_log
from tripletloss.core.pairs import pairs_of
from tripletloss.core.verification import Verification, headline_figure, verification
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


def score(plan: Plan, weights: str, iteration: int, team: OneProcess, record: Record | NoRecord) -> float | None:
    """The headline_figure() of the stage's feature on the plan's scored images, or None if it cannot be measured.

    weights: the path of an iteration's weights. If the feature of an image is NaN or infinite, there is no score, and
    the record says so: so the iteration's snapshot is never the best one.
    """
    feature = plan.settings["FEATURE"]
    if feature not in plan.measured:
        return None
    images = plan.scored
    with _deploy_net(plan, weights, team) as (net, features):
        if feature not in features:
            return None
        try:
            [rows] = extract_all(net, [feature], images, Preprocessing.of(plan.settings), team=team)
        except NotFiniteError as error:
            record.say(f"no score   for iteration {iteration}: {error}")
            return None
    try:
        figures = verification(rows, images.labels).figures if team.rank == 0 else {}
        return figures.get(headline_figure(images.labels))
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


def embed_held_out(plan: Plan, weights: str, team: OneProcess = ALONE) -> dict[str, np.ndarray]:
    """Embed the held-out images: feature -> (N, D). weights: path.

    The features are those of both stages, if the weights have all layers that they depend on. {} if there is nothing to
    measure with, and in processes other than the first.
    """
    held_out = plan.held_out
    if not plan.measured or held_out is None:
        return {}
    with _deploy_net(plan, weights, team) as (net, features):
        found = extract_all(net, features, held_out, Preprocessing.of(plan.settings), team=team) if features else []
    return dict(zip(features, found, strict=True)) if team.rank == 0 else {}


class HeldOut:
    """embed_held_out() for all stages of a run: the embeddings by a stage's weights are computed once."""

    def __init__(self, team: OneProcess) -> None:
        """team: its processes all call what there is here."""
        self.team, self.made = team, {}  # type: OneProcess, dict[tuple[str, str], dict[str, np.ndarray]]

    def embed(self, plan: Plan, weights: str) -> dict[str, np.ndarray]:
        """embed_held_out()."""
        key = plan.stage, weights
        if key not in self.made:
            self.made[key] = embed_held_out(plan, weights, self.team)
        return self.made[key]

    def measure(self, plan: Plan, weights: str) -> dict[str, Verification]:
        """Verification on the held-out identities: feature -> Verification, for the features of embed_held_out()."""
        found = self.embed(plan, weights)
        return {feature: verification(rows, plan.held_out.labels) for feature, rows in found.items() if plan.held_out}


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
