"""Pictures: ROC curves, distance histograms, a run's curves. Drawn by matplotlib, to PNG files, without a display."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tripletloss.base.files import whole_file
from tripletloss.core.verification import Roc

BLUE, RED, GREEN = "#3465a4", "#cc4125", "#4e9a06"
MOST_POINTS = 2000  # of a curve


def roc(path, curves):
    """ROC curves with a logarithmic FAR. curves: name -> (distances (P,), same (P,))."""
    figure, axes = plt.subplots(figsize=(6, 4.5))
    lowest = min(1 / max((~same).sum(), 1) for _, same in curves.values())
    for name, (distances, same) in curves.items():
        far, tar = Roc(distances, same).curve()
        shown = np.unique(np.searchsorted(far, np.geomspace(lowest, 1, MOST_POINTS), side="right") - 1)
        shown = shown[shown >= 0]
        axes.step(far[shown], tar[shown], where="post", label=name)
    axes.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.01), xlabel="FAR: different pairs accepted",
             ylabel="TAR: same pairs accepted", title="Verification")  # fmt: skip
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right")
    _save(figure, path)


def distances(path, values, same, threshold=None):
    """Histograms of the squared distances of same and of different pairs. values, same: (P,)."""
    figure, axes = plt.subplots(figsize=(6, 4.5))
    bins = np.linspace(0, float(np.quantile(values, 0.9999)) or 1, 81)
    for mask, label, colour in ((same, "same identity", BLUE), (~same, "different identities", RED)):
        axes.hist(values[mask], bins, density=True, alpha=0.6, label=f"{label} ({mask.sum()})", color=colour)
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(xlabel="squared distance", ylabel="density of pairs", title="Distances of pairs", xlim=(0, bins[-1]))
    axes.legend()
    _save(figure, path)


def tsne(path, embeddings, labels, most=20, seed=0):
    """A map of embeddings in two dimensions by t-SNE (van der Maaten & Hinton 2008), a colour an identity.

    embeddings: (N, D); labels: (N,). Shown are the `most` identities with the most images.
    """
    from sklearn.manifold import TSNE  # slow to import

    names, sizes = np.unique(labels, return_counts=True)
    shown = names[np.argsort(-sizes, kind="stable")[:most]]
    rows = np.flatnonzero(np.isin(labels, shown))
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings[rows])
    figure, axes = plt.subplots(figsize=(6, 6))
    colours = plt.get_cmap("tab20")
    for number, name in enumerate(shown):
        mine = labels[rows] == name
        axes.scatter(*points[mine].T, s=14, color=colours(number % 20), label=str(name))
    axes.set(xticks=[], yticks=[], title=f"t-SNE of {len(rows)} images, {len(shown)} identities")
    _save(figure, path)


def curves(path, title, table, held_out=()):
    """A stage's curves against its iterations.

    table: column name -> (I,) floats, with `iteration`, `learning_rate` and any of loss, accuracy, active_share,
    d_ap, d_an; held_out: (iteration, TAR at FAR 1%) of the weights so far measured.
    """
    panels = [("loss", ["loss"]), ("learning rate", ["learning_rate"])]
    panels += [(label, columns) for label, columns in (
        ("accuracy", ["accuracy"]), ("active share", ["active_share"]), ("squared distances", ["d_ap", "d_an"])
    ) if columns[0] in table]  # fmt: skip
    if len(held_out):
        panels.append(("held out", []))
    rows = -(-len(panels) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(10, 2.8 * rows), squeeze=False, sharex=True)
    iterations = np.asarray(table["iteration"])
    for axes, (label, columns) in zip(grid.flat, panels, strict=False):
        for column in columns:
            values = np.asarray(table[column], float)
            if column == "learning_rate" or len(values) < 40:
                axes.plot(iterations, values, label=column)
                continue
            window = max(5, len(values) // 100)
            axes.plot(iterations, values, alpha=0.2)
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axes.plot(iterations[window - 1 :], smooth, label=column, color=axes.lines[-1].get_color())
        if not columns:
            axes.plot(*np.transpose(held_out), "o-", color=GREEN, label="TAR at FAR 1%")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if len(columns) != 1:
            axes.legend()
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    figure.suptitle(title)
    _save(figure, path)


def _save(figure, path):
    """Write a figure as PNG; it has its name only when it is whole. Raises OSError."""
    figure.tight_layout()
    try:
        with whole_file(path) as part:
            figure.savefig(part, format="png", dpi=100)
    finally:
        plt.close(figure)
