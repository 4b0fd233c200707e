"""Measure how long the triplet stage takes to reach a target: in the 2015 toolkit's way, and in this project's.

    .venv/bin/python -m faces --identities 997 --images 30 --out runs/faces997
    .venv/bin/python -m faces --identities 240 --images 20 --first 1000 --out runs/faces_unseen
    .venv/bin/python benchmarks/time_to_quality.py

Both learn a projection of the shipped model's norm2 to 64 numbers, on the model's own 997 identities and from the same
start, until TAR at FAR 1% of 240 unseen identities reaches TARGET. The toolkit's way is mini-batches of 30 around an
anchor, rank-paired selection, and the frozen CNN run in every iteration. This project's way is cached features,
mini-batches of 60 identities x 6 images, and batch-hard selection. Each is tried with several learning rates. To count
how many iterations the toolkit needs, its iterations run on cached features as well: they are the same iterations (see
the tests of features) but take a millisecond. Their real duration is measured on the whole net. The times exclude the
measurements of TAR.
"""

import os
import tempfile
import time

import caffe
from caffe.proto import caffe_pb2
from tabulate import tabulate
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.process import caffe_log
from tripletloss.core import norm
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.core.verification import verification_of_pairs
from tripletloss.data.lists import read_list
from tripletloss.evaluation.embed import embed
from tripletloss.net.definition import new_net, read_net, write_prototxt
from tripletloss.training.features import cache_features
from tripletloss.training.plan import make_plan

DIMENSION, TARGET = 64, 0.97
WEIGHTS = "models/face997/face997.caffemodel"
ORIGINAL = {"BATCHES": "anchor", "BATCH_SIZE": 30, "SELECTION": "rank-paired", "MARGIN": 0.2}
OURS = {"BATCHES": "identities", "BATCH_SIZE": 360, "SELECTION": "batch-hard", "MARGIN": 0.8}
RATES = {"original": (0.01, 0.1, 1.0), "ours": (0.3, 1.0, 3.0)}
SECONDS, WHOLE_ITERATIONS = 45, 200  # for a rate on features; of the whole net


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
        file.write(new_net("start", kept).SerializeToString())
    net = read_net("train.prototxt")
    layers = {layer.name: layer for layer in net.layer}
    net.layer.remove(layers["residual"])  # a projection of its own, as a residual has as many outputs as the feature
    layers["embedding"].bottom[0] = "fc9_1"
    layers["fc9_1"].inner_product_param.num_output = DIMENSION
    layers["fc9_1"].inner_product_param.weight_filler.type = "xavier"
    write_prototxt(net, paths[1])
    with open(paths[2], "w") as file:
        file.write('momentum: 0.9 lr_policy: "fixed"\n')
    return paths


def stage(folder, name, paths, cached, **settings):
    """A solver that is ready for its first iteration, and the seconds that the features took."""
    values = {
        "STAGES": ["triplet"], "RUN_FOLDER": os.path.join(folder, name), "WEIGHTS": paths[0], "NET": paths[1],
        "SOLVER": paths[2], "FREEZE": "fc7", "IMAGE_SIZE": 64, "WORKERS": 1,
        "IMAGEPATH": os.path.abspath("runs/faces997/images"),
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
        cache_features(planned)
    seconds = time.perf_counter() - start
    with caffe_log(os.devnull):
        made = caffe.get_solver(f"{planned.prefix}_solver.prototxt")
        made.net.copy_from(paths[0])
    return made, seconds


def run(made, unseen, every, name):
    """Train for SECONDS or to TARGET. Returns iterations, seconds, and the best TAR."""
    seconds, done, best = 0.0, 0, 0.0
    with caffe_log(os.devnull), tqdm(desc=name, unit="it", mininterval=1) as bar:
        while seconds < SECONDS and best < TARGET:
            start = time.perf_counter()
            made.step(every)
            seconds += time.perf_counter() - start
            done += every
            best = max(best, unseen.tar(made.net.params["fc9_1"][0].data))
            bar.update(every)
            bar.set_postfix(best=f"{best:.4f}")
    return done, seconds, best


def main():
    """Try the rates on features, time the whole net, print a table."""
    caffe.set_mode_cpu()
    unseen = Unseen("runs/faces_unseen")
    with tempfile.TemporaryDirectory() as folder:
        paths, cache = write_inputs(folder), os.path.join(folder, "cache")
        first, features = stage(folder, "features", paths, cache, **OURS)
        start = unseen.tar(first.net.params["fc9_1"][0].data)
        found, rows = {}, []
        for side, changes, every in (("original", ORIGINAL, 500), ("ours", OURS, 2)):
            for rate in RATES[side]:
                made, _ = stage(folder, f"{side}{rate:g}", paths, cache, LEARNING_RATE=rate, **changes)
                result = run(made, unseen, every, f"{side}, rate {rate:g}")
                rows.append([side, f"{rate:g}", result[0], f"{result[1]:.2f}", f"{result[2]:.4f}"])
                found.setdefault(side, []).append(result)
        made, _ = stage(folder, "whole", paths, "", LEARNING_RATE=RATES["original"][0], **ORIGINAL)
        with caffe_log(os.devnull):
            made.step(10)
            begun = time.perf_counter()
            made.step(WHOLE_ITERATIONS)
        each = (time.perf_counter() - begun) / WHOLE_ITERATIONS
    # Where a side reaches the target, the fewest iterations; where it does not, the most that were tried.
    reached = {side: [r for r in results if r[2] >= TARGET] for side, results in found.items()}
    original = min(reached["original"], default=max(found["original"]))
    ours = min(reached["ours"], default=max(found["ours"]))
    print(f"\nTAR at FAR 1% of 240 unseen identities: {start:.4f} at the start, until {TARGET}\n")
    print(tabulate(rows, ["on features", "rate", "iterations", "s", "best TAR"], disable_numparse=True), "\n")
    slow, least = original[0] * each, "" if reached["original"] else "at least "
    print(f"original: {least}{original[0]} iterations of the whole net, {each:.3f} s each: {least}{slow:.0f} s")
    print(f"ours: features {features:.1f} s, {ours[0]} iterations {ours[1]:.2f} s: {features + ours[1]:.1f} s")
    ratios = slow / (features + ours[1]), slow / ours[1]
    print(f"ratio: {least}{ratios[0]:.0f} with the features, {least}{ratios[1]:.0f} where they are there already")


if __name__ == "__main__":
    main()
