"""Measure how training scales with processes: .venv/bin/python benchmarks/scaling.py, after `pip install -e .[mpi]`.

The softmax stage of the shipped net runs on the sample with one process and two threads, and with one and two processes
of one thread each. An estimate for more processes follows from the size of the nets' messages and the time per image.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

import caffe
import numpy as np
from tabulate import tabulate

from tripletloss import config
from tripletloss.base.process import caffe_log
from tripletloss.net.definition import read_net
from tripletloss.net.freezing import changing_blobs
from tripletloss.training.plan import make_plan

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ITERATIONS, ROUNDS = 30, 3
CASES = [  # processes, threads each, images of a mini-batch
    (1, 2, 64),
    (1, 1, 64),
    (2, 1, 64),  # strong scaling: the same mini-batch
    (2, 1, 128),  # weak scaling: the same share
]
# For the estimate: a ring sends each process's message almost twice, in 2 (ranks - 1) steps.
RANKS, GIGABITS, STEP_S = (8, 64, 256), (25, 100), 20e-6


def write_config(folder, **changes):
    """Write a config for the sample and a net of this project, and return its path."""
    settings = {
        "NET": os.path.join(ROOT, "train.prototxt"), "SOLVER": os.path.join(ROOT, "solver.prototxt"),
        "IMAGEPATH": os.path.join(ROOT, "data", "images"), "TRAIN_LIST": os.path.join(ROOT, "data", "train.txt"),
        "RUN_FOLDER": os.path.join(folder, "run"), "STAGES": ["softmax"], "IMAGE_SIZE": 64, "WORKERS": 1,
        "MAX_ITERS": ITERATIONS, "SNAPSHOT_ITERS": ITERATIONS, "DEVICE": "cpu", **changes,
    }  # fmt: skip
    path = os.path.join(folder, "config.py")
    with open(path, "w") as file:
        file.writelines(f"{name} = {value!r}\n" for name, value in settings.items())
    return path


def speed(processes, threads, batch):
    """Images per second, and the share of time in communication, over the last 20 iterations of a run."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, os.path.join(ROOT, "train.py"), "--config", write_config(folder, BATCH_SIZE=batch)]
        mpirun = [os.path.join(os.path.dirname(sys.executable), "mpirun"), "--bind-to", "none", "-np", str(processes)]
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads),
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }  # fmt: skip
        done = subprocess.run(
            [*mpirun, *program] if processes > 1 else program, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(done.stderr)
    images = float(re.findall(r"images/s=([\d.]+)", done.stderr)[-1])
    return images, float((re.findall(r"comm=(\d+)%", done.stderr) or ["0"])[-1]) / 100


def scaling():
    """Print images per second by number of processes; all cases take turns."""
    found = [[speed(*case) for case in CASES] for _ in range(ROUNDS)]
    images, comm = np.array(found).transpose(2, 1, 0)  # (cases, rounds) each
    rows = [
        [processes, threads, batch, f"{np.median(mine):.1f}", f"{mine.min():.1f} to {mine.max():.1f}",
         f"{np.median(mine / images[0]):.2f}", f"{np.median(mine / images[1]):.2f}", f"{np.median(waiting):.0%}"]
        for (processes, threads, batch), mine, waiting in zip(CASES, images, comm, strict=True)
    ]  # fmt: skip
    headers = ["processes", "threads", "mini-batch", "images/s", f"{ROUNDS} runs", "to 1st", "to 2nd", "messages"]
    print(tabulate(rows, headers, disable_numparse=True), flush=True)


def message(net, folder, **changes):
    """Return the bytes of gradients that a net's softmax stage sends, and the seconds per image here."""
    os.makedirs(os.path.join(folder, "run"))
    with caffe_log(os.devnull):
        source = write_config(folder, NET=os.path.join(ROOT, net), **changes)
        planned = make_plan(config.load(source), "softmax", None)
        solver = caffe.get_solver(f"{planned.prefix}_solver.prototxt")
        definition = read_net(f"{planned.prefix}_train.prototxt")
        learning, _ = changing_blobs(definition, solver.net.params)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            solver.step(1)
            seconds.append(time.perf_counter() - start)
    return 4 * sum(blob.count for blob in learning), np.median(seconds) / planned.settings["BATCH_SIZE"]


def estimate(name, size, image_s, share):
    """Print an estimate of how long a net's messages take, and of the share of time left for learning at this speed."""
    rows = []
    for gigabits in GIGABITS:
        for ranks in RANKS:
            seconds = 2 * (ranks - 1) / ranks * size * 8 / (gigabits * 1e9) + 2 * (ranks - 1) * STEP_S
            own = share * image_s
            rows.append([gigabits, ranks, f"{seconds * 1e3:.1f}", f"{own / (own + seconds):.1%}", f"{9 * seconds:.2f}"])
    print(f"\n{name}: {size / 1e6:.1f} MB per message; {image_s * 1e3:.0f} ms per image, {share} images per process")
    headers = ["Gbit/s", "ranks", "message ms", "efficiency here", "iteration s for 90%"]
    print(tabulate(rows, headers, disable_numparse=True))


def main():
    """Print all tables."""
    scaling()
    print("\nESTIMATE, not run: a ring, all of the bandwidth, 20 microseconds per step, no overlap with learning")
    with tempfile.TemporaryDirectory() as folder:
        small = message("train.prototxt", os.path.join(folder, "small"), BATCH_SIZE=64)
        large = message("models/vgg_face/train.prototxt", os.path.join(folder, "large"), BATCH_SIZE=4, IMAGE_SIZE=224)
    estimate("face997", *small, 64)
    estimate("VGG_FACE_16", *large, 30)


if __name__ == "__main__":
    main()
