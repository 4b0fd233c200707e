"""Images to embeddings, by a net in Caffe."""

import concurrent.futures
import os

import caffe
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.errors import InputError, MissingLayersError, NotFiniteError
from tripletloss.base.files import digest
from tripletloss.base.parallel import OneProcess
from tripletloss.base.process import caffe_log
from tripletloss.core.distances import first_not_finite
from tripletloss.data.images import Preprocessing, read_or_next, to_blob
from tripletloss.formats import caffemodel, embeddings
from tripletloss.formats.caffemodel import made_by
from tripletloss.formats.embeddings import Embeddings
from tripletloss.net.definition import build
from tripletloss.net.deploy import open_deploy
from tripletloss.net.weights import load_weights, match_weights

BATCH_SIZE = 32
SMALL_IMAGE = 128  # pixels, a side
DECODERS = 2  # threads; OpenCV decodes without holding Python's lock
ALONE = OneProcess()


def passes(net, blobs, images, preprocessing, views=(False,), show="", first=0, broken=None, team=ALONE):
    """Rows of named blobs for all images of a list, batch by batch, in its order.

    net: a caffe.Net in TEST phase whose first input takes (N, 3, size, size); images: ImageList; preprocessing:
    Preprocessing; views: for each, whether images are mirrored in it; show: what a progress bar is called, '' for
    none; first: the image to begin with; broken: as in images.read_or_next. Yields (start, rows): rows[v][b] is
    (B, ...) float32 of view v and blob b. Memory holds two batches. Raises InputError for an image that cannot be
    decoded, and NotFiniteError, which names the first such image, for rows that hold NaN or infinity.

    team: the processes that divide the images and all call this; the first one yields, and the others do their share
    and yield nothing.
    """
    data, step = net.inputs[0], BATCH_SIZE * team.size

    def load(number, skipped):
        return to_blob(read_or_next(images, number, skipped), preprocessing)

    def load_batch(start):
        """What gets the broken images of a batch, and the batch's images to come."""
        skipped = None if broken is None else {}
        numbers = range(start, min(start + BATCH_SIZE, len(images.names)))
        return skipped, [pool.submit(load, number, skipped) for number in numbers]

    def rows_of(batch):
        return [_forward(net, data, blobs, batch[..., ::-1] if mirrored else batch) for mirrored in views]

    # OpenBLAS's threads wait for each other and get in the decoders' way: on small images one is twice as fast as two.
    threads = threadpool_limits(1 if preprocessing.size <= SMALL_IMAGE else None, "blas")
    with threads, concurrent.futures.ThreadPoolExecutor(DECODERS) as pool, tqdm(
        total=len(images.names), initial=first, desc=show, unit="image", mininterval=0.5,
        disable=not show or team.rank > 0,
    ) as bar:  # fmt: skip
        own = first + BATCH_SIZE * team.rank
        coming = load_batch(own)
        for start in range(first, len(images.names), step):
            error, rows = None, None
            skipped, batch = coming
            try:
                batch = [one.result() for one in batch]
                own += step
                coming = load_batch(own)
                rows = rows_of(np.stack(batch)) if batch else None
                _check_finite(rows or [], blobs, images, start + BATCH_SIZE * team.rank)
            except InputError as problem:
                error = problem
            team.raise_first(error)
            for number, (found, everyones) in enumerate(team.gather((rows, skipped))):
                if broken is not None:
                    broken.update(everyones)
                if found:
                    yield start + number * BATCH_SIZE, found
                    bar.update(len(found[0][0]))


def extract(net, blobs, images, preprocessing, mirrored=False, show=False, broken=None, team=ALONE):
    """Embeddings: passes with rows flattened, and with their mean over the two views if mirrored.

    Yields (start, list of (B, D) float32, one a blob).
    """
    views = (False, True) if mirrored else (False,)
    for start, rows in passes(
        net, blobs, images, preprocessing, views, "embedding" if show else "", broken=broken, team=team
    ):
        yield start, [np.mean(of_blob, axis=0).reshape(len(of_blob[0]), -1) for of_blob in zip(*rows, strict=True)]


def _check_finite(rows, blobs, images, start):
    """Raise NotFiniteError for the first image of a mini-batch, from image number `start` on, with such rows."""
    found = [
        (row, blob) for of_view in rows
        for blob, row in zip(blobs, map(first_not_finite, of_view), strict=True) if row is not None
    ]  # fmt: skip
    if found:
        row, blob = min(found)
        raise NotFiniteError(
            f"the blob {blob!r} is NaN or infinite for the image {images.names[start + row]}, so the weights are of no "
            "use: take those of an earlier snapshot"
        )


def _forward(net, data, blobs, batch):
    net.blobs[data].reshape(*batch.shape)
    net.reshape()
    net.blobs[data].data[...] = batch
    net.forward()
    return [net.blobs[blob].data.copy() for blob in blobs]


def extract_all(net, blobs, images, preprocessing, mirrored=False, show=False, broken=None, team=ALONE):
    """All rows of extract at once: a list of (M, D) float32, one a blob; at other processes than the first, Nones."""
    parts = [rows for _, rows in extract(net, blobs, images, preprocessing, mirrored, show, broken, team)]
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)] or [None] * len(blobs)


def open_net(weights, settings, features):
    """The deploy net of a stage's settings with weights in it, checked. Raises InputError for what does not fit.

    features: names of blobs that will be asked for.
    """
    source = settings["DEPLOY"]
    if not source:
        raise InputError("the config has no DEPLOY net to make embeddings with: name one")
    config.need_files(settings, "DEPLOY")
    deploy = open_deploy(source, settings["IMAGE_SIZE"], features, settings["ALLOWED_MODULES"])
    _, fresh = match_weights(deploy.shapes, caffemodel.weight_shapes(weights), weights, source)
    for feature in features:
        missing = sorted(set(fresh) & made_by(deploy.definition, feature))
        if missing:
            raise MissingLayersError(
                f"{weights} has no weights for {', '.join(missing)}, which {feature!r} depends on: set another "
                "--feature", feature,
            )  # fmt: skip
    with caffe_log(os.devnull):
        caffe.set_mode_cpu()
        net = build(deploy.definition, caffe.TEST)
        load_weights(net, weights)
    return net


def embed(weights, settings, feature, images, mirrored, team=ALONE):
    """Embeddings of a list of images, with a stage's settings. Raises InputError for what does not fit.

    team: as in passes; all processes but the first have no rows.
    """
    with team.together():
        net = open_net(weights, settings, [feature])
    [rows] = extract_all(net, [feature], images, Preprocessing.of(settings), mirrored, show=True, team=team)
    return Embeddings(rows, images, feature, weights, digest(weights), mirrored)


def save(path, net, settings, feature, images, weights, mirrored, team):
    """Write embeddings to a file, batch by batch, in the format that its suffix says. Returns (N, D).

    team: as in passes; the first process writes, and the others return None. Raises InputError.
    """
    parts = extract(net, [feature], images, Preprocessing.of(settings), mirrored, show=True, team=team)
    if team.rank > 0:
        return next(parts, None)  # which there is not: it does its share
    about = {
        "list": images.source, "folder": images.folder, "feature": feature, "weights": weights,
        "weights_sha256": digest(weights), "mirrored": mirrored,
    }  # fmt: skip
    return embeddings.write(path, images, about, (rows for _, [rows] in parts))
