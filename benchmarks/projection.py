"""What the triplet stage's projection alone gains, by its settings and the number of people to train on.

    .venv/bin/python tools/lfw_halves.py LFW pairs.txt HALVES
    OPENBLAS_NUM_THREADS=1 nice .venv/bin/python benchmarks/projection.py OUT --faces LFW --halves HALVES
    .venv/bin/python -m faces --camera ceiling --size 40 --first 4000 --identities 620 --images 12 --out RENDERED
    OPENBLAS_NUM_THREADS=1 nice .venv/bin/python benchmarks/projection.py OUT2 --faces RENDERED/images \
        --list RENDERED/list.txt

--crop 128 goes with LFW's images. Each training is the triplet stage of config.py, above the cached feature of
models/face997, with the settings of a candidate. A draw is a seed, for who is trained on and for the training. The same
people are measured every time, whom neither the model nor the stage has seen, with mirrored averages: accuracy as by
LFW's protocol (with --list, on all same pairs and as many different ones, in ten folds), AUC and TAR at FAR 1% on all
pairs of their images, or half a million of them. OUT/figures.csv gets a row for each training; rows that it has are not
computed again. --table prints the tables.
"""

import argparse
import csv
import dataclasses
import itertools
import os
import shutil
import sys
from typing import NamedTuple

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from tripletloss import config
from tripletloss.base.files import write_whole
from tripletloss.base.workers import Workers
from tripletloss.core.distances import squared_distances
from tripletloss.core.pairs import pairs_of
from tripletloss.core.verification import cross_validated_accuracy, verification_of_pairs
from tripletloss.data.lists import identity_of, read_list
from tripletloss.data.pairs import read_pairs
from tripletloss.training.candidates import PROGRAM, Candidate, Job, part_of, with_features
from tripletloss.training.plan import make_plan

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WEIGHTS = os.path.join(ROOT, "models", "face997", "face997.caffemodel")
PEOPLE = (30, 100, 250)  # and all
DRAWS = 5
MEASURED = 120  # people of --list, the last ones
ALL_PAIRS = 500_000
FIGURES = ("accuracy", "AUC", "TAR")
DECAYS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
MARGINS = (0.2, 0.4, 0.8)
RATE = 0.3
BASE = (0.02, 0.4, RATE)  # decay, margin and rate, around which the tables vary one


def candidates():
    """What is tried: all of decay x margin for two strategies, then other strategies and rates."""
    found = [
        Candidate(decay, margin, how, RATE)
        for how, margin, decay in itertools.product(("semi-hard", "batch-hard"), MARGINS, DECAYS)
    ]
    found += [Candidate(0.02, 0.4, how, RATE) for how in ("batch-all", "distance-weighted")]
    found += [
        Candidate(decay, 0.4, how, rate)
        for rate, how, decay in itertools.product((0.1, 1.0), ("semi-hard", "batch-hard"), (0.005, 0.02, 0.05))
    ]
    return found


class Domain(NamedTuple):
    """Images, and who of them is trained on."""

    plan: object  # of all images, with cached features
    trained: np.ndarray  # (M,) bool: of people to draw from
    first: np.ndarray  # (P,) numbers of images, of the pairs for accuracy
    second: np.ndarray
    same: np.ndarray  # (P,) bool
    folds: np.ndarray  # (P,) int


def open_domain(arguments):
    """List and embed all images. Returns the Domain."""
    out = os.path.abspath(arguments.out)
    os.makedirs(out, exist_ok=True)
    if arguments.halves:
        train = read_list(os.path.join(arguments.halves, "train.txt"), arguments.faces)
        file = read_pairs(os.path.join(arguments.halves, "pairs.txt"), arguments.faces)
        people = sorted({identity_of(name) for name in file.images.names})
        folders = [(person, os.path.join(arguments.faces, person)) for person in people]
        measured = [f"{person}/{name}" for person, folder in folders for name in sorted(os.listdir(folder))]
    else:
        listed = read_list(arguments.list, arguments.faces)
        people = list(dict.fromkeys(identity_of(name) for name in listed.names))[-MEASURED:]
        measured = [name for name in listed.names if identity_of(name) in set(people)]
        train = listed.only(np.array([identity_of(name) not in set(people) for name in listed.names]))
    names = [*train.names, *measured]
    trained = np.arange(len(names)) < len(train.names)
    numbers = {person: n for n, person in enumerate(dict.fromkeys(identity_of(name) for name in names))}
    labels = np.array([numbers[identity_of(name)] for name in names])
    lines = "".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True))
    write_whole(os.path.join(out, "all.txt"), lines.encode())
    made = os.path.join(out, "config.py")
    text = config.copy_text(os.path.join(ROOT, "config.py"), made, {
        "STAGES": ["triplet"], "RUN_FOLDER": os.path.join(out, "run"), "FEATURE_CACHE": os.path.join(out, "cache"),
        "WEIGHTS": {"softmax": "", "triplet": WEIGHTS}, "IMAGEPATH": os.path.abspath(arguments.faces),
        "TRAIN_LIST": os.path.join(out, "all.txt"), "HELD_OUT_LIST": "", "CROP": arguments.crop,
    })  # fmt: skip
    write_whole(made, text.encode())
    settings = config.load(made)
    os.makedirs(settings["RUN_FOLDER"], exist_ok=True)
    plan, line = with_features(make_plan(settings, "triplet", None))
    print(line, flush=True)
    if arguments.halves:
        place = {name: number for number, name in enumerate(names)}
        own = np.array([place[name] for name in file.images.names])
        return Domain(plan, trained, own[file.pairs.first], own[file.pairs.second], file.pairs.same, file.folds)
    return Domain(plan, trained, *balanced_pairs(labels, np.flatnonzero(~trained)))


