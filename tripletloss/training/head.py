"""What a net above a cut makes of cached features: their embeddings, in TEST phase."""

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.formats.caffemodel import made_by
from tripletloss.net.definition import new_net, write_prototxt
from tripletloss.net.roles import embeddings_of

ROWS = 4096  # of features that go through the net at once


class Head:
    """The layers of a net above a cut that make its embeddings."""

    def __init__(self, net: caffe_pb2.NetParameter, shape: tuple[int, ...], prefix: str):
        """net: above a cut, selecting triplets; shape: of one image's features; prefix: of the stage's files."""
        embeddings = embeddings_of(net)
        assert embeddings is not None  # as make_plan and the tuning have seen
        self.blob = embeddings[0]
        data = caffe_pb2.LayerParameter(name="features", type="Input", top=[net.layer[0].top[0]])
        data.input_param.shape.add(dim=[1, *shape])
        makers = made_by(net, self.blob)
        head = new_net("head", [data, *(layer for layer in net.layer[1:] if layer.name in makers)])
        prototxt = f"{prefix}_head.prototxt"
        write_prototxt(head, prototxt)
        self.head = caffe.Net(prototxt, caffe.TEST)

    def embed(self, net: caffe.Net, features: np.ndarray) -> np.ndarray:
        """The embeddings (N, D) float32 of features (N, ...), with the weights that `net` has now."""
        self.head.share_with(net)
        data, parts = self.head.blobs[self.head.inputs[0]], []
        for start in range(0, len(features), ROWS):
            rows = features[start : start + ROWS]
            data.reshape(*rows.shape)
            data.data[...] = rows
            self.head.forward()
            parts.append(self.head.blobs[self.blob].data.reshape(len(rows), -1).copy())
        return np.concatenate(parts)
