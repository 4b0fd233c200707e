"""The Caffe Python layers that a prototxt names. They move blobs in and out of NumPy functions, no more.

    python_param { module: "tripletloss.layers" layer: "TripletLossLayer" param_str: "{margin: 0.2}" }

param_str is a YAML mapping, read and never run. Its keys are the names of config.py in small letters; train.py
fills in those that a prototxt leaves out.
"""

import math
import time
import zipfile

import caffe
import numpy as np
import yaml

from tripletloss.base import parallel
from tripletloss.base.errors import InputError, NotFiniteError
from tripletloss.config import REQUIRED, SCHEMA, check_value, unknown_name
from tripletloss.core import cosine, norm, sampling, triplets
from tripletloss.data import images
from tripletloss.data.loader import Loader
from tripletloss.dataset import read_list


def parse_param_str(param_str, keys, where):
    """The mapping that a param_str holds: {} if it is empty.

    keys: the names that it may hold. where: what an error begins with. Raises InputError for text that is not a
    YAML mapping, an unknown key or a value that SCHEMA does not accept.
    """
    try:
        params = yaml.safe_load(param_str) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise InputError(f"{where}: param_str {param_str!r} is not a YAML mapping such as \"{{margin: 0.2}}\"")
    for key, value in params.items():
        if key not in keys:
            raise unknown_name(str(key), keys, f"{where}, param_str")
        check_value(key.upper(), value, f"{where}, param_str")
    return params


LATEST_S = 60  # seconds, until a file is seen that another machine has written
PROCESS_KEYS = ("rank", "ranks", "first_iteration")  # which train.py writes for each process that trains


class SettingsLayer(caffe.Layer):
    """A layer that takes its settings from its own param_str and from nothing else."""

    keys = ()  # the settings that param_str may give, in small letters

    def read_settings(self, **defaults):
        """All of `keys` as a dict: from param_str, else from `defaults`, else SCHEMA's default.

        Raises InputError as parse_param_str does, and for a key without a value that has no default.
        """
        name = type(self).__name__
        given = {**defaults, **parse_param_str(self.param_str, self.keys, name)}
        for key in self.keys:
            default = SCHEMA[key.upper()].default
            if key not in given and (default is REQUIRED or isinstance(default, dict)):
                raise InputError(f"{name}: param_str lacks {key}: write it there, or let train.py fill it in")
            given.setdefault(key, default)
        return given

    def check_arity(self, bottom, top, bottoms, tops, means):
        """Raise InputError unless the numbers of bottoms and tops are among those that the layer takes."""
        if len(bottom) not in bottoms or len(top) not in tops:
            raise InputError(f"{type(self).__name__} takes {means}, not {len(bottom)} bottoms and {len(top)} tops")


def check_labelled(layer, rows, bottom):
    """Raise InputError unless bottom 0 holds rows of numbers (N, ...) and bottom 1, if there is one, a label for each.

    layer: its name; rows: what the rows are called.
    """
    shapes = [tuple(bottom[i].shape) for i in range(len(bottom))]
    if len(shapes[0]) < 2:
        said = f"bottom 0 must be the {rows}, one row per image, but it has the shape {shapes[0]}"
    elif len(bottom) == 2 and bottom[1].count != shapes[0][0]:
        said = f"bottom 1 must be one label for each of the {shapes[0][0]} {rows}, but it has the shape {shapes[1]}"
    else:
        return
    raise InputError(f"{layer}: {said}: the order is `bottom: \"{rows}\" bottom: \"labels\"`")


