"""How good embeddings are: the figures as a dict, as text for the terminal, and as files."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, whole_files
from tripletloss.base.outputs import check_outputs
from tripletloss.core import bootstrap, clustering, retrieval, verification
from tripletloss.core.pairs import Pairs, different_weight, pair_distances, pairs_of
from tripletloss.data.lists import ImageList, notes_on_trained
from tripletloss.data.pairs import PairsFile
from tripletloss.evaluation import plots
from tripletloss.evaluation.compare import Comparison
from tripletloss.formats.embeddings import Embeddings

MOST_CLUSTERED = 5000  # images; clustering takes memory by the square of their number
HEADERS = ["", "", "95% interval", "threshold", "behind it"]
BELOW = "Thresholds are squared distances. Intervals: identities are resampled, not pairs."


def measure_pairs(file: PairsFile, rows: np.ndarray) -> dict[str, Any]:
    """Figures of the pairs of a PairsFile. rows: (N, D), the embeddings of its images.

    A pair that the file repeats counts once, except in the accuracy, where the file is the protocol.
    """
    pairs = file.pairs
    distances = pair_distances(rows, pairs.first, pairs.second)
    found = verification.cross_validated_accuracy(distances, pairs.same, file.folds)
    accuracy = {"value": found.mean, "standard_error": found.standard_error, "folds": found.folds}
    once = np.unique(np.sort([pairs.first, pairs.second], axis=0), axis=1, return_index=True)[1]
    distinct = Pairs(pairs.first[once], pairs.second[once], pairs.same[once])
    return {"accuracy": accuracy, **_verification(distances[once], distinct, file.images.labels)}


def measure_list(labels: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Figures of the pairs of a list (all, or a million drawn at random), of its queries, and of its clusters.

    labels: (N,); rows: (N, D), the embeddings. The images are clustered at the threshold with the best F on the same
    pairs, so it is chosen on what it is scored on: tripletloss.cluster scores on other identities.
    """
    pairs = pairs_of(labels)
    distances = pair_distances(rows, pairs.first, pairs.second)
    found = _verification(distances, pairs, labels)
    queries = retrieval.retrieval(rows, labels)
    for name, values in (
        ("rank-1", queries.rank_1), ("mAP", queries.average_precision), ("R-precision", queries.r_precision)
    ):  # fmt: skip
        resampled = bootstrap.resampled_means(values, queries.labels)
        found[name] = {"value": float(values.mean()), "interval": bootstrap.interval(resampled), "queries": len(values)}
    few = few_images(labels, MOST_CLUSTERED)
    # F depends on the number of different pairs per same pair, which is lower among fewer identities.
    threshold = clustering.threshold_of_best_f(distances, pairs.same, different_weight(pairs, labels[few]))
    clusters = clustering.cluster(rows[few], threshold)
    score = clustering.clustering(clusters, labels[few])
    names = "precision", "recall", "F"
    found["clustering"] = {
        "threshold": threshold, "images": len(few), "identities": len(np.unique(labels[few])),
        "clusters": score.clusters, "NMI": score.nmi, "pairwise": dict(zip(names, score.pairwise, strict=True)),
        "B-cubed": dict(zip(names, score.b_cubed, strict=True)),
    }  # fmt: skip
    return found


def _verification(distances: np.ndarray, pairs: Pairs, labels: np.ndarray) -> dict[str, Any]:
    """The figures of verification with their intervals, and the thresholds with the pairs accepted at them."""
    found = verification.verification_of_pairs(distances, pairs.same)
    resampled = verification.resampled_verification(distances, pairs, labels)
    report: dict[str, Any] = {"same_pairs": found.same, "different_pairs": found.different}
    for name, value in found.figures.items():
        report[name] = {"value": value, "interval": bootstrap.interval(resampled[name])}
    report["unresolved"] = [f"TAR@FAR={far:g}" for far in verification.FARS if far not in found.tar]
    report["thresholds"] = {f"FAR={far:g}": value for far, value in found.thresholds.items()}
    report["accepted_different_pairs"] = {f"FAR={far:g}": count for far, count in found.accepted.items()}
    return report


