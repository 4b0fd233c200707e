"""The layer that classifies by cosine."""

import math

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core import cosine, streams
from tripletloss.layers.settings import SettingsLayer, check_labelled, rows_of


class CosineLayer(SettingsLayer):
    """Classify by cosine, with a margin, for SoftmaxWithLoss to follow; see cosine.cosine_scores.

    Bottoms: features (N, ...), labels (N,). Top: scores (N, identities). Its parameter, the classes' weights
    (identities, D), starts with normal draws of the seed.
    param_str: identities, cosine_scale, cosine_margin, seed. Example:
    "{identities: 997, cosine_scale: 24, cosine_margin: 0.15}"
    """

    keys = ("identities", "cosine_scale", "cosine_margin", "seed")

    def setup(self, bottom, top):
        """Check arity and settings, and make the weights; raises InputError."""
        self.check_arity(bottom, top, (2,), (1,), "features and labels, and one top")
        self.settings = self.read_settings()
        if len(self.blobs) == 0:
            shape = self.settings["identities"], math.prod(bottom[0].shape[1:])
            self.blobs.add_blob(*shape)
            rng = streams.random_stream(self.settings["seed"], streams.CLASS_WEIGHTS, 0, 0)
            self.blobs[0].data[...] = rng.standard_normal(shape, np.float32) / math.sqrt(shape[1])

    def reshape(self, bottom, top):
        """One row per image, one column per identity. Raises InputError for other bottoms."""
        check_labelled("CosineLayer", "features", bottom)
        top[0].reshape(bottom[0].shape[0], self.settings["identities"])

    def forward(self, bottom, top):
        """cosine.cosine_scores. Raises InputError for a label without a class."""
        labels = bottom[1].data.ravel().astype(np.int64)
        identities = self.settings["identities"]
        if labels.min() < 0 or labels.max() >= identities:
            raise InputError(f"CosineLayer: there is a label {labels.max()}, but the classes are 0 to {identities - 1}")
        top[0].data[...], self.state = cosine.cosine_scores(
            rows_of(bottom[0].data), self.blobs[0].data, labels,
            self.settings["cosine_scale"], self.settings["cosine_margin"],
        )  # fmt: skip

    def backward(self, top, propagate_down, bottom):
        """cosine.cosine_gradients; the weights' one is added, as Caffe wants it of parameters."""
        features, weights = cosine.cosine_gradients(self.state, top[0].diff)
        self.blobs[0].diff[...] += weights
        if propagate_down[0]:
            bottom[0].diff[...] = features.reshape(bottom[0].diff.shape)
