"""What each of Caffe's layers is in ONNX, as it works in its TEST phase: one function a layer type.

What Caffe computes is taken from its src/caffe/layers (BVLC Caffe, master at 9b89154), what ONNX's operators mean from
their specification at the operator set OPSET.
"""

import math
from typing import NamedTuple

import numpy as np
from onnx import helper, numpy_helper

from tripletloss.base.errors import InputError

OPSET, IR_VERSION = 17, 8  # both onnxruntime and OpenCV 5 read these


class Blob(NamedTuple):
    """A tensor of the graph that is being made."""

    name: str
    shape: tuple  # without the axis of the images, which may be of any length


class Graph:
    """Nodes and parameters, as layers add them."""

    def __init__(self):
        """An empty graph."""
        self.nodes, self.parameters = [], []
        self.layer, self.weights, self.where = None, [], ""

    def start(self, layer, weights, where):
        """Go on with a layer: a LayerParameter, its parameters, and what an error begins with."""
        self.layer, self.weights, self.where = layer, weights, where

    def add(self, operator, inputs, shape, **attributes):
        """Add a node with one output; inputs: Blobs and names of parameters. Returns the output, a Blob."""
        name = f"{self.layer.name}/{len(self.nodes)}/{operator}"
        inputs = [one.name if isinstance(one, Blob) else one for one in inputs]
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return Blob(name, tuple(shape))

    def parameter(self, values):
        """Add an array; returns its name."""
        name = f"{self.layer.name}/parameter{len(self.parameters)}"
        self.parameters.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value):
        """Add one float32."""
        return self.parameter(np.array(value, np.float32))

    def learned(self, *shapes):
        """The layer's parameters in these shapes. Raises InputError if there are others, or they do not fit."""
        found = [array.shape for array in self.weights]
        # Old weights have four axes, the first of them 1.
        if [math.prod(shape) for shape in shapes] != [math.prod(shape) for shape in found] or any(
            there != (1,) * (len(there) - len(here)) + here
            for here, there in zip(shapes, found, strict=True)
        ):
            raise self.refused(f"has parameters of {_text(found)} in the weights, and of {_text(shapes)} in the net")
        return [array.reshape(shape) for array, shape in zip(self.weights, shapes, strict=True)]

    def refused(self, reason):
        """The InputError that the layer cannot be exported."""
        return InputError(f"{self.where} {reason}")


def _text(shapes):
    return " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes) or "none"


def choice(message, field):
    """The name of an enumeration's value that a message has in a field."""
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name


def _axis(graph, axis, bottom):
    """An axis of Caffe's, from 1 on: 0 is that of the images, which must stay apart."""
    found = axis + 1 + len(bottom.shape) if axis < 0 else axis
    if not 1 <= found <= len(bottom.shape):
        raise graph.refused(f"works along axis {axis}, where images are mixed or nothing is")
    return found


def _two(values, of_height, of_width, otherwise):
    """Height's and width's number out of a repeated field and two fields of their own."""
    if of_height or of_width:
        return [of_height, of_width]
    values = list(values) or [otherwise]
    return values if len(values) == 2 else values * 2


