"""Stop before an explosion is snapshotted, and say where it began: iteration, layer, and images of the mini-batch."""

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core import sampling
from tripletloss.training import snapshots

LARGEST_LOSS = 87.3  # Caffe's softmax loss counts no probability below 1e-38, so that a mean of 87.3 means: all wrong
LARGEST_WEIGHT = 1e6
SHOWN_IMAGES = 3


def are_fine(net, scalars, values):
    """Whether the numbers of an iteration are finite, and its softmax loss is below the largest that there is."""
    softmax = {top for layer in net.layer if layer.type == "SoftmaxWithLoss" for top in layer.top}
    largest = max((value for name, value in zip(scalars, values, strict=True) if name in softmax), default=0)
    return bool(np.isfinite(values).all() and largest < LARGEST_LOSS)


def stop_for_values(plan, net, solver, scalars, values):
    """Raise the InputError of values that are not fine. plan: of the stage; net: NetParameter; solver: after it."""
    finite = np.isfinite(values)
    if finite.all():
        stop(plan, net, solver, solver.iter, f"the softmax loss is {LARGEST_LOSS:g}, the largest that there is")
    stop(plan, net, solver, solver.iter, f"{scalars[int(np.argmin(finite))]} is not a number any more")


def check_weights(plan, net, solver):
    """Raise InputError where a parameter is not finite or, statistics apart, above LARGEST_WEIGHT."""
    kinds = {layer.name: layer.type for layer in net.layer}
    for name, blobs in solver.net.params.items():
        for blob in blobs:
            largest = np.abs(blob.data).max(initial=0)
            if not np.isfinite(largest):
                stop(plan, net, solver, solver.iter, f"a weight of layer {name!r} is not a number any more")
            if largest > LARGEST_WEIGHT and kinds[name] != "BatchNorm":
                stop(plan, net, solver, solver.iter, f"a weight of layer {name!r} has grown to {largest:.3g}")


def stop(plan, net, solver, iteration, what):
    """Raise the InputError that ends training in an iteration, counted from 1, and write the list of its images."""
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
        f"the {plan.stage} stage stops at iteration {iteration}: {what}"
        + (f"; the first layer whose output is not finite is {layer!r}" if layer else "")
        + f"; its images ({some}) are listed in {path}: lower LEARNING_RATE and start another run"
        + (f", with WEIGHTS = {kept[-1].weights!r}, the last snapshot, to go on from there" if kept else "")
    )


def images_of(plan, iteration):
    """Numbers of the images of an iteration, counted from 0, as far as the batches are this project's."""
    s = plan.settings
    batches = sampling.make_batches(
        s["BATCHES"], plan.images.labels, s["BATCH_SIZE"], s["IMAGES_PER_IDENTITY"], s["SEED"],
        mined_cap=s["POSITIVE_CAP"] if s["MINED"] else None,
    )  # fmt: skip
    if s["MINED"]:
        with np.load(s["MINED"]) as mined:
            batches.take(mined["embeddings"], mined["negatives"])
    passes = range(iteration * plan.iter_size, (iteration + 1) * plan.iter_size)
    return np.concatenate([batches.batch(number).images for number in passes])


def _first_not_finite(net, blobs, images):
    """The name of the first layer with an output that is not finite, or '', and which rows (images,) of it are such."""
    for layer in net.layer:
        for top in layer.top:
            data = blobs[top].data
            if not np.isfinite(data).all():
                bad = ~np.isfinite(data.reshape(len(data), -1)).all(axis=1) if data.ndim else np.ones(1, bool)
                return layer.name, bad if len(bad) == images else np.zeros(images, bool)
    return "", np.zeros(images, bool)
