"""What the whole net gains when triplets finetune it on real faces, by the number of people.

    .venv/bin/python tools/lfw_halves.py LFW pairs.txt HALVES
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/whole_net.py LFW HALVES OUT

Each training is a run of models/face997/finetune_triplets.py on some of the people of HALVES/train.txt. A draw is a
seed, for who is trained on and for the training. Every time, the same pairs of other people are measured, with mirrored
averages. OUT has a folder for each run; runs that are there are not made again.
"""

import argparse
import json
import os
import subprocess
import sys

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.files import write_whole
from tripletloss.data.lists import identity_of, read_list

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "models", "face997")
PEOPLE = (30, 100, 250)  # and all
DRAWS = 5
FIGURES = "accuracy", "AUC", "TAR@FAR=0.1"


def measured(weights, made, arguments, folder):
    """The FIGURES of weights on the pairs."""
    if not os.path.exists(os.path.join(folder, "report.json")):
        pairs = os.path.join(arguments.halves, "pairs.txt")
        command = [sys.executable, "-m", "tripletloss.evaluate", weights, "--config", made, "--pairs", pairs]
        run([*command, "--images", arguments.faces, "--mirrored", "--force", "--out", folder])
    with open(os.path.join(folder, "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    return [report[figure]["value"] for figure in FIGURES]


def run(command):
    """Run a program of the project, whose output is shown if it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")


def trained(people, lines, seed, arguments, folder):
    """Train on all images of some people. Returns the config, and the weights at the end."""
    made, images = os.path.join(folder, "config.py"), os.path.join(folder, "train.txt")
    settings = {"RUN_FOLDER": os.path.join(folder, "run"), "IMAGEPATH": arguments.faces, "TRAIN_LIST": images}
    os.makedirs(folder, exist_ok=True)
    numbers = {person: number for number, person in enumerate(people)}
    text = "".join(f"{name} {numbers[identity_of(name)]}\n" for name in lines if identity_of(name) in numbers)
    write_whole(images, text.encode())
    source = os.path.join(MODEL, "finetune_triplets.py")
    write_whole(made, config.copy_text(source, made, {**settings, "SEED": seed}).encode())
    values = config.load(made)
    weights = os.path.join(folder, "run", f"triplet_iter_{values['MAX_ITERS']['triplet']}.caffemodel")
    if not os.path.exists(weights):
        run([sys.executable, "train.py", "--config", made, "--resume"])
    return made, weights


def main():
    """Train, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("faces", type=os.path.abspath, help="the folder of images")
    parser.add_argument("halves", type=os.path.abspath, help="what tools/lfw_halves.py wrote")
    parser.add_argument("out", type=os.path.abspath)
    arguments = parser.parse_args()
    names = read_list(os.path.join(arguments.halves, "train.txt"), arguments.faces).names
    everyone = list(dict.fromkeys(identity_of(name) for name in names))
    counts = [*PEOPLE, len(everyone)]
    figures = {count: [] for count in counts}
    bar = tqdm(total=len(counts) * DRAWS, desc="runs", mininterval=30)
    for draw in range(1, DRAWS + 1):
        drawn = np.random.default_rng(draw).permutation(everyone)
        for count in counts:
            folder = os.path.join(arguments.out, f"{count}_{draw}")
            made, weights = trained(list(drawn[:count]), names, draw, arguments, folder)
            figures[count].append(measured(weights, made, arguments, os.path.join(folder, "measured")))
            bar.update()
    bar.close()
    shipped = os.path.join(MODEL, "face997.caffemodel")
    before = np.array(measured(shipped, made, arguments, os.path.join(arguments.out, "shipped")))
    rows = [["none", *(f"{100 * value:.1f}" for value in before)]]
    for count in counts:
        after = 100 * np.array(figures[count])
        errors = after.std(axis=0, ddof=1) / np.sqrt(DRAWS)
        rows.append([count, *(f"{m:.1f} ± {e:.1f}" for m, e in zip(after.mean(axis=0), errors, strict=True))])
    print(tabulate(rows, ["people", *FIGURES], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
