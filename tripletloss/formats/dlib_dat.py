"""A network that dlib has saved, read without dlib, to the last byte.

What is in such a file was read off the file of dlib's face network: a loss, a version for each layer from the last one
to the first, the input, and then the layers from the first one to the last. Nothing is guessed: a kind of layer, a
version or a setting that this module does not know is refused by name.
"""

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError

CONVOLUTION, AFFINE, RELU, SUM, MAX_POOL, AVERAGE_POOL, INNER_PRODUCT = (
    "con_4", "affine_", "relu_", "add_prev_", "max_pool_2", "avg_pool_2", "fc_2"
)  # fmt: skip
TAG, SKIP = "tag", "skip"  # they mark a blob and go back to it: in the file, only their versions are there
LAYER_VERSION, MARK_VERSION, FIRST_VERSION = 2, 1, 3  # of layers, of tags and skips, and of the layer at the input
TENSOR_VERSION, ALIAS_VERSION = 2, 1
NOT_NUMBERS = {32000: math.inf, 32001: -math.inf, 32002: math.nan}  # exponents with this meaning
NEGATIVE, LENGTH = 0x80, 0x0F  # of an integer's first byte: its sign, and how many bytes follow


class Layer(NamedTuple):
    """A layer with its settings and parameters."""

    kind: str
    parameters: tuple[np.ndarray, ...] = ()  # float32, four axes each: see _convolution, _affine, _inner_product
    window: tuple[int, ...] = ()  # of a convolution or a pooling: rows, columns, strides and pads, y before x


class Network(NamedTuple):
    """A saved network: its input and its layers in the order in which they run, without tags and skips."""

    means: tuple[float, float, float]  # of R, G, B, from 0 to 255; dlib also divides by 256 after the subtraction
    size: tuple[int, int]  # rows and columns of its input
    layers: list[Layer]


def read_network(content: bytes, kinds: Sequence[str], name: str) -> Network:
    """Read the bytes of a .dat file that holds a network for metric learning.

    kinds: of the layers that it must have, from the first one to the last, with TAG and SKIP where dlib's definition
    of the network has them; name: of the file in error messages. Raises InputError if it has anything else, or more.
    """
    file = _File(content, name)
    file.expect("the version of the loss", file.integer(), 1)
    file.expect("the loss", file.text(), "loss_metric_2")
    file.number(), file.number()  # the loss's margin and threshold, which only training uses
    for index in reversed(range(len(kinds))):
        version = MARK_VERSION if kinds[index] in (TAG, SKIP) else LAYER_VERSION if index else FIRST_VERSION
        file.expect(f"the version of layer {index} ({kinds[index]})", file.integer(), version)
    file.expect("the input", file.text(), "input_rgb_image_sized")
    means, size = (file.number(), file.number(), file.number()), (file.integer(), file.integer())
    layers = []
    for index, kind in enumerate(kinds):
        if kind not in (TAG, SKIP):
            file.expect(f"layer {index}", file.text(), kind)
            layers.append(READERS[kind](file))
            file.skip_state()
            if not index:
                file.expect("the number of copies of each image", file.integer(), 1)
    if file.position != len(content):
        raise InputError(f"{name} has {len(content) - file.position} bytes after the last layer: get the file again")
    return Network(means, size, layers)


