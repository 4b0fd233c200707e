"""The layers that select triplets, and their loss."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tripletloss.base import parallel
from tripletloss.base.errors import InputError, NotFiniteError
from tripletloss.core import losses, selection, streams
from tripletloss.core.distances import squared_distances
from tripletloss.layers.settings import Blobs, SettingsLayer, check_labelled, rows_of


def check_lengths(embeddings: np.ndarray, layer: str) -> None:
    """Raise InputError unless all rows (N, D) have length one, as distance-weighted selection needs."""
    lengths = np.linalg.norm(embeddings, axis=1)
    if np.abs(lengths - 1).max() > 1e-3:
        raise InputError(
            f"{layer}: distance-weighted selection needs embeddings of length one, but one has "
            f"{lengths[np.abs(lengths - 1).argmax()]:.3g}: put Norm2Layer last, as in fc7, fc9_1, norm2"
        )


class SelectingLayer(SettingsLayer):
    """What the layers that select triplets have in common.

    With several processes and `gather`, each process selects the same triplets from the embeddings of all, and takes
    its own rows of the gradient. As the processes' gradients are averaged later, these rows are multiplied by the
    number of processes.
    """

    keys = ("selection", "margin", "seed", "gather")

    def read_selection(self, **defaults: Any) -> None:
        """Read the settings. defaults: as in read_settings. Raises InputError."""
        settings = self.read_settings(**defaults)
        self.strategy, self.margin, self.seed, gather = (settings[key] for key in self.keys)
        self.team = parallel.team() if gather else parallel.OneProcess()
        self.start_at(0)

    def start_at(self, iteration: int) -> None:
        """Continue with the random draws of this pass, counted from 0."""
        self.iteration = iteration

    def select(self, bottom: Blobs) -> np.ndarray:
        """Select from the bottoms: embeddings and, optionally, labels. Keeps distances and selection.

        Returns the embeddings (N, D) that were selected from. Raises NotFiniteError for embeddings that are NaN or
        infinite, and InputError for a mini-batch that does not suit the selection.
        """
        embeddings = self.team.gather_rows(rows_of(bottom[0].data))
        labels = self.team.gather_rows(bottom[1].data.ravel()) if len(bottom) == 2 else None
        name = type(self).__name__
        try:
            self.distances = squared_distances(embeddings, np.float32)
        except FloatingPointError as error:
            raise NotFiniteError(f"{name}: {error}") from None
        if selection.STRATEGIES[self.strategy].needs_unit_length:
            check_lengths(embeddings, name)
        rng = streams.random_stream(self.seed, streams.NEGATIVES, self.iteration)
        try:
            self.selection = selection.select(
                self.strategy, self.distances, labels, self.margin, embeddings.shape[1], rng
            )
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None
        self.iteration += 1
        return embeddings

    def pass_on(self, gradient: np.ndarray, bottom: Any) -> None:
        """Assign to a bottom its own rows of the gradient of all embeddings (N, D)."""
        start = self.team.rank * len(bottom.data)
        own = gradient[start : start + len(bottom.data)] * self.team.size
        bottom.diff[...] = own.reshape(bottom.diff.shape)

    def write_statistics(self, tops: Sequence[Any]) -> None:
        """Put the active share of the triplets, the mean d(a,p) and the mean d(a,n) into three tops."""
        chosen, d = self.selection, self.distances
        tops[0].data[...] = selection.active_share(chosen, d, self.margin)
        for top, others in ((tops[1], chosen.positives), (tops[2], chosen.negatives)):
            top.data[...] = d[chosen.anchors, others].mean() if len(others) else 0


class TripletSelectLayer(SelectingLayer):
    """Select triplets from the embeddings of a mini-batch.

    Bottoms: embeddings (N, ...), labels (N,). With embeddings only, the selection is rank-paired.
    Tops: anchors, positives, negatives (T, D), where T changes from pass to pass and may be 0; optionally, three
    numbers (): the active share of the triplets, the mean d(a,p) and the mean d(a,n).
    param_str: selection (semi-hard | batch-hard | batch-all | distance-weighted | rank-paired), margin, seed, gather.
    Example: "{selection: semi-hard, margin: 0.2}"
    """

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Check arity and settings. Raises InputError."""
        self.check_arity(
            bottom, top, (1, 2), (3, 6), "embeddings and labels, and three tops, or six with the statistics"
        )
        self.read_selection(**({"selection": selection.WITHOUT_LABELS} if len(bottom) == 1 else {}))
        if len(bottom) == 1 and selection.STRATEGIES[self.strategy].needs_labels:
            raise InputError(f'TripletSelectLayer: selection {self.strategy} needs labels: add `bottom: "labels"`')

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give each top one row, until forward() knows the number of triplets. Raises InputError for wrong bottoms."""
        check_labelled(type(self).__name__, "embeddings", bottom)
        for i in range(3):
            top[i].reshape(1, math.prod(bottom[0].shape[1:]))
        for i in range(3, len(top)):
            top[i].reshape()

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Select triplets, and copy their rows into the tops. Raises InputError like select()."""
        embeddings, chosen = self.select(bottom), self.selection
        for i, rows in enumerate((chosen.anchors, chosen.positives, chosen.negatives)):
            top[i].reshape(len(rows), embeddings.shape[1])
            top[i].data[...] = embeddings[rows]
        if len(top) == 6:
            self.write_statistics([top[i] for i in range(3, 6)])

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Sum the triplets' gradients into the rows that they came from. Every row is assigned."""
        if propagate_down[0]:
            rows = len(bottom[0].data) * self.team.size
            gradient = losses.scatter_gradients(self.selection, top[0].diff, top[1].diff, top[2].diff, rows)
            self.pass_on(gradient, bottom[0])


