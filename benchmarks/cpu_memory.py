"""Measure the memory of the CPU layers, with oneDNN and with Caffe's own: .venv/bin/python benchmarks/cpu_memory.py.

First VGG_FACE_16 with 8 images, forward and backward; then a small net whose batch changes at random.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu import CaffeNet

CHANGES = 10_000  # of the batch
SAMPLES = 5
SMALL = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 64 dim: 16 dim: 12 dim: 12 } } }
    layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
      convolution_param { num_output: 16 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
    layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
    layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
      convolution_param { num_output: 32 kernel_size: 3 weight_filler { type: "xavier" } } }"""


def large():
    """Return the peak memory of VGG_FACE_16, in MB."""
    net = CaffeNet("VGG_FACE_16", 8)
    for _ in range(2):
        net.forward()
        net.backward()
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]


def changing():
    """Return the memory in MB after each fifth of the changes of the batch."""
    os.environ["GLOG_minloglevel"] = "2"
    import caffe
    import numpy as np
    from tqdm import tqdm

    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write("force_backward: true" + SMALL)
        file.flush()
        net = caffe.Net(file.name, caffe.TRAIN)
    rng, found = np.random.default_rng(0), []
    for number in tqdm(range(CHANGES), mininterval=1):
        net.blobs["data"].reshape(int(rng.integers(1, 65)), 16, 12, 12)
        net.reshape()
        net.forward()
        net.backward()
        if (number + 1) % (CHANGES // SAMPLES) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return found


def main():
    """Print a line for each measurement, which is a process of its own."""
    if len(sys.argv) > 1:
        print(json.dumps({"large": large, "changing": changing}[sys.argv[1]]()))
        return
    for what, title in (("large", "VGG_FACE_16, 8 images, peak MB"),
                        ("changing", f"MB after each {CHANGES // SAMPLES:,} changes of the batch")):  # fmt: skip
        for way, fast in (("oneDNN", "1"), ("Caffe's own", "0")):
            done = subprocess.run([sys.executable, __file__, what], env=os.environ | {"CAFFE_ONEDNN": fast}, text=True,
                                  stdout=subprocess.PIPE, check=True)  # fmt: skip
            print(f"{title}, {way}:", *(f"{mb:,.0f}" for mb in json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
