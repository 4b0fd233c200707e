"""Images per second of tripletloss.extract, by processes and threads: .venv/bin/python benchmarks/extract.py.

It needs `pip install -e .[mpi]` and `make dlib-model`. An entry is how many more images of the sample the longer of two
runs had, divided by how much longer it took: what a run starts with does not count. All cases take turns.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

from tabulate import tabulate
from tqdm import tqdm

from tripletloss.data.folders import list_folder

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IMAGES = os.path.join(ROOT, "data", "images")
ROUNDS = 3
FEW = 100
MODELS = {  # and how many images the longer run has
    "face997": (["models/face997/face997.caffemodel"], 3500),
    "dlib_resnet": (["models/dlib_resnet/dlib_resnet.caffemodel", "--config", "models/dlib_resnet/config.py"], 1300),
}
CASES = [(1, 1), (1, 2), (2, 1)]  # processes, threads each
LAYERS = {"0": "Caffe's own", "1": "oneDNN"}  # by CAFFE_ONEDNN


def seconds(model, images, processes, threads, layers, folder):
    """How long a run takes. images: the path of their list; layers: of LAYERS."""
    environment = {
        **os.environ, "CAFFE_ONEDNN": layers, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads),
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }  # fmt: skip
    mpirun = [os.path.join(os.path.dirname(sys.executable), "mpirun"), "--bind-to", "none", "-np", str(processes)]
    command = [sys.executable, "-m", "tripletloss.extract", *MODELS[model][0], "--list", images, "--images", IMAGES]
    command = [*(mpirun if processes > 1 else []), *command, "--out", os.path.join(folder, "out.h5"), "--force"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def main():
    """Print the table."""
    images = list_folder(IMAGES)
    cases = list(itertools.product(MODELS, CASES, LAYERS))
    found = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        lists = {}
        for count in {FEW, *(many for _, many in MODELS.values())}:
            lists[count] = os.path.join(folder, f"{count}.txt")
            with open(lists[count], "w") as file:
                file.writelines(
                    f"{name} {label}\n" for name, label in zip(images.names[:count], images.labels, strict=False)
                )
        for model, (processes, threads), layers in tqdm(cases * ROUNDS, unit="case"):
            many = MODELS[model][1]
            few_s, many_s = (seconds(model, lists[count], processes, threads, layers, folder) for count in (FEW, many))
            found[model, (processes, threads), layers].append((many - FEW) / (many_s - few_s))
    rows = []
    for processes, threads in CASES:
        row = [processes, threads]
        for model, layers in itertools.product(MODELS, LAYERS):
            speeds = found[model, (processes, threads), layers]
            row.append(f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})")
        rows.append(row)
    heads = [f"{model}: {layers}" for model, layers in itertools.product(MODELS, LAYERS.values())]
    print(tabulate(rows, ["processes", "threads", *heads], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
