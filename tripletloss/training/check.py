"""Problems with images, lists, nets and settings, found before training: python train.py --check.

Every run begins with the checks that take a moment. --check reads all images, and tries a few iterations of each stage
in another folder. Errors are InputErrors and end the run; what is returned is advice.
"""

import collections
import os
import shutil
import time
from typing import NamedTuple

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base import parallel
from tripletloss.base.files import amount
from tripletloss.base.process import try_in_child
from tripletloss.base.steps import Steps
from tripletloss.data.lists import label_gaps, some
from tripletloss.formats.caffemodel import made_by, read_prototxt
from tripletloss.layers import Norm2Layer, SelectingLayer
from tripletloss.net.definition import read_net
from tripletloss.net.roles import is_a
from tripletloss.net.weights import Shapes, load_weights
from tripletloss.training import snapshots
from tripletloss.training.device import use_device
from tripletloss.training.look import images_advice, look_at, sample
from tripletloss.training.passes import in_passes
from tripletloss.training.plan import Plan
from tripletloss.training.record import clock

TRIED_ITERATIONS = 3
FEW_FOR_CONVOLUTIONS = 100  # identities; benchmarks/whole_net.py measures what they are worth
Advice = tuple[list[str], list[str]]  # lines that inform, and sentences that advise


def settings_advice(plan: Plan, folder: str = "") -> Advice:
    """What a stage will see and write, judged by its lists and settings only.

    folder: where a run would write, if not in RUN_FOLDER.
    """
    s, images, advice = plan.settings, plan.images, []
    shown, count = s["MAX_ITERS"] * s["BATCH_SIZE"] * plan.iter_size, len(images.names)
    lines = [f"epochs     {shown / count:.3g}: {shown} images shown"]
    for what, where, needed in disk(plan, folder or s["RUN_FOLDER"]):
        room = shutil.disk_usage(_there(where)).free
        lines.append(f"disk       {amount(needed)} for {what}; {amount(room)} are free in {where}")
        if needed > room:
            advice.append(f"{where} has {amount(room)} free, but {what} need {amount(needed)}: make room")
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
                f"so these repeat in a mini-batch; {alone} of them have one image, which is its own positive"
            )
    return lines, advice


def _there(folder):
    """The folder, or the nearest one above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    return folder


def disk(plan: Plan, folder: str) -> list[tuple[str, str, int]]:
    """What a stage writes: (what, folder, bytes) of snapshots and, if they are cached, of features."""
    s = plan.settings
    written = -(-s["MAX_ITERS"] // s["SNAPSHOT_ITERS"])
    kept = min(written, s["KEEP_SNAPSHOTS"] + 1) if s["KEEP_SNAPSHOTS"] else written
    found = [("snapshots", folder, kept * plan.parameters * 4 * 2)]
    if plan.cached:
        width = np.dtype(s["FEATURE_TYPE"]).itemsize * (1 + s["MIRROR"])
        found.append(("features", s["FEATURE_CACHE"], plan.cut_size * len(plan.images.names) * width))
    return found


def wiring_advice(net: caffe_pb2.NetParameter, params: Shapes) -> Advice:
    """Advice about a stage's net. params: shapes of its parameters."""
    lines: list[str] = []
    advice: list[str] = []
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
            advice.append(f"{layer.name} has lr_mult 0 for the {still} but not for the {moves}: freeze both or neither")
        elif weight and bias > 4 * weight:
            advice.append(f"the bias of {layer.name} learns {bias / weight:g} times as fast as its weights; 2 is usual")
    return lines, advice


def convolution_advice(plan: Plan, net: caffe_pb2.NetParameter) -> Advice:
    """Advice about convolutions that learn from triplets. net: of the stage.

    The gradient of a squared distance grows with it, so with batch-hard selection the farthest positives are pulled
    more than the nearest negatives are pushed, until all embeddings are in one point. FaceNet (section 3.2) avoids it
    by semi-hard selection; Hermans et al. (2017) by distances that are not squared. A projection above frozen layers
    hardly does it.
    """
    s, advice = plan.settings, list[str]()
    learning = [layer for layer in net.layer if layer.type == "Convolution" and layer.name not in plan.frozen]
    if plan.stage != "triplet" or not learning:
        return [], []
    if s["SELECTION"] == "batch-hard":
        advice.append(
            f"with batch-hard selection, {learning[0].name} and what is above it are likely to move all embeddings to "
            f"one point, where the loss is MARGIN / 2 = {s['MARGIN'] / 2:g}: set SELECTION to 'semi-hard', and MARGIN "
            "to 0.2"
        )
    identities = len(np.unique(plan.images.labels))
    if plan.weights and identities < FEW_FOR_CONVOLUTIONS:
        advice.append(
            f"{identities} identities are few for {learning[0].name} and what is above it to learn from triplets: with "
            "30, face997 became worse for other people. Let only the projection learn: set FREEZE, WEIGHT_DECAY and "
            "LEARNING_RATE of the triplet stage as they are in the config.py beside the net"
        )
    return [], advice