def rows_of(array):
    """The array as a matrix with a row an item: (N, D), also where N is 0."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


class DataLayer(SettingsLayer):
    """Images and labels, batch by batch, from a list file and an image folder.

    Tops: data (N, 3, S, S) float32, BGR minus pixel_means; labels (N,); by choice the seconds waited for them, ().
    param_str: train_list, imagepath, batches (shuffled | identities | anchor), batch_size, images_per_identity, crop,
    image_size, pixel_means, mirror, crop_jitter, zoom_jitter, light_jitter, grey_share, rotation_jitter, colour_jitter,
    coarse_share, seed, workers, broken_images; as in config.py. broken_list: the file that skipped images are added to.
    Example:
    "{train_list: data/train.txt, imagepath: data/images, batches: shuffled, batch_size: 64, image_size: 64}"
    With several processes also rank and ranks: of each mini-batch, it makes the rows of sampling.Share. In a run that
    goes on, first_iteration.
    """

    keys = (
        "train_list", "imagepath", "batches", "batch_size", "images_per_identity",
        "crop", "image_size", "pixel_means", "seed", *images.Augmentation._fields, "workers",
        "broken_images", "broken_list", *PROCESS_KEYS,
    )  # fmt: skip

    def setup(self, bottom, top):
        """Read the list. Raises InputError for wrong settings, a bad list, or too few identities or images."""
        self.check_arity(bottom, top, (0,), (2, 3), "no bottom and two tops, data and labels, or three")
        self.loader = Loader(self.read_settings())

    def reshape(self, bottom, top):
        """The shapes never change."""
        top[0].reshape(*self.loader.shape)
        top[1].reshape(self.loader.shape[0])
        if len(top) == 3:
            top[2].reshape()

    def forward(self, bottom, top):
        """The next mini-batch. Raises InputError for an image that cannot be decoded."""
        top[0].data[...], top[1].data[...], waited = self.loader.next()
        if len(top) == 3:
            top[2].data[...] = waited

    def backward(self, top, propagate_down, bottom):
        """Images have no gradient."""


class FeatureLayer(SettingsLayer):
    """Features of images, computed before, and labels, batch by batch: DataLayer's mini-batches, above a frozen net.

    Tops: features (N, ...) float32; labels (N,). Each row shows one of its image's views, at random.
    param_str: features, the .npy file (views, images, ...) of features.compute; train_list, imagepath, batches,
    batch_size, images_per_identity, seed, mine_iters, positive_cap, as in config.py; mined, the file of mining.Miner;
    rank, ranks and first_iteration as in DataLayer.
    """

    keys = (
        "features", "train_list", "imagepath", "batches", "batch_size", "images_per_identity", "seed", "mine_iters",
        "positive_cap", "mined", *PROCESS_KEYS,
    )  # fmt: skip

    def setup(self, bottom, top):
        """Read the list and open the file. Raises InputError for wrong settings, a bad list, a file that differs."""
        self.check_arity(bottom, top, (0,), (2,), "no bottom and two tops, features and labels")
        s = self.settings = self.read_settings()
        self.labels = read_list(s["train_list"], s["imagepath"], must_exist=False).labels
        self.batches = sampling.make_batches(
            s["batches"], self.labels, s["batch_size"], s["images_per_identity"], s["seed"], s["rank"], s["ranks"],
            s["positive_cap"] if s["mine_iters"] else None,
        )  # fmt: skip
        try:
            self.features = np.load(s["features"], mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"FeatureLayer: {s['features']} cannot be read ({error}): train from images") from None
        if self.features.ndim < 3 or self.features.shape[1] != len(self.labels):
            raise InputError(f"FeatureLayer: {s['features']} holds no features of the {len(self.labels)} listed images")
        self.iteration, self.mined = s["first_iteration"], False

    def reshape(self, bottom, top):
        """The shapes never change."""
        count = self.settings["batch_size"] // self.settings["ranks"]
        top[0].reshape(count, *self.features.shape[2:])
        top[1].reshape(count)

    def forward(self, bottom, top):
        """The next mini-batch."""
        every = self.settings["mine_iters"]
        if every and (self.iteration % every == 0 or not self.mined):
            self.mined = True
            self._take_mined(self.iteration - self.iteration % every)
        batch = self.batches.batch(self.iteration)
        rng = sampling.random_stream(self.settings["seed"], sampling.AUGMENTATION, self.iteration)
        views = rng.integers(0, len(self.features), batch.draws.max() + 1)[batch.draws]
        top[0].data[...] = self.features[views, batch.images]
        top[1].data[...] = self.labels[batch.images]
        self.iteration += 1

    def _take_mined(self, iteration):
        """Read what was mined in an iteration, once it is there: another machine may see a file on NFS late.

        Until then the file may be an old one, or missing, or be replaced while it is read. Raises InputError after
        LATEST_S.
        """
        path, deadline = self.settings["mined"], time.monotonic() + LATEST_S
        while True:
            try:
                with np.load(path) as mined:
                    if mined["iteration"] == iteration:
                        found = mined["embeddings"], mined["negatives"]
                        break
                problem = f"was not mined in iteration {iteration}"
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            if time.monotonic() > deadline:
                raise InputError(f"{path} {problem}: go on with --resume")
            time.sleep(0.1)
        self.batches.take(*found)

    def backward(self, top, propagate_down, bottom):
        """What is frozen has no gradient."""


class Norm2Layer(SettingsLayer):
    """Scale every row to length one. Bottom (N, ...), top the same shape. No settings."""

    def setup(self, bottom, top):
        """Check arity; raises InputError."""
        self.check_arity(bottom, top, (1,), (1,), "one bottom and one top")
        self.read_settings()

    def reshape(self, bottom, top):
        """The top has the bottom's shape."""
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        """norm.l2_normalize."""
        self.normalized, self.lengths = norm.l2_normalize(bottom[0].data)
        top[0].data[...] = self.normalized

    def backward(self, top, propagate_down, bottom):
        """norm.l2_normalize_gradient."""
        if propagate_down[0]:
            bottom[0].diff[...] = norm.l2_normalize_gradient(self.normalized, self.lengths, top[0].diff)


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
            rng = sampling.random_stream(self.settings["seed"], sampling.CLASS_WEIGHTS, 0, 0)
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


