"""Plots as PNG files: ROC curves, distance histograms, t-SNE maps, the curves of a run. They need no display."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from tripletloss.base.files import whole_file
from tripletloss.core.verification import Roc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREEN = "#3465a4", "#cc4125", "#4e9a06"
MOST_POINTS = 2000  # of a curve


def roc(path: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw ROC curves over the logarithm of the FAR. curves: name -> (squared distances (P,), same (P,) bool)."""
    figure = _figure(6, 4.5)
    axes = figure.subplots()
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


def distances(path: str, values: np.ndarray, same: np.ndarray) -> None:
    """Draw histograms of squared distances, of same pairs and of different ones. values: (P,); same: (P,) bool."""
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    bins = np.linspace(0, float(np.quantile(values, 0.9999)) or 1, 81)
    for mask, label, colour in ((same, "same identity", BLUE), (~same, "different identities", RED)):
        axes.hist(values[mask], bins.tolist(), density=True, alpha=0.6, label=f"{label} ({mask.sum()})", color=colour)
    axes.set(xlabel="squared distance", ylabel="density of pairs", title="Distances of pairs", xlim=(0, bins[-1]))
    axes.legend()
    _save(figure, path)


def tsne(path: str, embeddings: np.ndarray, labels: np.ndarray, most: int = 20, seed: int = 0) -> None:
    """Draw a map of embeddings in two dimensions, by t-SNE (van der Maaten & Hinton 2008), one colour per identity.

    embeddings: (N, D); labels: (N,). The `most` identities with the most images are shown.
    """
    from sklearn.manifold import TSNE  # slow to import

    names, sizes = np.unique(labels, return_counts=True)
    shown = names[np.argsort(-sizes, kind="stable")[:most]]
    rows = np.flatnonzero(np.isin(labels, shown))
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings[rows])
    figure = _figure(6, 6)
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab20"]
    for number, name in enumerate(shown):
        mine = labels[rows] == name
        axes.scatter(points[mine, 0], points[mine, 1], s=14, color=colours(number % 20), label=str(name))
    axes.set(xticks=[], yticks=[], title=f"t-SNE of {len(rows)} images, {len(shown)} identities")
    _save(figure, path)


def curves(
    path: str, title: str, table: Mapping[str, Sequence[float]], held_out: Sequence[tuple[int, float]] = (),
    figure_name: str = "",
) -> None:
    """Draw a stage's curves against its iterations.

    table: column name -> (I,) values, with `iteration`, `learning_rate`, and any of loss, accuracy, active_share,
    d_ap, d_an; held_out: (iteration, figure) for the weights measured so far; figure_name: what figure that is.
    """
    panels = [("loss", ["loss"]), ("learning rate", ["learning_rate"])]
    panels += [(label, columns) for label, columns in (
        ("accuracy", ["accuracy"]), ("active share", ["active_share"]), ("squared distances", ["d_ap", "d_an"])
    ) if columns[0] in table]  # fmt: skip
    if len(held_out):
        panels.append(("held out", []))
    rows = -(-len(panels) // 2)
    figure = _figure(10, 2.8 * rows)
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True)
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
            axes.plot(*np.transpose(held_out), "o-", color=GREEN, label=figure_name)
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


def _figure(width: float, height: float) -> "Figure":
    """An empty figure. width, height: in inches."""
    from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

    return Figure(figsize=(width, height))


def _save(figure: "Figure", path: str) -> None:
    """Write a figure as a PNG file, which gets its name once it is whole. Raises OSError."""
    figure.tight_layout()
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=100)
