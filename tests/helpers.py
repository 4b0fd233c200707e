"""What several test files need: a small data set, a tiny net, config files, runs and their results."""

import ast
import csv
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "models" / "face997" / "unseen"  # photographs of 112 x 112 pixels, 12 of each of the people 2033 to 2045

ITERATIONS = {"softmax": 4, "triplet": 30}
TINY_NET = """
name: "tiny"
layer {
  name: "data" type: "Python" top: "data" top: "labels"
  python_param { module: "tripletloss.layers" layer: "DataLayer" }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 stride: 2 weight_filler { type: "msra" } }
}
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
layer { name: "relu1" type: "ReLU" bottom: "bn1" top: "bn1" }
layer {
  name: "fc7" type: "InnerProduct" bottom: "bn1" top: "fc7"
  inner_product_param { num_output: 16 weight_filler { type: "msra" } }
}
layer {
  name: "drop7" type: "Dropout" bottom: "fc7" top: "fc7" dropout_param { dropout_ratio: 0.2 }
}
layer {
  name: "fc9" type: "InnerProduct" bottom: "fc7" top: "fc9"
  inner_product_param { num_output: 6 weight_filler { type: "gaussian" std: 0.01 } }
  include { stage: "softmax" }
}
layer { name: "accuracy" type: "Accuracy" bottom: "fc9" bottom: "labels" top: "accuracy" include { stage: "softmax" } }
layer {
  name: "softmaxloss" type: "SoftmaxWithLoss" bottom: "fc9" bottom: "labels" top: "loss" include { stage: "softmax" }
}
layer {
  name: "norm2" type: "Python" bottom: "fc7" top: "norm2"
  python_param { module: "tripletloss.layers" layer: "Norm2Layer" }
  include { stage: "triplet" }
}
layer {
  name: "fc9_1" type: "InnerProduct" bottom: "norm2" top: "fc9_1"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } }
  include { stage: "triplet" }
}
layer {
  name: "triplet_select" type: "Python" bottom: "fc9_1" bottom: "labels" top: "anchor" top: "positive" top: "negative"
  python_param { module: "tripletloss.layers" layer: "TripletSelectLayer" }
  include { stage: "triplet" }
}
layer {
  name: "tripletloss" type: "Python" bottom: "anchor" bottom: "positive" bottom: "negative" top: "loss" loss_weight: 1
  python_param { module: "tripletloss.layers" layer: "TripletLossLayer" }
  include { stage: "triplet" }
}
"""

TINY_CONFIG = {
    "NET": "net.prototxt",
    "SOLVER": "solver.prototxt",
    "IMAGEPATH": "images/",
    "TRAIN_LIST": "list.txt",
    "RUN_FOLDER": "run",
    "FREEZE": {"triplet": "fc7"},
    "IMAGE_SIZE": 12,
    "BATCH_SIZE": 12,
    "IMAGES_PER_IDENTITY": 3,
    "MAX_ITERS": 4,
    "SNAPSHOT_ITERS": 2,
    "LEARNING_RATE": 0.01,
    "DEVICE": "cpu",
}


def plain_net():
    """TINY_NET without what depends on how a mini-batch is divided: BatchNorm and dropout."""
    text = TINY_NET.replace('layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }\n', "")
    text = text.replace('"bn1"', '"conv1"')
    dropout = text.index('layer {\n  name: "drop7"')
    return text[:dropout] + text[text.index('layer {\n  name: "fc9"') :]


def make_project(tmp_path):
    """6 identities x 4 images, a tiny net, a solver and a config in a folder, which is returned."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = []
    for label in range(6):
        colour = rng.integers(40, 215, 3)
        for number in range(4):
            image = np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            name = f"person{label}@{number}.jpg"
            assert cv2.imwrite(str(tmp_path / "images" / name), image)
            lines.append(f"{name} {label}")
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "net.prototxt").write_text(TINY_NET)
    (tmp_path / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed"\n')
    write_config(tmp_path)
    return tmp_path


def hold_out(folder):
    """held.txt: the images of list.txt again, as those of other people. Returns its name."""
    text = (folder / "list.txt").read_text()
    for name in (line.split()[0] for line in text.splitlines()):
        shutil.copy(folder / "images" / name, folder / "images" / f"held_{name}")
    (folder / "held.txt").write_text("".join(f"held_{line}\n" for line in text.splitlines()))
    return "held.txt"


def write_config(folder, **changes):
    """config.py in a folder: TINY_CONFIG with changes; a value None takes the setting out."""
    settings = {**TINY_CONFIG, **changes}
    lines = [f"{name} = {value!r}" for name, value in settings.items() if value is not None]
    (folder / "config.py").write_text("\n".join(lines) + "\n")


def run_train(folder, *arguments, config="config.py"):
    """Run train.py as a user would, in a process of its own. Without Caffe, the test is skipped."""
    pytest.importorskip("caffe")
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(folder / config), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GLOG_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def empty_png(side):
    """A black picture of `side` pixels a side, a bit each: 109 KB for 30,000."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + side // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refused(result, sentence):
    """Status 1, one sentence on standard error, nothing like a traceback or a core dump."""
    assert result.returncode == 1, (result.returncode, result.stderr)
    last = result.stderr.strip().split("\n")
    assert last[-1].startswith("train.py: ") and sentence in last[-1], result.stderr
    assert "Traceback" not in result.stderr and "Check failure stack trace" not in result.stderr


def in_net(old, new):
    return lambda p: replace(p / "net.prototxt", old, new)


def weights(path, net):
    import caffe  # not every test has it

    loaded = caffe.Net(str(net), caffe.TRAIN, weights=str(path))
    return {name: [blob.data.copy() for blob in blobs] for name, blobs in loaded.params.items()}


def losses(folder):
    return [float(row["loss"]) for row in csv.DictReader((folder / "triplet_log.csv").open())]


def triplet(project, folder, **settings):
    changes = {"FEATURE_CACHE": "cache", **settings}
    write_config(project, STAGES=["triplet"], WEIGHTS="run/triplet_iter_4.caffemodel", RUN_FOLDER=folder,
                 MAX_ITERS=ITERATIONS, SNAPSHOT_ITERS=30, **changes)  # fmt: skip
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    return result.stdout, project / folder


def list_faces(*arguments):
    command = [sys.executable, "-m", "tripletloss.dataset", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def lines_for_config(said):
    """The settings that dataset prints: name -> value."""
    lines = said.partition("Set these in config.py:\n")[2].splitlines()
    return {line.partition(" = ")[0]: ast.literal_eval(line.partition(" = ")[2]) for line in lines}


def few_people(folder, sizes):
    """A folder of identities, each with so many images."""
    rng = np.random.default_rng(0)
    for person, size in enumerate(sizes):
        (folder / f"p{person}").mkdir(parents=True)
        for number in range(size):
            cv2.imwrite(str(folder / f"p{person}" / f"{number}.jpg"), rng.integers(0, 255, (8, 8, 3), np.uint8))
    return folder
