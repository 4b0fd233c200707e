"""Compare selection, loss and gradient of one large mini-batch with pytorch-metric-learning, on one CPU and equal data.

    .venv/bin/pip install -e .[benchmark]
    .venv/bin/python benchmarks/selection.py

Each side runs in its own process, in turns. Memory is the peak above that of inputs and imports. The two select
differently: pytorch-metric-learning takes every negative in the semi-hard band, this project takes the nearest one.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
from tabulate import tabulate

IDENTITIES, IMAGES, DIMENSION, MARGIN = 45, 40, 128, 0.2
ROUNDS, REPEATS = 3, 5  # processes per side, in turns; runs in each


def batch():
    """45 identities x 40 unit embeddings of 128 in float32, with labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(IDENTITIES), IMAGES)
    x = 0.3 * rng.normal(size=(IDENTITIES, DIMENSION))[labels] + rng.normal(size=(len(labels), DIMENSION))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def ours(strategy):
    """A function that selects and computes loss and gradient with tripletloss, and returns the loss."""
    from tripletloss.core import losses, selection
    from tripletloss.core.distances import squared_distances

    x, labels = batch()

    def run():
        distances = squared_distances(x, np.float32)
        chosen = selection.STRATEGIES[strategy].select(distances, labels, MARGIN)
        return losses.selected_loss(x, distances, chosen, MARGIN)[0]

    return run


def theirs(strategy):
    """The same with pytorch-metric-learning."""
    import torch
    from pytorch_metric_learning import distances, losses, miners

    x, labels = (torch.from_numpy(part) for part in batch())
    distance = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
    miner = {
        "semi-hard": miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=distance),
        "batch-hard": miners.BatchHardMiner(distance=distance),
    }[strategy]
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance)

    def run():
        rows = x.clone().requires_grad_()
        value = loss(rows, labels, miner(rows, labels))
        value.backward()
        return float(value)

    return run


def one(side, strategy):
    """Run one side in this process; print the seconds of each run and the megabytes allocated."""
    run = {"ours": ours, "theirs": theirs}[side](strategy)
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    run()
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    gained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([seconds, gained / 1024]))


def main():
    """Run both sides in turns; print a table."""
    rows = []
    for strategy in ("semi-hard", "batch-hard"):
        found = {"ours": [], "theirs": []}
        memory = {}
        for _ in range(ROUNDS):
            for side, seconds in found.items():
                answer = subprocess.run([sys.executable, __file__, side, strategy], check=True, capture_output=True)
                more, memory[side] = json.loads(answer.stdout)
                seconds += more
        for side, seconds in found.items():
            low, median, high = 1e3 * np.percentile(seconds, (0, 50, 100))
            rows.append([strategy, side, f"{median:.1f}", f"{low:.1f} to {high:.1f}", f"{memory[side]:.0f}"])
        faster = np.median(found["theirs"]) / np.median(found["ours"])
        rows.append([strategy, "ratio", f"{faster:.1f}", "", f"{memory['theirs'] / memory['ours']:.1f}"])
    print(f"{IDENTITIES} x {IMAGES} embeddings of {DIMENSION}, float32; {ROUNDS} processes x {REPEATS} runs per side\n")
    print(tabulate(rows, ["selection", "", "median ms", "all", "MB allocated"], disable_numparse=True))


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
