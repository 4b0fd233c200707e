"""Hard negatives from all images, not only from the mini-batch: every MINE_ITERS iterations, in cached features.

They are written to a file in the run's folder. FeatureLayer reads it and hands it to batches.MinedBatches.
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

NEIGHBOURS = 3  # identities whose nearest images are in a mini-batch with an anchor
ROWS = 4096  # of features that go through the net at once


class Miner:
    """Embeds all images with what a net has learnt so far, and finds each one's hardest negatives."""

    def __init__(self, net: caffe_pb2.NetParameter, features: str, labels: np.ndarray, prefix: str):
        """net: above a cut; features: path of the cache's file; labels: (N,); prefix: of the stage's files."""
        self.features, self.labels, self.path = np.load(features, mmap_mode="r"), labels, f"{prefix}_mined.npz"
        embeddings = embeddings_of(net)
        assert embeddings is not None  # as make_plan has seen
        self.blob = embeddings[0]
        data = caffe_pb2.LayerParameter(name="features", type="Input", top=[net.layer[0].top[0]])
        data.input_param.shape.add(dim=[1, *self.features.shape[2:]])
        makers = made_by(net, self.blob)
        head = new_net("head", [data, *(layer for layer in net.layer[1:] if layer.name in makers)])
        prototxt = f"{prefix}_head.prototxt"
        write_prototxt(head, prototxt)
        self.head = caffe.Net(prototxt, caffe.TEST)

    def mine(self, net: caffe.Net, passes: int) -> None:
        """Write the embeddings of all images and their hardest negatives.

        net: the net that learns; passes: how many it has done, which is kept with them. Raises NotFiniteError for
        embeddings that are NaN or infinite, and OSError if the file cannot be written.
        """
        embeddings = self._embed(net)
        try:
            negatives = hardest_negatives(embeddings, self.labels, NEIGHBOURS)
        except FloatingPointError as error:
            raise NotFiniteError(f"mining: {error}") from None
        content = io.BytesIO()
        np.savez(content, iteration=passes, embeddings=embeddings, negatives=negatives)
        write_whole(self.path, content.getvalue())

    def _embed(self, net):
        """The embeddings (N, D) of all images by the net that learns, as float32."""
        self.head.share_with(net)
        count, embeddings = self.features.shape[1], np.empty((0, 0), np.float32)
        for start in range(0, count, ROWS):
            rows = self.features[0, start : start + ROWS]
            data = self.head.blobs[self.head.inputs[0]]
            data.reshape(*rows.shape)
            data.data[...] = rows
            self.head.forward()
            found = self.head.blobs[self.blob].data.reshape(len(rows), -1)
            if start == 0:
                embeddings = np.empty((count, found.shape[1]), np.float32)
            embeddings[start : start + len(rows)] = found
        return embeddings

    def restore(self, kept: str) -> None:
        """Continue with what was mined before a snapshot. kept: path, or '' if nothing was mined."""
        if kept:
            with open(kept, "rb") as file:
                write_whole(self.path, file.read())