def convolution(graph, layer, bottom):
    """Caffe's Convolution in two dimensions."""
    p = layer.convolution_param
    kernel = _two(p.kernel_size, p.kernel_h, p.kernel_w, 0)
    pad, stride = _two(p.pad, p.pad_h, p.pad_w, 0), _two(p.stride, p.stride_h, p.stride_w, 1)
    dilation = _two(p.dilation, 0, 0, 1)
    if p.axis != 1 or len(bottom.shape) != 3 or any(len(two) != 2 for two in (kernel, pad, stride, dilation)):
        raise graph.refused("is a convolution in other than two dimensions")
    if not min(*kernel, *stride, *dilation, p.num_output, p.group):
        raise graph.refused("is a convolution with a 0 where there must be more: kernel, stride, outputs, groups")
    if bottom.shape[0] % p.group or p.num_output % p.group:
        raise graph.refused(f"is a convolution in {p.group} groups, which do not divide its channels")
    shapes = [(p.num_output, bottom.shape[0] // p.group, *kernel)] + [(p.num_output,)] * p.bias_term
    size = [
        (length + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(bottom.shape[1:])
    ]
    if min(size) < 1:
        raise graph.refused("is a convolution wider than what it takes")
    parameters = [graph.parameter(array) for array in graph.learned(*shapes)]
    return graph.add(
        "Conv", [bottom, *parameters], (p.num_output, *size),
        kernel_shape=kernel, pads=pad * 2, strides=stride, dilations=dilation, group=p.group,
    )  # fmt: skip


def pooling(graph, layer, bottom):
    """Caffe's Pooling, MAX and AVE.

    Caffe rounds the number of windows up and leaves out one that begins in the padding. An average counts the padding,
    but not what lies beyond it. So the last window's overhang becomes padding of ONNX's at the end.
    """
    p = layer.pooling_param
    method = choice(p, "pool")
    if method == "STOCHASTIC" or len(bottom.shape) != 3:
        raise graph.refused("pools at random, or other than pictures")
    if p.global_pooling:
        operator = {"MAX": "GlobalMaxPool", "AVE": "GlobalAveragePool"}[method]
        return graph.add(operator, [bottom], (bottom.shape[0], 1, 1))
    kernel = [p.kernel_h or p.kernel_size, p.kernel_w or p.kernel_size]
    pad, stride = [p.pad_h or p.pad, p.pad_w or p.pad], [p.stride_h or p.stride, p.stride_w or p.stride]
    if not min(kernel) or not min(stride) or any(edge >= side for edge, side in zip(pad, kernel, strict=True)):
        raise graph.refused("pools without kernel or stride, or with padding as wide as its kernel")
    size, overhang = [], []
    for i, length in enumerate(bottom.shape[1:]):
        steps = (length + 2 * pad[i] - kernel[i]) / stride[i]
        windows = (math.floor if choice(p, "round_mode") == "FLOOR" else math.ceil)(steps) + 1
        if any(pad) and (windows - 1) * stride[i] >= length + pad[i]:
            windows -= 1
        end = (windows - 1) * stride[i] + kernel[i] - length - pad[i]
        if windows < 1 or end >= kernel[i] + pad[i]:
            raise graph.refused("pools a window that holds nothing")
        size.append(windows)
        overhang.append(max(end, 0))
    shape = (bottom.shape[0], *size)
    if method == "MAX":
        return graph.add("MaxPool", [bottom], shape, kernel_shape=kernel, strides=stride, pads=pad + overhang)
    if any(pad):
        wider = (bottom.shape[0], bottom.shape[1] + 2 * pad[0], bottom.shape[2] + 2 * pad[1])
        edges = graph.parameter(np.array([0, 0, *pad] * 2, np.int64))
        bottom = graph.add("Pad", [bottom, edges, graph.number(0)], wider)
    beyond = [max(over - edge, 0) for over, edge in zip(overhang, pad, strict=True)]
    return graph.add(
        "AveragePool", [bottom], shape, kernel_shape=kernel, strides=stride, pads=[0, 0, *beyond], count_include_pad=0
    )


def inner_product(graph, layer, bottom):
    """Caffe's InnerProduct: all of an image's numbers to num_output."""
    p = layer.inner_product_param
    if _axis(graph, p.axis, bottom) != 1:
        raise graph.refused("takes only a part of an image's numbers at a time")
    inputs = math.prod(bottom.shape)
    weights, *bias = graph.learned(
        (inputs, p.num_output) if p.transpose else (p.num_output, inputs), *[(p.num_output,)] * p.bias_term
    )
    if len(bottom.shape) > 1:
        bottom = graph.add("Flatten", [bottom], (inputs,), axis=1)
    parameters = [graph.parameter(array) for array in (weights, *bias)]
    return graph.add("Gemm", [bottom, *parameters], (p.num_output,), transB=0 if p.transpose else 1)


def batch_norm(graph, layer, bottom):
    """Caffe's BatchNorm, by its stored sums and the number that they are of; ONNX's scale is 1 and its shift 0."""
    p = layer.batch_norm_param
    if p.HasField("use_global_stats") and not p.use_global_stats:
        raise graph.refused("normalises by the images that come together: take use_global_stats out")
    channels = bottom.shape[0]
    mean, variance, weight = graph.learned((channels,), (channels,), (1,))
    factor = np.float32(0 if weight[0] == 0 else 1 / weight[0])
    one, nothing = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    parameters = [graph.parameter(array) for array in (one, nothing, mean * factor, variance * factor)]
    return graph.add("BatchNormalization", [bottom, *parameters], bottom.shape, epsilon=p.eps)


def scale(graph, layer, bottom, by=None):
    """Caffe's Scale: by parameters of its own, or by a second bottom that has one number, or more, an image."""
    p = layer.scale_param
    if by is not None:
        if p.axis != 0 or p.bias_term or by.shape != bottom.shape[: len(by.shape)]:
            raise graph.refused("scales by another blob, other than image by image from the first axis on")
        if len(by.shape) < len(bottom.shape):
            axes = np.arange(len(by.shape) + 1, len(bottom.shape) + 1)
            shape = by.shape + (1,) * len(axes)
            by = graph.add("Unsqueeze", [by, graph.parameter(axes)], shape)
        return graph.add("Mul", [bottom, by], bottom.shape)
    first = _axis(graph, p.axis, bottom) - 1
    last = len(bottom.shape) if p.num_axes == -1 else first + p.num_axes
    shape = bottom.shape[first:last]
    factors, *shifts = graph.learned(shape, *[shape] * p.bias_term)
    wide = shape + (1,) * (len(bottom.shape) - last)
    scaled = graph.add("Mul", [bottom, graph.parameter(factors.reshape(wide))], bottom.shape)
    if not shifts:
        return scaled
    return graph.add("Add", [scaled, graph.parameter(shifts[0].reshape(wide))], bottom.shape)


def relu(graph, layer, bottom):
    """Caffe's ReLU, with a slope for what is below 0 or without."""
    slope = layer.relu_param.negative_slope
    if slope:
        return graph.add("LeakyRelu", [bottom], bottom.shape, alpha=slope)
    return graph.add("Relu", [bottom], bottom.shape)


def prelu(graph, layer, bottom):
    """Caffe's PReLU: a slope a channel, or one for all."""
    shared = layer.prelu_param.channel_shared
    [slopes] = graph.learned(() if shared else bottom.shape[:1])
    slopes = np.broadcast_to(slopes, bottom.shape[:1]).reshape(-1, *[1] * (len(bottom.shape) - 1))
    return graph.add("PRelu", [bottom, graph.parameter(slopes)], bottom.shape)


def lrn(graph, layer, bottom):
    """Caffe's LRN across channels."""
    p = layer.lrn_param
    if choice(p, "norm_region") != "ACROSS_CHANNELS" or p.local_size % 2 == 0:
        raise graph.refused("normalises within channels, or over an even number of them")
    return graph.add("LRN", [bottom], bottom.shape, alpha=p.alpha, beta=p.beta, bias=p.k, size=p.local_size)


def eltwise(graph, layer, *bottoms):
    """Caffe's Eltwise: sum, with coefficients or without, product, or maximum."""
    p = layer.eltwise_param
    operation = choice(p, "operation")
    alike = len(bottoms) > 1 and all(bottom.shape == bottoms[0].shape for bottom in bottoms)
    if not alike or len(p.coeff) not in (0, len(bottoms)):
        raise graph.refused("takes one blob alone, blobs that differ in shape, or not one coefficient each")
    if p.coeff and operation == "SUM":
        bottoms = [
            bottom if factor == 1 else graph.add("Mul", [bottom, graph.number(factor)], bottom.shape)
            for bottom, factor in zip(bottoms, p.coeff, strict=True)
        ]
    result = bottoms[0]
    for bottom in bottoms[1:]:
        result = graph.add({"SUM": "Add", "PROD": "Mul", "MAX": "Max"}[operation], [result, bottom], bottom.shape)
    return result


def concat(graph, layer, *bottoms):
    """Caffe's Concat along any axis but that of the images."""
    p = layer.concat_param
    axis = _axis(graph, p.concat_dim if p.HasField("concat_dim") else p.axis, bottoms[0])
    rest = {bottom.shape[: axis - 1] + bottom.shape[axis:] for bottom in bottoms}
    if len(rest) > 1 or len({len(bottom.shape) for bottom in bottoms}) > 1:
        raise graph.refused("takes blobs that differ in more than the axis along which they are put together")
    first = bottoms[0].shape
    shape = first[: axis - 1] + (sum(bottom.shape[axis - 1] for bottom in bottoms),) + first[axis:]
    return graph.add("Concat", bottoms, shape, axis=axis)


def flatten(graph, layer, bottom):
    """Caffe's Flatten of all of an image's numbers."""
    p = layer.flatten_param
    if _axis(graph, p.axis, bottom) != 1 or _axis(graph, p.end_axis, bottom) != len(bottom.shape):
        raise graph.refused("flattens other than all of an image's numbers")
    return graph.add("Flatten", [bottom], (math.prod(bottom.shape),), axis=1)


def power(graph, layer, bottom):
    """Caffe's Power: (shift + scale x) ** power."""
    p = layer.power_param
    result = bottom
    for operator, value, nothing in (("Mul", p.scale, 1), ("Add", p.shift, 0), ("Pow", p.power, 1)):
        if value != nothing:
            result = graph.add(operator, [result, graph.number(value)], bottom.shape)
    return result


def reduction(graph, layer, bottom):
    """Caffe's Reduction of all axes from one on, times a coefficient."""
    p = layer.reduction_param
    axis = _axis(graph, p.axis, bottom)
    if choice(p, "operation") == "SUMSQ":
        bottom = graph.add("Mul", [bottom, bottom], bottom.shape)
    elif choice(p, "operation") == "ASUM":
        bottom = graph.add("Abs", [bottom], bottom.shape)
    axes = list(range(axis, len(bottom.shape) + 1))
    shape = bottom.shape[: axis - 1]
    if choice(p, "operation") == "MEAN":
        result = graph.add("ReduceMean", [bottom], shape, axes=axes, keepdims=0)
    else:
        result = graph.add("ReduceSum", [bottom, graph.parameter(np.array(axes))], shape, keepdims=0)
    return result if p.coeff == 1 else graph.add("Mul", [result, graph.number(p.coeff)], shape)


def dropout(graph, layer, bottom):
    """Caffe's Dropout, which does nothing in its TEST phase."""
    return bottom


LAYERS = {
    "BatchNorm": batch_norm, "Concat": concat, "Convolution": convolution, "Dropout": dropout, "Eltwise": eltwise,
    "Flatten": flatten, "InnerProduct": inner_product, "LRN": lrn, "PReLU": prelu, "Pooling": pooling, "Power": power,
    "ReLU": relu, "Reduction": reduction, "Scale": scale,
}  # fmt: skip