class _File:
    """The bytes of a file, and how far they have been read."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name, self.position = content, name, 0

    def expect(self, what: str, found: object, known: object) -> None:
        """Raise InputError if something is not the only thing that is known."""
        if found != known:
            raise InputError(f"{self.name}: {what} is {found!r}, but only {known!r} is known: get the file again")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if not 0 <= count <= len(self.content) - self.position:
            raise InputError(f"{self.name} ends at byte {len(self.content)}, within a value: get the file again")
        self.position += count
        return self.content[self.position - count : self.position]

    def integer(self) -> int:
        """A whole number: a byte with its sign and length, then its magnitude, lowest byte first."""
        [head] = self.take(1)
        length = head & LENGTH
        if head & ~(NEGATIVE | LENGTH) or not 1 <= length <= 8:
            raise InputError(f"{self.name}: byte {self.position - 1} begins no number: get the file again")
        magnitude = int.from_bytes(self.take(length), "little")
        return -magnitude if head & NEGATIVE else magnitude

    def number(self) -> float:
        """A float or double: mantissa and exponent of two."""
        mantissa, exponent = self.integer(), self.integer()
        try:
            return NOT_NUMBERS[exponent] if exponent in NOT_NUMBERS else math.ldexp(mantissa, exponent)
        except OverflowError:
            raise InputError(
                f"{self.name}: byte {self.position} ends a number that is too large: get the file again"
            ) from None

    def text(self) -> str:
        """A text: its length and its characters."""
        return self.take(self.integer()).decode("latin-1")

    def shape(self) -> tuple[int, int, int, int]:
        """Four axes of a tensor: samples, channels, rows, columns."""
        return self.integer(), self.integer(), self.integer(), self.integer()

    def tensor(self) -> np.ndarray:
        """A tensor, float32, with four axes."""
        self.expect("the version of a tensor", self.integer(), TENSOR_VERSION)
        shape = self.shape()
        if min(shape) < 0 or max(shape) > len(self.content):
            raise InputError(f"{self.name}: a tensor before byte {self.position} has the shape {shape}: get it again")
        return np.frombuffer(self.take(4 * math.prod(shape)), "<f4").reshape(shape)

    def divided(self, parameters: np.ndarray, parts: int) -> tuple[np.ndarray, ...]:
        """A layer's parameters in parts, whose shapes come next. Parts of zero numbers are left out."""
        found, flat = [], parameters.ravel()
        for _ in range(parts):
            self.expect("the version of a part of the parameters", self.integer(), ALIAS_VERSION)
            shape = self.shape()
            if min(shape) < 0 or max(shape) > len(self.content) or math.prod(shape) > len(flat):
                raise InputError(f"{self.name}: parameters before byte {self.position} do not fit: get the file again")
            found.append(flat[: math.prod(shape)].reshape(shape))
            flat = flat[math.prod(shape) :]
        self.expect("the number of parameters left over", len(flat), 0)
        return tuple(part for part in found if part.size)

    def skip_state(self) -> None:
        """What each layer has for training: three flags, which are characters, and three tensors."""
        for flag in struct.unpack("3c", self.take(3)):
            if flag not in b"01":
                raise InputError(f"{self.name}: byte {self.position} is no flag of a layer: get the file again")
        for _ in range(3):
            self.tensor()


def _nothing(kind):
    return lambda file: Layer(kind)


def _convolution(file):
    """Parameters: filters (outputs, inputs, rows, columns) and biases (1, outputs, 1, 1)."""
    flat = file.tensor()
    outputs = file.integer()
    window = tuple(file.integer() for _ in range(6))
    filters, biases = file.divided(flat, 2)
    file.expect("the shape of filters", filters.shape[:1] + filters.shape[2:], (outputs, *window[:2]))
    file.expect("the shape of biases", biases.shape, (1, outputs, 1, 1))
    _skip_rates(file)
    return Layer(CONVOLUTION, (filters, biases), window)


def _affine(file):
    """Parameters: factors and shifts, each (1, channels, 1, 1)."""
    parameters = file.divided(file.tensor(), 2)
    file.expect("the mode of an affine layer", file.integer(), 0)  # of a convolution: a factor for each channel
    return Layer(AFFINE, parameters)


def _pooling(kind):
    return lambda file: Layer(kind, (), tuple(file.integer() for _ in range(6)))


def _inner_product(file):
    """Parameters: the weights (inputs, outputs, 1, 1). There are no biases."""
    outputs, inputs = file.integer(), file.integer()
    parameters = file.divided(file.tensor(), 2)
    file.expect("the number of parts of fc_2's parameters", len(parameters), 1)
    file.expect("the shape of fc_2's weights", parameters[0].shape, (inputs, outputs, 1, 1))
    file.expect("the mode of fc_2's biases", file.integer(), 1)  # it has none
    _skip_rates(file)
    return Layer(INNER_PRODUCT, parameters)


def _skip_rates(file):
    """Factors of the learning rate and of the weight decay, for weights and for biases."""
    for _ in range(4):
        file.number()


READERS = {
    CONVOLUTION: _convolution, AFFINE: _affine, RELU: _nothing(RELU), SUM: _nothing(SUM),
    MAX_POOL: _pooling(MAX_POOL), AVERAGE_POOL: _pooling(AVERAGE_POOL), INNER_PRODUCT: _inner_product,
}  # fmt: skip
