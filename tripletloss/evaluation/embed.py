"""Images to embeddings, computed by a net in Caffe."""

import concurrent.futures
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from tripletloss.data.lists import ImageList
from tripletloss.formats import caffemodel, embeddings
from tripletloss.formats.caffemodel import made_by
from tripletloss.formats.embeddings import Embeddings
from tripletloss.net.definition import build
from tripletloss.net.deploy import open_deploy
from tripletloss.net.weights import load_weights, match_weights

BATCH_SIZE = 32
SMALL_IMAGE = 128  # pixels per side
DECODERS = 2  # threads; OpenCV decodes without holding Python's lock
ALONE = OneProcess()


def passes(
    net: caffe.Net, blobs: Sequence[str], images: ImageList, preprocessing: Preprocessing,
    views: Sequence[bool] = (False,), show: str = "", first: int = 0, broken: dict[str, str] | None = None,
    team: OneProcess = ALONE,
) -> Iterator[tuple[int, list[list[np.ndarray]]]]:  # fmt: skip
    """Compute blobs of a net for all images of a list, batch by batch, in the list's order.

    net: in TEST phase, with a first input of (N, 3, size, size); blobs: their names; views: one pass per view, True for
    mirrored images; show: the name of the progress bar, '' for none; first: the number of the image to begin with;
    broken: as for images.read_or_next. Yields (start, rows): rows[v][b], (B, ...) float32, is blob b in view v for the
    B images from number `start` on. Two batches are in memory at a time. Raises InputError if an image cannot be
    decoded, and NotFiniteError, which names the first such image, if a blob holds NaN or infinity.

    team: the processes that share the images. All of them call this. The first one yields all rows; the others compute
    their share and yield nothing.
    """
    data, step = net.inputs[0], BATCH_SIZE * team.size

    def load(number: int, skipped: dict[str, str] | None) -> np.ndarray:
        return to_blob(read_or_next(images, number, skipped), preprocessing)

    def load_batch(start: int) -> tuple[dict[str, str] | None, list[concurrent.futures.Future]]:
        """Begin to read a batch. Returns the dict that gets its broken images, and the futures of its images."""
        skipped: dict[str, str] | None = None if broken is None else {}
        numbers = range(start, min(start + BATCH_SIZE, len(images.names)))
        return skipped, [pool.submit(load, number, skipped) for number in numbers]

    def rows_of(batch: np.ndarray) -> list[list[np.ndarray]]:
        return [_forward(net, data, blobs, batch[..., ::-1] if mirrored else batch) for mirrored in views]

    # OpenBLAS's threads wait for each other and hinder the decoders: for small images, one is twice as fast as two.
    threads = threadpool_limits(1 if preprocessing.size <= SMALL_IMAGE else None, "blas")
    with threads, concurrent.futures.ThreadPoolExecutor(DECODERS) as pool, tqdm(
        total=len(images.names), initial=first, desc=show, unit="image", mininterval=0.5,
        disable=not show or team.rank > 0,
    ) as bar:  # fmt: skip
        own = first + BATCH_SIZE * team.rank
        coming = load_batch(own)
        for start in range(first, len(images.names), step):
            error, rows = None, None
            skipped, futures = coming
            try:
                batch = [future.result() for future in futures]
                own += step
                coming = load_batch(own)
                rows = rows_of(np.stack(batch)) if batch else None
                _check_finite(rows or [], blobs, images, start + BATCH_SIZE * team.rank)
            except InputError as problem:
                error = problem
            team.raise_first(error)
            for number, (found, everyones) in enumerate(team.gather((rows, skipped))):
                if broken is not None:
                    broken.update(everyones or {})
                if found:
                    yield start + number * BATCH_SIZE, found
                    bar.update(len(found[0][0]))


