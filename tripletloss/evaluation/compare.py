"""Did the triplet stage help? Its embedding beside the softmax feature and two projections that learnt nothing."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import caffe
import numpy as np
from tabulate import tabulate

from tripletloss.base.errors import InputError, MissingLayersError
from tripletloss.base.parallel import OneProcess
from tripletloss.core import bootstrap, verification
from tripletloss.core.norm import l2_normalize
from tripletloss.core.pairs import Pairs, pair_distances
from tripletloss.data.images import Preprocessing
from tripletloss.data.lists import ImageList, read_list
from tripletloss.evaluation.embed import ALONE, extract_all, open_net, passes

SOFTMAX_SNAPSHOT = re.compile(r"softmax_iter_\d+\.caffemodel(\.h5)?")  # as snapshots.py names it
FITTED_IMAGES = 2000  # of the training list, on which PCA is fitted
HIGHER_IS_BETTER = {figure.name: figure.higher_is_better for figure in verification.FIGURES}


class Comparison(NamedTuple):
    """Figures of several embeddings of the same pairs."""

    images: ImageList
    same: int
    different: int
    names: list[str]  # of the embeddings: the softmax feature first, the triplet embedding last
    figures: list[dict[str, float]]  # per name: figure -> value, for the figures that all embeddings resolve
    differences: list[dict]  # per name but the first: figure -> (difference from the first, its interval or None)
    distances: list[np.ndarray]  # per name: the pairs' squared distances, (P,)

    def helped(self, figure: str) -> int:
        """1 if the triplet embedding is better than the softmax feature, -1 if it is worse, 0 if neither is clear."""
        _, interval = self.differences[-1][figure]
        if interval is None:
            return 0
        low, high = interval if HIGHER_IS_BETTER[figure] else (-interval[1], -interval[0])
        return 1 if low > 0 else -1 if high < 0 else 0

    def verdict(self) -> str:
        """Whether the triplet stage helped, in one sentence: by TAR at FAR 1%, or by AUC if that is not resolved."""
        figure = "TAR@FAR=0.01" if "TAR@FAR=0.01" in self.figures[0] else "AUC"
        words, advice = {
            1: ("the triplet stage helped", "use the embedding"),
            0: ("the triplet stage did not clearly help", "either feature will do"),
            -1: ("the triplet stage did not help, but made it worse", f"use {self.names[0]}"),
        }[self.helped(figure)]
        difference, interval = self.differences[-1][figure]
        return f"{words}: {figure} {difference:+.4f} ({_spread(interval)}); {advice}"

    def report(self) -> dict[str, Any]:
        """The comparison as a dictionary for a JSON file."""
        features: dict[str, dict[str, dict[str, Any]]] = {
            name: {figure: {"value": value} for figure, value in values.items()}
            for name, values in zip(self.names, self.figures, strict=True)
        }
        for name, differences in zip(self.names[1:], self.differences, strict=True):
            for figure, (difference, interval) in differences.items():
                features[name][figure].update(difference=difference, difference_interval=interval)
        return {
            "list": self.images.source, "images": len(self.images.names),
            "identities": len(np.unique(self.images.labels)),
            "same_pairs": self.same, "different_pairs": self.different,
            "differences_from": self.names[0], "features": features, "verdict": self.verdict(),
        }  # fmt: skip

    def describe(self) -> str:
        """The comparison as text for the terminal."""
        columns = [figure for figure in HIGHER_IS_BETTER if figure in self.figures[0]]
        rows = [[name, *(f"{values[c]:.4f}" for c in columns)]
                for name, values in zip(self.names, self.figures, strict=True)]  # fmt: skip
        for name, differences in zip(self.names[1:], self.differences, strict=True):
            cells = [f"{differences[c][0]:+.4f}\n{_spread(differences[c][1], '')}" for c in columns]
            rows.append([f"{name}\nminus {self.names[0]}", *cells])
        table = tabulate(rows, ["", *columns], tablefmt="simple", disable_numparse=True)
        people = len(np.unique(self.images.labels))
        return (
            f"compared   on {self.images.source}: {len(self.images.names)} images of {people} identities, "
            f"{self.same} same and {self.different} different pairs\n\n{table}\n\n"
            f"Differences with 95% intervals: identities are resampled, the same for all rows.\n{self.verdict()}"
        )


    def describe_briefly(self) -> str:
        """The softmax feature and the triplet embedding alone, as text for the terminal."""
        columns = [figure for figure in ("AUC", "EER", "TAR@FAR=0.01") if figure in self.figures[0]]
        rows = [[self.names[number], *(f"{self.figures[number][c]:.4f}" for c in columns)] for number in (0, -1)]
        changes = [self.differences[-1][c] for c in columns]
        rows.append(["difference", *(f"{value:+.4f}" for value, _ in changes)])
        rows.append(["95% interval", *(_spread(interval, "") for _, interval in changes)])
        table = tabulate(rows, ["compared", *columns], tablefmt="plain", disable_numparse=True)
        return f"{table}\n{self.verdict()}"


def _spread(interval: tuple[float, float] | None, before: str = "95% interval ") -> str:
    return f"{before}{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "too few identities"


def compare_weights(
    weights: str, settings: Mapping[str, Any], softmax_feature: str, images: ImageList, pairs: Pairs,
    mirrored: bool = False, team: OneProcess = ALONE,
) -> Comparison | None:  # fmt: skip
    """compare() for a file of weights, with a progress bar. The arguments are those of compare().

    Raises InputError also if there are no two stages to compare.
    """
    with team.together():
        if softmax_feature == settings["FEATURE"] or not softmax_feature:
            raise InputError("there is nothing to compare: FEATURE must name a blob of DEPLOY for each of the stages")
        if SOFTMAX_SNAPSHOT.fullmatch(os.path.basename(weights)):
            # It may have layers of the triplet stage all the same: those of the weights that the run began with.
            raise InputError(f"{weights} is a snapshot of the softmax stage: it has no triplet stage to compare")
        try:
            net = open_net(weights, settings, [softmax_feature, settings["FEATURE"]])
        except MissingLayersError as error:
            if error.args[1] == softmax_feature:
                raise
            raise InputError(f"{weights} has no triplet stage to compare: {error}") from None
    return compare(net, settings, softmax_feature, images, pairs, mirrored, show=True, team=team)


def compare(
    net: caffe.Net, settings: Mapping[str, Any], softmax_feature: str, images: ImageList, pairs: Pairs,
    mirrored: bool = False, show: bool = False, team: OneProcess = ALONE,
) -> Comparison | None:  # fmt: skip
    """Compare the features of both stages, and projections of the softmax stage's feature, on pairs of images.

    net: of DEPLOY, with weights for both features; settings: of the triplet stage; softmax_feature: FEATURE of the
    softmax stage; pairs: of the images; mirrored, team: as for embed.extract; show: whether to show progress. PCA is
    fitted on up to FITTED_IMAGES images of TRAIN_LIST, not on the images that are measured. The first process of a team
    gets the Comparison, the others None. Raises InputError if an image cannot be read.
    """
    s = settings
    blobs, preprocessing = [softmax_feature, s["FEATURE"]], Preprocessing.of(s)
    broken: dict[str, str] | None = {} if s["BROKEN_IMAGES"] == "skip" else None
    with team.together():
        train = read_list(s["TRAIN_LIST"], s["IMAGEPATH"], must_exist=s["BROKEN_IMAGES"] == "stop")
    views = (False, True) if mirrored else (False,)
    bar = "embedding" if show else ""
    batches = [rows for _, rows in passes(net, blobs, images, preprocessing, views, bar, team=team)]
    rng = np.random.default_rng(s["SEED"])
    chosen = np.sort(rng.permutation(len(train.names))[:FITTED_IMAGES])
    [fitted] = extract_all(net, [softmax_feature], train.only(chosen), preprocessing, False, show, broken, team)
    if team.rank > 0:
        return None
    count = len(views) * len(images.names)  # of rows: view by view
    softmax, triplet = (
        np.concatenate([batch[view][blob] for view in range(len(views)) for batch in batches]).reshape(count, -1)
        for blob in range(len(blobs))
    )
    dimension = triplet.shape[1]
    embeddings = {softmax_feature: l2_normalize(softmax)[0]}
    least = min(dimension, softmax.shape[1], len(fitted))
    centre, axes = principal_axes(fitted, least)
    embeddings[f"PCA to {least}"] = l2_normalize((softmax - centre) @ axes.T)[0]
    directions = rng.standard_normal((dimension, softmax.shape[1])).astype(np.float32)
    embeddings[f"random projection to {dimension}"] = l2_normalize(softmax @ directions.T)[0]
    embeddings[s["FEATURE"]] = triplet
    # The mean over views comes last for all of them, as the net has normalised each view of the triplet embedding.
    for name, rows in embeddings.items():
        embeddings[name] = rows.reshape(len(views), len(images.names), -1).mean(axis=0)
    return compare_embeddings(embeddings, images, pairs)


def principal_axes(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) of rows (N, D), and their `count` principal axes (count, D), that of the largest variance first."""
    centre = rows.mean(axis=0)
    return centre, np.linalg.svd(rows - centre, full_matrices=False)[2][:count]


def compare_embeddings(embeddings: dict[str, np.ndarray], images: ImageList, pairs: Pairs) -> Comparison:
    """Compare embeddings of the same images, name -> (N, D), with the first one."""
    distances = [pair_distances(rows, pairs.first, pairs.second) for rows in embeddings.values()]
    figures = [verification.verification_of_pairs(d, pairs.same).figures for d in distances]
    resampled = verification.resampled_verification(distances, pairs, images.labels)
    figures = [{name: value for name, value in own.items() if all(name in one for one in figures)} for own in figures]
    differences = [
        {figure: (mine[figure] - figures[0][figure], bootstrap.interval(draws[figure] - resampled[0][figure]))
         for figure in mine}
        for mine, draws in zip(figures[1:], resampled[1:], strict=True)
    ]  # fmt: skip
    same = int(pairs.same.sum())
    return Comparison(images, same, len(pairs.same) - same, list(embeddings), figures, differences, distances)
