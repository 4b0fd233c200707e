"""What adapting models/dlib_resnet gains where it is weak: small, grey faces. dlib_adaptation.py FACES PAIRS OUT.

    make dlib-model
    .venv/bin/python -m tripletloss.detect LFW --out FACES --for dlib_resnet
    OPENBLAS_NUM_THREADS=1 nice .venv/bin/python benchmarks/dlib_adaptation.py FACES pairs.txt OUT

LFW is the folder of people of Labeled Faces in the Wild, and PAIRS its pairs file, or some folds of it. Each face is
reduced to 14 to 20 pixels a side, made grey, and enlarged again. Each fold is a draw: people in its pairs are measured,
and N of the others, drawn by the fold's number, are trained on. Only the projection learns, by train.py on cached
descriptors with the settings of models/dlib_resnet/config.py. All pairs of the measured people count, with mirrored
averages. OUT keeps the reduced faces, their descriptors and the runs.
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


def descriptors_of(images, settings, path):
    """The descriptors of a list's images and of their mirror images, (2, N, 128) float32; kept in `path`.

    By onnxruntime, which gives what Caffe gives, up to 1e-6, in less time.
    """
    if not os.path.exists(path):
        model, _ = export(settings["WEIGHTS"], {**settings, "FEATURE": "descriptor", "HELD_OUT_LIST": ""}, "bgr")
        model, views = Model(model.SerializeToString(), "descriptor"), ([], [])
        for number in tqdm(range(len(images.names)), desc="descriptors", unit="image"):
            face = read_image(images.path(number))
            for view, pixels in zip(views, (face, face[:, ::-1]), strict=True):
                view.append(model.embed(pixels[None])[0])
        np.save(path, np.array(views))
    return np.load(path)


def train(folder, people, images, descriptors, decay):
    """Train the projection on some people, with their descriptors in the cache. Returns it, (128, 128).

    folder: of the run; people: identity -> numbers of its images; decay: WEIGHT_DECAY.
    """
    shutil.rmtree(folder, ignore_errors=True)
    numbers = [number for own in people.values() for number in own]
    os.makedirs(folder, exist_ok=True)
    listed = {person: [images.names[number] for number in own] for person, own in people.items()}
    write_whole(os.path.join(folder, "train.txt"), list_text(listed, listed, 0).encode())
    made = os.path.join(folder, "config.py")
    most = len(people) * config.load(CONFIG)["IMAGES_PER_IDENTITY"]
    size = min(config.load(CONFIG).stage("triplet")["BATCH_SIZE"], most)
    text = config.copy_text(CONFIG, made, {
        "RUN_FOLDER": os.path.join(folder, "run"), "FEATURE_CACHE": os.path.join(folder, "cache"),
        "IMAGEPATH": images.folder, "TRAIN_LIST": os.path.join(folder, "train.txt"), "HELD_OUT_LIST": "",
        "STAGES": ["triplet"], "WEIGHTS": {"triplet": config.load(CONFIG).stage("softmax")["WEIGHTS"]},
        "BATCH_SIZE": {"triplet": size}, "WEIGHT_DECAY": {"triplet": decay},
    })  # fmt: skip
    write_whole(made, text.encode())
    plan = make_plan(config.load(made), "triplet", None)
    cache = os.path.join(folder, "cache", cache_key(plan.cut, plan.weights, plan.images, plan.settings))
    os.makedirs(cache, exist_ok=True)
    np.save(os.path.join(cache, "features.npy"), descriptors[:, numbers])
    write_whole(os.path.join(cache, "done"), f"{len(numbers)} 0.012".encode())
    with open(os.path.join(folder, "log.txt"), "w") as log:
        command = [sys.executable, os.path.join(ROOT, "train.py"), "--config", made]
        subprocess.run(command, check=True, stdout=log, stderr=log)
    last = config.load(made).stage("triplet")["MAX_ITERS"]
    return read_weights(os.path.join(folder, "run", f"triplet_iter_{last}.caffemodel"))["fc9_1"][0]


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


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("faces", "pairs", "out"):
        parser.add_argument(name)
    parser.add_argument("--decay", type=float, default=config.load(CONFIG).stage("triplet")["WEIGHT_DECAY"])
    arguments = parser.parse_args()
    settings = config.load(CONFIG).stage("softmax")
    check_cut(arguments.faces, settings)
    reduced = os.path.join(os.path.abspath(arguments.out), "images")
    reduce_faces(list_folder(arguments.faces), reduced)
    images = list_folder(reduced)
    descriptors = descriptors_of(images, settings, os.path.join(arguments.out, "descriptors.npy"))
    file = read_pairs(arguments.pairs, arguments.faces)
    ends, folds = np.concatenate([file.pairs.first, file.pairs.second]), np.tile(file.folds, 2)
    owners = np.array([identity_of(name) for name in images.names])
    results = {}
    for fold in range(int(file.folds.max()) + 1):
        in_fold = {identity_of(file.images.names[number]) for number in ends[folds == fold]}
        measured = np.isin(owners, sorted(in_fold))
        names, counts = np.unique(owners[~measured], return_counts=True)
        drawn = np.random.default_rng(fold).permutation(names[counts > 1])
        before = figures(descriptors[:, measured], images.labels[measured])
        results.setdefault("none", []).append((before, before))
        for count in [*PEOPLE, len(drawn)]:
            people = {name: np.flatnonzero(owners == name) for name in drawn[:count]}
            folder = os.path.join(os.path.abspath(arguments.out), f"decay{arguments.decay:g}", f"fold{fold}_{count}")
            projection = train(folder, people, images, descriptors, arguments.decay)
            after = figures(descriptors[:, measured], images.labels[measured], projection)
            results.setdefault("all" if count == len(drawn) else str(count), []).append((before, after))
            print(fold, count, *(f"{value:.4f}" for value in (*before, *after)), flush=True)
    rows = []
    for count, draws in results.items():
        cells = [count]
        for at in range(3):
            values = np.array([after[at] for _, after in draws])
            gains = np.array([after[at] - before[at] for before, after in draws])
            spread = gains.std(ddof=1) / np.sqrt(len(gains))
            cells += [f"{values.mean():.4f}", f"{gains.mean():+.4f} +- {spread:.4f}"]
        rows.append(cells)
    heads = ["people", f"TAR@FAR={FAR:g}", "gain", "AUC", "gain", "EER", "gain"]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
