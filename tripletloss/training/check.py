"""What is wrong with images, lists, nets and settings, before training finds out: python train.py --check.

Every run begins with what takes a moment; --check reads every image, and trains a few iterations of each stage aside.
Errors are InputErrors and stop; the sentences that are returned advise.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import os
import shutil
import time
from typing import NamedTuple

import caffe
import numpy as np
from caffe.proto import caffe_pb2
from tqdm import tqdm

from tripletloss.base import parallel
from tripletloss.base.errors import InputError
from tripletloss.base.files import amount
from tripletloss.base.process import try_in_child
from tripletloss.data.images import decode, read_bytes
from tripletloss.data.lists import label_gaps, shared_identities
from tripletloss.formats.caffemodel import made_by, read_prototxt
from tripletloss.layers import Norm2Layer, SelectingLayer
from tripletloss.net.definition import read_net
from tripletloss.net.roles import is_a
from tripletloss.net.weights import load_weights
from tripletloss.training import snapshots
from tripletloss.training.device import use_device
from tripletloss.training.record import clock

SAMPLED_IMAGES = 400  # that are read before every run, spread over the list
TRIED_ITERATIONS = 3
READERS = 4  # threads
SHOWN = 3  # examples in a sentence
SIDES = (32, 64, 128, 256, 512)  # pixels, between which shorter sides are counted


class Look(NamedTuple):
    """What was seen of some images of a list."""

    numbers: np.ndarray  # (N,) of the images
    sides: np.ndarray  # (N,) pixels of the shorter side; 0: the image cannot be read
    digests: list  # N, of their bytes
    problems: list  # sentences, one an image that cannot be read


def look_at(images, numbers, show=False):
    """Read and decode images of a list. Returns a Look; show: with a progress bar."""

    def look(number):
        try:
            content = read_bytes(images.path(number))
            return min(decode(content, images.path(number)).shape[:2]), hashlib.sha256(content).digest(), ""
        except InputError as error:
            return 0, b"", str(error)

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        found = tqdm(pool.map(look, numbers), "looking at images", len(numbers), unit="image", disable=not show)
        sides, digests, problems = zip(*found, strict=True)
    return Look(np.asarray(numbers), np.array(sides), list(digests), [problem for problem in problems if problem])


def sample(images):
    """Numbers of images spread over a list: all of a short one."""
    count = len(images.names)
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLED_IMAGES)).astype(int))


def images_advice(plan, look, held_out=None):
    """Lines about the images of a stage, and sentences that advise. look: of its images; held_out: of the others.

    Raises InputError where images cannot be read and BROKEN_IMAGES is 'stop'.
    """
    s, images, advice = plan.settings, plan.images, []
    if look.problems and s["BROKEN_IMAGES"] == "stop":
        more = f" (and {len(look.problems) - 1} more)" if len(look.problems) > 1 else ""
        raise InputError(f"{look.problems[0]}{more}, or set BROKEN_IMAGES to 'skip'")
    if look.problems:
        advice.append(f"{len(look.problems)} images cannot be read and are skipped: {look.problems[0]}")
    tiny = look.numbers[(look.sides > 0) & (look.sides < s["IMAGE_SIZE"] / 2)]
    if len(tiny):
        advice.append(
            f"{len(tiny)} images have less than half of IMAGE_SIZE {s['IMAGE_SIZE']} a side and are enlarged: "
            f"{_some(images.names[n] for n in tiny)}"
        )
    small = look.numbers[(look.sides > 0) & (look.sides < s["CROP"])]
    if len(small):
        advice.append(f"{len(small)} images are smaller than CROP {s['CROP']}: {_some(images.names[n] for n in small)}")
    within, across = _duplicates(images, look)
    if within:
        advice.append(f"{len(within)} images are byte for byte another one of their identity: {_some(within)}")
    if across:
        advice.append(
            f"{len(across)} images are byte for byte one of another identity, so a label is wrong: {_some(across)}"
        )
    if held_out:
        if held_out.problems:
            more = f" (and {len(held_out.problems) - 1} more)" if len(held_out.problems) > 1 else ""
            raise InputError(f"{held_out.problems[0]}{more}: held-out images are never skipped")
        trained = set(look.digests)
        pairs = zip(held_out.numbers, held_out.digests, strict=True)
        both = [plan.held_out.names[number] for number, content in pairs if content and content in trained]
        if both:
            advice.append(f"{len(both)} held-out images are trained on, so their figures are too good: {_some(both)}")
    of_all = f"of {len(look.numbers)} looked at" if len(look.numbers) < len(images.names) else "of all"
    return [f"sizes      shorter side in pixels, {of_all}: {_histogram(look.sides)}"], advice


def _histogram(sides):
    edges = [0, *SIDES, np.inf]
    counts = np.histogram(sides[sides > 0], edges)[0]
    between = (f"{low} to {high - 1}" for low, high in itertools.pairwise(SIDES))
    names = [f"below {SIDES[0]}", *between, f"{SIDES[-1]} on"]
    return ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True) if count)


def _duplicates(images, look):
    """Names of the images that are byte for byte an earlier one of their identity, and of another identity."""
    first, within, across = {}, [], []
    for number, content in zip(look.numbers, look.digests, strict=True):
        if not content:
            continue
        other = first.setdefault(content, number)
        if other != number:
            same = images.labels[other] == images.labels[number]
            (within if same else across).append(f"{images.names[number]} = {images.names[other]}")
    return within, across


def _some(names):
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def settings_advice(plan, folder=""):
    """Lines about what a stage will see and write, and sentences that advise, from lists and settings alone.

    folder: where a run would write, if that is not RUN_FOLDER.
    """
    s, images, advice = plan.settings, plan.images, []
    shown, count = s["MAX_ITERS"] * s["BATCH_SIZE"] * plan.iter_size, len(images.names)
    lines = [f"epochs     {shown / count:.3g}: {shown} images shown"]
    for what, where, needed in disk(plan, folder or s["RUN_FOLDER"]):
        room = shutil.disk_usage(_there(where)).free
        lines.append(f"disk       {amount(needed)} for {what}, of {amount(room)} that are free in {where}")
        if needed > room:
            advice.append(f"{where} has {amount(room)} free, and {amount(needed)} are needed for {what}: make room")
    if shown < count:
        enough = -(-count // (s["BATCH_SIZE"] * plan.iter_size))
        advice.append(f"training ends before it has seen every image once: raise MAX_ITERS to {enough}")
    if plan.stage == "softmax" and (gaps := label_gaps(images)):
        advice.append(gaps)
    if s["BATCHES"] == "identities":
        sizes = np.bincount(images.labels)
        sizes = sizes[sizes > 0]
        per, alone = s["IMAGES_PER_IDENTITY"], int((sizes == 1).sum())
        if (sizes < per).any():
            advice.append(
                f"{(sizes < per).sum()} of {len(sizes)} identities have fewer than IMAGES_PER_IDENTITY {per} images, "
                f"which repeat in a mini-batch; {alone} have one, which is its own positive"
            )
    if plan.held_out:
        shared = shared_identities(images, plan.held_out)
        if shared:
            advice.append(f"{len(shared)} held-out identities are trained on, so figures are too good: {_some(shared)}")
    return lines, advice


def _there(folder):
    """The folder, or the nearest above it that is there."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    return folder