def extract(
    net: caffe.Net, blobs: Sequence[str], images: ImageList, preprocessing: Preprocessing, mirrored: bool = False,
    show: bool = False, broken: dict[str, str] | None = None, team: OneProcess = ALONE,
) -> Iterator[tuple[int, list[np.ndarray]]]:  # fmt: skip
    """Compute embeddings: passes() with flat rows.

    mirrored: whether a row is the mean of an image's and its mirror image's. Yields (start, rows): rows[b] is (B, D)
    float32 for blob b.
    """
    views = (False, True) if mirrored else (False,)
    for start, rows in passes(
        net, blobs, images, preprocessing, views, "embedding" if show else "", broken=broken, team=team
    ):
        yield start, [np.mean(of_blob, axis=0).reshape(len(of_blob[0]), -1) for of_blob in zip(*rows, strict=True)]


def _check_finite(rows: list[list[np.ndarray]], blobs: Sequence[str], images: ImageList, start: int) -> None:
    """Raise NotFiniteError if rows of a batch, which begins with image `start`, hold NaN or infinity."""
    found = [
        (row, blob) for of_view in rows
        for blob, row in zip(blobs, map(first_not_finite, of_view), strict=True) if row is not None
    ]  # fmt: skip
    if found:
        row, blob = min(found)
        raise NotFiniteError(
            f"the blob {blob!r} is NaN or infinite for the image {images.names[start + row]}, so these weights are "
            "useless: take those of an earlier snapshot"
        )


def _forward(net: caffe.Net, data: str, blobs: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
    net.blobs[data].reshape(*batch.shape)
    net.reshape()
    net.blobs[data].data[...] = batch
    net.forward()
    return [net.blobs[blob].data.copy() for blob in blobs]


def extract_all(
    net: caffe.Net, blobs: Sequence[str], images: ImageList, preprocessing: Preprocessing, mirrored: bool = False,
    show: bool = False, broken: dict[str, str] | None = None, team: OneProcess = ALONE,
) -> list[Any]:  # fmt: skip
    """All rows of extract() at once: (M, D) float32 per blob. Processes other than the first get None per blob."""
    parts = [rows for _, rows in extract(net, blobs, images, preprocessing, mirrored, show, broken, team)]
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)] or [None] * len(blobs)


def open_net(weights: str, settings: Mapping[str, Any], features: Sequence[str]) -> caffe.Net:
    """Open the deploy net of a stage's settings, with weights in it.

    weights: path; features: names of the blobs that will be computed. Raises InputError if net, settings and weights do
    not fit together, and MissingLayersError if the weights lack a layer that a feature depends on.
    """
    source = settings["DEPLOY"]
    if not source:
        raise InputError("the config has no DEPLOY net, which computes embeddings: name one")
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


def embed(
    weights: str, settings: Mapping[str, Any], feature: str, images: ImageList, mirrored: bool, team: OneProcess = ALONE
) -> Embeddings:
    """Embed a list's images, with a stage's settings. The arguments are those of open_net() and extract().

    Processes of a team other than the first get no rows. Raises InputError.
    """
    with team.together():
        net = open_net(weights, settings, [feature])
    [rows] = extract_all(net, [feature], images, Preprocessing.of(settings), mirrored, show=True, team=team)
    return Embeddings(rows, images, feature, weights, digest(weights), mirrored)


def embed_to_file(
    path: str, net: caffe.Net, settings: Mapping[str, Any], images: ImageList, weights: str, mirrored: bool,
    team: OneProcess,
) -> tuple[int, int] | None:  # fmt: skip
    """Write the embeddings of a list's images, FEATURE of `net`, to a file in the format of its suffix.

    net: of open_net(weights, ...); mirrored, team: as for extract(). It is written batch by batch, so any number of
    images fits into memory. Returns the embeddings' shape (N, D); processes of a team other than the first, None.
    Raises InputError.
    """
    feature = settings["FEATURE"]
    parts = extract(net, [feature], images, Preprocessing.of(settings), mirrored, show=True, team=team)
    if team.rank > 0:
        for _ in parts:  # there are none, but it computes its share
            pass
        return None
    about = {
        "list": images.source, "folder": images.folder, "feature": feature, "weights": weights,
        "weights_sha256": digest(weights), "mirrored": mirrored,
    }  # fmt: skip
    return embeddings.write(path, images, about, (rows for _, [rows] in parts))
