"""Caffe's files without Caffe: prototxts, .caffemodel and .caffemodel.h5, with protobuf and h5py only.

This describes the part of Caffe's format that nets of exportable layers use. Names, numbers, types and defaults are
those of src/caffe/proto/caffe.proto (BVLC Caffe, master at 9b89154).
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.base.process import read_hdf5

Kept = TypeVar("Kept")
Message = TypeVar("Message", bound=Any)  # of protobuf

# A prototxt's comments and strings, the brackets around messages and lists, and the colons before values.
TOKENS = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[][{}<>:]""")
OPENING, CLOSING = "{<[", "}>]"
MOST_WEIGHT_BYTES = 2**31 - 1  # protobuf's limit
MOST_LEVELS, MOST_MESSAGES, MOST_VALUES = 50, 10_000, 200_000
ENGINE = "DEFAULT|CAFFE|CUDNN"
# Message -> its fields: number, name, type (with * if repeated), default. A type with | lists the values of an
# enumeration, which count from 0, or from the number before a colon.
MESSAGES = {
    "BlobShape": "1 dim int64*",
    "BlobProto": """1 num int32; 2 channels int32; 3 height int32; 4 width int32; 5 data float*; 6 diff float*;
        7 shape BlobShape; 8 double_data double*; 9 double_diff double*""",
    "NetParameter": """1 name string; 2 layers V1LayerParameter*; 3 input string*; 4 input_dim int32*;
        5 force_backward bool false; 7 debug_info bool false; 8 input_shape BlobShape*; 100 layer LayerParameter*""",
    "V1LayerParameter": "4 name string; 6 blobs BlobProto*",  # before 2014; nothing else of such weights is needed
    "LayerParameter": """1 name string; 2 type string; 3 bottom string*; 4 top string*; 5 loss_weight float*;
        6 param ParamSpec*; 7 blobs BlobProto*; 8 include NetStateRule*; 9 exclude NetStateRule*; 10 phase TRAIN|TEST;
        11 propagate_down bool*; 104 concat_param ConcatParameter; 106 convolution_param ConvolutionParameter;
        108 dropout_param DropoutParameter; 110 eltwise_param EltwiseParameter;
        117 inner_product_param InnerProductParameter; 118 lrn_param LRNParameter; 121 pooling_param PoolingParameter;
        122 power_param PowerParameter; 123 relu_param ReLUParameter; 131 prelu_param PReLUParameter;
        135 flatten_param FlattenParameter; 136 reduction_param ReductionParameter;
        139 batch_norm_param BatchNormParameter; 142 scale_param ScaleParameter; 143 input_param InputParameter""",
    "NetStateRule": "1 phase TRAIN|TEST; 2 min_level int32; 3 max_level int32; 4 stage string*; 5 not_stage string*",
    "ParamSpec": "1 name string; 2 share_mode STRICT|PERMISSIVE; 3 lr_mult float 1; 4 decay_mult float 1",
    "FillerParameter": """1 type string constant; 2 value float 0; 3 min float 0; 4 max float 1; 5 mean float 0;
        6 std float 1; 7 sparse int32 -1; 8 variance_norm FAN_IN|FAN_OUT|AVERAGE FAN_IN""",
    "InputParameter": "1 shape BlobShape*",
    "ConvolutionParameter": f"""1 num_output uint32; 2 bias_term bool true; 3 pad uint32*; 4 kernel_size uint32*;
        5 group uint32 1; 6 stride uint32*; 7 weight_filler FillerParameter; 8 bias_filler FillerParameter;
        9 pad_h uint32 0; 10 pad_w uint32 0; 11 kernel_h uint32; 12 kernel_w uint32; 13 stride_h uint32;
        14 stride_w uint32; 15 engine {ENGINE} DEFAULT; 16 axis int32 1; 17 force_nd_im2col bool false;
        18 dilation uint32*""",
    "BatchNormParameter": "1 use_global_stats bool; 2 moving_average_fraction float 0.999; 3 eps float 1e-05",
    "ScaleParameter": """1 axis int32 1; 2 num_axes int32 1; 3 filler FillerParameter; 4 bias_term bool false;
        5 bias_filler FillerParameter""",
    "ReLUParameter": f"1 negative_slope float 0; 2 engine {ENGINE} DEFAULT",
    "PReLUParameter": "1 filler FillerParameter; 2 channel_shared bool false",
    "PoolingParameter": f"""1 pool MAX|AVE|STOCHASTIC MAX; 2 kernel_size uint32; 3 stride uint32 1; 4 pad uint32 0;
        5 kernel_h uint32; 6 kernel_w uint32; 7 stride_h uint32; 8 stride_w uint32; 9 pad_h uint32 0; 10 pad_w uint32 0;
        11 engine {ENGINE} DEFAULT; 12 global_pooling bool false; 13 round_mode CEIL|FLOOR CEIL""",
    "InnerProductParameter": """1 num_output uint32; 2 bias_term bool true; 3 weight_filler FillerParameter;
        4 bias_filler FillerParameter; 5 axis int32 1; 6 transpose bool false""",
    "LRNParameter": f"""1 local_size uint32 5; 2 alpha float 1; 3 beta float 0.75;
        4 norm_region ACROSS_CHANNELS|WITHIN_CHANNEL ACROSS_CHANNELS; 5 k float 1; 6 engine {ENGINE} DEFAULT""",
    "EltwiseParameter": "1 operation PROD|SUM|MAX SUM; 2 coeff float*; 3 stable_prod_grad bool true",
    "ConcatParameter": "1 concat_dim uint32 1; 2 axis int32 1",
    "FlattenParameter": "1 axis int32 1; 2 end_axis int32 -1",
    "DropoutParameter": "1 dropout_ratio float 0.5",
    "PowerParameter": "1 power float 1; 2 scale float 1; 3 shift float 0",
    "ReductionParameter": "1 operation 1:SUM|ASUM|SUMSQ|MEAN SUM; 2 axis int32 0; 3 coeff float 1",
}


