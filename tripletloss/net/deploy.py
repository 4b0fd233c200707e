"""The net that makes embeddings, and whether it is the one that was trained."""

from collections.abc import Sequence
from typing import NamedTuple

import caffe
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from tripletloss.base.errors import InputError
from tripletloss.base.process import try_in_child
from tripletloss.formats.caffemodel import made_by
from tripletloss.net.definition import build, open_net
from tripletloss.net.weights import Shapes, shapes_of


class Deploy(NamedTuple):
    """A deploy net that was checked, and that Caffe has built and run once."""

    definition: caffe_pb2.NetParameter
    shapes: Shapes  # of its parameters


def open_deploy(source: str, size: int, features: Sequence[str], allowed: Sequence[str] = ()) -> Deploy:
    """The Deploy of a prototxt that computes features of images.

    size: of the images, pixels per side; features: names of the blobs that will be asked for; allowed: as in open_net.
    Raises InputError like open_net, and if layers read files, if the net takes anything but images, if Caffe refuses
    the net, and if a feature does not exist or does not have one row per image.
    """
    definition = open_net(source, caffe.TEST, allowed=allowed)

    def run():
        net = build(definition, caffe.TEST)
        if len(net.inputs) != 1:
            raise InputError(
                f"{source} must take one blob of images, N x 3 x S x S, through an Input layer, but it takes "
                f"{', '.join(net.inputs) or 'none'}"
            )
        net.blobs[net.inputs[0]].reshape(2, 3, size, size)
        net.forward()
        return shapes_of(net), {name: tuple(blob.shape) for name, blob in net.blobs.items()}

    shapes, blobs = try_in_child(run, f"{source} with images of {size} x {size} pixels", limited=True)
    for feature in features:
        named = dict.fromkeys([*definition.input, *(top for layer in definition.layer for top in layer.top)])
        if feature not in named:
            raise InputError(
                f"{source} has no blob {feature!r}: --feature, or FEATURE in the config, must be one of "
                f"{', '.join(named)}"
            )
        if blobs[feature][:1] != (2,):
            raise InputError(
                f"{source}: the blob {feature!r} has the shape {blobs[feature]} for 2 images: name one with one row "
                "per image"
            )
    return Deploy(definition, shapes)


def check_agreement(
    net: caffe_pb2.NetParameter, deploy: caffe_pb2.NetParameter, features: Sequence[str], source: str
) -> None:
    """Raise InputError if a layer that a measured feature depends on has other settings in the training net.

    net: of training; features: blobs of deploy; source: path of deploy.
    """
    makers = set().union(*(made_by(deploy, feature) for feature in features)) if features else set()
    trained = {layer.name: layer for layer in net.layer}
    for layer in deploy.layer:
        other = trained.get(layer.name)
        if layer.name in makers and other is not None and layer.type == other.type:
            one, two = _what_it_does(layer), _what_it_does(other)
            if one != two:
                raise InputError(
                    f"{source}: layer {layer.name!r} is {one or 'plain'} here and {two or 'plain'} in the training "
                    "net: make them the same"
                )


def _what_it_does(layer):
    """A layer's own settings as text, without those that matter in training only."""
    kept = type(layer)()
    for field, value in layer.ListFields():
        if field.name.endswith("_param") and field.name not in ("python_param", "batch_norm_param", "transform_param"):
            getattr(kept, field.name).CopyFrom(value)
            for filler in ("weight_filler", "bias_filler", "filler"):
                if filler in value.DESCRIPTOR.fields_by_name:
                    getattr(kept, field.name).ClearField(filler)
    return " ".join(text_format.MessageToString(kept, as_one_line=True).split())