def check_lengths(embeddings, layer):
    """Raise InputError unless all rows (N, D) have length one, which distance-weighted selection is made for."""
    lengths = np.linalg.norm(embeddings, axis=1)
    if np.abs(lengths - 1).max() > 1e-3:
        raise InputError(
            f"{layer}: distance-weighted selection needs embeddings of length one, but one has "
            f"{lengths[np.abs(lengths - 1).argmax()]:.3g}: let Norm2Layer come last, fc7, fc9_1, norm2"
        )


class SelectingLayer(SettingsLayer):
    """What the layers that select triplets have in common.

    With several processes and `gather`, each selects the same triplets among the embeddings of all of them, and takes
    its own rows of the gradient. The processes' gradients are averaged later, so these are multiplied by their number.
    """

    keys = ("selection", "margin", "seed", "first_iteration", "gather")

    def read_selection(self, **defaults):
        """Take the settings; raises InputError."""
        settings = self.read_settings(**defaults)
        self.strategy, self.margin, self.seed, self.iteration, gather = (settings[key] for key in self.keys)
        self.team = parallel.team() if gather else parallel.OneProcess()

    def select(self, bottom):
        """Select from bottoms embeddings and, by choice, labels. Keeps distances and selection.

        Returns the embeddings (N, D) that were selected from. Raises NotFiniteError for embeddings that are not finite,
        and InputError for a mini-batch that the selection is not made for.
        """
        embeddings = self.team.gather_rows(rows_of(bottom[0].data))
        labels = self.team.gather_rows(bottom[1].data.ravel()) if len(bottom) == 2 else None
        name = type(self).__name__
        try:
            self.distances = triplets.squared_distances(embeddings, np.float32)
        except FloatingPointError as error:
            raise NotFiniteError(f"{name}: {error}") from None
        if self.strategy == "distance-weighted":
            check_lengths(embeddings, name)
        rng = sampling.random_stream(self.seed, sampling.NEGATIVES, self.iteration)
        try:
            self.selection = triplets.select(
                self.strategy, self.distances, labels, self.margin, embeddings.shape[1], rng
            )
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None
        self.iteration += 1
        return embeddings

    def pass_on(self, gradient, bottom):
        """Assign the bottom's own rows of the gradient of all embeddings (N, D)."""
        start = self.team.rank * len(bottom.data)
        own = gradient[start : start + len(bottom.data)] * self.team.size
        bottom.diff[...] = own.reshape(bottom.diff.shape)

    def write_statistics(self, tops):
        """The active share of the triplets, the mean d(a,p) and the mean d(a,n), into three tops."""
        chosen, d = self.selection, self.distances
        tops[0].data[...] = triplets.active_share(chosen, d, self.margin)
        for top, others in ((tops[1], chosen.positives), (tops[2], chosen.negatives)):
            top.data[...] = d[chosen.anchors, others].mean() if len(others) else 0