class BatchTripletLossLayer(SelectingLayer):
    """TripletSelectLayer and TripletLossLayer in one, for large mini-batches: rows are not copied for each triplet.

    Bottoms: embeddings (N, ...), labels (N,). Tops: the loss, (); optionally, TripletSelectLayer's three numbers.
    param_str: as for TripletSelectLayer. Give the layer `loss_weight: 1`.
    """

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Check arity and settings. Raises InputError."""
        self.check_arity(bottom, top, (2,), (1, 4), "embeddings and labels, and one top, or four with the statistics")
        self.read_selection()

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give every top the shape (), like the losses of Caffe's own layers. Raises InputError for wrong bottoms."""
        check_labelled(type(self).__name__, "embeddings", bottom)
        for i in range(len(top)):
            top[i].reshape()

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Compute losses.selected_loss, and keep its gradient. Raises InputError like select()."""
        embeddings = self.select(bottom)
        top[0].data[...], self.gradient = losses.selected_loss(embeddings, self.distances, self.selection, self.margin)
        if len(top) == 4:
            self.write_statistics([top[i] for i in range(1, 4)])

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Assign the gradient, times the top diff."""
        if propagate_down[0]:
            self.pass_on(self.gradient * top[0].diff, bottom[0])


class TripletLossLayer(SettingsLayer):
    """FaceNet's triplet loss, see losses.triplet_loss. Give the layer `loss_weight: 1`, as Caffe sets none by default.

    Bottoms: anchors, positives, negatives (T, ...), where T may be 0. Top: the loss, (), like Caffe's own losses.
    param_str: margin, a squared distance. Example: "{margin: 0.2}"
    """

    keys = ("margin",)

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Check arity and settings. Raises InputError."""
        self.check_arity(bottom, top, (3,), (1,), "anchors, positives and negatives, and one top")
        self.margin = self.read_settings()["margin"]

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give the top the shape (). Raises InputError if the bottoms differ in shape."""
        shapes = [tuple(bottom[i].shape) for i in range(3)]
        if len(set(shapes)) > 1:
            raise InputError(f"TripletLossLayer: anchors, positives and negatives differ in shape: {shapes}")
        top[0].reshape()

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Compute losses.triplet_loss."""
        self.rows = rows_of(bottom[0].data), rows_of(bottom[1].data), rows_of(bottom[2].data)
        top[0].data[...], self.active = losses.triplet_loss(*self.rows, self.margin)

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Assign losses.triplet_loss_gradients, times the top diff."""
        diffs = losses.triplet_loss_gradients(*self.rows, self.active, top[0].diff)
        for i in range(3):
            if propagate_down[i]:
                bottom[i].diff[...] = diffs[i].reshape(bottom[i].diff.shape)
