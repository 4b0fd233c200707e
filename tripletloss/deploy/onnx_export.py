"""A deploy net and its weights as ONNX, to run without Caffe.

Caffe's files are read by formats/caffemodel.py, so the export needs no Caffe either. onnx_layers.py says what each type
of layer becomes. Types and settings that it does not know are refused by name: nothing is guessed.

The model's metadata say what it was made from and what its numbers mean: `weights`, `weights_sha256`, `net`, `feature`,
`input`, `channels`, `image_size`, `crop`, `alignment`, `points`, `pixel_means`, `mirrored`, `licence`. `points` are
where a face's five points are in its images: see core/alignment.py. onnx_threshold.py adds thresholds.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest
from tripletloss.core.alignment import TEMPLATES
from tripletloss.deploy.onnx_graph import IR_VERSION, OPSET, Blob, Graph
from tripletloss.deploy.onnx_layers import LAYERS
from tripletloss.deploy.onnx_model import MOST_BYTES, Model
from tripletloss.deploy.onnx_threshold import read_threshold, threshold_of
from tripletloss.formats.caffemodel import NetParameter, made_by, read_prototxt, read_weights

INPUTS = {
    "": "data: float32, N x 3 x S x S; B, G, R from 0 to 255, minus pixel_means",
    "bgr": "pixels: uint8, N x S x S x 3; B, G, R, as OpenCV reads pictures",
    "rgb": "pixels: uint8, N x S x S x 3; R, G, B",
}


def export(
    weights: str, settings: Mapping[str, Any], pixels: str = "", mirrored: bool = False, licence: str = "not stated",
    measured: str | None = None, name: str = "the model",
) -> tuple[onnx.ModelProto, dict[str, str]]:  # fmt: skip
    """build() with metadata. Returns the model and its metadata. Raises InputError.

    licence: of the weights; measured: path of a file of read_threshold() to take the threshold from, instead of
    measuring it; name: what an error calls the model.
    """
    model = build(weights, settings, pixels, mirrored)
    about = {
        "weights": os.path.basename(weights), "weights_sha256": digest(weights),
        "net": os.path.basename(settings["DEPLOY"]), "feature": settings["FEATURE"],
        "input": INPUTS[pixels], "channels": pixels or "bgr",
        "image_size": str(settings["IMAGE_SIZE"]), "crop": str(settings["CROP"]), "alignment": settings["ALIGNMENT"],
        "points": json.dumps(TEMPLATES[settings["ALIGNMENT"]].tolist()),
        "pixel_means": json.dumps(settings["PIXEL_MEANS"]), "mirrored": "yes" if mirrored else "no", "licence": licence,
    }  # fmt: skip
    helper.set_model_props(model, about)
    if measured:
        about.update(read_threshold(measured, about))
    else:
        about.update(threshold_of(Model(model.SerializeToString(), name), settings))
    helper.set_model_props(model, about)
    return model, about


def read_deploy(source: str, feature: str) -> tuple[Any, list]:
    """Read a deploy net: its NetParameter, and the LayerParameters that a feature depends on, in their order.

    Raises InputError if it cannot be read, if no layer makes the feature, or if layers cannot be exported, whose types
    it names.
    """
    lenient = read_prototxt(source, NetParameter(), allow_unknown=True)
    if len(lenient.layers):
        raise InputError(f"{source} writes `layers`, the syntax before 2014: convert it with upgrade_net_proto_text")
    blobs = [top for layer in lenient.layer for top in layer.top]
    if feature not in blobs:
        known = ", ".join(dict.fromkeys(blobs))
        raise InputError(f"{source} has no blob {feature!r}: --feature must be one of {known}")
    makers = made_by(lenient, feature)
    unknown = [layer for layer in lenient.layer if layer.name in makers and layer.type not in ("Input", *LAYERS)]
    if unknown:
        named = ", ".join(f"{layer.type} ({layer.name})" for layer in unknown)
        known = ", ".join(LAYERS)
        raise InputError(f"{source} has layers of types that cannot be exported: {named}. Known are {known}")
    net = read_prototxt(source, NetParameter())
    made = set(net.input)
    for layer in net.layer:
        where = f"{source}: layer {layer.name!r}"
        if layer.include or layer.exclude:
            raise InputError(f"{where} is for some phases only: write a deploy net without include and exclude")
        if layer.type in LAYERS and len(layer.top) != 1:
            raise InputError(f"{where} has {len(layer.top)} tops: {layer.type} has one")
        if made.difference(layer.bottom).intersection(layer.top):
            raise InputError(f"{where} has the top {layer.top[0]!r}, as a layer above it has: rename one")
        made.update(layer.top)
    return net, [layer for layer in net.layer if layer.name in makers]


def input_of(net: Any, layers: list, source: str) -> tuple[str, tuple[int, ...]]:
    """The name and the shape (C, H, W) of a net's one input, which takes images.

    net, layers: as returned by read_deploy(source, ...). Raises InputError if the net has another input, or several.
    """
    shapes = [
        (top, tuple(shape.dim))
        for layer in layers if layer.type == "Input"
        for top, shape in zip(layer.top, list(layer.input_param.shape) * len(layer.top), strict=False)
    ]  # fmt: skip
    dims = [shape.dim for shape in net.input_shape] or [
        net.input_dim[i : i + 4] for i in range(0, len(net.input_dim), 4)
    ]
    shapes += [(name, tuple(dim)) for name, dim in zip(net.input, dims, strict=False)]
    if len(shapes) != 1 or len(shapes[0][1]) != 4 or min(shapes[0][1]) < 1:
        raise InputError(f"{source} must have one input of images, N x 3 x S x S, but has {shapes or 'none'}")
    return shapes[0][0], shapes[0][1][1:]


def build(weights: str, settings: Mapping[str, Any], pixels: str = "", mirrored: bool = False) -> onnx.ModelProto:
    """Build the model of the deploy net of a stage's settings, with weights in it. It takes any number of images.

    weights: path; pixels: '' for the input of the Caffe net, 'bgr' or 'rgb' for uint8 pixels: see INPUTS; mirrored:
    whether the result is the mean of those of an image and its mirror image, as in the commands that measure. Raises
    InputError if net, settings and weights do not fit together, or if the net cannot be exported.
    """
    source, feature, size = settings["DEPLOY"], settings["FEATURE"], settings["IMAGE_SIZE"]
    if not source:
        raise InputError("the config has no DEPLOY net to export: name one")
    net, layers = read_deploy(source, feature)
    name, shape = input_of(net, layers, source)
    if shape != (3, size, size):
        raise InputError(f"{source} takes images of {shape}, but IMAGE_SIZE is {size}: make them the same")
    parameters = read_weights(weights)
    graph = Graph()
    graph.start(helper.make_node("", [], [], "input"), [], source)
    if pixels:
        blobs = {name: _from_pixels(graph, pixels, settings["PIXEL_MEANS"], size)}
        given = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", size, size, 3])
    else:
        blobs = {name: Blob(name, shape)}
        given = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
    if mirrored:
        blobs[name] = _with_mirror_images(graph, blobs[name])
    for layer in layers:
        if layer.type != "Input":
            _add_layer(graph, layer, blobs, parameters.get(layer.name, []), f"{source}: layer {layer.name!r}")
    made = blobs[feature]
    count = int(np.prod(made.shape))
    if mirrored:
        graph.start(helper.make_node("", [], [], "output"), [], source)
        made = _mean_of_views(graph, made)
    graph.nodes.append(helper.make_node("Flatten", [made.name], [feature], feature, axis=1))
    result = helper.make_tensor_value_info(feature, TensorProto.FLOAT, ["N", count])
    model = helper.make_model(
        helper.make_graph(graph.nodes, net.name or "caffe", [given], [result], graph.parameters),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tripletloss",
    )
    if model.ByteSize() > MOST_BYTES:
        raise InputError(f"{weights} is too large for one ONNX file, which holds 2 GB at the most")
    onnx.checker.check_model(model, full_check=True)
    return model


def _add_layer(graph: Graph, layer: Any, blobs: dict[str, Blob], parameters: list[np.ndarray], where: str) -> None:
    """Add a layer to the graph, and its top to the blobs. Raises InputError if it cannot be exported."""
    graph.start(layer, parameters, where)
    if not layer.bottom:
        raise InputError(f"{where} has no bottom")
    missing = [bottom for bottom in layer.bottom if bottom not in blobs]
    if missing:
        raise InputError(f"{where} takes the bottom {missing[0]!r}, which no layer above makes")
    try:
        blobs[layer.top[0]] = LAYERS[layer.type](graph, layer, *[blobs[bottom] for bottom in layer.bottom])
    except TypeError:  # of the call: the function of this type takes another number of bottoms
        raise InputError(f"{where} has {len(layer.bottom)} bottoms, which {layer.type} cannot have") from None


def _from_pixels(graph: Graph, pixels: str, means: Sequence[float], size: int) -> Blob:
    """Turn uint8 pixels into the blob that the Caffe net takes."""
    shape = (3, size, size)
    blob = graph.add("Cast", ["pixels"], (size, size, 3), to=TensorProto.FLOAT)
    blob = graph.add("Transpose", [blob], shape, perm=[0, 3, 1, 2])
    if pixels == "rgb":
        blob = graph.add("Gather", [blob, graph.parameter(np.array([2, 1, 0]))], shape, axis=1)
    return graph.add("Sub", [blob, graph.parameter(np.array(means, np.float32)[:, None, None])], shape)


def _with_mirror_images(graph: Graph, images: Blob) -> Blob:
    """N images (3, S, S) and, after them, their mirror images."""
    backwards = graph.parameter(np.arange(images.shape[2])[::-1])
    mirrored = graph.add("Gather", [images, backwards], images.shape, axis=3)
    return graph.add("Concat", [images, mirrored], images.shape, axis=0)


def _mean_of_views(graph: Graph, made: Blob) -> Blob:
    """The means over the two halves of the first axis, (N, D), of what was made of _with_mirror_images()."""
    count = int(np.prod(made.shape))
    views = graph.add("Reshape", [made, graph.parameter(np.array([2, -1, count]))], (-1, count))
    return graph.add("ReduceMean", [views], (count,), axes=[0], keepdims=0)
