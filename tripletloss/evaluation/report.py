"""How good embeddings are: python -m tripletloss.evaluate WEIGHTS | EMBEDDINGS.h5 ..."""

import argparse
import json
import os
import re
import sys
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from tripletloss import config
from tripletloss.base import command
from tripletloss.base.errors import InputError, MissingLayersError
from tripletloss.base.files import digest, read_file, whole_files
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.base.parallel import join
from tripletloss.core import bootstrap, clustering, retrieval, verification
from tripletloss.core.pairs import Pairs, different_weight, pair_distances, pairs_of
from tripletloss.data.lists import ImageList, leaves_folder, notes_on_trained
from tripletloss.evaluation import plots
from tripletloss.evaluation.compare import compare
from tripletloss.evaluation.embed import add_arguments, embed, images_of, inputs_of, is_embeddings, load, open_net, settings_of

SOFTMAX_SNAPSHOT = re.compile(r"softmax_iter_\d+\.caffemodel(\.h5)?")  # as snapshots.py names it
NUMBER = re.compile("[0-9]{1,9}")  # in a pairs file
MOST_CLUSTERED = 5000  # images; clustering takes memory by the square of their number


class PairsFile(NamedTuple):
    """Pairs of images, in folds whose people differ."""

    images: ImageList
    pairs: Pairs
    folds: np.ndarray  # (P,) int


