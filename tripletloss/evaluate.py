"""How good embeddings are: python -m tripletloss.evaluate WEIGHTS | EMBEDDINGS.h5 ..."""

import argparse
import sys

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.outputs import add_force
from tripletloss.base.parallel import join
from tripletloss.config import load
from tripletloss.data.pairs import read_pairs
from tripletloss.evaluation import report
from tripletloss.evaluation.arguments import add_arguments, images_of, inputs_of, settings_of
from tripletloss.evaluation.compare import compare_weights
from tripletloss.evaluation.embed import embed
from tripletloss.formats import embeddings


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
        made = not arguments.compare and embeddings.is_embeddings(arguments.source)
        settings = settings_of(arguments)
        file = None
        if arguments.pairs:
            file = read_pairs(arguments.pairs, arguments.images or settings["IMAGEPATH"])
        if made and file:
            raise InputError("--pairs takes weights, not embeddings: the pairs name images")
        images = file.images if file else None if made else images_of(arguments, settings)
        if arguments.out:
            inputs = inputs_of(arguments, settings, images)
            report.prepare_folder(arguments.out, arguments.compare, arguments.tsne, inputs, arguments.force)
    if arguments.compare:
        pairs = file.pairs if file else team.first(lambda: report.pairs_of_images(images))
        with team.together():
            softmax = load(arguments.config).stage("softmax")["FEATURE"]
        comparison = compare_weights(arguments.source, settings, softmax, images, pairs, arguments.mirrored, team)
        return team.first(lambda: _compared(arguments, comparison, pairs))
    if made:
        return team.first(lambda: _measured(arguments, settings, file, embeddings.load(arguments.source)))
    found = embed(arguments.source, settings, settings["FEATURE"], images, arguments.mirrored, team)
    return team.first(lambda: _measured(arguments, settings, file, found))


def _measured(arguments, settings, file, found):
    """Measure Embeddings, write what the arguments ask for, and return the figures as text. Raises InputError."""
    pairs = file.pairs if file else report.pairs_of_images(found.images)
    figures = report.report_on(found, file, settings)
    if arguments.out:
        report.write_measured(arguments.out, figures, found, pairs, arguments.tsne)
    return report.describe(figures)


def _compared(arguments, comparison, pairs):
    """A Comparison as text; it is written, too, where the arguments ask for that. Raises InputError."""
    if arguments.out:
        report.write_comparison(arguments.out, comparison, pairs, arguments.source, arguments.mirrored)
    return comparison.describe()


if __name__ == "__main__":
    sys.exit(main())
