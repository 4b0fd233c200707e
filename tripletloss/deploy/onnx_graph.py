"""The ONNX graph that a net becomes: nodes and parameters, which the functions in onnx_layers.py add."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tripletloss.base.errors import InputError

OPSET, IR_VERSION = 17, 8  # both onnxruntime and OpenCV 5 can read these


class Blob(NamedTuple):
    """A tensor in the graph."""

    name: str
    shape: tuple[int, ...]  # without the first axis, which is that of the images and may have any length


class Graph:
    """The nodes and parameters that layers add."""

    def __init__(self) -> None:
        """An empty graph."""
        self.nodes: list[NodeProto] = []
        self.parameters: list[TensorProto] = []
        self.layer: Any = None
        self.weights: list[np.ndarray] = []
        self.where = ""

    def start(self, layer: Any, weights: list[np.ndarray], where: str) -> None:
        """Begin a layer: a LayerParameter, its parameters, and what error messages begin with."""
        self.layer, self.weights, self.where = layer, weights, where

    def add(self, operator: str, inputs: Sequence[Blob | str], shape: Sequence[int], **attributes: Any) -> Blob:
        """Add a node with one output, and return that. inputs: Blobs and names of parameters; shape: of the output."""
        name = f"{self.layer.name}/{len(self.nodes)}/{operator}"
        names = [one.name if isinstance(one, Blob) else one for one in inputs]
        self.nodes.append(helper.make_node(operator, names, [name], name, **attributes))
        return Blob(name, tuple(shape))

    def parameter(self, values: np.ndarray) -> str:
        """Add an array, and return its name."""
        name = f"{self.layer.name}/parameter{len(self.parameters)}"
        self.parameters.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float) -> str:
        """Add a single float32, and return its name."""
        return self.parameter(np.array(value, np.float32))

    def learned(self, *shapes: tuple[int, ...]) -> list[np.ndarray]:
        """The layer's parameters in these shapes. Raises InputError if the number or the shapes do not match."""
        found = [array.shape for array in self.weights]
        # Old weights always have four axes, of which the first ones have length 1.
        if [math.prod(shape) for shape in shapes] != [math.prod(shape) for shape in found] or any(
            there != (1,) * (len(there) - len(here)) + here for here, there in zip(shapes, found, strict=True)
        ):
            raise self.refused(f"has parameters of {_text(found)} in the weights, but of {_text(shapes)} in the net")
        return [array.reshape(shape) for array, shape in zip(self.weights, shapes, strict=True)]

    def refused(self, reason: str) -> InputError:
        """The InputError for a layer that cannot be exported."""
        return InputError(f"{self.where} {reason}")


def _text(shapes):
    return " and ".join("x".join(map(str, shape)) or "one number" for shape in shapes) or "none"


def choice(message: Any, field: str) -> str:
    """The name of the value in an enumeration field of a message."""
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name


def axis_of(graph: Graph, axis: int, bottom: Blob) -> int:
    """One of Caffe's axes, counted from the first. Raises InputError for 0, the axis of the images."""
    found = axis + 1 + len(bottom.shape) if axis < 0 else axis
    if not 1 <= found <= len(bottom.shape):
        raise graph.refused(f"works along axis {axis}, which is the axis of the images or does not exist")
    return found


def height_and_width(values: Any, of_height: int, of_width: int, otherwise: int) -> list[int]:
    """The numbers for height and width, from a repeated field and two fields of their own."""
    if of_height or of_width:
        return [of_height, of_width]
    values = list(values) or [otherwise]
    return values if len(values) == 2 else values * 2