def _describe():
    """MESSAGES as protobuf's own descriptor of a file."""
    file = descriptor_pb2.FileDescriptorProto(name="tripletloss/caffemodel.proto", package="tripletloss.caffe")
    for message, lines in MESSAGES.items():
        described = file.message_type.add(name=message)
        for line in lines.split(";"):
            number, name, kind, *default = line.split()
            many = kind.endswith("*")
            field = described.field.add(name=name, number=int(number), label=3 if many else 1)  # repeated, optional
            if default:
                field.default_value = default[0]
            kind = kind.rstrip("*")
            if "|" in kind:
                first, _, values = kind.rpartition(":")
                # Two enumerations in one message may not have values of the same name.
                scope = described.nested_type.add(name=f"{name}_")
                enum = scope.enum_type.add(name="Values")
                for value, value_name in enumerate(values.split("|"), int(first or 0)):
                    enum.value.add(name=value_name, number=value)
                field.type_name = f".{file.package}.{message}.{scope.name}.Values"
            elif kind in MESSAGES:
                field.type_name = f".{file.package}.{kind}"
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
                field.options.packed = many and message == "BlobProto"
    return file


def _classes():
    pool = descriptor_pool.DescriptorPool()  # a separate one, as Caffe's may be loaded, too
    file = pool.AddSerializedFile(_describe().SerializeToString())
    return {name: message_factory.GetMessageClass(file.message_types_by_name[name]) for name in MESSAGES}


NetParameter = _classes()["NetParameter"]


def read_prototxt(path: str, message: Message, allow_unknown: bool = False) -> Message:
    """Parse a prototxt into a message, an empty NetParameter or SolverParameter, and return it.

    Raises InputError with line and column for a syntax error or, unless allow_unknown is set, an unknown field; and for
    a file that is nested too deeply or too long.
    """
    try:
        text = read_file(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"the prototxt {path} cannot be read ({reason}): check its path") from None
    _check_extent(text, path)
    try:
        return text_format.Parse(text, message, allow_unknown_field=allow_unknown)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        where = f", line {line}, column {column}" if line else ""
        reason = str(error).removeprefix(f"{line}:{column} : ")
        raise InputError(f"{path}{where}: {reason}") from None


def _check_extent(text, path):
    """Raise InputError for a prototxt with more levels, messages or values than any net has.

    protobuf's text parser recurses at every level, and takes a second for 10,000 messages.
    """
    depth = messages = values = 0
    for token in TOKENS.finditer(text):
        values += token[0] == ":"
        if token[0] in OPENING:
            depth += 1
            messages += depth == 1
        elif token[0] in CLOSING:
            depth -= 1
        if depth > MOST_LEVELS:
            line = text.count("\n", 0, token.start()) + 1
            raise InputError(
                f"{path}, line {line}: {depth} brackets are open here, but nets have four levels: close them"
            )
        if messages > MOST_MESSAGES or values > MOST_VALUES:
            raise InputError(f"{path} has more than {MOST_MESSAGES} layers or {MOST_VALUES} values, which is too large")


def made_by(net: Any, blob: str) -> set[str]:
    """The names of all layers that a blob depends on, from the data on. net: a NetParameter."""
    wanted, makers = {blob}, set()
    for layer in reversed(net.layer):
        if wanted.intersection(layer.top):
            wanted.update(layer.bottom)
            makers.add(layer.name)
    return makers


