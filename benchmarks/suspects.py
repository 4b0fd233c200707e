"""Measure how many planted wrong labels tripletloss.suspects finds.

    .venv/bin/python -m faces --identities 240 --images 20 --first 1000 --out runs/faces_unseen
    .venv/bin/python benchmarks/suspects.py

The images show identities that the shipped model was not trained on. In each of five draws, 2% of them get the label
of another identity, drawn at random.
"""

import numpy as np
from tabulate import tabulate

from tripletloss import config
from tripletloss.data.lists import read_list
from tripletloss.evaluation import suspects
from tripletloss.evaluation.embed import embed

WEIGHTS, FOLDER = "models/face997/face997.caffemodel", "runs/faces_unseen"
SHARE, DRAWS = 0.02, 5


def main():
    """Embed, plant, rank; prints a table."""
    images = read_list(f"{FOLDER}/list.txt", f"{FOLDER}/images")
    settings = config.load("config.py").stage("triplet")
    rows = embed(WEIGHTS, settings, settings["FEATURE"], images, mirrored=False).rows
    people, truth = np.unique(images.labels, return_inverse=True)
    wrong = round(SHARE * len(truth))
    tops = (wrong // 4, wrong // 2, wrong, 2 * wrong)
    hits = np.empty((DRAWS, len(tops)))
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        planted = rng.choice(len(truth), wrong, replace=False)
        labels = truth.copy()
        labels[planted] = (truth[planted] + rng.integers(1, len(people), wrong)) % len(people)
        found = np.isin(suspects.rank(suspects.suspicion(rows, labels)), planted)
        hits[draw] = [found[:top].sum() for top in tops]
    print(f"\n{len(truth)} images of {len(people)} identities, {wrong} planted; mean of {DRAWS} draws (least, most)\n")
    table = []
    for top, each in zip(tops, hits.T, strict=True):
        cells = [f"{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})" for v in (each / top, each / wrong)]
        table.append([top, *cells])
    print(tabulate(table, ["first", "precision", "recall"], disable_numparse=True))


if __name__ == "__main__":
    main()
