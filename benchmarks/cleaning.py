"""What cleaning planted wrong labels by the page of suspects gains for people never seen: config.py's triplet stage.

    .venv/bin/python benchmarks/cleaning.py runs/cleaning --share 0.3 --seeds 1 2 3

In a copy of the sample, images of different people swap their names, so that a share of them has a wrong label. The
commands are those that a person types: train.py, tripletloss.suspects --review, tripletloss.dataset --apply, train.py.
The person who looks is played by the truth that was planted, for the images that the page shows only: a label is right,
or the image belongs to the other identity of the page, or it is dropped. Runs that FOLDER has are not made again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

from tripletloss import config
from tripletloss.core import bootstrap, verification
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.data.lists import identity_of, read_list
from tripletloss.evaluation.embed import embed

SOURCE, FIGURE = "config.py", "TAR@FAR=0.01"


def command(*words):
    """Run a command of the project."""
    subprocess.run([sys.executable, *map(str, words)], check=True)


def plant(folder, images, share, seed):
    """Write train.txt, and links in which a share of the images has swapped names. Returns name -> true."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(images.names))[: round(share * len(images.names))]
    while (images.labels[chosen] == images.labels[np.roll(chosen, 1)]).any():
        chosen = rng.permutation(chosen)
    truth = dict(zip(images.names, images.names, strict=True))
    truth.update((images.names[to], images.names[of]) for to, of in zip(chosen, np.roll(chosen, 1), strict=True))
    if not (folder / "train.txt").exists():
        (folder / "images").mkdir(parents=True)
        for name, true in truth.items():
            os.symlink(os.path.abspath(os.path.join(images.folder, true)), folder / "images" / name)
        (folder / "train.txt").write_text(Path(images.source).read_text())
    return truth


def train(folder, name, images, train_list, seed):
    """Train the triplet stage from the shipped weights on a list. Returns the path of the last weights."""
    file = folder / f"{name}.py"
    start = config.load(SOURCE).stage("softmax")["WEIGHTS"]
    changes = {
        "STAGES": ["triplet"], "WEIGHTS": start, "RUN_FOLDER": str(folder / name),
        "IMAGEPATH": str(images), "TRAIN_LIST": str(train_list), "HELD_OUT_LIST": "", "SEED": seed,
    }  # fmt: skip
    file.write_text(config.copy_text(SOURCE, str(file), changes))
    iterations = config.load(str(file)).stage("triplet")["MAX_ITERS"]
    weights = folder / name / f"triplet_iter_{iterations}.caffemodel"
    if not weights.exists():
        command("train.py", "--config", file, "--resume")
    return weights


def decide(folder, truth):
    """Write decisions.json for the suspects that review.html holds, as its button does. Returns counts of images."""
    page = (folder / "review.html").read_text()
    data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    images = read_list(data["list"], "", must_exist=False)
    who, decisions = images.identities_of_labels(), []
    for suspect in data["suspects"]:
        true = identity_of(truth[suspect["image"]])
        mine = identity_of(suspect["image"])
        choice = "right" if true == mine else "other" if true == who[suspect["other"]] else "drop"
        decisions.append({"image": suspect["image"], "choice": choice, "other": suspect["other"]})
    found = {"list": data["list"], "sha256": data["sha256"], "decisions": decisions}
    (folder / "decisions.json").write_text(json.dumps(found))
    return [sum(one["choice"] == choice for one in decisions) for choice in ("right", "other", "drop")]


def one_seed(folder, images, share, top, seed):
    """Plant, train, review, clean, train. Returns counts of decisions, and weights by kind of list."""
    truth = plant(folder, images, share, seed)
    source, where = folder / "train.txt", folder / "images"
    weights = {"planted": train(folder, "planted", where, source, seed)}
    command("-m", "tripletloss.suspects", weights["planted"], "--config", folder / "planted.py",
            "--top", top, "--out", folder / "suspects", "--review", folder / "review.html", "--force")  # fmt: skip
    counts = decide(folder, truth)
    command("-m", "tripletloss.dataset", "--apply", folder / "decisions.json", source, "--force")
    weights["cleaned"] = train(folder, "cleaned", where, folder / "train_cleaned.txt", seed)
    weights["true"] = train(folder, "true", os.path.abspath(images.folder), source, seed)
    return counts, weights


def scores(weights, held_out, settings):
    """FIGURE by kind of list, and what cleaning gains, with its interval: identities are resampled."""
    pairs = pairs_of(held_out.labels)
    distances, values = {}, {}
    for kind, path in weights.items():
        rows = embed(str(path), settings, settings["FEATURE"], held_out, False).rows
        distances[kind] = pair_distances(rows, pairs.first, pairs.second)
        values[kind] = verification.verification_of_pairs(distances[kind], pairs.same).figures[FIGURE]
    drawn = verification.resampled_verification([distances["cleaned"], distances["planted"]], pairs, held_out.labels)
    low, high = bootstrap.interval(drawn[0][FIGURE] - drawn[1][FIGURE])
    gain = f"{values['cleaned'] - values['planted']:+.3f} ({low:+.3f} to {high:+.3f})"
    return [*(f"{values[kind]:.3f}" for kind in ("true", "planted", "cleaned")), gain]


def main():
    """Run all seeds; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=os.path.abspath, help="gets a folder per seed")
    parser.add_argument("--share", type=float, default=0.3, help="of the images, that get a wrong label")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--looked-at", type=float, default=1.5, help="suspects on the page, per planted label")
    arguments = parser.parse_args()
    settings = config.load(SOURCE).stage("triplet")
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    images = read_list(config.load(SOURCE).stage("softmax")["TRAIN_LIST"], settings["IMAGEPATH"])
    planted = round(arguments.share * len(images.names))
    top = round(arguments.looked_at * planted)
    table = []
    for seed in arguments.seeds:
        counts, weights = one_seed(Path(arguments.folder) / f"seed{seed}", images, arguments.share, top, seed)
        table.append([seed, *counts, *scores(weights, held_out, settings)])
    people = len(np.unique(held_out.labels))
    print(f"\n{len(images.names)} images, {planted} planted, {top} on the page; {FIGURE} of {people} other people\n")
    headers = ["seed", "right", "moved", "dropped", "true labels", "planted", "cleaned", "gain"]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
