"""What adapting models/dlib_resnet gains where it is weak: small, grey faces. dlib_adaptation.py FACES PAIRS OUT.

    make dlib-model
    .venv/bin/python -m tripletloss.detect LFW --out FACES --for dlib_resnet
    OPENBLAS_NUM_THREADS=1 nice .venv/bin/python benchmarks/dlib_adaptation.py FACES pairs.txt OUT

LFW is the folder of people of Labeled Faces in the Wild, and PAIRS its pairs file, or some folds of it. Each face is
reduced to 14 to 20 pixels a side, made grey, and enlarged again. Each fold is a draw: people in its pairs are measured,
and N of the others, drawn by the fold's number, are trained on. Only the projection learns, by train.py on cached
descriptors with the settings of models/dlib_resnet/config.py. All pairs of the measured people count, with mirrored
averages. OUT keeps the reduced faces, their descriptors and the runs.

With --whole, the whole net learns, in two ways. `softmax`: a classifier of the frozen descriptors, then the net with
it, then the projection. `triplets`: the net, with the settings of models/dlib_resnet/whole_net.py. A run that is in OUT
already is not repeated.
"""

import argparse
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.files import write_whole
from tripletloss.core import verification
from tripletloss.core.norm import l2_normalize
from tripletloss.core.pairs import pairs_of
from tripletloss.data.folders import check_cut, list_folder, list_text
from tripletloss.data.images import read_image
from tripletloss.data.lists import identity_of
from tripletloss.data.pairs import read_pairs
from tripletloss.deploy.onnx_export import export
from tripletloss.deploy.onnx_model import Model
from tripletloss.formats.caffemodel import read_weights
from tripletloss.training.features import cache_key
from tripletloss.training.plan import make_plan

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG = os.path.join(ROOT, "models", "dlib_resnet", "config.py")
SIDES = 14, 20  # pixels, the smallest and the largest
PEOPLE = (25, 50, 100, 200, 400)  # and all
WHOLE_PEOPLE = (100,)  # and all, with --whole
WAYS = {  # of training the whole net: config file and what changes in it
    "softmax": (CONFIG, {"STAGES": ["softmax", "triplet"]}),
    "triplets": (os.path.join(os.path.dirname(CONFIG), "whole_net.py"), {"FEATURE_CACHE": ""}),
}
# The softmax stage's classifier learns alone first, so that the net does not learn from a random one.
CLASSIFIER = {"BATCH_SIZE": {"softmax": 120}, "MAX_ITERS": {"softmax": 600}, "LEARNING_RATE": {"softmax": 1.0}}
FAR = 1e-2


