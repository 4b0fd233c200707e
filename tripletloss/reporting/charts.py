"""Charts as SVG inside a page, whose style sheet colours them for light and dark."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from markupsafe import Markup

from tripletloss.core.verification import Roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib draws with these colours, and the SVG gets the style sheet's in their places.
INK, LINE, FIRST, SECOND, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
STYLES = {INK: "currentColor", LINE: "var(--line)", FIRST: "var(--one)", SECOND: "var(--two)", THIRD: "var(--three)"}
SIZE = (4.6, 3.0)  # inches, of 72 units each
MOST_POINTS = 300  # of a curve
BINS = 60
DRAWING: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "tripletloss", "text.parse_math": False, "font.family": "sans-serif",
    "font.size": 10, "axes.edgecolor": LINE, "axes.labelcolor": INK, "axes.spines.top": False,
    "axes.spines.right": False, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "grid.color": LINE, "text.color": INK, "legend.frameon": False, "lines.linewidth": 1.6,
    "path.simplify": True,
}  # fmt: skip
# matplotlib numbers its groups; several charts in a page would give the same numbers.
NUMBERED = re.compile(r' id="[A-Za-z0-9]+_\d+"')


@contextlib.contextmanager
def _chart(said: str, found: list[Markup]) -> Iterator["Axes"]:
    """Context manager for a chart's axes, which adds its SVG to `found`. said: what it shows, for those who hear it."""
    from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=SIZE)
        axes = figure.add_axes((0.13, 0.17, 0.82, 0.78))
        axes.grid(True, alpha=0.6, linewidth=0.6)
        axes.tick_params(length=0)
        yield axes
        memory = io.StringIO()
        figure.savefig(memory, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = memory.getvalue()
    text = NUMBERED.sub("", text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, style in STYLES.items():
        text = text.replace(colour, style)
    label = Markup.escape(said)
    found.append(Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)))


def curve(
    said: str, x: np.ndarray, lines: Mapping[str, np.ndarray], smooth: bool = True, dots: bool = False
) -> Markup:  # fmt: skip
    """Values against iterations. x: (I,); lines: name -> (I,), three at most; smooth: draw moving means over them."""
    found: list[Markup] = []
    with _chart(said, found) as axes:
        for colour, (name, values) in zip((FIRST, SECOND, THIRD), lines.items(), strict=False):
            shown = _evenly(len(x))
            window = max(5, len(values) // 100)
            if smooth and len(values) >= 40:
                axes.plot(x[shown], values[shown], color=colour, alpha=0.25, linewidth=0.8)
                means = np.convolve(values, np.ones(window) / window, "valid")
                shown = _evenly(len(means))
                axes.plot(x[window - 1 :][shown], means[shown], color=colour, label=name)
            else:
                axes.plot(x[shown], values[shown], "o-" if dots else "-", color=colour, label=name, markersize=4)
        axes.set_xlabel("iteration")
        if len(lines) > 1:
            axes.legend()
    return found[0]


def _evenly(count):
    """At most MOST_POINTS numbers from 0 to count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))


def roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], marked: Sequence[tuple[float, float]] = ()) -> Markup:
    """ROC curves over the logarithm of the FAR. curves: name -> (squared distances (P,), same (P,) bool).

    marked: (FAR, TAR) of points to mark on the last curve.
    """
    found: list[Markup] = []
    lowest = min(1 / max(int((~same).sum()), 1) for _, same in curves.values())
    with _chart("ROC curves", found) as axes:
        colours = [FIRST] if len(curves) == 1 else [SECOND, FIRST, THIRD, INK]
        for colour, (name, (distances, same)) in zip(colours, curves.items(), strict=False):
            far, tar = Roc(distances, same).curve()
            at = np.unique(np.searchsorted(far, np.geomspace(lowest, 1, MOST_POINTS), side="right") - 1)
            at = at[at >= 0]
            axes.step(far[at], tar[at], where="post", label=name, color=colour)
        if marked:
            axes.plot(*np.transpose(marked), "o", color=FIRST, markersize=4)
        axes.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.01), xlabel="different pairs accepted (FAR)")
        axes.xaxis.set_major_formatter(lambda far, _: f"{100 * far:g}%")
        axes.minorticks_off()
        axes.set_ylabel("same pairs accepted (TAR)")
        axes.legend(loc="lower right")
    return found[0]


def distances(said: str, values: np.ndarray, same: np.ndarray, end: float, threshold: float | None) -> Markup:
    """Histograms of squared distances of same and of different pairs. values: (P,); same: (P,) bool.

    end: of the axis; threshold: a distance to mark, or None.
    """
    found: list[Markup] = []
    bins = np.linspace(0, end, BINS + 1)
    with _chart(said, found) as axes:
        for mask, label, colour in ((same, "same identity", FIRST), (~same, "different identities", SECOND)):
            heights, _ = np.histogram(values[mask], bins)
            share = heights / max(int(mask.sum()), 1)
            axes.stairs(share, bins, fill=True, alpha=0.35, color=colour, label=label)
            axes.stairs(share, bins, color=colour, linewidth=1.2)
        if threshold is not None and threshold <= end:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", ymax=0.76, label="threshold")
        axes.set(xlabel="squared distance", xlim=(0, end), ylim=(0, 1.3 * axes.dataLim.y1))  # room for the legend
        axes.set_ylabel("share of pairs")
        axes.legend(loc="upper left", fontsize=9, ncols=3, columnspacing=1, handlelength=1.2, handletextpad=0.5,
                    borderaxespad=0)  # fmt: skip
    return found[0]