class TripletSelectLayer(SelectingLayer):
    """Select triplets among the embeddings of a mini-batch.

    Bottoms: embeddings (N, ...), labels (N,). With embeddings alone, the selection is rank-paired.
    Tops: anchors, positives, negatives (T, D), T changing from iteration to iteration and sometimes 0; and, by
    choice, three numbers (): the active share of the triplets, the mean d(a,p) and the mean d(a,n).
    param_str: selection (semi-hard | batch-hard | batch-all | distance-weighted | rank-paired), margin, seed, gather.
    Example: "{selection: semi-hard, margin: 0.2}"
    """

    def setup(self, bottom, top):
        """Check arity and settings; raises InputError."""
        self.check_arity(
            bottom, top, (1, 2), (3, 6), "embeddings and labels, and three tops, or six with the statistics"
        )
        self.read_selection(**({"selection": "rank-paired"} if len(bottom) == 1 else {}))
        if len(bottom) == 1 and self.strategy != "rank-paired":
            raise InputError(
                f"TripletSelectLayer: selection {self.strategy} needs the labels: add `bottom: \"labels\"`"
            )

    def reshape(self, bottom, top):
        """One row a top until forward knows how many triplets there are. Raises InputError for other bottoms."""
        check_labelled(type(self).__name__, "embeddings", bottom)
        for i in range(3):
            top[i].reshape(1, math.prod(bottom[0].shape[1:]))
        for i in range(3, len(top)):
            top[i].reshape()

    def forward(self, bottom, top):
        """Select, and gather the rows. Raises InputError for embeddings that are not finite."""
        embeddings, chosen = self.select(bottom), self.selection
        for i, rows in enumerate((chosen.anchors, chosen.positives, chosen.negatives)):
            top[i].reshape(len(rows), embeddings.shape[1])
            top[i].data[...] = embeddings[rows]
        if len(top) == 6:
            self.write_statistics([top[i] for i in range(3, 6)])

    def backward(self, top, propagate_down, bottom):
        """Sum the triplets' gradients into the rows that they came from; every row is assigned."""
        if propagate_down[0]:
            rows = len(bottom[0].data) * self.team.size
            diffs = (top[i].diff for i in range(3))
            self.pass_on(triplets.scatter_gradients(self.selection, *diffs, rows), bottom[0])


class BatchTripletLossLayer(SelectingLayer):
    """TripletSelectLayer and TripletLossLayer in one, for large mini-batches: rows are not copied for each triplet.

    Bottoms: embeddings (N, ...), labels (N,). Tops: the loss, (); and, by choice, TripletSelectLayer's three numbers.
    param_str: as TripletSelectLayer's. Give the layer `loss_weight: 1`.
    """

    def setup(self, bottom, top):
        """Check arity and settings; raises InputError."""
        self.check_arity(bottom, top, (2,), (1, 4), "embeddings and labels, and one top, or four with the statistics")
        self.read_selection()

    def reshape(self, bottom, top):
        """Every top is one number, of shape () as the losses of Caffe's own layers. Raises InputError."""
        check_labelled(type(self).__name__, "embeddings", bottom)
        for i in range(len(top)):
            top[i].reshape()

    def forward(self, bottom, top):
        """triplets.selected_loss; its gradient is kept. Raises InputError for embeddings that are not finite."""
        embeddings = self.select(bottom)
        top[0].data[...], self.gradient = triplets.selected_loss(
            embeddings, self.distances, self.selection, self.margin
        )
        if len(top) == 4:
            self.write_statistics([top[i] for i in range(1, 4)])

    def backward(self, top, propagate_down, bottom):
        """The gradient, times the top diff."""
        if propagate_down[0]:
            self.pass_on(self.gradient * top[0].diff, bottom[0])


class TripletLossLayer(SettingsLayer):
    """FaceNet's triplet loss, see triplets.triplet_loss. Give the layer `loss_weight: 1`: Caffe sets none by itself.

    Bottoms: anchors, positives, negatives (T, ...), T may be 0. Top: the loss, (), as Caffe's own losses are.
    param_str: margin, a squared distance. Example: "{margin: 0.2}"
    """

    keys = ("margin",)

    def setup(self, bottom, top):
        """Check arity and settings; raises InputError."""
        self.check_arity(bottom, top, (3,), (1,), "anchors, positives and negatives, and one top")
        self.margin = self.read_settings()["margin"]

    def reshape(self, bottom, top):
        """Raises InputError if the bottoms differ in shape."""
        shapes = [tuple(bottom[i].shape) for i in range(3)]
        if len(set(shapes)) > 1:
            raise InputError(f"TripletLossLayer: anchors, positives and negatives differ in shape: {shapes}")
        top[0].reshape()

    def forward(self, bottom, top):
        """triplets.triplet_loss."""
        self.rows = [rows_of(bottom[i].data) for i in range(3)]
        top[0].data[...], self.active = triplets.triplet_loss(*self.rows, self.margin)

    def backward(self, top, propagate_down, bottom):
        """triplets.triplet_loss_gradients, times the top diff."""
        diffs = triplets.triplet_loss_gradients(*self.rows, self.active, top[0].diff)
        for i in range(3):
            if propagate_down[i]:
                bottom[i].diff[...] = diffs[i].reshape(bottom[i].diff.shape)
