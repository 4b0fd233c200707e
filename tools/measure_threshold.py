"""Measure the thresholds of an exported model on all pairs of a folder of faces.

    python tools/measure_threshold.py MODEL.onnx FACES "whose faces they are" OUT.json

FACES has a folder of images for each identity, as tripletloss.detect writes them. OUT is for `tripletloss.export
--threshold OUT`, with the weights and settings that MODEL was exported with. It has no names.
"""

import json
import sys

from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.base.outputs import check_outputs
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.data.folders import check_cut, list_folder
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.onnx_threshold import describe_pairs, embed_list

FAR = 1e-3
ABOUT = ("weights_sha256", "feature", "mirrored", "alignment", "image_size")


def measure(model_path, folder, whose):
    """What OUT says. Raises InputError."""
    model, images = Model(model_path), list_folder(folder)
    check_cut(folder, {"ALIGNMENT": model.about.get("alignment", "face997")})
    try:
        pairs = pairs_of(images.labels, most=len(images.names) ** 2)  # all of them
    except ValueError:
        raise InputError(f"{folder} has no pairs of one identity, or of two: add identities or images") from None
    distances = pair_distances(embed_list(model, images), pairs.first, pairs.second)
    found = describe_pairs(distances, pairs.same, whose, FAR)
    if "threshold" not in found:
        raise InputError(f"{folder} has {found['threshold_pairs']}: add images of other identities")
    return {**{name: model.about[name] for name in ABOUT}, **found}


def main():
    """Write OUT, and return the exit status."""
    if len(sys.argv) != 5:
        sys.exit(__doc__.split("\n\n")[1].strip())
    *inputs, whose, out = sys.argv[1:]
    try:
        check_outputs([out], inputs)
        found = measure(*inputs, whose)
        write_whole(out, (json.dumps(found, indent=2) + "\n").encode())
    except (InputError, OSError) as error:
        print(f"measure_threshold.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