def balanced_pairs(labels, numbers):
    """All same pairs of some images and as many different ones, drawn, in ten folds: first, second, same, folds."""
    rng, pairs = np.random.default_rng(0), pairs_of(labels[numbers])
    same = np.flatnonzero(pairs.same)
    chosen = np.concatenate([same, rng.choice(np.flatnonzero(~pairs.same), len(same), replace=False)])
    folds = np.tile(np.arange(len(same)) % 10, 2)
    return numbers[pairs.first[chosen]], numbers[pairs.second[chosen]], pairs.same[chosen], folds


def figures(rows, domain):
    """FIGURES of the measured images. rows: (2 V, D), of the V measured images, then of their mirror images."""
    measured = np.flatnonzero(~domain.trained)
    rows = (rows[: len(measured)] + rows[len(measured) :]) / 2
    distances = squared_distances(rows, np.float32)
    place = np.full(len(domain.trained), -1)
    place[measured] = np.arange(len(measured))
    listed = distances[place[domain.first], place[domain.second]]
    accuracy = cross_validated_accuracy(listed, domain.same, domain.folds).mean
    pairs = pairs_of(domain.plan.images.labels[measured], ALL_PAIRS)
    found = verification_of_pairs(distances[pairs.first, pairs.second], pairs.same)
    return accuracy, found.auc, found.tar[0.01]


def run(arguments, domain):
    """Train and measure what the table does not have yet."""
    out, labels = os.path.abspath(arguments.out), domain.plan.images.labels
    path, done = os.path.join(out, "figures.csv"), set()
    if os.path.exists(path):
        with open(path, newline="") as file:
            done = {tuple(row[:6]) for row in csv.reader(file)}
    features = np.load(domain.plan.settings["FEATURES"], mmap_mode="r")
    rows = os.path.join(out, "rows.npy")
    measured = np.concatenate(list(features[:, ~domain.trained]))
    np.save(rows, measured)
    people = np.unique(labels[domain.trained])
    counts = [count for count in PEOPLE if count < len(people)] + [len(people)]
    with open(path, "a", newline="") as file, Workers(PROGRAM, arguments.programs, f"{out}/caffe.log") as workers:
        table = csv.writer(file)
        if ("0",) * 6 not in done:
            table.writerow([*("0",) * 6, *figures(measured, domain)])
        for draw, count in itertools.product(range(1, DRAWS + 1), counts):
            wanted = [one for one in candidates() if key(count, draw, one) not in done]
            if not wanted:
                continue
            folder = os.path.join(out, "part")
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            drawn = np.random.default_rng(draw).permutation(people)[:count]
            part = part_of(domain.plan, domain.trained & np.isin(labels, drawn), folder)
            part = dataclasses.replace(part, settings={**part.settings, "SEED": draw})
            jobs = [Job(part, one, os.path.join(folder, str(n)), rows) for n, one in enumerate(wanted)]
            answers = tqdm(workers.answers(jobs), f"{count} people, draw {draw}", len(jobs), mininterval=30)
            for one, answer in zip(wanted, answers, strict=True):
                values = ["nan"] * 3 if isinstance(answer, str) else figures(answer, domain)
                table.writerow([*key(count, draw, one), *values])
                file.flush()


def key(count, draw, candidate):
    """The first cells of a training's row."""
    c = candidate
    return (str(count), str(draw), f"{c.weight_decay:g}", f"{c.margin:g}", c.selection, f"{c.learning_rate:g}")


def shown(candidate):
    """Whether the tables show a candidate: it differs from BASE, besides its strategy, in one value at most."""
    c = candidate
    return sum(own != base for own, base in zip((c.weight_decay, c.margin, c.learning_rate), BASE, strict=True)) <= 1


def print_tables(out):
    """For each figure, the gains over the feature in points: means over the draws, with their standard errors."""
    with open(os.path.join(out, "figures.csv"), newline="") as file:
        rows = list(csv.reader(file))
    before, after = np.array([row[6:] for row in rows if row[0] == "0"], float)[0], {}
    for row in rows:
        after.setdefault((row[0], *row[2:6]), []).append([float(value) for value in row[6:]])
    counts = sorted({row[0] for row in rows} - {"0"}, key=int)
    wanted = sorted(filter(shown, candidates()), key=lambda c: (c.selection, c.margin, c.learning_rate, c.weight_decay))
    for at, figure in enumerate(FIGURES):
        table = []
        for one in wanted:
            cells = []
            for count in counts:
                settings = key(count, 1, one)
                gains = 100 * (np.array(after[(count, *settings[2:])])[:, at] - before[at])
                cells.append(f"{gains.mean():+.1f} ± {gains.std(ddof=1) / np.sqrt(len(gains)):.1f}")
            table.append([one.selection, *key(0, 0, one)[2:4], f"{one.learning_rate:g}", *cells])
        print(f"\n{figure}, points over norm2, which has {100 * before[at]:.1f}; {DRAWS} draws\n")
        heads = ["selection", "decay", "margin", "rate", *(f"{count} people" for count in counts)]
        print(tabulate(table, heads, tablefmt="github", disable_numparse=True))


def main():
    """Run the benchmark, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out")
    parser.add_argument("--faces", help="the folder of images")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--halves", help="what tools/lfw_halves.py wrote")
    kind.add_argument("--list", help="a list of identities, the last of which are measured")
    parser.add_argument("--crop", type=int, default=0, help="CROP of config.py: 128 for LFW")
    parser.add_argument("--programs", type=int, default=1, help="that train at the same time")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    arguments = parser.parse_args()
    if arguments.table:
        print_tables(arguments.out)
    else:
        run(arguments, open_domain(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
