"""How long the triplet stage takes to one quality: the way of the 2015 toolkit, and the way of this one.

    .venv/bin/python -m faces --identities 997 --images 30 --out runs/faces997
    .venv/bin/python -m faces --identities 240 --images 20 --first 1000 --out runs/faces_unseen
    .venv/bin/python benchmarks/time_to_quality.py

Both learn a projection of the shipped model's norm2 to 64 numbers, on the model's own 997 identities, from the same
start, until 240 unseen identities are told apart with a TAR of TARGET at FAR 1%. The original's way: mini-batches of 30
around an anchor, rank-paired, and the frozen CNN run in every iteration. Ours: features once, 60 identities x 6 images,
batch-hard. Each has the best of some learning rates; those of the original are tried on features, where its iterations
are the same ones (tests/test_features.py) but cost nothing. Measuring takes no part in the times.
"""

import argparse
import os
import tempfile
import time

import caffe
import numpy as np
from caffe.proto import caffe_pb2
from tabulate import tabulate
from tqdm import tqdm

from tripletloss import config, nets, norm, solver
from tripletloss.dataset import read_list
from tripletloss.extract import embed
from tripletloss.metrics import pair_distances, pairs_of, verification_of_pairs
from tripletloss.plan import make_plan
from tripletloss.process import caffe_log

DIMENSION, TARGET = 64, 0.97
WEIGHTS = "models/face997/face997.caffemodel"
ORIGINAL = {"BATCHES": "anchor", "BATCH_SIZE": 30, "SELECTION": "rank-paired", "MARGIN": 0.2}
OURS = {"BATCHES": "identities", "BATCH_SIZE": 360, "SELECTION": "batch-hard", "MARGIN": 0.8}
RATES = {"original": (1.0, 3.0, 10.0, 30.0), "ours": (0.3, 1.0, 3.0)}


class Unseen:
    """The unseen identities' features, and how well a projection of them tells them apart."""

    def __init__(self, folder):
        images = read_list(f"{folder}/list.txt", f"{folder}/images")
        settings = config.load("config.py").stage("triplet")
        self.rows = embed(WEIGHTS, settings, "norm2", images, mirrored=True).rows
        self.pairs = pairs_of(images.labels, most=200_000)

    def tar(self, weights):
        """TAR at FAR 1% of the projection: weights (DIMENSION, D)."""
        projected, _ = norm.l2_normalize(self.rows @ weights.T)
        distances = pair_distances(projected, self.pairs.first, self.pairs.second)
        return verification_of_pairs(distances, self.pairs.same).tar[1e-2]


def write_inputs(folder):
    """The shipped weights without fc9_1, the net with DIMENSION outputs there, and a solver; returns their paths."""
    paths = [os.path.join(folder, name) for name in ("start.caffemodel", "net.prototxt", "solver.prototxt")]
    weights = caffe_pb2.NetParameter()
    with open(WEIGHTS, "rb") as file:
        weights.ParseFromString(file.read())
    kept = [layer for layer in weights.layer if layer.name != "fc9_1"]
    with open(paths[0], "wb") as file:
        file.write(nets.new_net("start", kept).SerializeToString())
    net = nets.read_net("train.prototxt")
    for layer in net.layer:
        if layer.name == "fc9_1":
            layer.inner_product_param.num_output = DIMENSION
    nets.write_prototxt(net, paths[1])
    with open(paths[2], "w") as file:
        file.write('momentum: 0.9 lr_policy: "fixed"\n')
    return paths


def stage(folder, name, paths, cached, **settings):
    """A solver that is ready for its first iteration, and the seconds that the features took."""
    values = {
        "STAGES": ["triplet"], "RUN_FOLDER": os.path.join(folder, name), "WEIGHTS": paths[0], "NET": paths[1],
        "SOLVER": paths[2], "FREEZE": "fc7", "IMAGE_SIZE": 64, "IMAGEPATH": os.path.abspath("runs/faces997/images"),
        "TRAIN_LIST": os.path.abspath("runs/faces997/list.txt"), "FEATURE_CACHE": cached, "IMAGES_PER_IDENTITY": 6,
        "MAX_ITERS": 10**6, "DEVICE": "cpu", **settings,
    }  # fmt: skip
    source = os.path.join(folder, f"{name}.py")
    with open(source, "w") as file:
        file.writelines(f"{key} = {value!r}\n" for key, value in values.items())
    os.makedirs(values["RUN_FOLDER"])
    planned = make_plan(config.load(source), "triplet", None)
    start = time.perf_counter()
    if cached:
        solver.cache_features(planned)
    seconds = time.perf_counter() - start
    with caffe_log(os.devnull):
        made = caffe.get_solver(f"{planned.prefix}_solver.prototxt")
        made.net.copy_from(paths[0])
    return made, seconds


def run(made, unseen, every, most, name):
    """Iterations and seconds of training to TARGET; (None, seconds) where `most` seconds do not bring it there."""
    seconds, done = 0.0, 0
    with caffe_log(os.devnull), tqdm(desc=name, unit="it", mininterval=1) as bar:
        while seconds < most:
            start = time.perf_counter()
            made.step(every)
            seconds += time.perf_counter() - start
            done += every
            tar = unseen.tar(made.net.params["fc9_1"][0].data)
            bar.update(every)
            bar.set_postfix(TAR=f"{tar:.4f}")
            if tar >= TARGET:
                return done, seconds
    return None, seconds


def main():
    """Find the best rates, run both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=float, default=900, help="seconds for the original's way (default: 900)")
    arguments = parser.parse_args()
    caffe.set_mode_cpu()
    unseen = Unseen("runs/faces_unseen")
    with tempfile.TemporaryDirectory() as folder:
        paths, cache = write_inputs(folder), os.path.join(folder, "cache")
        first, features = stage(folder, "features", paths, cache, **OURS)
        start = unseen.tar(first.net.params["fc9_1"][0].data)
        best, tried = {}, []
        for side, changes, every in (("original", ORIGINAL, 100), ("ours", OURS, 2)):
            for rate in RATES[side]:
                made, _ = stage(folder, f"{side}{rate:g}", paths, cache, LEARNING_RATE=rate, **changes)
                iterations, seconds = run(made, unseen, every, 60, f"{side}, rate {rate:g}")
                tried.append([side, f"{rate:g}", iterations or "not reached", f"{seconds:.1f}"])
                if iterations and iterations < best.get(side, (np.inf,))[0]:
                    best[side] = iterations, seconds, rate
        print(tabulate(tried, ["on features", "learning rate", "iterations", "s"]), "\n")
        rate = best["original"][2] if "original" in best else RATES["original"][1]
        made, _ = stage(folder, "whole", paths, "", LEARNING_RATE=rate, **ORIGINAL)
        reached, slow = run(made, unseen, 100, arguments.most, "original, whole net")
        iterations, fast, our_rate = best["ours"]
    print(f"\nTAR at FAR 1% of 240 unseen identities: {start:.4f} at the start, until {TARGET}\n")
    table = [
        ["original", f"{rate:g}", reached or "not reached", "", f"{slow:.1f}", f"{slow:.1f}"],
        ["ours", f"{our_rate:g}", iterations, f"{features:.1f}", f"{fast:.2f}", f"{features + fast:.1f}"],
        ["ratio", "", "", "", f"{slow / fast:.0f}", f"{slow / (features + fast):.1f}"],
    ]
    print(tabulate(table, ["way", "rate", "iterations", "features s", "training s", "all s"], disable_numparse=True))


if __name__ == "__main__":
    main()
