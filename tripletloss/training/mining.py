"""Hard negatives from all images, not from the mini-batch alone: every MINE_ITERS iterations, in cached features.

What is found lies in a file beside the run's others, which FeatureLayer reads. batches.MinedBatches is made of it.
"""

import io

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import NotFiniteError
from tripletloss.base.files import write_whole
from tripletloss.core.distances import hardest_negatives
from tripletloss.formats.caffemodel import made_by
from tripletloss.net.definition import new_net, write_prototxt
from tripletloss.net.roles import embeddings_of

NEIGHBOURS = 3  # identities whose nearest images come with an anchor
ROWS = 4096  # of features that go through the net at once


class Miner:
    """Embeds all images with what a net has learnt so far, and finds each one's hardest negatives."""

    def __init__(self, net, features, labels, prefix):
        """net: the NetParameter above a cut; features: path of the cache's file; labels: (N,); prefix: of its files."""
        self.features, self.labels, self.path = np.load(features, mmap_mode="r"), labels, f"{prefix}_mined.npz"
        self.blob = embeddings_of(net)[0]
        data = caffe_pb2.LayerParameter(name="features", type="Input", top=[net.layer[0].top[0]])
        data.input_param.shape.add(dim=[1, *self.features.shape[2:]])
        makers = made_by(net, self.blob)
        head = new_net("head", [data, *(layer for layer in net.layer[1:] if layer.name in makers)])
        prototxt = f"{prefix}_head.prototxt"
        write_prototxt(head, prototxt)
        self.head = caffe.Net(prototxt, caffe.TEST)

    def mine(self, net, iteration):
        """Write the embeddings of all images and their hardest negatives, and the iteration. net: the one that learns.

        Raises NotFiniteError for embeddings that are not.
        """
        self.head.share_with(net)
        count = self.features.shape[1]
        embeddings = None
        for start in range(0, count, ROWS):
            rows = self.features[0, start : start + ROWS]
            data = self.head.blobs[self.head.inputs[0]]
            data.reshape(*rows.shape)
            data.data[...] = rows
            self.head.forward()
            found = self.head.blobs[self.blob].data.reshape(len(rows), -1)
            if embeddings is None:
                embeddings = np.empty((count, found.shape[1]), np.float32)
            embeddings[start : start + len(rows)] = found
        try:
            negatives = hardest_negatives(embeddings, self.labels, NEIGHBOURS)
        except FloatingPointError as error:
            raise NotFiniteError(f"mining: {error}") from None
        content = io.BytesIO()
        np.savez(content, iteration=iteration, embeddings=embeddings, negatives=negatives)
        write_whole(self.path, content.getvalue())

    def put_back(self, kept):
        """Go on with what was mined before a snapshot: the path of that, or '' where nothing was."""
        if kept:
            with open(kept, "rb") as file:
                write_whole(self.path, file.read())
