"""Images to embeddings: python -m tripletloss.extract WEIGHTS --out embeddings.h5."""

import argparse
import sys

from tripletloss.base import command
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.base.parallel import join
from tripletloss.evaluation.arguments import add_arguments, add_weights, images_of, inputs_of, settings_of
from tripletloss.evaluation.embed import embed_to_file, open_net
from tripletloss.formats.embeddings import check_suffix


def main() -> int:
    """Run python -m tripletloss.extract. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.extract",
        description="Write the embeddings of a list's images, or of all images in a folder, to a file.",
    )
    add_weights(parser)
    parser.add_argument("--out", required=True, help="the file to write: .h5, which evaluate reads, .npz or .csv")
    add_force(parser)
    add_arguments(parser)
    arguments = parser.parse_args()
    return command.run("tripletloss.extract", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Write the embeddings that the arguments ask for, and print what they are. Raises InputError."""
    with join("tripletloss.extract") as team:
        with team.together():
            check_suffix(arguments.out)
            settings = settings_of(arguments)
            images = images_of(arguments, settings)
            check_outputs([arguments.out], inputs_of(arguments, settings, images), arguments.force)
            net = open_net(arguments.weights, settings, [settings["FEATURE"]])
        shape = embed_to_file(arguments.out, net, settings, images, arguments.weights, arguments.mirrored, team)
    if shape:
        print(f"{arguments.out}: {shape[0]} embeddings of {shape[1]} numbers, {settings['FEATURE']}")


if __name__ == "__main__":
    sys.exit(main())
