"""The thresholds of an exported model: measured with it on HELD_OUT_LIST, or before on a folder of faces.

They are metadata of the model. `threshold` is the largest squared distance at which at most the share `threshold_far`
(FAR) of the pairs of two identities is accepted as the same, for the lowest FAR that the pairs resolve.
`threshold_tar` is the share of the pairs of one identity that is accepted there. Beyond `threshold_different`, two
images are of two identities: at most the share `threshold_frr` (FRR) of the pairs of one identity lies there, and the
share `threshold_trr` of the pairs of two. It is missing if it would not exceed `threshold`. `threshold_pairs` says what
all this was measured on. If the pairs resolve no FAR, `threshold_equal_errors` is a threshold to begin with, at which
equal shares of both kinds of pairs are mistaken.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.core import verification
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.data.folders import check_cut
from tripletloss.data.images import central_box, read_image, to_pixels
from tripletloss.data.lists import ImageList, read_list
from tripletloss.deploy.onnx_model import BATCH_SIZE, Model

MOST_NOTE_BYTES = 2**16  # of a file about thresholds
MEASURED = (
    "threshold", "threshold_far", "threshold_tar", "threshold_different", "threshold_frr", "threshold_trr",
    "threshold_pairs",
)  # fmt: skip


def read_threshold(path: str, about: Mapping[str, str]) -> dict[str, str]:
    """Metadata about a threshold that tools/measure_threshold.py measured with the same model. about: its metadata.

    Raises InputError if the file cannot be read, or is about another model.
    """
    try:
        found = json.loads(read_file(path, MOST_NOTE_BYTES))
        numbers = [float(found[name]) for name in MEASURED[:-1]]
        if not np.isfinite(numbers).all() or not isinstance(found["threshold_pairs"], str):
            raise ValueError
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check --threshold") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} is not a file of tools/measure_threshold.py: check --threshold") from None
    for name in ("weights_sha256", "feature", "mirrored", "alignment", "image_size"):
        if found.get(name) != about[name]:
            raise InputError(
                f"{path} is about a model with the {name} {found.get(name)}, not {about[name]}: measure this one with "
                "tools/measure_threshold.py, or leave out --threshold"
            )
    return {name: found[name] for name in MEASURED}


def threshold_of(model: Model, settings: Mapping[str, Any]) -> dict[str, str]:
    """Measure a model's threshold on HELD_OUT_LIST, at the lowest FAR that its pairs resolve. Returns metadata.

    There is no `threshold` if there is no such list, or if its pairs resolve no FAR. In the latter case, if there are
    pairs of both kinds, there is `threshold_equal_errors`.
    """
    source = settings["HELD_OUT_LIST"]
    if not source:
        return {"threshold_pairs": "none: there was no HELD_OUT_LIST"}
    check_cut(settings["IMAGEPATH"], settings)
    images = read_list(source, settings["IMAGEPATH"])
    try:
        pairs = pairs_of(images.labels)
    except ValueError:
        return {"threshold_pairs": f"none: {os.path.basename(source)} has no pairs of one identity, or of two"}
    rows = embed_list(model, images)
    return describe_pairs(pair_distances(rows, pairs.first, pairs.second), pairs.same, os.path.basename(source))


def describe_pairs(
    distances: np.ndarray, same: np.ndarray, source: str, far: float | None = None
) -> dict[str, str]:
    """Metadata about the thresholds of pairs: distances (P,), same (P,) bool, with pairs of both kinds.

    source: of the pairs, in words; far: one of verification.FARS, or None for the lowest that the pairs resolve. If
    they do not resolve it, there is `threshold_equal_errors` instead of `threshold`.
    """
    found = verification.verification_of_pairs(distances, same)
    behind = f"{found.same} same and {found.different} different of {source}"
    wanted = min(found.thresholds, default=max(verification.FARS)) if far is None else far
    if wanted not in found.thresholds:
        return {
            "threshold_pairs": f"{behind}, too few for FAR {wanted:g}",
            "threshold_equal_errors": f"{verification.threshold_of_equal_errors(distances, same):.6g}",
        }
    about = {
        "threshold": f"{found.thresholds[wanted]:.6g}", "threshold_far": f"{wanted:g}",
        "threshold_tar": f"{found.tar[wanted]:.4f}", "threshold_pairs": behind,
    }  # fmt: skip
    return {**about, **different_from(distances, same, found.thresholds[wanted])}


def different_from(distances: np.ndarray, same: np.ndarray, threshold: float) -> dict[str, str]:
    """Metadata about the distance from which on two images are of two identities, if it exceeds the threshold.

    distances: (P,); same: (P,) bool, with pairs of both kinds.
    """
    rejected = verification.rejected_from(distances, same)
    if rejected is None or rejected[1] <= threshold:
        return {}
    frr, distance, trr = rejected
    return {"threshold_different": f"{distance:.6g}", "threshold_frr": f"{frr:g}", "threshold_trr": f"{trr:.4f}"}


def embed_list(model: Model, images: ImageList) -> np.ndarray:
    """A model's embeddings of a list's images, (N, D). Raises InputError."""
    rows = []
    with tqdm(total=len(images.names), desc="threshold", unit="image", mininterval=0.5) as bar:
        for start in range(0, len(images.names), BATCH_SIZE):
            paths = [images.path(number) for number in range(start, min(start + BATCH_SIZE, len(images.names)))]
            batch = [to_pixels(central_box(read_image(path), model.crop), model.size) for path in paths]
            rows.append(model.embed(np.stack(batch).transpose(0, 2, 3, 1).astype(np.uint8), paths))
            bar.update(len(batch))
    return np.concatenate(rows)