def read_pairs(source, folder):
    """Read a pairs file in the format of Labeled Faces in the Wild (README of its view 2).

    The first line holds the number of folds and that of pairs of each kind in a fold; then, fold by fold, come
    lines `name n m` of one person's images and lines `name n other m` of two people's. Image n of a person is
    folder/name/name_000n.jpg. Raises InputError, naming the line, for what does not fit and for missing images.
    """
    try:
        lines = [line.split() for line in read_file(source).decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"the pairs file {source} cannot be read ({reason}): check --pairs") from None
    if not lines or not 1 <= len(lines[0]) <= 2 or not all(NUMBER.fullmatch(word) for word in lines[0]):
        raise InputError(f"{source}, line 1: it must hold the number of folds and of pairs a fold: `10 300`")
    folds = int(lines[0][0]) if len(lines[0]) == 2 else 1
    a_fold, rest = divmod(len(lines) - 1, max(folds, 1))
    if rest or not a_fold or int(lines[0][-1]) * 2 != a_fold:
        raise InputError(f"{source} has {len(lines) - 1} pairs, which are not {folds} folds of 2 x {lines[0][-1]}")
    numbers, first, second, same = {}, [], [], []
    for number, words in enumerate(lines[1:], 2):
        if len(words) not in (3, 4) or not (NUMBER.fullmatch(words[1]) and NUMBER.fullmatch(words[-1])):
            raise InputError(f"{source}, line {number}: it must be `name n m` or `name n other m`")
        ends = ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1]))
        for side, (name, image) in zip((first, second), ends, strict=True):
            path = f"{name}/{name}_{int(image):04d}.jpg"
            if leaves_folder(path):
                raise InputError(f"{source}, line {number}: {name!r} is outside of the image folder")
            if not os.path.isfile(os.path.join(folder, path)):
                raise InputError(f"{source}, line {number}: there is no {os.path.join(folder, path)}: check --images")
            side.append(numbers.setdefault(path, len(numbers)))
        same.append(len(words) == 3)
    people = np.unique([path.partition("/")[0] for path in numbers], return_inverse=True)[1]
    images = ImageList(source, folder, list(numbers), people)
    pairs = Pairs(np.array(first), np.array(second), np.array(same))
    return PairsFile(images, pairs, np.arange(len(same)) // a_fold)


def measure_pairs(file, rows):
    """Figures of the pairs of a PairsFile, from embeddings (N, D): a dict to report.

    A pair that the file repeats counts once, but in the accuracy, whose protocol is the file's.
    """
    pairs = file.pairs
    distances = pair_distances(rows, pairs.first, pairs.second)
    found = verification.cross_validated_accuracy(distances, pairs.same, file.folds)
    accuracy = {"value": found.mean, "standard_error": found.standard_error, "folds": found.folds}
    once = np.unique(np.sort([pairs.first, pairs.second], axis=0), axis=1, return_index=True)[1]
    distinct = Pairs(pairs.first[once], pairs.second[once], pairs.same[once])
    return {"accuracy": accuracy, **_verification(distances[once], distinct, file.images.labels)}


def measure_list(labels, rows):
    """Figures of all pairs of a list, or of a million drawn ones, of its queries and its clusters: a dict to report.

    labels: (N,); rows: (N, D). The clusters' threshold is the one with the best F on the same pairs, so it is chosen on
    what it is scored on: tripletloss.cluster scores on other identities.
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
    few = _few_images(labels)
    # F depends on how many different pairs there are for each same one, which is less among fewer identities.
    threshold = clustering.threshold_of_best_f(distances, pairs.same, different_weight(pairs, labels[few]))
    clusters = clustering.cluster(rows[few], threshold)
    of = clustering.clustering(clusters, labels[few])
    found["clustering"] = {
        "threshold": threshold, "images": len(few), "identities": len(np.unique(labels[few])), "clusters": of.clusters,
        "NMI": of.nmi, "pairwise": dict(zip(("precision", "recall", "F"), of.pairwise, strict=True)),
        "B-cubed": dict(zip(("precision", "recall", "F"), of.b_cubed, strict=True)),
    }  # fmt: skip
    return found


def _verification(distances, pairs, labels):
    """The verification figures with their intervals, and the curve's points for the plots."""
    found = verification.verification_of_pairs(distances, pairs.same)
    resampled = verification.resampled_verification(distances, pairs, labels)
    report = {"same_pairs": found.same, "different_pairs": found.different}
    for name, value in found.figures.items():
        report[name] = {"value": value, "interval": bootstrap.interval(resampled[name])}
    report["unresolved"] = [f"TAR@FAR={far:g}" for far in verification.FARS if far not in found.tar]
    report["thresholds"] = {f"FAR={far:g}": value for far, value in found.thresholds.items()}
    report["accepted_different_pairs"] = {f"FAR={far:g}": count for far, count in found.accepted.items()}
    return report


def _few_images(labels, seed=0):
    """Numbers of the images to cluster: all, or those of identities drawn at random up to MOST_CLUSTERED images.

    Of an identity with more than half as many, that half is drawn, so that there are always two identities.
    """
    if len(labels) <= MOST_CLUSTERED:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    numbers = np.unique(labels, return_inverse=True)[1]
    order = rng.permutation(numbers.max() + 1)
    images = rng.permutation(len(labels))
    images = images[np.argsort(numbers[images], kind="stable")]  # identity by identity, each in random order
    sizes = np.bincount(numbers)
    ends = np.cumsum(sizes)
    capped = np.minimum(sizes, MOST_CLUSTERED // 2)
    taken = order[np.cumsum(capped[order]) <= MOST_CLUSTERED]
    return np.sort(np.concatenate([images[ends[one] - sizes[one] :][: capped[one]] for one in taken]))


def describe(report):
    """A report as text for the terminal."""
    lines = [
        f"embeddings {report['weights']}, {report['feature']}{', mirrored average' if report['mirrored'] else ''}",
        f"images     {report['images']} of {report['identities']} identities ({report['list']}), "
        f"{report['same_pairs']} same and {report['different_pairs']} different pairs",
        *(f"note       {note}" for note in report["notes"]),
    ]
    rows = []
    if "accuracy" in report:
        a = report["accuracy"]
        if a["folds"] > 1:
            spread = f"+- {a['standard_error']:.4f} (standard error of {a['folds']} folds)"
            rows.append(["accuracy", f"{a['value']:.4f}", spread, "", "each fold by the best threshold of the others"])
        else:
            rows.append(["accuracy", f"{a['value']:.4f}", "", "", "one fold, by its own best threshold: too good"])
    for name in ("AUC", "EER"):
        rows.append([name, *_cells(report[name]), "", "all pairs"])
    for far in verification.FARS:
        rows.append([f"TAR@FAR={far:g}", *_tar_cells(report, far)])
    for name in ("rank-1", "mAP", "R-precision"):
        if name in report:
            rows.append([name, *_cells(report[name]), "", f"{report[name]['queries']} queries"])
    if "clustering" in report:
        c = report["clustering"]
        threshold = f"{c['threshold']:.4g}"
        behind = f"{c['clusters']} clusters of {c['images']} images, {c['identities']} identities"
        rows.append(["NMI", f"{c['NMI']:.4f}", "", threshold, behind])
        for name in ("pairwise", "B-cubed"):
            p = c[name]
            behind = f"precision {p['precision']:.3f}, recall {p['recall']:.3f}"
            rows.append([f"{name} F", f"{p['F']:.4f}", "", threshold, behind])
    headers = ["", "", "95% interval", "threshold", "behind it"]
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True)
    below = ["Thresholds are squared distances. Intervals: identities are resampled, not pairs."]
    if "clustering" in report:
        below.append("NMI and F are at the threshold with the best F on the pairs of the same images.")
    return "\n".join([*lines, "", table, "", *below])


def _tar_cells(report, far):
    """The cells of a FAR's row behind its name."""
    if f"TAR@FAR={far:g}" in report:
        threshold, accepted = (report[key][f"FAR={far:g}"] for key in ("thresholds", "accepted_different_pairs"))
        return [*_cells(report[f"TAR@FAR={far:g}"]), f"{threshold:.4g}", f"{accepted} different pairs accepted"]
    needed = round(verification.LEAST_FALSE_ACCEPTS / far)
    if report["different_pairs"] < needed:
        return ["-", "", "", f"not resolved: it takes {needed} different pairs"]
    return ["-", "", "", "not resolved: too many of the nearest different pairs are equally near"]


def _cells(figure):
    spread = "{:.4f} to {:.4f}".format(*figure["interval"]) if figure["interval"] else "too few identities"
    return f"{figure['value']:.4f}", spread


def write_report(folder, report, pictures):
    """Write report.json and pictures into a folder; raises InputError if that cannot be.

    pictures: the name of each file -> the function that draws it at a path.
    """
    try:
        with whole_files(folder) as part:
            with open(os.path.join(part, "report.json"), "w", encoding="utf-8") as file:
                file.write(json.dumps(report, indent=2, allow_nan=False))  # what is not measured is null
            for name, draw in pictures.items():
                draw(os.path.join(part, name))
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): choose another --out") from None


