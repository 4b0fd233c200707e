"""Faces out of a camera's photos: python -m tripletloss.detect PHOTOS --out FACES. See deploy/photos.py."""

import sys

from tripletloss.base import command
from tripletloss.base.outputs import add_force
from tripletloss.core.alignment import TEMPLATES
from tripletloss.deploy.faces import PICKS
from tripletloss.deploy.photos import cut_faces

SIZES = {"face997": 112, "dlib_resnet": 150}  # pixels per side of a face's square, unless --size is given


def main() -> int:
    """Run python -m tripletloss.detect. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.detect",
        description="Cut one face out of each photo in a folder, as a model takes them.",
    )
    parser.add_argument("folder", metavar="PHOTOS", help="folder of photos; folders in it are kept")
    parser.add_argument("--out", required=True, help="new folder for the faces, beside OUT.csv and OUT.jpg")
    add_force(parser)
    parser.add_argument(
        "--for", dest="model", choices=TEMPLATES, default="face997",
        help="the model that the faces are for; each wants its own cut (default: face997)",
    )  # fmt: skip
    parser.add_argument(
        "--size", metavar="PIXELS", type=int,
        help="side of each picture that is written (default: 112; dlib_resnet: 150)",
    )  # fmt: skip
    parser.add_argument(
        "--pick", choices=PICKS, default="best",
        help="which of several faces: the largest, the most central, or, by both and the detector's score, the best "
        "(default)",
    )  # fmt: skip
    arguments = parser.parse_args()
    a = arguments
    size = SIZES[a.model] if a.size is None else a.size
    if not 8 <= size <= 4096:
        parser.error("--size is a number of pixels, from 8 to 4096")
    return command.run("tripletloss.detect", lambda: print(cut_faces(a.folder, a.out, a.model, size, a.pick, a.force)))


if __name__ == "__main__":
    sys.exit(main())
