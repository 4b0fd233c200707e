"""Time the shipped model in Caffe, onnxruntime and OpenCV, on one thread: .venv/bin/python benchmarks/serving.py.

The three take turns on images of the sample. Reading and resizing images is not counted.
"""

import os
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", GLOG_minloglevel="2")

import cv2
import numpy as np
import onnxruntime
from tabulate import tabulate

from tripletloss import config
from tripletloss.core.alignment import TEMPLATES
from tripletloss.data.folders import list_folder
from tripletloss.data.images import Preprocessing, read_image, to_blob
from tripletloss.deploy.faces import Detector, cut
from tripletloss.deploy.onnx_export import build
from tripletloss.evaluation.embed import open_net

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WEIGHTS = os.path.join(ROOT, "models/face997/face997.caffemodel")
BATCHES = (1, 32)
TURNS, IMAGES = 15, 96  # of each turn


def main():
    """Print a table."""
    cv2.setNumThreads(1)
    settings = config.load(os.path.join(ROOT, "config.py")).stage("triplet")
    images = list_folder(settings["IMAGEPATH"])
    pictures = [read_image(images.path(number)) for number in range(IMAGES)]
    how = Preprocessing(0, settings["IMAGE_SIZE"], settings["PIXEL_MEANS"])
    blobs = np.stack([to_blob(picture, how) for picture in pictures])

    net = open_net(WEIGHTS, settings, ["embedding"])
    model = build(WEIGHTS, settings).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    dnn = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))

    def caffe(batch):
        if net.blobs["data"].data.shape != batch.shape:
            net.blobs["data"].reshape(*batch.shape)
            net.reshape()
        net.blobs["data"].data[...] = batch
        return net.forward()["embedding"]

    def opencv(batch):
        dnn.setInput(batch)
        return dnn.forward()

    ways = {"Caffe": caffe, "onnxruntime": lambda batch: session.run(None, {"data": batch})[0], "OpenCV": opencv}
    seconds = {(name, size): [] for size in BATCHES for name in ways}
    for turn in range(TURNS + 1):
        for (name, size), spent in seconds.items():
            start = time.perf_counter()
            for first in range(0, IMAGES, size):
                ways[name](blobs[first : first + size])
            if turn:  # the first one warms up
                spent.append((time.perf_counter() - start) / IMAGES)
    rows = []
    for (name, size), spent in seconds.items():
        ratios = np.array(seconds["Caffe", size]) / spent
        low, median, high = 1e3 * np.percentile(spent, (0, 50, 100))
        rows.append([size, name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{np.median(ratios):.2f}"])
    heads = ["images at a time", "", "ms per image", "all turns", "faster than Caffe"]
    print(tabulate(rows, heads, disable_numparse=True))

    detector, photo = Detector(), cv2.resize(pictures[0], (640, 480))
    spent = []
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        cut(photo, detector.find_upright(photo, detector.find(photo)[0]), settings["IMAGE_SIZE"], TEMPLATES["face997"])
        spent.append(time.perf_counter() - start)
    low, median, high = 1e3 * np.percentile(spent[1:], (0, 50, 100))
    print(f"\nFinding and cutting out a face, 640 x 480: {median:.1f} ms ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
