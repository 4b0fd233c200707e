"""Measure time and memory of writing the report of a run with 10,000 held-out images, once they are embedded.

    .venv/bin/python benchmarks/report.py runs/sample

The held-out images of a finished run are taken several times, under names of other identities. Their embeddings are
turned by a rotation of each time's own, so distances within an identity stay as they are, and identities differ.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from tripletloss.data.lists import identity_of
from tripletloss.training import outcome

IMAGES = 10_000


def enlarge(source, folder):
    """Copy what a page needs of the run in `source` into a new folder, with IMAGES held-out images."""
    large = "*.caffemodel*", "*.solverstate*", "*_tensorboard", "*_caffe.log", "*.png", "*.html"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*large))
    kept, path = outcome.load(source), os.path.join(folder, "triplet_settings.json")
    with open(path) as file:
        settings = json.load(file)
    images = os.path.join(folder, "images")
    os.mkdir(images)
    rng, copies = np.random.default_rng(0), -(-IMAGES // len(kept.names))
    names, labels, rows = [], [], {name: [] for name in kept.rows}
    for copy in range(copies):
        for name in kept.names:
            names.append(f"{identity_of(name)}_{copy}@{name.partition('@')[2]}")
            os.symlink(os.path.join(settings["IMAGEPATH"], name), os.path.join(images, names[-1]))
        labels.append(kept.labels + copy * (kept.labels.max() + 1))
        rotation = np.linalg.qr(rng.normal(size=(kept.rows["best"].shape[1],) * 2))[0].astype(np.float32)
        for name, own in kept.rows.items():
            rows[name].append(own @ rotation)
    names, labels = names[:IMAGES], np.concatenate(labels)[:IMAGES]
    settings.update(IMAGEPATH=images, HELD_OUT_LIST=os.path.join(folder, "held_out.txt"))
    with open(settings["HELD_OUT_LIST"], "w") as file:
        file.writelines(f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
    with open(path, "w") as file:
        json.dump(settings, file)
    rows = {name: np.concatenate(own)[:IMAGES] for name, own in rows.items()}
    outcome.save(folder, outcome.Kept({**kept.about, "list": settings["HELD_OUT_LIST"]}, rows, names, labels))


def main():
    """Enlarge, write the page, print."""
    with tempfile.TemporaryDirectory() as parent:
        folder = os.path.join(parent, "run")
        enlarge(os.path.abspath(sys.argv[1]), folder)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tripletloss.report", folder], check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{IMAGES} held-out images: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of processor time), peak "
        f"memory {used.ru_maxrss / 1024:.0f} MB"
    )


if __name__ == "__main__":
    main()
