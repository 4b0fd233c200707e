"""The frozen part of a net, run once over all images instead of in every iteration.

If nothing below a blob learns, the blob's values for an image never change. They are computed once, in TEST phase, and
kept in a file, and the rest of the net is trained on them. An image has one view for each way in which it is shown: as
it is and, with MIRROR, mirrored.

A cache is a folder named by a key of all that its values depend on: net, weights, preprocessing and image contents. It
holds features.npy, (views, images, ...), and `done`, the number of images that are complete, from which a run that was
stopped resumes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import caffe
import numpy as np
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from tqdm import tqdm

from tripletloss.base.errors import InputError
from tripletloss.base.files import amount, read_file, write_whole
from tripletloss.base.parallel import OneProcess
from tripletloss.base.process import caffe_log
from tripletloss.data.images import Augmentation, Preprocessing
from tripletloss.data.lists import ImageList
from tripletloss.evaluation.embed import ALONE, passes
from tripletloss.net.definition import build, new_net, read_net, write_prototxt
from tripletloss.net.freezing import Cut, above_cut
from tripletloss.net.weights import load_weights
from tripletloss.training.plan import Plan

FLUSHED_BATCHES = 20  # between two notes of how many images are complete; those after the last note are computed again


class Cache(NamedTuple):
    """Features of all images."""

    path: str  # of features.npy
    views: int  # of each image
    computed: int  # images whose features were computed now; those of the others existed
    seconds: float  # that this took
    seconds_per_row: float  # for one image in one view


def cache_features(plan: Plan, team: OneProcess = ALONE) -> str:
    """Compute the features of a plan that is cut, and write its net anew, to be trained on them. Returns a line, or ''.

    team: its processes divide the images, and the first one has the line. Raises InputError like compute().
    """
    s, cut = plan.settings, plan.cut
    if not plan.cached or cut is None:
        return ""
    cache = compute(cut, plan.weights, plan.images, s, team.caffe_log(plan.prefix), team)
    if cache is None:
        return ""
    path = f"{plan.prefix}_train.prototxt"
    whole = read_net(path)
    write_prototxt(whole, f"{plan.prefix}_uncut.prototxt")
    in_passes = {**s, "MINE_ITERS": s["MINE_ITERS"] * plan.iter_size}  # as layers count passes, not iterations
    write_prototxt(above_cut(whole, cut, cache.path, in_passes), path)
    saved = s["MAX_ITERS"] * s["BATCH_SIZE"] * plan.iter_size * cache.seconds_per_row - cache.seconds
    jitters = [field.upper() for field in Augmentation._fields if field != "mirror" and s[field.upper()]]
    return (
        f"features   {cut.blob} of {len(plan.images.names)} images x {cache.views} views, {cache.computed} computed "
        f"now in {cache.seconds:.0f} s; saves {max(0, saved):.0f} s"
        + (f"; without {', '.join(jitters)}" if jitters else "")
    )


def frozen_net(cut: Cut, settings: Mapping[str, Any]) -> caffe_pb2.NetParameter:
    """A Cut's frozen layers as a net, from an Input layer to the blob."""
    data, size = caffe_pb2.LayerParameter(name="data", type="Input", top=[cut.data]), settings["IMAGE_SIZE"]
    data.input_param.shape.add(dim=[1, 3, size, size])
    return new_net("frozen", [data, *cut.frozen])


def cache_key(cut: Cut, weights: str, images: ImageList, settings: Mapping[str, Any]) -> str:
    """A hash of all that a cache's values depend on: 24 hexadecimal digits. Reads all images and the weights.

    Raises InputError for an image that cannot be read, if BROKEN_IMAGES is 'stop'.
    """
    total = hashlib.sha256()
    s = settings
    net = text_format.MessageToString(frozen_net(cut, s))
    inputs = [net, s["CROP"], s["IMAGE_SIZE"], s["PIXEL_MEANS"], s["MIRROR"], s["FEATURE_TYPE"], cut.blob]
    if s["BROKEN_IMAGES"] == "skip":
        inputs += ["skip", images.labels.tolist()]  # which decide what stands in for a broken image
    total.update(json.dumps(inputs).encode())
    with open(weights, "rb") as file:
        _add_file(total, file)
    for number, name in enumerate(images.names):
        try:
            content = read_file(images.path(number))
            total.update(f"\0{name}\0".encode())
            total.update(content)
        except OSError as error:
            if settings["BROKEN_IMAGES"] == "stop":
                raise InputError(
                    f"the image {images.path(number)} cannot be read ({error.strerror}): replace it, or leave it out"
                ) from None
            total.update(f"\0{name}\0broken".encode())
    return total.hexdigest()[:24]


def _add_file(total, file):
    while block := file.read(1 << 20):
        total.update(block)