def main():
    """python -m tripletloss.evaluate. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.evaluate",
        description="Measure weights, or embeddings of tripletloss.extract, on HELD_OUT_LIST, on another list, or on "
        "pairs in LFW's format.",
    )
    parser.add_argument("source", metavar="WEIGHTS", help="a .caffemodel of this project's, or an .h5 of embeddings")
    add_arguments(parser)
    parser.add_argument("--pairs", help="a pairs file in LFW's format, instead of a list")
    parser.add_argument("--compare", action="store_true", help="what the triplet stage added to the softmax feature")
    parser.add_argument("--out", help="folder for report.json, roc.png and, without --compare, distances.png")
    add_force(parser)
    parser.add_argument("--tsne", action="store_true", help="with --out, also tsne.png, a map of the embeddings")
    arguments = parser.parse_args()
    if arguments.tsne and not arguments.out:
        parser.error("--tsne draws a picture: say where with --out")
    if arguments.tsne and arguments.compare:
        parser.error("--tsne draws one embedding, and --compare takes several: leave one of the two out")

    def evaluate():
        with join("tripletloss.evaluate") as team:
            said = run(arguments, team)
        if team.rank == 0:
            print(said)

    return command.run("tripletloss.evaluate", evaluate)


def run(arguments, team):
    """What the arguments ask for, as text. All processes of a team divide the images. Raises InputError."""
    with team.together():
        made = not arguments.compare and is_embeddings(arguments.source)
        settings = settings_of(arguments)
        file = None
        if arguments.pairs:
            file = read_pairs(arguments.pairs, arguments.images or settings["IMAGEPATH"])
        if made and file:
            raise InputError("--pairs takes weights, not embeddings: the pairs name images")
        images = file.images if file else None if made else images_of(arguments, settings)
        if arguments.out:
            _prepare_folder(arguments, inputs_of(arguments, settings, images))
    if arguments.compare:
        pairs = file.pairs if file else team.first(lambda: _pairs_of(images))
        comparison = _compare(arguments, settings, images, pairs, team)
        return team.first(lambda: _compared(arguments, comparison, pairs))
    if made:
        return team.first(lambda: report_of(arguments, settings, file, load(arguments.source)))
    found = embed(arguments.source, settings, settings["FEATURE"], images, arguments.mirrored, team)
    return team.first(lambda: report_of(arguments, settings, file, found))


def _prepare_folder(arguments, inputs):
    """Make the folder of the report, and refuse to replace what is in it unless --force. Raises InputError."""
    try:
        os.makedirs(arguments.out, exist_ok=True)
    except OSError as error:
        raise InputError(f"{arguments.out} cannot be made ({error.strerror}): choose another --out") from None
    names = ["report.json", "roc.png"]
    names += ["distances.png"] if not arguments.compare else []
    names += ["tsne.png"] if arguments.tsne else []
    check_outputs([os.path.join(arguments.out, name) for name in names], inputs, arguments.force)


def _compared(arguments, comparison, pairs):
    """A Comparison as text; it is written, too, where the arguments ask for that. Raises InputError."""
    if arguments.out:
        report = {
            "weights": arguments.source, "weights_sha256": digest(arguments.source), "mirrored": arguments.mirrored,
            **comparison.report(),
        }  # fmt: skip
        curves = {
            name: (distances, pairs.same)
            for name, distances in zip(comparison.names, comparison.distances, strict=True)
        }
        write_report(arguments.out, report, {"roc.png": lambda path: plots.roc(path, curves)})
    return comparison.describe()


def _compare(arguments, settings, images, pairs, team):
    with team.together():
        softmax = config.load(arguments.config).stage("softmax")["FEATURE"]
        if softmax == settings["FEATURE"] or not softmax:
            raise InputError("there is nothing to compare: FEATURE must name a blob of DEPLOY for each of the stages")
        if SOFTMAX_SNAPSHOT.fullmatch(os.path.basename(arguments.source)):
            # Layers of the triplet stage can be in it all the same: those of the weights that the run began with.
            raise InputError(
                f"{arguments.source} is a snapshot of the softmax stage: it has no triplet stage to compare"
            )
        try:
            net = open_net(arguments.source, settings, [softmax, settings["FEATURE"]])
        except MissingLayersError as error:
            if error.args[1] == softmax:
                raise
            raise InputError(f"{arguments.source} has no triplet stage to compare: {error}") from None
    return compare(net, settings, softmax, images, pairs, arguments.mirrored, show=True, team=team)


def report_of(arguments, settings, file, found):
    """Measure Embeddings, write what the arguments ask for, and return the report as text. Raises InputError."""
    pairs = file.pairs if file else _pairs_of(found.images)
    figures = measure_pairs(file, found.rows) if file else measure_list(found.images.labels, found.rows)
    report = {
        "weights": found.weights, "weights_sha256": found.weights_sha256, "feature": found.feature,
        "mirrored": found.mirrored, "list": found.images.source, "images": len(found.images.names),
        "identities": len(np.unique(found.images.labels)),
        "notes": notes_on_trained(found.images, settings["TRAIN_LIST"], settings["IMAGEPATH"]), **figures,
    }  # fmt: skip
    if arguments.out:
        distances = pair_distances(found.rows, pairs.first, pairs.second)
        pictures = {
            "roc.png": lambda path: plots.roc(path, {found.feature: (distances, pairs.same)}),
            "distances.png": lambda path: plots.distances(path, distances, pairs.same),
        }
        if arguments.tsne:
            pictures["tsne.png"] = lambda path: plots.tsne(path, found.rows, found.images.labels)
        write_report(arguments.out, report, pictures)
    return describe(report)


def _pairs_of(images):
    """Pairs of a list. Raises InputError where there are none of either kind, or images without an identity."""
    if (images.labels < 0).any():
        nameless = images.names[int(np.argmin(images.labels))]
        raise InputError(
            f"{images.source}: nothing says whose image {nameless} is: name it `person@file.jpg`, or put it into a "
            "folder of that person's"
        )
    try:
        return pairs_of(images.labels)
    except ValueError:
        raise InputError(
            f"{images.source} needs two identities or more, one of them with two images, to measure"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