class Trial(NamedTuple):
    """What a few iterations showed."""

    seconds: float  # per iteration
    forward: float  # seconds that a mini-batch takes through the layers below a cut, 0 without one
    idle: list[str]  # names of layers that should learn but get no gradient
    stops: str  # the layer that passes no gradient on, or ''
    loss: float


def try_stage(plan: Plan, net: caffe_pb2.NetParameter, snapshot: bool) -> Trial:
    """Train a few iterations in a child process. snapshot: write one.

    If several processes are to share a mini-batch, it does the first one's part, without the others.
    """

    def run():
        parallel.leave()
        params = read_prototxt(f"{plan.prefix}_solver.prototxt", caffe_pb2.SolverParameter())
        use_device(params.device_id if params.solver_mode == params.GPU else None)
        solver = caffe.get_solver(f"{plan.prefix}_solver.prototxt")
        if plan.weights:
            load_weights(solver.net, plan.weights)
        passes = in_passes(solver, net, plan.settings, 0, plan.iter_size)
        steps = Steps(solver, [], [], passes.compute if passes else None)
        seconds: list[float] = []
        moved: dict[str, float] = collections.defaultdict(float)
        for _ in range(TRIED_ITERATIONS):
            start = time.perf_counter()
            steps.step()
            seconds.append(time.perf_counter() - start)
            for name, blobs in solver.net.params.items():
                moved[name] += max(float(np.abs(blob.diff).max(initial=0)) for blob in blobs)
        forward = 0.0
        if plan.cached and plan.cut:
            start = time.perf_counter()
            solver.net.forward(end=plan.cut.frozen[-1].name)
            forward = (time.perf_counter() - start) * (passes.count if passes else 1)
        kinds = {layer.name: layer.type for layer in net.layer}
        idle = [n for n in solver.net.params if n not in plan.frozen and kinds[n] != "BatchNorm" and moved[n] == 0]
        loss = float(solver.net.blobs[plan.loss].data.flat[0])
        stops = next((layer.name for layer in reversed(net.layer) if idle and _stops(layer, solver.net.blobs)), "")
        if snapshot:
            snapshots.write(solver, plan.prefix, plan.suffix, plan.carried)
        return Trial(float(np.median(seconds)), forward, idle, stops, loss)

    return try_in_child(run, plan.settings["NET"])


def _stops(layer, blobs):
    """Whether a layer gets a gradient and passes none on."""
    gets = any(blobs[top].diff.any() for top in layer.top)
    return gets and bool(layer.bottom) and not any(blobs[bottom].diff.any() for bottom in layer.bottom)


def trial_advice(plan: Plan, trial: Trial) -> Advice:
    """How long training takes, and what does not learn."""
    s = plan.settings
    seconds = s["MAX_ITERS"] * trial.seconds
    once = ""
    if plan.cached:
        rows = len(plan.images.names) * (1 + s["MIRROR"])
        seconds = rows / s["BATCH_SIZE"] * trial.forward
        once = ", mostly for the frozen features, which are computed once"
    lines = [f"time       about {clock(seconds)}, from {TRIED_ITERATIONS} iterations of {trial.seconds:.2g} s{once}"]
    advice = []
    if trial.idle and trial.loss:
        cause = f": {trial.stops} passes none on" if trial.stops else ""
        advice.append(f"no gradient reaches {some(trial.idle)}, which should learn{cause}")
    return lines, advice


def look_before(plan: Plan) -> list[str]:
    """The checks that every run begins with: lines to print, advice last. Raises InputError."""
    net = read_net(f"{plan.prefix}_train.prototxt")
    held_out = look_at(plan.held_out, sample(plan.held_out)) if plan.held_out else None
    parts = [
        settings_advice(plan),
        images_advice(plan, look_at(plan.images, sample(plan.images)), held_out),
        wiring_advice(net, plan.shapes),
        convolution_advice(plan, net),
    ]
    return _joined(parts)


def look_closely(plan: Plan, snapshot: bool, folder: str) -> list[str]:
    """The checks of --check for a stage: lines to print, advice last. Raises InputError.

    snapshot: write one, for the next stage; folder: where a run would write.
    """
    net = read_net(f"{plan.prefix}_train.prototxt")
    look = look_at(plan.images, np.arange(len(plan.images.names)), show=True)
    held_out = look_at(plan.held_out, np.arange(len(plan.held_out.names)), show=True) if plan.held_out else None
    parts = [
        settings_advice(plan, folder), images_advice(plan, look, held_out),
        wiring_advice(net, plan.shapes), convolution_advice(plan, net),
        trial_advice(plan, try_stage(plan, net, snapshot)),
    ]  # fmt: skip
    return _joined(parts)


def _joined(parts):
    lines = [line for of_part, _ in parts for line in of_part]
    return lines + [f"advice     {sentence}" for _, advice in parts for sentence in advice]
