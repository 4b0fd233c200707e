"""Layers that begin a net: they read images, or features of images that were computed before."""

import time
import zipfile
from collections.abc import Sequence

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core import sampling, streams
from tripletloss.core.batches import MinedBatches
from tripletloss.core.sampling import Share
from tripletloss.data import images
from tripletloss.data.lists import read_list
from tripletloss.data.loader import Loader
from tripletloss.layers.settings import PROCESS_KEYS, Blobs, SettingsLayer

LATEST_S = 60  # seconds, to wait for a file that another machine has written


class DataLayer(SettingsLayer):
    """Images and labels, batch by batch, from a list file and an image folder.

    Tops: data (N, 3, S, S) float32, BGR minus pixel_means; labels (N,); optionally the seconds waited for them, ().
    param_str: train_list, imagepath, batches (shuffled | identities | anchor), batch_size, pass_images,
    images_per_identity, crop, image_size, pixel_means, mirror, crop_jitter, zoom_jitter, light_jitter, grey_share,
    rotation_jitter, colour_jitter, coarse_share, seed, workers, broken_images; as in config.py. broken_list: the file
    for skipped images.
    Example:
    "{train_list: data/train.txt, imagepath: data/images, batches: shuffled, batch_size: 64, image_size: 64}"
    With pass_images, forward() gives the next so many rows of a mini-batch. With several processes also rank and ranks:
    of each mini-batch, it has the rows of sampling.Share.
    """

    keys = (
        "train_list", "imagepath", "batches", "batch_size", "pass_images", "images_per_identity",
        "crop", "image_size", "pixel_means", "seed", *images.Augmentation._fields, "workers",
        "broken_images", "broken_list", *PROCESS_KEYS,
    )  # fmt: skip

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Read the list. Raises InputError for wrong settings, a bad list, or too few identities or images."""
        self.check_arity(bottom, top, (0,), (2, 3), "no bottom and two tops, data and labels, or three")
        self.loader = Loader(self.read_settings())

    def start_at(self, iteration: int) -> None:
        """Continue with this mini-batch, counted from 0."""
        self.loader.start_at(iteration)

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give the tops their shapes, which never change."""
        top[0].reshape(*self.loader.shape)
        top[1].reshape(self.loader.shape[0])
        if len(top) == 3:
            top[2].reshape()

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Put the next rows into the tops. Raises InputError for an image that cannot be decoded."""
        top[0].data[...], top[1].data[...], waited = self.loader.next()
        if len(top) == 3:
            top[2].data[...] = waited

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Do nothing, as images have no gradient."""


class FeatureLayer(SettingsLayer):
    """Features of images that were computed before, and labels: DataLayer's mini-batches, above a frozen net.

    Tops: features (N, ...) float32; labels (N,). Each row is a random view of its image.
    param_str: features, the .npy file (views, images, ...) of features.compute; train_list, imagepath, batches,
    batch_size, images_per_identity, seed, mine_iters, positive_cap, as in config.py; mined, the file of mining.Miner;
    pass_images, rank and ranks as in DataLayer.
    """

    keys = (
        "features", "train_list", "imagepath", "batches", "batch_size", "pass_images", "images_per_identity", "seed",
        "mine_iters", "positive_cap", "mined", *PROCESS_KEYS,
    )  # fmt: skip

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Read the list and open the file. Raises InputError for wrong settings, a bad list, or a file for another."""
        self.check_arity(bottom, top, (0,), (2,), "no bottom and two tops, features and labels")
        s = self.settings = self.read_settings()
        self.labels = read_list(s["train_list"], s["imagepath"], must_exist=False).labels
        self.batches = sampling.make_batches(
            s["batches"], self.labels, s["batch_size"], s["images_per_identity"], s["seed"], s["rank"], s["ranks"],
            s["positive_cap"] if s["mine_iters"] else None,
        )  # fmt: skip
        self.passes = sampling.count_passes(s["batch_size"], s["ranks"], s["pass_images"])
        try:
            self.features = np.load(s["features"], mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"FeatureLayer: {s['features']} cannot be read ({error}): train from images") from None
        if self.features.ndim < 3 or self.features.shape[1] != len(self.labels):
            raise InputError(f"FeatureLayer: {s['features']} is not for the {len(self.labels)} listed images")
        self.start_at(0)

    def start_at(self, iteration: int) -> None:
        """Continue with this mini-batch, counted from 0. What was mined is read again."""
        self.number, self.mined = iteration * self.passes, False

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give the tops their shapes, which never change."""
        count = self.settings["batch_size"] // self.settings["ranks"] // self.passes
        top[0].reshape(count, *self.features.shape[2:])
        top[1].reshape(count)

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Put the next rows into the tops. Raises InputError if what was mined cannot be read."""
        every, iteration = self.settings["mine_iters"], self.number // self.passes
        if every and (self.number % (every * self.passes) == 0 or not self.mined):
            self.mined = True
            self._take_mined(iteration - iteration % every)
        _, batch = sampling.rows_of_pass(self.batches, self.number, self.passes)
        rng = streams.random_stream(self.settings["seed"], streams.AUGMENTATION, iteration)
        views = rng.integers(0, len(self.features), batch.draws.max() + 1)[batch.draws]
        top[0].data[...] = self.features[views, batch.images]
        top[1].data[...] = self.labels[batch.images]
        self.number += 1

    def _take_mined(self, iteration):
        """Read what was mined before an iteration, once the file is there: on NFS, another machine may see it late.

        Until then, the file may be old or missing, or may be replaced while it is read. Raises InputError after
        LATEST_S seconds.
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
                raise InputError(f"{path} {problem}: resume with --resume")
            time.sleep(0.1)
        assert isinstance(self.batches, MinedBatches | Share)
        self.batches.take(*found)

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Do nothing, as frozen layers need no gradient."""
