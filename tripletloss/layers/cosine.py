"""The layer that classifies by cosine."""

import math
from collections.abc import Sequence

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core import cosine, streams
from tripletloss.layers.settings import Blobs, SettingsLayer, check_labelled, rows_of


class CosineLayer(SettingsLayer):
    """Classify by cosine, with a margin, in front of SoftmaxWithLoss; see cosine.cosine_scores.

    Bottoms: features (N, ...), labels (N,). Top: scores (N, identities). Its parameter, the classes' weights
    (identities, D), starts with normal draws that depend on the seed.
    param_str: identities, cosine_scale, cosine_margin, seed. Example:
    "{identities: 997, cosine_scale: 24, cosine_margin: 0.15}"
    """

    keys = ("identities", "cosine_scale", "cosine_margin", "seed")

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Check arity and settings, and make the weights. Raises InputError."""
        self.check_arity(bottom, top, (2,), (1,), "features and labels, and one top")
        self.settings = self.read_settings()
        if len(self.blobs) == 0:
            shape = self.settings["identities"], math.prod(bottom[0].shape[1:])
            self.blobs.add_blob(*shape)
            rng = streams.random_stream(self.settings["seed"], streams.CLASS_WEIGHTS, 0, 0)
            self.blobs[0].data[...] = rng.standard_normal(shape, np.float32) / math.sqrt(shape[1])

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give the top one row per image and one column per identity. Raises InputError for wrong bottoms."""
        check_labelled("CosineLayer", "features", bottom)
        top[0].reshape(bottom[0].shape[0], self.settings["identities"])

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Compute cosine.cosine_scores. Raises InputError for a label without a class."""
        labels = bottom[1].data.ravel().astype(np.int64)
        identities = self.settings["identities"]
        if labels.min() < 0 or labels.max() >= identities:
            raise InputError(f"CosineLayer: there is a label {labels.max()}, but the classes are 0 to {identities - 1}")
        top[0].data[...], self.state = cosine.cosine_scores(
            rows_of(bottom[0].data), self.blobs[0].data, labels,
            self.settings["cosine_scale"], self.settings["cosine_margin"],
        )  # fmt: skip

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Compute cosine.cosine_gradients. The weights' gradient is added, as Caffe expects of parameters."""
        features, weights = cosine.cosine_gradients(self.state, top[0].diff)
        self.blobs[0].diff[...] += weights
        if propagate_down[0]:
            bottom[0].diff[...] = features.reshape(bottom[0].diff.shape)
