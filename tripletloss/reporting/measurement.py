"""The pages of tripletloss.evaluate."""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tripletloss.base.files import short
from tripletloss.config import COUNTED
from tripletloss.core.pairs import Pairs
from tripletloss.evaluation import report
from tripletloss.evaluation.compare import Comparison
from tripletloss.formats.embeddings import Embeddings
from tripletloss.reporting import charts, history, page
from tripletloss.reporting.measured import measure
from tripletloss.reporting.page import Command, Page, Table
from tripletloss.reporting.pictures import Thumbnails
from tripletloss.reporting.run import comparison_table


def write_measured(
    folder: str, figures: Mapping[str, Any], found: Embeddings, pairs: Pairs | None, settings: Mapping[str, Any]
) -> str:
    """Write report.html into a folder. Returns its path. Raises InputError.

    figures: of report.report_on(); pairs: those of a pairs file, or None for those of the images; settings: of the
    triplet stage.
    """
    thumbnails = Thumbnails()
    measured = measure({found.feature: found.rows}, found.images, thumbnails, pairs)
    mirrored = ", averaged with the mirror images" if figures["mirrored"] else ""
    return _write(folder, Page(
        title=f"{os.path.basename(figures['weights'])}, {figures['feature']}",
        subtitle=f"{figures['images']:,} images of {figures['identities']:,} identities in {short(figures['list'])}"
        f"{mirrored}",
        figures=Table(report.HEADERS, report.rows_of(figures), report.BELOW), warnings=list(figures["notes"]),
        measured=measured, lost=thumbnails.lost, **_common(settings),
    ))  # fmt: skip


def write_comparison(
    folder: str, comparison: Comparison, pairs: Pairs, weights: str, settings: Mapping[str, Any]
) -> str:  # fmt: skip
    """Write report.html into a folder. Returns its path. Raises InputError. The arguments are those of evaluate."""
    about = comparison.report()
    end = max(float(np.quantile(own, 0.9999)) for own in comparison.distances) or 1.0
    shown = [("ROC: what each threshold accepts", charts.roc({
        name: (own, pairs.same) for name, own in zip(comparison.names, comparison.distances, strict=True)
    }))]  # fmt: skip
    for number in (0, -1):
        caption = f"distances of pairs, {comparison.names[number]}"
        shown.append((caption, charts.distances(caption, comparison.distances[number], pairs.same, end, None)))
    return _write(folder, Page(
        title=f"{os.path.basename(weights)}, both stages",
        subtitle=f"{about['images']:,} images of {about['identities']:,} identities in {short(about['list'])}",
        comparison=comparison_table(about), charts=shown, **_common(settings),
    ))  # fmt: skip


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What both pages end with."""
    rows = [[name, repr(value)] for name, value in settings.items() if name not in COUNTED]
    command = shlex.join(["python", "-m", "tripletloss.evaluate", *sys.argv[1:]])
    return {
        "settings": Table(["setting", "triplet stage"], rows), "versions": list(history.versions().items()),
        "made": [Command(time.strftime("%Y-%m-%d %H:%M"), command)],
    }  # fmt: skip


def _write(folder: str, content: Page) -> str:
    path = os.path.join(folder, page.NAME)
    page.write(path, content)
    return short(path)
