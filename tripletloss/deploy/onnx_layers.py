"""What each of Caffe's layers becomes in ONNX, as it works in the TEST phase: one function per layer type.

What Caffe computes is taken from its src/caffe/layers (BVLC Caffe, master at 9b89154), and the meaning of ONNX's
operators from their specification for the operator set OPSET. Each function takes the Graph, a LayerParameter and the
bottoms, adds to the graph, and returns the top. It raises InputError for what cannot be expressed.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tripletloss.deploy.onnx_graph import Blob, Graph, axis_of, choice, height_and_width


def convolution(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's Convolution in two dimensions."""
    p = layer.convolution_param
    kernel = height_and_width(p.kernel_size, p.kernel_h, p.kernel_w, 0)
    pad, stride = height_and_width(p.pad, p.pad_h, p.pad_w, 0), height_and_width(p.stride, p.stride_h, p.stride_w, 1)
    dilation = height_and_width(p.dilation, 0, 0, 1)
    if p.axis != 1 or len(bottom.shape) != 3 or any(len(two) != 2 for two in (kernel, pad, stride, dilation)):
        raise graph.refused("is a convolution that is not in two dimensions")
    if not min(*kernel, *stride, *dilation, p.num_output, p.group):
        raise graph.refused("is a convolution whose kernel, stride, dilation, outputs or groups are 0")
    if bottom.shape[0] % p.group or p.num_output % p.group:
        raise graph.refused(f"is a convolution whose channels cannot be divided into {p.group} groups")
    shapes = [(p.num_output, bottom.shape[0] // p.group, *kernel)] + [(p.num_output,)] * p.bias_term
    size = [
        (length + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(bottom.shape[1:])
    ]
    if min(size) < 1:
        raise graph.refused("is a convolution whose kernel is larger than its input")
    parameters = [graph.parameter(array) for array in graph.learned(*shapes)]
    return graph.add(
        "Conv", [bottom, *parameters], (p.num_output, *size),
        kernel_shape=kernel, pads=pad * 2, strides=stride, dilations=dilation, group=p.group,
    )  # fmt: skip


def pooling(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's Pooling, MAX and AVE.

    Caffe rounds the number of windows up, and drops a window that begins in the padding. An average counts the padding,
    but nothing beyond it. So what the last window extends beyond the input becomes padding at the end in ONNX.
    """
    p = layer.pooling_param
    method = choice(p, "pool")
    if method == "STOCHASTIC" or len(bottom.shape) != 3:
        raise graph.refused("is a pooling that is stochastic or not in two dimensions")
    if p.global_pooling:
        operator = {"MAX": "GlobalMaxPool", "AVE": "GlobalAveragePool"}[method]
        return graph.add(operator, [bottom], (bottom.shape[0], 1, 1))
    kernel = [p.kernel_h or p.kernel_size, p.kernel_w or p.kernel_size]
    pad, stride = [p.pad_h or p.pad, p.pad_w or p.pad], [p.stride_h or p.stride, p.stride_w or p.stride]
    if not min(kernel) or not min(stride) or any(edge >= side for edge, side in zip(pad, kernel, strict=True)):
        raise graph.refused("is a pooling without kernel or stride, or with padding as wide as its kernel")
    size, overhang = [], []
    for i, length in enumerate(bottom.shape[1:]):
        steps = (length + 2 * pad[i] - kernel[i]) / stride[i]
        windows = (math.floor if choice(p, "round_mode") == "FLOOR" else math.ceil)(steps) + 1
        if any(pad) and (windows - 1) * stride[i] >= length + pad[i]:
            windows -= 1
        end = (windows - 1) * stride[i] + kernel[i] - length - pad[i]
        if windows < 1 or end >= kernel[i] + pad[i]:
            raise graph.refused("is a pooling with a window outside of its input")
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


def inner_product(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's InnerProduct, from all numbers of an image to num_output numbers."""
    p = layer.inner_product_param
    if axis_of(graph, p.axis, bottom) != 1:
        raise graph.refused("multiplies only part of an image's numbers at a time")
    inputs = math.prod(bottom.shape)
    weights, *bias = graph.learned(
        (inputs, p.num_output) if p.transpose else (p.num_output, inputs), *[(p.num_output,)] * p.bias_term
    )
    if len(bottom.shape) > 1:
        bottom = graph.add("Flatten", [bottom], (inputs,), axis=1)
    parameters = [graph.parameter(array) for array in (weights, *bias)]
    return graph.add("Gemm", [bottom, *parameters], (p.num_output,), transB=0 if p.transpose else 1)


def batch_norm(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's BatchNorm, with its stored sums and their weight; in ONNX, scale is 1 and shift is 0."""
    p = layer.batch_norm_param
    if p.HasField("use_global_stats") and not p.use_global_stats:
        raise graph.refused("normalises by the statistics of the mini-batch: remove use_global_stats")
    channels = bottom.shape[0]
    mean, variance, weight = graph.learned((channels,), (channels,), (1,))
    factor = np.float32(0 if weight[0] == 0 else 1 / weight[0])
    one, nothing = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    parameters = [graph.parameter(array) for array in (one, nothing, mean * factor, variance * factor)]
    return graph.add("BatchNormalization", [bottom, *parameters], bottom.shape, epsilon=p.eps)


def scale(graph: Graph, layer: Any, bottom: Blob, by: Blob | None = None) -> Blob:
    """Caffe's Scale: by its own parameters, or by a second bottom with one or more numbers per image."""
    p = layer.scale_param
    if by is not None:
        if p.axis != 0 or p.bias_term or by.shape != bottom.shape[: len(by.shape)]:
            raise graph.refused("scales by another blob in a way other than per image, from the first axis on")
        if len(by.shape) < len(bottom.shape):
            axes = np.arange(len(by.shape) + 1, len(bottom.shape) + 1)
            shape = by.shape + (1,) * len(axes)
            by = graph.add("Unsqueeze", [by, graph.parameter(axes)], shape)
        return graph.add("Mul", [bottom, by], bottom.shape)
    first = axis_of(graph, p.axis, bottom) - 1
    last = len(bottom.shape) if p.num_axes == -1 else first + p.num_axes
    shape = bottom.shape[first:last]
    factors, *shifts = graph.learned(shape, *[shape] * p.bias_term)
    wide = shape + (1,) * (len(bottom.shape) - last)
    scaled = graph.add("Mul", [bottom, graph.parameter(factors.reshape(wide))], bottom.shape)
    if not shifts:
        return scaled
    return graph.add("Add", [scaled, graph.parameter(shifts[0].reshape(wide))], bottom.shape)


def relu(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's ReLU, with or without a slope for negative numbers."""
    slope = layer.relu_param.negative_slope
    if slope:
        return graph.add("LeakyRelu", [bottom], bottom.shape, alpha=slope)
    return graph.add("Relu", [bottom], bottom.shape)


def prelu(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's PReLU, with one slope per channel, or one for all."""
    shared = layer.prelu_param.channel_shared
    [slopes] = graph.learned(() if shared else bottom.shape[:1])
    slopes = np.broadcast_to(slopes, bottom.shape[:1]).reshape(-1, *[1] * (len(bottom.shape) - 1))
    return graph.add("PRelu", [bottom, graph.parameter(slopes)], bottom.shape)


def lrn(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's LRN across channels."""
    p = layer.lrn_param
    if choice(p, "norm_region") != "ACROSS_CHANNELS" or p.local_size % 2 == 0:
        raise graph.refused("normalises within channels, or across an even number of them")
    return graph.add("LRN", [bottom], bottom.shape, alpha=p.alpha, beta=p.beta, bias=p.k, size=p.local_size)


def eltwise(graph: Graph, layer: Any, *bottoms: Blob) -> Blob:
    """Caffe's Eltwise: a sum, with or without coefficients, a product, or a maximum."""
    p = layer.eltwise_param
    operation = choice(p, "operation")
    alike = len(bottoms) > 1 and all(bottom.shape == bottoms[0].shape for bottom in bottoms)
    if not alike or len(p.coeff) not in (0, len(bottoms)):
        raise graph.refused("has a single bottom, bottoms that differ in shape, or not one coefficient per bottom")
    if p.coeff and operation == "SUM":
        bottoms = tuple(
            bottom if factor == 1 else graph.add("Mul", [bottom, graph.number(factor)], bottom.shape)
            for bottom, factor in zip(bottoms, p.coeff, strict=True)
        )
    result = bottoms[0]
    for bottom in bottoms[1:]:
        result = graph.add({"SUM": "Add", "PROD": "Mul", "MAX": "Max"}[operation], [result, bottom], bottom.shape)
    return result


def concat(graph: Graph, layer: Any, *bottoms: Blob) -> Blob:
    """Caffe's Concat along any axis except that of the images."""
    p = layer.concat_param
    axis = axis_of(graph, p.concat_dim if p.HasField("concat_dim") else p.axis, bottoms[0])
    rest = {bottom.shape[: axis - 1] + bottom.shape[axis:] for bottom in bottoms}
    if len(rest) > 1 or len({len(bottom.shape) for bottom in bottoms}) > 1:
        raise graph.refused("has bottoms that differ in another axis than that of the concatenation")
    first = bottoms[0].shape
    shape = first[: axis - 1] + (sum(bottom.shape[axis - 1] for bottom in bottoms),) + first[axis:]
    return graph.add("Concat", bottoms, shape, axis=axis)


def flatten(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's Flatten of all numbers of an image."""
    p = layer.flatten_param
    if axis_of(graph, p.axis, bottom) != 1 or axis_of(graph, p.end_axis, bottom) != len(bottom.shape):
        raise graph.refused("flattens only part of an image's numbers")
    return graph.add("Flatten", [bottom], (math.prod(bottom.shape),), axis=1)


def power(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's Power: (shift + scale x) ** power."""
    p = layer.power_param
    result = bottom
    for operator, value, nothing in (("Mul", p.scale, 1), ("Add", p.shift, 0), ("Pow", p.power, 1)):
        if value != nothing:
            result = graph.add(operator, [result, graph.number(value)], bottom.shape)
    return result


def reduction(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's Reduction of all axes from a given one on, times a coefficient."""
    p = layer.reduction_param
    axis = axis_of(graph, p.axis, bottom)
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


def dropout(graph: Graph, layer: Any, bottom: Blob) -> Blob:
    """Caffe's Dropout, which does nothing in the TEST phase."""
    return bottom


LAYERS: dict[str, Callable[..., Blob]] = {
    "BatchNorm": batch_norm, "Concat": concat, "Convolution": convolution, "Dropout": dropout, "Eltwise": eltwise,
    "Flatten": flatten, "InnerProduct": inner_product, "LRN": lrn, "PReLU": prelu, "Pooling": pooling, "Power": power,
    "ReLU": relu, "Reduction": reduction, "Scale": scale,
}  # fmt: skip