def disk(plan, folder):
    """What a stage writes: (what, folder, bytes) of snapshots and of features, where these are computed once."""
    s = plan.settings
    written = -(-s["MAX_ITERS"] // s["SNAPSHOT_ITERS"])
    kept = min(written, s["KEEP_SNAPSHOTS"] + 1) if s["KEEP_SNAPSHOTS"] else written
    found = [("snapshots", folder, kept * plan.parameters * 4 * 2)]
    if plan.cached:
        width = np.dtype(s["FEATURE_TYPE"]).itemsize * (1 + s["MIRROR"])
        found.append(("features", s["FEATURE_CACHE"], plan.cut_size * len(plan.images.names) * width))
    return found


def wiring_advice(net, params, frozen):
    """Lines and sentences about a stage's net. net: NetParameter; params: layer -> shapes; frozen: names of layers."""
    lines, advice = [], []
    norms = [layer for layer in net.layer if is_a(layer, Norm2Layer)]
    selecting = [layer for layer in net.layer if is_a(layer, SelectingLayer)]
    if selecting:
        makers = made_by(net, selecting[0].bottom[0])
        chain = [layer.name for layer in net.layer if layer.name in makers and (layer.name in params or layer in norms)]
        normalise = [layer.name for layer in norms if layer.name in makers]
        lines.append(f"embedding  {' > '.join(chain[-5:])}; normalised by {' and '.join(normalise) or 'nothing'}")
        if not any(layer.name in makers for layer in norms):
            advice.append("nothing normalises the embedding, so its distances, and MARGIN, depend on its length")
    for layer in net.layer:
        if layer.type == "BatchNorm" or len(params.get(layer.name, ())) != 2:
            continue
        weight, bias = (layer.param[i].lr_mult if i < len(layer.param) else 1 for i in range(2))
        if (weight == 0) != (bias == 0):
            still, moves = ("weights", "bias") if weight == 0 else ("bias", "weights")
            advice.append(f"in {layer.name} the {still} keep lr_mult 0, but the {moves} learn: freeze both, or none")
        elif weight and bias > 4 * weight:
            advice.append(f"the bias of {layer.name} learns {bias / weight:g} times as fast as its weights; 2 is usual")
    return lines, advice


class Trial(NamedTuple):
    """What a few iterations showed."""

    seconds: float  # of an iteration
    forward: float  # of them, of the pass forward
    idle: list  # names of layers that learn and get no gradient
    stops: str  # the layer that passes none on, or ''
    loss: float


def try_stage(plan, net, snapshot):
    """Train a few iterations in a process of its own, which writes a snapshot where asked. Returns a Trial.

    Of several processes that share a mini-batch, it does what the first one does, without the others.
    """

    def run():
        parallel.leave()
        params = read_prototxt(f"{plan.prefix}_solver.prototxt", caffe_pb2.SolverParameter())
        use_device(params.device_id if params.solver_mode == params.GPU else None)
        solver = caffe.get_solver(f"{plan.prefix}_solver.prototxt")
        if plan.weights:
            load_weights(solver.net, plan.weights)
        seconds, moved = [], collections.Counter()
        for _ in range(TRIED_ITERATIONS):
            start = time.perf_counter()
            solver.step(1)
            seconds.append(time.perf_counter() - start)
            for name, blobs in solver.net.params.items():
                moved[name] += max(float(np.abs(blob.diff).max(initial=0)) for blob in blobs)
        start = time.perf_counter()
        solver.net.forward()
        forward = time.perf_counter() - start
        kinds = {layer.name: layer.type for layer in net.layer}
        idle = [n for n in solver.net.params if n not in plan.frozen and kinds[n] != "BatchNorm" and moved[n] == 0]
        loss = float(solver.net.blobs[plan.loss].data.flat[0])
        stops = next((layer.name for layer in reversed(net.layer) if idle and _stops(layer, solver.net.blobs)), "")
        if snapshot:
            snapshots.write(solver, plan.prefix, plan.suffix, plan.weights)
        return Trial(float(np.median(seconds)), forward, idle, stops, loss)

    return try_in_child(run, plan.settings["NET"])


def _stops(layer, blobs):
    """Whether a layer gets a gradient and passes none on."""
    gets = any(blobs[top].diff.any() for top in layer.top)
    return gets and bool(layer.bottom) and not any(blobs[bottom].diff.any() for bottom in layer.bottom)


def trial_advice(plan, trial):
    """Lines and sentences about a Trial: how long training takes, and what does not learn."""
    s = plan.settings
    seconds = s["MAX_ITERS"] * trial.seconds
    once = ""
    if plan.cached:
        rows = len(plan.images.names) * (1 + s["MIRROR"])
        seconds = rows / s["BATCH_SIZE"] * trial.forward
        once = ", for frozen features, once; what learns takes little on top"
    lines = [f"time       about {clock(seconds)}, from {TRIED_ITERATIONS} iterations of {trial.seconds:.2g} s{once}"]
    advice = []
    if trial.idle and trial.loss:
        cause = f": {trial.stops} passes none on" if trial.stops else ""
        advice.append(f"no gradient reaches {_some(trial.idle)}, which should learn{cause}")
    return lines, advice


def look_before(plan):
    """What every run begins with: lines to print, advice last. Raises InputError."""
    net = read_net(f"{plan.prefix}_train.prototxt")
    parts = [
        settings_advice(plan),
        images_advice(plan, look_at(plan.images, sample(plan.images)), plan.held_out and look_at(
            plan.held_out, sample(plan.held_out)
        )),
        wiring_advice(net, plan.shapes, plan.frozen),
    ]  # fmt: skip
    return _joined(parts)


def look_closely(plan, snapshot, folder):
    """What --check does of a stage: lines to print, advice last.

    snapshot: write one, for the next stage; folder: where a run would write.
    """
    net = read_net(f"{plan.prefix}_train.prototxt")
    look = look_at(plan.images, np.arange(len(plan.images.names)), show=True)
    held_out = look_at(plan.held_out, np.arange(len(plan.held_out.names)), show=True) if plan.held_out else None
    parts = [
        settings_advice(plan, folder), images_advice(plan, look, held_out),
        wiring_advice(net, plan.shapes, plan.frozen), trial_advice(plan, try_stage(plan, net, snapshot)),
    ]  # fmt: skip
    return _joined(parts)


def _joined(parts):
    lines = [line for of_part, _ in parts for line in of_part]
    return lines + [f"advice     {sentence}" for _, advice in parts for sentence in advice]
