"""Stop before an explosion gets into a snapshot, and say where it began: iteration, layer, images of the mini-batch."""

from collections.abc import Sequence
from typing import NoReturn

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.core import sampling
from tripletloss.core.batches import MinedBatches
from tripletloss.training import snapshots
from tripletloss.training.plan import Plan

LARGEST_LOSS = 87.3  # Caffe's softmax loss clips probabilities at 1e-38, so a mean of 87.3 means that all are wrong
LARGEST_WEIGHT = 1e6
SHOWN_IMAGES = 3


def are_fine(net: caffe_pb2.NetParameter, scalars: Sequence[str], values: Sequence[float]) -> bool:
    """Whether the numbers of an iteration are finite, and its softmax loss is below LARGEST_LOSS.

    scalars: names of the net's blobs that hold one number; values: those numbers.
    """
    softmax = {top for layer in net.layer if layer.type == "SoftmaxWithLoss" for top in layer.top}
    largest = max((value for name, value in zip(scalars, values, strict=True) if name in softmax), default=0)
    return bool(np.isfinite(values).all() and largest < LARGEST_LOSS)


def stop_for_values(
    plan: Plan, net: caffe_pb2.NetParameter, solver: caffe._caffe.Solver, scalars: Sequence[str],
    values: Sequence[float],
) -> NoReturn:  # fmt: skip
    """Raise the InputError for values that are not fine. solver: after the iteration. Others: as in are_fine."""
    finite = np.isfinite(values)
    if finite.all():
        stop(plan, net, solver, solver.iter, f"the softmax loss is {LARGEST_LOSS:g}, the largest possible")
    stop(plan, net, solver, solver.iter, f"{scalars[int(np.argmin(finite))]} is NaN or infinite")


def check_weights(plan: Plan, net: caffe_pb2.NetParameter, solver: caffe._caffe.Solver) -> None:
    """Raise InputError if a parameter is NaN or infinite, or, unless it is a statistic, above LARGEST_WEIGHT."""
    kinds = {layer.name: layer.type for layer in net.layer}
    for name, blobs in solver.net.params.items():
        for blob in blobs:
            largest = np.abs(blob.data).max(initial=0)
            if not np.isfinite(largest):
                stop(plan, net, solver, solver.iter, f"a weight of layer {name!r} is NaN or infinite")
            if largest > LARGEST_WEIGHT and kinds[name] != "BatchNorm":
                stop(plan, net, solver, solver.iter, f"a weight of layer {name!r} has grown to {largest:.3g}")


def stop(plan: Plan, net: caffe_pb2.NetParameter, solver: caffe._caffe.Solver, iteration: int, what: str) -> NoReturn:
    """Write the list of an iteration's images, and raise the InputError that ends training.

    net: of the solver; iteration: counted from 1; what: has happened.
    """
    images, blobs = images_of(plan, iteration - 1), solver.net.blobs
    layer, rows = _first_not_finite(net, blobs, len(images))
    suspects = images[rows] if 0 < rows.sum() < len(images) else images
    names = [plan.images.names[number] for number in suspects]
    path = f"{plan.prefix}_stopped_batch.txt"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{name} {plan.images.labels[number]}\n" for name, number in zip(names, suspects, strict=True))
    some = ", ".join(names[:SHOWN_IMAGES]) + (" ..." if len(names) > SHOWN_IMAGES else "")
    kept = snapshots.described(plan.prefix)
    raise InputError(
        f"the {plan.stage} stage stopped at iteration {iteration}: {what}"
        + (f"; the first layer whose output is not finite is {layer!r}" if layer else "")
        + f"; its images ({some}) are listed in {path}: lower LEARNING_RATE and start another run"
        + (f", with WEIGHTS = {kept[-1].weights!r} to continue from the last snapshot" if kept else "")
    )


def images_of(plan: Plan, iteration: int) -> np.ndarray:
    """Numbers (N,) of the images of an iteration, counted from 0, if the net's data layer is this project's."""
    s = plan.settings
    batches = sampling.make_batches(
        s["BATCHES"], plan.images.labels, s["BATCH_SIZE"], s["IMAGES_PER_IDENTITY"], s["SEED"],
        mined_cap=s["POSITIVE_CAP"] if s["MINED"] else None,
    )  # fmt: skip
    if s["MINED"]:
        with np.load(s["MINED"]) as mined:
            assert isinstance(batches, MinedBatches)
            batches.take(mined["embeddings"], mined["negatives"])
    passes = range(iteration * plan.iter_size, (iteration + 1) * plan.iter_size)
    return np.concatenate([batches.batch(number).images for number in passes])


def _first_not_finite(net, blobs, images):
    """The name of the first layer whose output is not finite, or '', and which of its rows (images,) are not."""
    for layer in net.layer:
        for top in layer.top:
            data = blobs[top].data
            if not np.isfinite(data).all():
                bad = ~np.isfinite(data.reshape(len(data), -1)).all(axis=1) if data.ndim else np.ones(1, bool)
                return layer.name, bad if len(bad) == images else np.zeros(images, bool)
    return "", np.zeros(images, bool)
