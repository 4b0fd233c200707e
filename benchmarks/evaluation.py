"""Measure time and memory of tripletloss.evaluate on 50,000 embeddings and 1,000,000 pairs.

    .venv/bin/python benchmarks/evaluation.py
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

IMAGES, IDENTITIES, DIMENSION = 50_000, 2_500, 256


def write(path):
    """Write embeddings of length one in clouds, one per identity, in the format of tripletloss.extract."""
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % IDENTITIES
    x = rng.normal(size=(IDENTITIES, DIMENSION))[labels] + 1.6 * rng.normal(size=(IMAGES, DIMENSION))
    with h5py.File(path, "w") as file:
        file["embeddings"] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        file["labels"] = labels
        names = [f"{label}@{number}.jpg" for number, label in enumerate(labels)]
        file.create_dataset("names", data=names, dtype=h5py.string_dtype())
        file.attrs.update(list="clouds", folder=".", feature="drawn", weights="none", weights_sha256="", mirrored=False)


def main():
    """Write, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "embeddings.h5")
        write(path)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tripletloss.evaluate", path, "--out", folder], check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    held = IMAGES * DIMENSION * 4 / 2**20
    print(f"\n{seconds:.0f} s, peak memory {peak:.0f} MB, of which the embeddings are {held:.0f} MB")


if __name__ == "__main__":
    main()
