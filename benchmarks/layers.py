"""Measure the time of an iteration of the shipped net, layer by layer: .venv/bin/python benchmarks/layers.py.

It uses the sample and one thread, like each process of `mpirun`. In the triplet stage, the net below norm2 is frozen
and has no backward pass; here it runs in every iteration, as it does without FEATURE_CACHE.
"""

import collections
import os
import tempfile
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", GLOG_minloglevel="2")

import caffe
import numpy as np
from tabulate import tabulate

from tripletloss import config
from tripletloss.net.definition import for_stage, read_net, write_prototxt
from tripletloss.net.settings import fill_settings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ITERATIONS = 10


def measure(stage, first_learning):
    """Print the share of each kind of layer, and of each Python layer, in a stage's iterations."""
    settings = config.load(os.path.join(ROOT, "config.py")).stage(stage)
    settings.update(IDENTITIES=160, RANK=0, RANKS=1, WORKERS=0)
    net = for_stage(read_net(settings["NET"]), caffe.TRAIN, stage)
    net, _ = fill_settings(net, settings, settings["NET"])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "net.prototxt")
        write_prototxt(net, path)
        net = caffe.Net(path, caffe.TRAIN)
    forward = range(len(net.layers))
    backward = range(len(net.layers) - 1, list(net._layer_names).index(first_learning) - 1, -1)
    seconds = [collections.Counter() for _ in range(ITERATIONS)]
    net.forward()
    for spent in seconds:
        for step, order in ((net._forward, forward), (net._backward, backward)):
            for i in order:
                start = time.perf_counter()
                step(i, i)
                kind = net.layers[i].type
                spent[net._layer_names[i] if kind == "Python" else kind] += time.perf_counter() - start
    total = np.array([sum(spent.values()) for spent in seconds])
    rows = []
    for name, _ in sum(seconds, collections.Counter()).most_common():
        low, median, high = 1e3 * np.percentile([spent[name] for spent in seconds], (0, 50, 100))
        rows.append([name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{median / 1e3 / np.median(total):.2%}"])
    images, ms = settings["BATCH_SIZE"], 1e3 * np.median(total)
    print(f"{stage}: {images} images, {ms:.0f} ms per iteration, {1e3 * images / ms:.0f} images/s\n")
    print(tabulate(rows, ["layers", "median ms", "all", "share"], disable_numparse=True), "\n")


if __name__ == "__main__":
    measure("softmax", "conv1")
    measure("triplet", "fc9_1")