def reduce_faces(images, folder, seed=0):
    """Write a list's faces, small and grey, into a folder under the same names, unless they are there."""
    rng = np.random.default_rng(seed)
    for number, side in enumerate(tqdm(rng.integers(SIDES[0], SIDES[1] + 1, len(images.names)), desc="reducing")):
        path = os.path.join(folder, os.path.splitext(images.names[number])[0] + ".png")
        if os.path.exists(path):
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        face = cv2.cvtColor(read_image(images.path(number)), cv2.COLOR_BGR2GRAY)
        small = cv2.resize(face, (int(side), int(side)), interpolation=cv2.INTER_AREA)
        large = cv2.resize(small, face.shape[::-1], interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(path, large)


def rows_of(images, numbers, weights, feature, path):
    """A feature of some of a list's images and of their mirror images, (2, N, 128) float32; kept in `path`.

    By onnxruntime, which gives what Caffe gives, up to 1e-6, in less time.
    """
    if not os.path.exists(path):
        settings = {**config.load(CONFIG).stage("triplet"), "FEATURE": feature, "HELD_OUT_LIST": ""}
        model, _ = export(weights, settings, "bgr")
        model, views = Model(model.SerializeToString(), feature), ([], [])
        for number in tqdm(numbers, desc=feature, unit="image"):
            face = read_image(images.path(number))
            for view, pixels in zip(views, (face, face[:, ::-1]), strict=True):
                view.append(model.embed(pixels[None])[0])
        np.save(path, np.array(views))
    return np.load(path)


def configure(folder, people, images, source, changes):
    """Start the folder of a run anew, with the list of some people's images and a config file. Returns its path.

    people: identity -> numbers of its images; source: of the config file; changes: to its settings.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    listed = {person: [images.names[number] for number in own] for person, own in people.items()}
    write_whole(os.path.join(folder, "train.txt"), list_text(listed, listed, 0).encode())
    made = os.path.join(folder, "config.py")
    text = config.copy_text(source, made, {
        "RUN_FOLDER": os.path.join(folder, "run"), "FEATURE_CACHE": os.path.join(folder, "cache"),
        "IMAGEPATH": images.folder, "TRAIN_LIST": os.path.join(folder, "train.txt"), "HELD_OUT_LIST": "", **changes,
    })  # fmt: skip
    write_whole(made, text.encode())
    return made


def train(made, stage):
    """Run train.py with a config file, its output in log.txt beside it. Returns the path of a stage's last weights."""
    folder = os.path.dirname(made)
    with open(os.path.join(folder, "log.txt"), "w") as log:
        command = [sys.executable, os.path.join(ROOT, "train.py"), "--config", made]
        subprocess.run(command, check=True, stdout=log, stderr=log)
    last = config.load(made).stage(stage)["MAX_ITERS"]
    return os.path.join(folder, "run", f"{stage}_iter_{last}.caffemodel")


def train_top(folder, people, images, descriptors, stage, changes):
    """Train what is above the descriptor on some people, with their descriptors in the cache. Returns the last weights.

    folder: of the run; people: identity -> numbers of its images; changes: to CONFIG.
    """
    weights = config.load(CONFIG).stage("softmax")["WEIGHTS"]
    changes = {"STAGES": [stage], "WEIGHTS": {stage: weights}, "FREEZE": {stage: "descriptor"}, **changes}
    made = configure(folder, people, images, CONFIG, changes)
    plan = make_plan(config.load(made), stage, None)
    cache = os.path.join(folder, "cache", cache_key(plan.cut, plan.weights, plan.images, plan.settings))
    os.makedirs(cache, exist_ok=True)
    numbers = [number for own in people.values() for number in own]
    np.save(os.path.join(cache, "features.npy"), descriptors[:, numbers])
    write_whole(os.path.join(cache, "done"), f"{len(numbers)} 0.012".encode())
    return train(made, stage)


def train_whole(folder, people, images, descriptors, way, measured):
    """Train the whole net on some people, unless that is done. Returns rows_of() the measured images.

    folder: of the run; people: identity -> numbers of its images; way: of WAYS; measured: numbers of images.
    """
    path = os.path.join(folder, "embeddings.npy")
    if not os.path.exists(path):
        source, changes = WAYS[way]
        if way == "softmax":
            first = train_top(f"{folder}_classifier", people, images, descriptors, "softmax", CLASSIFIER)
            changes = {**changes, "WEIGHTS": {"softmax": first, "triplet": ""}}
        weights = train(configure(folder, people, images, source, changes), "triplet")
        rows_of(images, measured, weights, "embedding", path)
    return np.load(path)


def figures(descriptors, labels, projection=None):
    """TAR at FAR, AUC and EER of the pairs of all images, with mirrored averages, after the projection if there is one.

    descriptors: (2, N, 128), of the images and of their mirror images; labels: (N,).
    """
    views = [l2_normalize(view)[0] for view in descriptors]
    if projection is not None:
        views = [l2_normalize(view + view @ projection.T)[0] for view in views]
    rows = np.mean(views, axis=0)
    pairs = pairs_of(labels)
    distances = ((rows[pairs.first] - rows[pairs.second]) ** 2).sum(1)
    found = verification.verification_of_pairs(distances, pairs.same)
    return found.tar[FAR], found.auc, found.eer


def draws_of(pairs, faces, images, most):
    """Yield of each fold its number, which images are measured, (N,) bool, and identity -> numbers of the others.

    pairs: the pairs file; faces: the folder that it is about; most: number of folds. The others are shuffled, and have
    two images or more.
    """
    file = read_pairs(pairs, faces)
    ends, folds = np.concatenate([file.pairs.first, file.pairs.second]), np.tile(file.folds, 2)
    owners = np.array([identity_of(name) for name in images.names])
    for fold in range(min(most, int(file.folds.max()) + 1)):
        in_fold = {identity_of(file.images.names[number]) for number in ends[folds == fold]}
        measured = np.isin(owners, sorted(in_fold))
        names, counts = np.unique(owners[~measured], return_counts=True)
        drawn = np.random.default_rng(fold).permutation(names[counts > 1])
        yield fold, measured, {name: np.flatnonzero(owners == name) for name in drawn}


def table_of(results):
    """The table: a row for each kind of run, with means over the draws.

    results: kind -> list of draws, each the figures() before and after.
    """
    rows = []
    for kind, draws in results.items():
        cells = [kind]
        for at in range(3):
            values = np.array([after[at] for _, after in draws])
            gains = np.array([after[at] - before[at] for before, after in draws])
            spread = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
            cells += [f"{values.mean():.4f}", f"{gains.mean():+.4f} +- {spread:.4f}"]
        rows.append(cells)
    heads = ["people", f"TAR@FAR={FAR:g}", "gain", "AUC", "gain", "EER", "gain"]
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("faces", "pairs", "out"):
        parser.add_argument(name)
    parser.add_argument("--decay", type=float, default=config.load(CONFIG).stage("triplet")["WEIGHT_DECAY"])
    parser.add_argument("--whole", action="store_true", help="train the whole net: minutes for each run")
    parser.add_argument("--draws", type=int, default=5, help="how many folds to take (default: 5)")
    arguments = parser.parse_args()
    out = os.path.abspath(arguments.out)
    settings = config.load(CONFIG).stage("softmax")
    check_cut(arguments.faces, settings)
    reduced = os.path.join(out, "images")
    reduce_faces(list_folder(arguments.faces), reduced)
    images = list_folder(reduced)
    everyone = range(len(images.names))
    descriptors = rows_of(images, everyone, settings["WEIGHTS"], "descriptor", os.path.join(out, "descriptors.npy"))
    results = {}
    for fold, measured, others in draws_of(arguments.pairs, arguments.faces, images, arguments.draws):
        labels = images.labels[measured]
        before = figures(descriptors[:, measured], labels)
        results.setdefault("none", []).append((before, before))
        for count in [*(WHOLE_PEOPLE if arguments.whole else PEOPLE), len(others)]:
            people = dict(list(others.items())[:count])
            written = "all" if count == len(others) else str(count)
            for way in WAYS if arguments.whole else [f"decay{arguments.decay:g}"]:
                folder = os.path.join(out, way, f"fold{fold}_{count}")
                if arguments.whole:
                    rows = train_whole(folder, people, images, descriptors, way, np.flatnonzero(measured))
                    after = figures(rows, labels)
                else:
                    most = len(people) * config.load(CONFIG)["IMAGES_PER_IDENTITY"]
                    size = min(config.load(CONFIG).stage("triplet")["BATCH_SIZE"], most)
                    changes = {"BATCH_SIZE": {"triplet": size}, "WEIGHT_DECAY": {"triplet": arguments.decay}}
                    weights = train_top(folder, people, images, descriptors, "triplet", changes)
                    projection = read_weights(weights)["fc9_1"][0]
                    after = figures(descriptors[:, measured], labels, projection)
                kind = f"{written}, {way}" if arguments.whole else written
                results.setdefault(kind, []).append((before, after))
                print(fold, count, way, *(f"{value:.4f}" for value in (*before, *after)), flush=True)
    print(table_of(results))


if __name__ == "__main__":
    main()
