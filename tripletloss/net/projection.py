"""The projection of the triplet stage: the inner product that makes an embedding of the frozen feature."""

import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.core.components import principal_components
from tripletloss.layers import Norm2Layer
from tripletloss.net.definition import copy_of
from tripletloss.net.roles import embeddings_of, is_a
from tripletloss.net.weights import Shapes


def projection_of(net: caffe_pb2.NetParameter) -> caffe_pb2.LayerParameter | None:
    """The InnerProduct layer whose outputs a net selects triplets by, as they are or normalised; None if there is none.

    A residual has none, as its embedding is a sum.
    """
    found = embeddings_of(net)
    blob = found[0] if found else ""
    for layer in reversed(net.layer):
        if blob not in layer.top:
            continue
        if layer.type == "InnerProduct":
            return None if layer.inner_product_param.transpose else layer
        if not is_a(layer, Norm2Layer):
            return None
        blob = layer.bottom[0]
    return None


def narrowing(net: caffe_pb2.NetParameter, shapes: Shapes, source: str) -> caffe_pb2.LayerParameter | None:
    """The projection_of() a net if it has fewer outputs than inputs, or None.

    shapes: of the net's parameters; source: its path. Raises InputError if the projection has more.
    """
    layer = projection_of(net)
    if layer is None:
        return None
    outputs, inputs = shapes[layer.name][0][-2:]
    if outputs > inputs:
        raise InputError(
            f"{source}: the projection {layer.name!r} makes {outputs} numbers of the {inputs} of {layer.bottom[0]!r}, "
            f"and more than that add nothing: set its num_output to {inputs} at most"
        )
    return layer if outputs < inputs else None


def of_width(
    net: caffe_pb2.NetParameter, width: int, shape: tuple[int, ...]
) -> tuple[caffe_pb2.NetParameter, str]:
    """A copy of a net above a cut with a projection of its own to `width` numbers, unless that is the feature's width.

    Then a residual stays as it is. shape: of one image's features. Returns the copy, and the name of the projection if
    it is narrower than the feature, so that it starts from components, or ''. A projection of another width has a new
    name. Raises InputError if the net has neither a residual nor a projection, and for a width above the feature's.
    """
    changed, feature, size = copy_of(net), net.layer[0].top[0], int(np.prod(shape))
    if not 1 <= width <= size:
        raise InputError(f"an embedding of {width} numbers cannot be made of {feature!r}: take from 1 to its {size}")
    own = projection_of(changed)
    for number, layer in enumerate(changed.layer):
        inner = [one for one in changed.layer if one.type == "InnerProduct" and set(one.top) & set(layer.bottom)]
        if layer.type == "Eltwise" and feature in layer.bottom and inner:
            if width == size:
                return changed, ""
            own = inner[0]
            for other in changed.layer[number + 1 :]:
                other.bottom[:] = [own.top[0] if name == layer.top[0] else name for name in other.bottom]
            del changed.layer[number]
            break
    if own is None or own.bottom[0] != feature:
        raise InputError(f"the net has no inner product of {feature!r} that makes the embedding, and no residual of it")
    if own.inner_product_param.num_output != width:
        own.inner_product_param.num_output = width
        own.name = f"{own.name}_{width}"  # so that no weights of another width are loaded into it
    return changed, own.name if width < size else ""


def start_from_components(blobs: list, features: np.ndarray) -> None:
    """Put the principal components of features into a projection's parameters: then it is their PCA.

    blobs: of the projection's parameters, (outputs, D) and, if it has a bias, (outputs,); features: (views, N, ...).
    Without a bias, the projection of the features' mean is not subtracted, which leaves distances the same.
    """
    rows = features.reshape(-1, int(np.prod(features.shape[2:])))
    directions, mean = principal_components(rows, len(blobs[0].data))
    blobs[0].data[...] = directions
    if len(blobs) > 1:
        blobs[1].data[...] = -directions @ mean
