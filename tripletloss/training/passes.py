"""Mini-batches that are larger than memory: images go through the net a few at a time (PASS_IMAGES).

A triplet needs the embeddings of the whole mini-batch, but not its activations. So each iteration has three parts:

1. All passes go forward to the embedding, and only their embeddings and pixels are kept.
2. The layers above the embedding, selection and loss, run once, forward and backward, on all embeddings.
3. Each pass goes forward again and backward from its rows of the embeddings' gradient, which adds up its parameters'.

The result is the gradient of the whole mini-batch, as a row's embedding depends on no other row, unless BatchNorm uses
the statistics of its pass. (FaceNet trained with 1,800 images, arXiv 1503.03832; this way of computing it is that of
Gao et al. 2021, arXiv 2101.06983.)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.core import sampling, streams
from tripletloss.formats.caffemodel import made_by
from tripletloss.layers import DataLayer, FeatureLayer
from tripletloss.net.roles import embeddings_of, is_a
from tripletloss.net.settings import DATA_SECONDS

# Layers whose top shares its bottom's memory, so that it cannot get more rows than the bottom.
SHARING = ("Flatten", "Reshape")


class Division(NamedTuple):
    """Where a net is divided into what runs pass by pass and what runs once."""

    blob: str  # the only blob of the passes, apart from the labels, that layers above take
    labels: str
    last: str  # name of the last layer that makes it


def divide(net: caffe_pb2.NetParameter, source: str) -> Division:
    """The Division of a resolved net, at its embedding or its classifier's feature. source: path, for messages.

    Raises InputError for a net that cannot be divided there.
    """
    found = embeddings_of(net)
    if found is None or not is_a(net.layer[0], (DataLayer, FeatureLayer)):
        raise InputError(
            f"PASS_IMAGES needs a net that begins with a DataLayer and selects triplets, or classifies, by labels, and "
            f"{source} does not: set PASS_IMAGES to 0"
        )
    blob, labels = found
    makers = made_by(net, blob)
    numbers = [number for number, layer in enumerate(net.layer) if blob in layer.top and layer.name in makers]
    while net.layer[numbers[-1]].type in SHARING:
        blob = net.layer[numbers[-1]].bottom[0]
        makers = made_by(net, blob)
        numbers = [number for number, layer in enumerate(net.layer) if blob in layer.top and layer.name in makers]
    known = {blob, labels}
    for number, layer in enumerate(net.layer):
        if number > numbers[-1] and known.issuperset(layer.bottom):
            known.update(layer.top)
        elif number > numbers[-1] or layer.name not in makers:
            raise InputError(
                f"{source}: layer {layer.name!r} takes more than {blob!r} and {labels!r}, so it needs the whole "
                "mini-batch at once: set PASS_IMAGES to 0"
            )
    return Division(blob, labels, net.layer[numbers[-1]].name)


class Passes:
    """Computes the gradients of iterations pass by pass, in one process."""

    def __init__(
        self, solver: caffe._caffe.Solver, net: caffe_pb2.NetParameter, settings: Mapping[str, Any], rank: int,
        iter_size: int,
    ) -> None:  # fmt: skip
        """net: the solver's; settings: of the stage; rank: of this process; iter_size: mini-batches per iteration.

        Raises InputError like divide() and count_passes().
        """
        self.solver, self.net, self.iter_size = solver, solver.net, iter_size
        self.count = sampling.count_passes(settings["BATCH_SIZE"], settings["RANKS"], settings["PASS_IMAGES"])
        self.seed, self.rank = settings["SEED"], rank
        division = divide(net, settings["NET"])
        blobs, names = self.net.blobs, list(self.net._layer_names)
        self.rows, self.labels = blobs[division.blob], blobs[division.labels]
        self.inputs = [blobs[top] for top in net.layer[0].top[:2]]
        self.seconds = blobs[DATA_SECONDS] if DATA_SECONDS in net.layer[0].top else None
        self.last, self.end = names.index(division.last), len(names) - 1
        # Caffe copies labels for each layer that takes them, right after the layer that makes them.
        self.splits = [
            number for number in range(self.last)
            if self.net.layers[number].type == "Split" and division.labels in self.net.bottom_names[names[number]]
        ]  # fmt: skip

    def compute(self) -> None:
        """Compute the gradients of an iteration, for solver.apply_update().

        Losses and statistics are then those of the last mini-batch, and the embeddings' and labels' blobs have all its
        rows. Raises InputError as the layers do.
        """
        self.net.clear_param_diffs()
        # The second time, dropout draws the same for each pass.
        stream = streams.random_stream(self.seed, streams.CAFFE, self.rank, self.solver.iter)
        for seeds in stream.integers(2**31, size=(self.iter_size, self.count)):
            self._mini_batch([int(seed) for seed in seeds])

    def _mini_batch(self, seeds):
        inputs, rows, seconds = [], [], 0.0
        for seed in seeds:
            caffe.set_random_seed(seed)
            self.net._forward(0, self.last)
            inputs.append([blob.data.copy() for blob in self.inputs])
            rows.append(self.rows.data.copy())
            seconds += float(self.seconds.data) if self.seconds else 0
        embeddings, labels = np.concatenate(rows), np.concatenate([of_pass[1] for of_pass in inputs])

        self._give(self.rows, embeddings)
        self._give(self.labels, labels)
        for number in self.splits:
            self.net._forward(number, number)
        self.net._forward(self.last + 1, self.end)
        self.net._backward(self.end, self.last + 1)
        gradients = np.split(self.rows.diff.copy(), len(seeds))

        for seed, of_pass, gradient in zip(seeds, inputs, gradients, strict=True):
            caffe.set_random_seed(seed)
            for blob, content in zip(self.inputs, of_pass, strict=True):
                self._give(blob, content)
            self.net._forward(1, self.last)
            self.rows.diff[...] = gradient
            self.net._backward(self.last, 0)
        self._give(self.rows, embeddings)
        self._give(self.labels, labels)
        if self.seconds:
            self.seconds.data[...] = seconds

    @staticmethod
    def _give(blob, content):
        """Put an array into a blob, which gets its shape."""
        blob.reshape(*content.shape)
        blob.data[...] = content


def in_passes(
    solver: caffe._caffe.Solver, net: caffe_pb2.NetParameter, settings: Mapping[str, Any], rank: int, iter_size: int
) -> Passes | None:
    """The Passes of a solver, or None if mini-batches go through its net whole. For the arguments, see Passes."""
    if sampling.count_passes(settings["BATCH_SIZE"], settings["RANKS"], settings["PASS_IMAGES"]) == 1:
        return None
    return Passes(solver, net, settings, rank, iter_size)
