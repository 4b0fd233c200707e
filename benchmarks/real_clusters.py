"""How well the models group photos of real people: real_clusters.py MODEL.onnx FACES [MODEL.onnx FACES ...].

    .venv/bin/python -m tripletloss.detect LFW --out FACES --for dlib_resnet

FACES has a folder of images for each person, as detect writes them for the model. People with LEAST_IMAGES or more are
divided at random: average linkage takes the threshold with the best F on one half and is scored on the other half, and
the other way round.
"""

import sys

import numpy as np
from tabulate import tabulate

from tripletloss.core.clustering import cluster, clustering, threshold_of_best_f
from tripletloss.core.pairs import different_weight, pair_distances, pairs_of
from tripletloss.data.folders import check_cut, list_folder
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.onnx_threshold import embed_list

LEAST_IMAGES = 5
DIVISIONS = 5  # of the people into halves


def scores(rows, labels):
    """B-cubed precision, recall and F, and NMI, of both halves of each division, (2 * DIVISIONS, 4)."""
    found = []
    for seed in range(DIVISIONS):
        people = np.random.default_rng(seed).permutation(np.unique(labels))
        half = np.isin(labels, people[: len(people) // 2])
        for chosen, scored in ((half, ~half), (~half, half)):
            pairs = pairs_of(labels[chosen])
            distances = pair_distances(rows[chosen], pairs.first, pairs.second)
            threshold = threshold_of_best_f(distances, pairs.same, different_weight(pairs, labels[chosen]))
            score = clustering(cluster(rows[scored], threshold), labels[scored])
            found.append([*score.b_cubed, score.nmi])
    return np.array(found)


def main():
    """Print the table."""
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        sys.exit(__doc__.split("\n\n")[0])
    table = []
    for path, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        model, images = Model(path), list_folder(folder)
        check_cut(folder, {"ALIGNMENT": model.about["alignment"]})
        images = images.only(np.isin(images.labels, np.flatnonzero(np.bincount(images.labels) >= LEAST_IMAGES)))
        found = scores(embed_list(model, images), images.labels)
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in zip(
            found.mean(0), found.min(0), found.max(0), strict=True
        )]  # fmt: skip
        table.append([model.about["weights"], f"{len(images.names)} of {len(np.unique(images.labels))} people", *cells])
    print(tabulate(table, ["model", "images", "B-cubed precision", "recall", "F", "NMI"], tablefmt="github"))


if __name__ == "__main__":
    main()
