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
from tripletloss.training.head import Head

NEIGHBOURS = 3  # identities whose nearest images are in a mini-batch with an anchor


class Miner:
    """Embeds all images with what a net has learnt so far, and finds each one's hardest negatives."""

    def __init__(self, net: caffe_pb2.NetParameter, features: str, labels: np.ndarray, prefix: str):
        """net: above a cut; features: path of the cache's file; labels: (N,); prefix: of the stage's files."""
        self.features, self.labels, self.path = np.load(features, mmap_mode="r"), labels, f"{prefix}_mined.npz"
        self.head = Head(net, self.features.shape[2:], prefix)

    def mine(self, net: caffe.Net, passes: int) -> None:
        """Write the embeddings of all images and their hardest negatives.

        net: the net that learns; passes: how many it has done, which is kept with them. Raises NotFiniteError for
        embeddings that are NaN or infinite, and OSError if the file cannot be written.
        """
        embeddings = self.head.embed(net, self.features[0])
        try:
            negatives = hardest_negatives(embeddings, self.labels, NEIGHBOURS)
        except FloatingPointError as error:
            raise NotFiniteError(f"mining: {error}") from None
        content = io.BytesIO()
        np.savez(content, iteration=passes, embeddings=embeddings, negatives=negatives)
        write_whole(self.path, content.getvalue())

    def restore(self, kept: str) -> None:
        """Continue with what was mined before a snapshot. kept: path, or '' if nothing was mined."""
        if kept:
            with open(kept, "rb") as file:
                write_whole(self.path, file.read())
