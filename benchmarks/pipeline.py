"""Measure how fast workers read mini-batches: .venv/bin/python benchmarks/pipeline.py [LIST IMAGEPATH].

First, nothing else is running. Then iterations as long as those of the shipped net alternate with reading, and the
share of time spent waiting is shown. The default images are the shipped model's own, 112 x 112, with all augmentations
on.
"""

import os
import sys
import time

import numpy as np
from tabulate import tabulate

from tripletloss import config
from tripletloss.data.loader import Loader
from tripletloss.layers import DataLayer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BATCHES, ITERATION_S = 30, 0.5  # of 64 images on one core


def settings(workers, source, folder):
    """A DataLayer's settings."""
    stage = config.load(os.path.join(ROOT, "config.py")).stage("softmax")
    found = {name.lower(): value for name, value in stage.items()}
    found.update(broken_images="stop", broken_list="", rank=0, ranks=1, workers=workers,
                 crop_jitter=0.05, zoom_jitter=0.1, light_jitter=0.3, grey_share=0.2,
                 rotation_jitter=10, colour_jitter=0.2, coarse_share=0.3)  # fmt: skip
    found.update(train_list=source, imagepath=folder)
    return {key: found[key] for key in DataLayer.keys}


def main():
    """Print a table by number of workers."""
    unseen = os.path.join(ROOT, "models", "face997", "unseen")
    source, folder = sys.argv[1:] or (f"{unseen}.txt", unseen)
    rows = []
    for workers in (0, 1, 2, 4):
        loader = Loader(settings(workers, source, folder))
        loader.next()
        start = time.perf_counter()
        for _ in range(BATCHES):
            loader.next()
        alone = BATCHES * loader.shape[0] / (time.perf_counter() - start)
        shares = []
        for _ in range(BATCHES):
            shares.append(loader.next()[2])
            time.sleep(ITERATION_S)
        loader.close()
        shares = np.array(shares[len(shares) // 3 :])
        median, high = np.percentile(shares / (shares + ITERATION_S), (50, 100))
        rows.append([workers, f"{alone:.0f}", f"{median:.2%}", f"{high:.2%}"])
    print(f"{BATCHES} mini-batches of {loader.shape[0]} images of {loader.shape[2]} x {loader.shape[3]}\n")
    print(tabulate(rows, ["workers", "images/s alone", "wait, median", "largest"], disable_numparse=True))


if __name__ == "__main__":
    main()
