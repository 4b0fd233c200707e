"""How good embeddings are: python -m tripletloss.evaluate WEIGHTS | EMBEDDINGS.h5 ..."""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.outputs import add_force
from tripletloss.base.parallel import OneProcess, join
from tripletloss.config import load
from tripletloss.data.folders import check_cut
from tripletloss.data.lists import ImageList
from tripletloss.data.pairs import PairsFile, read_pairs
from tripletloss.evaluation import report
from tripletloss.evaluation.arguments import add_arguments, images_of, inputs_of, settings_of
from tripletloss.evaluation.compare import compare_weights
from tripletloss.evaluation.embed import embed
from tripletloss.formats import embeddings
from tripletloss.reporting import measurement, page


def main() -> int:
    """Run python -m tripletloss.evaluate. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.evaluate",
        description="Measure weights, or embeddings of tripletloss.extract, on HELD_OUT_LIST, on another list, or on "
        "pairs in LFW's format.",
    )
    parser.add_argument(
        "source", metavar="WEIGHTS", help="a .caffemodel or .caffemodel.h5 of this project's, or an .h5 of extract"
    )
    add_arguments(parser)
    parser.add_argument("--pairs", metavar="FILE", help="a pairs file in LFW's format, instead of a list")
    parser.add_argument("--compare", action="store_true", help="show what the triplet stage added to the softmax one")
    parser.add_argument(
        "--out", help="folder for report.html, report.json, roc.png and, without --compare, distances.png"
    )
    add_force(parser)
    command.add_json(parser)
    parser.add_argument("--tsne", action="store_true", help="with --out, also tsne.png, a map of the embeddings")
    arguments = parser.parse_args()
    if arguments.tsne and not arguments.out:
        parser.error("--tsne draws a picture: say where with --out")
    if arguments.tsne and arguments.compare:
        parser.error("--tsne draws one embedding, and --compare takes several: leave one of the two out")

    def evaluate() -> None:
        with join("tripletloss.evaluate") as team:
            said = run(arguments, team)
        if team.rank == 0:
            print(said)

    return command.run("tripletloss.evaluate", evaluate)


def run(arguments: argparse.Namespace, team: OneProcess) -> str:
    """Measure what the arguments name. Returns the answer, as text or JSON. Raises InputError.

    team: the processes that share the images.
    """
    with team.together():
        made = not arguments.compare and embeddings.is_embeddings(arguments.source)
        if made and arguments.pairs:
            raise InputError("--pairs needs weights, not embeddings, since the pairs name images: name a .caffemodel")
        settings = settings_of(arguments)
        if arguments.pairs:
            check_cut(arguments.images or settings["IMAGEPATH"], settings)
        file = read_pairs(arguments.pairs, arguments.images or settings["IMAGEPATH"]) if arguments.pairs else None
        images = None if made else file.images if file else images_of(arguments, settings)
        if arguments.out:
            inputs = inputs_of(arguments, settings, images)
            report.prepare_folder(arguments.out, arguments.compare, arguments.tsne, inputs, arguments.force)
    if images is None:
        return team.first(lambda: _measure(arguments, settings, None, embeddings.load(arguments.source)))
    if arguments.compare:
        return _compare(arguments, settings, images, file, team)
    found = embed(arguments.source, settings, settings["FEATURE"], images, arguments.mirrored, team)
    return team.first(lambda: _measure(arguments, settings, file, found))


def _measure(
    arguments: argparse.Namespace, settings: Mapping[str, Any], file: PairsFile | None, found: embeddings.Embeddings
) -> str:
    """Measure embeddings, write the report if --out is given, and return the answer. Raises InputError."""
    pairs = file.pairs if file else report.pairs_of_images(found.images)
    figures = report.report_on(found, file, settings)
    if arguments.out:
        report.write_measured(arguments.out, figures, found, pairs, arguments.tsne)
    given = pairs if file else None
    work = functools.partial(measurement.write_measured, arguments.out, figures, found, given, settings)
    return _answer(arguments, figures, report.describe(figures), work)


def _compare(
    arguments: argparse.Namespace, settings: Mapping[str, Any], images: ImageList, file: PairsFile | None,
    team: OneProcess,
) -> str:  # fmt: skip
    """Compare the stages, write the comparison if --out is given, and return the answer. Raises InputError."""
    pairs = file.pairs if file else team.first(lambda: report.pairs_of_images(images))
    with team.together():
        softmax = load(arguments.config).stage("softmax")["FEATURE"]
    comparison = compare_weights(arguments.source, settings, softmax, images, pairs, arguments.mirrored, team)

    def say() -> str:
        assert comparison, "the first process has it"
        if arguments.out:
            report.write_comparison(arguments.out, comparison, pairs, arguments.source, arguments.mirrored)
        work = functools.partial(
            measurement.write_comparison, arguments.out, comparison, pairs, arguments.source, settings
        )
        figures = report.report_of_comparison(comparison, arguments.source, arguments.mirrored)
        return _answer(arguments, figures, comparison.describe(), work)

    return team.first(say)


def _answer(arguments: argparse.Namespace, figures: Mapping[str, Any], said: str, work: Callable[[], str]) -> str:
    """Figures as --json has them, or else what is said of them. With --out, write the page by work()."""
    line = page.attempt(work) if arguments.out else ""
    if arguments.json:
        if line:
            print(line, file=sys.stderr)
        return command.as_json(figures)
    return f"{said}\n{line}" if line else said


if __name__ == "__main__":
    sys.exit(main())