def few_images(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """The numbers of `most` images at most, (K,): all, or those of identities drawn at random. labels: (N,).

    An identity with more than half of `most` images is cut down to that half, so there are always two.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    numbers = np.unique(labels, return_inverse=True)[1]
    order = rng.permutation(numbers.max() + 1)
    images = rng.permutation(len(labels))
    images = images[np.argsort(numbers[images], kind="stable")]  # identity by identity, each in random order
    sizes = np.bincount(numbers)
    ends = np.cumsum(sizes)
    capped = np.minimum(sizes, most // 2)
    taken = order[np.cumsum(capped[order]) <= most]
    return np.sort(np.concatenate([images[ends[one] - sizes[one] :][: capped[one]] for one in taken]))


def describe(report: Mapping[str, Any]) -> str:
    """A report_on() embeddings as text for the terminal."""
    lines = [
        f"embeddings {report['weights']}, {report['feature']}{', mirrored average' if report['mirrored'] else ''}",
        f"images     {report['images']} of {report['identities']} identities ({report['list']}), "
        f"{report['same_pairs']} same and {report['different_pairs']} different pairs",
        *(f"note       {note}" for note in report["notes"]),
    ]
    table = tabulate(rows_of(report), HEADERS, tablefmt="simple", disable_numparse=True)
    below = [BELOW]
    if "clustering" in report:
        below.append("NMI and F are at the threshold with the best F on the pairs of the same images.")
    return "\n".join([*lines, "", table, "", *below])


def rows_of(report: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table of a report_on() embeddings, under HEADERS."""
    rows = _accuracy_rows(report)
    for name in ("AUC", "EER"):
        rows.append([name, *_cells(report[name]), "", "all pairs"])
    for far in verification.FARS:
        rows.append([f"TAR@FAR={far:g}", *_tar_cells(report, far)])
    for name in ("rank-1", "mAP", "R-precision"):
        if name in report:
            rows.append([name, *_cells(report[name]), "", f"{report[name]['queries']} queries"])
    return rows + _clustering_rows(report)


def _accuracy_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table's row about the accuracy, where there is one."""
    if "accuracy" not in report:
        return []
    a = report["accuracy"]
    if a["folds"] == 1:
        return [["accuracy", f"{a['value']:.4f}", "", "", "one fold at its own best threshold: too good"]]
    spread = f"+- {a['standard_error']:.4f} (standard error of {a['folds']} folds)"
    return [["accuracy", f"{a['value']:.4f}", spread, "", "each fold at the best threshold of the others"]]


def _clustering_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows about the clusters, where there are any."""
    if "clustering" not in report:
        return []
    c = report["clustering"]
    threshold = f"{c['threshold']:.4g}"
    behind = f"{c['clusters']} clusters of {c['images']} images, {c['identities']} identities"
    rows = [["NMI", f"{c['NMI']:.4f}", "", threshold, behind]]
    for name in ("pairwise", "B-cubed"):
        behind = f"precision {c[name]['precision']:.3f}, recall {c[name]['recall']:.3f}"
        rows.append([f"{name} F", f"{c[name]['F']:.4f}", "", threshold, behind])
    return rows


def _tar_cells(report: Mapping[str, Any], far: float) -> list[str]:
    """The cells of a FAR's row, without the first one."""
    if f"TAR@FAR={far:g}" in report:
        threshold, accepted = (report[key][f"FAR={far:g}"] for key in ("thresholds", "accepted_different_pairs"))
        return [*_cells(report[f"TAR@FAR={far:g}"]), f"{threshold:.4g}", f"{accepted} different pairs accepted"]
    needed = round(verification.LEAST_FALSE_ACCEPTS / far)
    if report["different_pairs"] < needed:
        return ["-", "", "", f"not resolved: it takes {needed} different pairs"]
    return ["-", "", "", "not resolved: too many of the nearest different pairs are equally near"]


def _cells(figure: Mapping[str, Any]) -> tuple[str, str]:
    """A figure and its interval as text."""
    spread = "{:.4f} to {:.4f}".format(*figure["interval"]) if figure["interval"] else "too few identities"
    return f"{figure['value']:.4f}", spread


def report_on(found: Embeddings, file: PairsFile | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure embeddings: the figures, and what the embeddings were made from.

    file: the pairs to measure on, or None for all pairs of the images; settings: of the triplet stage.
    """
    figures = measure_pairs(file, found.rows) if file else measure_list(found.images.labels, found.rows)
    return {
        "weights": found.weights, "weights_sha256": found.weights_sha256, "feature": found.feature,
        "mirrored": found.mirrored, "list": found.images.source, "images": len(found.images.names),
        "identities": len(np.unique(found.images.labels)),
        "notes": notes_on_trained(found.images, settings["TRAIN_LISTS"], settings["IMAGEPATH"]), **figures,
    }  # fmt: skip


def pairs_of_images(images: ImageList) -> Pairs:
    """Pairs of a list's images. Raises InputError if an image has no identity, or if there are no pairs of one kind."""
    if (images.labels < 0).any():
        nameless = images.names[int(np.argmin(images.labels))]
        raise InputError(
            f"{images.source}: {nameless} has no identity: name it `person@file.jpg`, or put it into a folder that "
            "has the person's name"
        )
    try:
        return pairs_of(images.labels)
    except ValueError:
        raise InputError(
            f"{images.source} cannot be measured: it needs two identities or more, one of them with two images"
        ) from None


def prepare_folder(folder: str, compares: bool, with_map: bool, inputs: Iterable[str | None], force: bool) -> None:
    """Make the folder of a report, and refuse to replace files in it unless force. Raises InputError.

    compares: whether write_comparison will write there; with_map: as for write_measured; inputs: as for
    outputs.check_outputs.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): choose another --out") from None
    names = ["report.json", "report.html", "roc.png"]
    names += ["distances.png"] if not compares else []
    names += ["tsne.png"] if with_map else []
    check_outputs([os.path.join(folder, name) for name in names], inputs, force)


def write_measured(
    folder: str, report: Mapping[str, Any], found: Embeddings, pairs: Pairs, with_map: bool
) -> None:  # fmt: skip
    """Write report.json, roc.png and distances.png into a folder, and tsne.png if with_map. Raises InputError.

    report: of report_on(); pairs: those that it is about.
    """
    distances = pair_distances(found.rows, pairs.first, pairs.second)
    pictures = {
        "roc.png": lambda path: plots.roc(path, {found.feature: (distances, pairs.same)}),
        "distances.png": lambda path: plots.distances(path, distances, pairs.same),
    }
    if with_map:
        pictures["tsne.png"] = lambda path: plots.tsne(path, found.rows, found.images.labels)
    _write(folder, report, pictures)


def report_of_comparison(comparison: Comparison, weights: str, mirrored: bool) -> dict[str, Any]:
    """A comparison's figures, and what it was made from. weights, mirrored: as for compare_weights()."""
    return {"weights": weights, "weights_sha256": digest(weights), "mirrored": mirrored, **comparison.report()}


def write_comparison(folder: str, comparison: Comparison, pairs: Pairs, weights: str, mirrored: bool) -> None:
    """Write report.json and roc.png into a folder. pairs, weights, mirrored: as for compare_weights().

    Raises InputError.
    """
    report = report_of_comparison(comparison, weights, mirrored)
    curves = {
        name: (distances, pairs.same) for name, distances in zip(comparison.names, comparison.distances, strict=True)
    }
    _write(folder, report, {"roc.png": lambda path: plots.roc(path, curves)})


def _write(folder: str, report: Mapping[str, Any], pictures: Mapping[str, Callable[[str], None]]) -> None:
    """Write report.json and pictures. pictures: the name of each file, and the function that draws it at a path."""
    try:
        with whole_files(folder) as part:
            with open(os.path.join(part, "report.json"), "w", encoding="utf-8") as file:
                file.write(json.dumps(report, indent=2, allow_nan=False))  # what is not measured is null
            for name, draw in pictures.items():
                draw(os.path.join(part, name))
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): choose another --out") from None
