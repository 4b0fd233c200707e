"""Measure the thresholds of an exported model on all pairs of a folder of faces.

    python tools/measure_threshold.py MODEL.onnx FACES "whose faces they are" OUT.json

FACES has a folder of images for each identity, as tripletloss.detect writes them. OUT is for `tripletloss.export
--threshold OUT`, with the weights and settings that MODEL was exported with. It has no names.
"""

import json
import sys

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.base.outputs import check_outputs
from tripletloss.core.verification import LEAST_FALSE_ACCEPTS
from tripletloss.data.folders import check_cut, list_folder
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.onnx_threshold import different_from, embed_list

FAR = 1e-3
ABOUT = ("weights_sha256", "feature", "mirrored", "alignment", "image_size")


def all_pairs(rows, labels):
    """The squared distances of all pairs, (P,) float32, and whether each is of one identity, (P,) bool."""
    distances, same = [], []
    squares = (rows**2).sum(1)
    for number in range(len(rows) - 1):
        others = slice(number + 1, None)
        apart = squares[number] + squares[others] - 2 * rows[others] @ rows[number]
        distances.append(np.maximum(apart, 0).astype(np.float32))
        same.append(labels[others] == labels[number])
    return np.concatenate(distances), np.concatenate(same)


def measure(model_path, folder, whose):
    """What OUT says. Raises InputError."""
    model, images = Model(model_path), list_folder(folder)
    check_cut(folder, {"ALIGNMENT": model.about.get("alignment", "face997")})
    distances, same = all_pairs(embed_list(model, images).astype(np.float64), images.labels)
    apart = np.sort(distances[~same])
    accepted = int(FAR * len(apart))
    if accepted < LEAST_FALSE_ACCEPTS or not same.any():
        raise InputError(f"{folder} has too few pairs: at FAR {FAR:g}, {accepted} pairs of two identities are accepted")
    threshold = float(apart[accepted - 1])
    return {
        **{name: model.about[name] for name in ABOUT},
        "threshold": f"{threshold:.6g}", "threshold_far": f"{FAR:g}",
        "threshold_tar": f"{np.mean(distances[same] <= threshold):.4f}", **different_from(distances, same, threshold),
        "threshold_pairs": f"{same.sum()} same and {len(apart)} different of {whose}",
    }  # fmt: skip


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