def read_weights(path: str) -> dict[str, list[np.ndarray]]:
    """Layer name -> list of its parameters (float32 arrays), from a .caffemodel or .caffemodel.h5 file.

    Raises InputError if the file is missing, cut off or damaged, has no weights, or contains NaN or infinity.
    """
    return _read(path, lambda array: array)


def weight_shapes(path: str) -> dict[str, list[tuple[int, ...]]]:
    """Layer name -> list of the shapes of its parameters. All are read, and InputError is raised as by read_weights."""
    return _read(path, lambda array: array.shape)


def _read(path: str, kept: Callable[[np.ndarray], Kept]) -> dict[str, list[Kept]]:
    """Layer name -> list of what kept() returns for each parameter, for all layers with parameters."""
    if h5py.is_hdf5(path):
        read_hdf5(lambda: bool(_collect(path, kept)), path)
    found = _collect(path, kept)
    if not found:
        raise InputError(f"{path} has no weights, so it is not a caffemodel: check WEIGHTS")
    return found


def _collect(path: str, kept: Callable[[np.ndarray], Kept]) -> dict[str, list[Kept]]:
    found: dict[str, list[Kept]] = {}
    for name, array in _parameters(path):
        # If there is a NaN, it is both minimum and maximum. This needs no array of booleans.
        if array.size and not np.isfinite([array.min(), array.max()]).all():
            raise InputError(
                f"{path}: the weights of layer {name!r} hold NaN or infinity: use an earlier snapshot, or train again"
            )
        found.setdefault(name, []).append(kept(array))
    return found


def _parameters(path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (layer name, parameter as a float32 array), one after the other. Raises InputError."""
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                for name, layer in file["data"].items():
                    for number in range(len(layer)):
                        yield name, np.asarray(layer[str(number)], np.float32)
        else:
            net = NetParameter.FromString(read_file(path, MOST_WEIGHT_BYTES))
            for layer in net.layer or net.layers:
                for blob in layer.blobs:
                    yield layer.name, _values_of(blob)
    except FileNotFoundError:
        raise InputError(f"the weights {path} do not exist: check WEIGHTS, or train the previous stage") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the weights {path} cannot be read ({reason}): check WEIGHTS") from None
    except (DecodeError, KeyError, AttributeError, TypeError, ValueError, RuntimeError, MemoryError):  # most by h5py
        raise InputError(f"{path} is not a caffemodel, or is cut off: fetch or train it again") from None


class Parameters(NamedTuple):
    """The parameters of a layer that weights_bytes() writes."""

    type: str  # the layer's, such as Convolution
    arrays: list[np.ndarray]


def weights_bytes(name: str, layers: Mapping[str, Parameters]) -> bytes:
    """A .caffemodel of a net: the name, type and float32 parameters of its layers, by layer name."""
    net = NetParameter(name=name)
    for layer, (kind, arrays) in layers.items():
        blobs = net.layer.add(name=layer, type=kind).blobs
        for array in arrays:
            blob = blobs.add()
            blob.shape.dim.extend(array.shape)
            blob.data.extend(array.astype(np.float32).ravel().tolist())
    return net.SerializeToString(deterministic=True)


def _values_of(blob):
    """The numbers in a BlobProto as a float32 array; all its other fields are cleared. Raises DecodeError as shape_of.

    protobuf returns numbers one by one, as Python objects, which takes minutes and gigabytes for a large net. But if a
    message has only packed numbers, it ends with the bytes of those numbers.
    """
    shape = shape_of(blob)
    name, kind = ("double_data", np.dtype("<f8")) if blob.double_data else ("data", np.dtype("<f4"))
    count = len(getattr(blob, name))
    for field, _ in blob.ListFields():
        if field.name != name:
            blob.ClearField(field.name)
    blob.DiscardUnknownFields()
    content = blob.SerializeToString()
    with np.errstate(over="ignore"):  # numbers that are too large become infinite
        return np.frombuffer(content[len(content) - count * kind.itemsize :], kind).reshape(shape).astype(np.float32)


def shape_of(blob: Any) -> tuple[int, ...]:
    """The shape of a BlobProto. Raises DecodeError if its numbers do not fill that shape."""
    old = ("num", "channels", "height", "width")
    if any(blob.HasField(name) for name in old):
        shape = tuple(getattr(blob, name) for name in old)
    else:
        shape = tuple(blob.shape.dim)  # for a single number, Caffe writes no shape
    if min(shape, default=1) < 0 or math.prod(shape) != len(blob.double_data or blob.data):
        raise DecodeError("a blob's size does not match its shape")
    return shape