def compute(
    cut: Cut, weights: str, images: ImageList, settings: Mapping[str, Any], log: str, team: OneProcess = ALONE
) -> Cache | None:
    """The Cache of a Cut's blob for all images. What settings["FEATURE_CACHE"] already has is not computed again.

    weights: path; log: file for Caffe's log; team: processes that divide the images and all call this. The first one
    writes and gets the Cache, the others get None. Raises InputError for an image that cannot be decoded, and for a
    folder that cannot be written.
    """
    try:
        with contextlib.ExitStack() as held:
            folder, done, pace = team.first(lambda: _open(held, cut, weights, images, settings))
            path = os.path.join(folder, "features.npy")
            if done == len(images.names):
                cache = Cache(path, len(np.load(path, mmap_mode="r")), 0, 0.0, pace) if team.rank == 0 else None
            else:
                with caffe_log(log):
                    cache = _compute(cut, weights, images, settings, path, done, team)
            broken = _read_broken(folder) if cache else {}
            if broken:
                with open(settings["BROKEN_LIST"], "w", encoding="utf-8") as file:
                    file.writelines(f"{images.names[int(n)]}\t{said}\n" for n, said in sorted(broken.items()))
            return cache
    except OSError as error:
        raise _cannot_keep(settings["FEATURE_CACHE"], error) from None


def _cannot_keep(folder, error):
    return InputError(
        f"the features cannot be written to {folder} ({error.strerror}): make room, or set FEATURE_CACHE to another "
        "folder, or to '' to train without cached features"
    )


def _open(held, cut, weights, images, settings):
    """The folder of a cache, the number of its complete images, and the seconds per row.

    held: the ExitStack that keeps the folder locked.
    """
    folder = os.path.join(settings["FEATURE_CACHE"], cache_key(cut, weights, images, settings))
    try:
        os.makedirs(folder, exist_ok=True)
        held.enter_context(_alone(folder))
    except OSError as error:
        raise _cannot_keep(folder, error) from None
    fits = _fits(os.path.join(folder, "features.npy"), len(images.names))
    return folder, *(_read_note(os.path.join(folder, "done")) if fits else (0, 0.0))


@contextlib.contextmanager
def _alone(folder):
    """Wait until no other run computes in the folder. The lock ends with the process, however that ends."""
    with open(os.path.join(folder, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("features   another run is computing the same ones: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compute(cut, weights, images, settings, path, done, team):
    s, total, folder = settings, len(images.names), os.path.dirname(path)
    views = [False, True] if s["MIRROR"] else [False]
    with team.together():
        net = build(frozen_net(cut, s), caffe.TEST)
        load_weights(net, weights)
        shape = (len(views), total, *net.blobs[cut.blob].shape[1:])
        file = _open_file(path, shape, s["FEATURE_TYPE"], done) if team.rank == 0 else None
    broken = _read_broken(folder) if s["BROKEN_IMAGES"] == "skip" else None
    start, first = time.perf_counter(), done
    with tqdm(total=total, initial=done, desc="features", unit="image", mininterval=0.5, disable=team.rank > 0) as bar:
        parts = passes(net, [cut.blob], images, Preprocessing.of(s), views, "", first, broken, team)
        for number, (_, rows) in enumerate(parts, 1):
            assert file is not None  # rows come in the first process only
            count = len(rows[0][0])
            for view, [values] in enumerate(rows):
                file[view, done : done + count] = values
            done += count
            bar.update(count)
            if number % FLUSHED_BATCHES == 0 or done == total:
                file.flush()
                pace = (time.perf_counter() - start) / (done - first) / len(views)
                if broken:
                    write_whole(os.path.join(folder, "broken.json"), json.dumps(broken).encode())
                _write_note(os.path.join(folder, "done"), done, pace)
    return Cache(path, len(views), total - first, time.perf_counter() - start, pace) if team.rank == 0 else None


def _open_file(path, shape, kind, done):
    """The file of features, mapped into memory: the existing one, or, if none of it is done, a new one."""
    if done:
        return np.lib.format.open_memmap(path, "r+")
    room, needed = shutil.disk_usage(os.path.dirname(path)).free, int(np.prod(shape)) * np.dtype(kind).itemsize
    if needed > room:
        raise InputError(
            f"the features need {amount(needed)} in {os.path.dirname(path)}, which has {amount(room)} free: make room, "
            "or set FEATURE_TYPE to 'float16', or FEATURE_CACHE to ''"
        )
    # The note about an earlier file is not true of this one.
    _write_note(os.path.join(os.path.dirname(path), "done"), 0, 0.0)
    file = np.lib.format.open_memmap(path, "w+", kind, shape)
    with open(path, "r+b") as reserved:
        os.posix_fallocate(reserved.fileno(), 0, os.path.getsize(path))  # a full disk would end the process later
    return file


def _fits(path, images):
    """Whether a file of features exists, has its full length, and is for this number of images."""
    try:
        return np.load(path, mmap_mode="r").shape[1] == images
    except (OSError, EOFError, ValueError, IndexError):
        return False


def _read_note(path):
    """The number of complete images, and the seconds per row."""
    try:
        with open(path) as file:
            done, pace = file.read().split()
        return int(done), float(pace)
    except (FileNotFoundError, ValueError):
        return 0, 0.0


def _write_note(path, done, pace):
    write_whole(path, f"{done} {pace}".encode())


def _read_broken(folder):
    """Number of a broken image, as text -> what is wrong with it, for those that others stand in for in a cache."""
    try:
        with open(os.path.join(folder, "broken.json"), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
