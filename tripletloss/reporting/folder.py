"""What a run's folder says about its stages."""

import csv
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.config import SCHEMA, STAGES
from tripletloss.core import diagnosis
from tripletloss.training import snapshots

MOST_ROWS = 4000  # of a table that are kept, evenly spread
LOOKS = 200  # at the embeddings of a stage, for what went wrong


class Stage(NamedTuple):
    """A stage of a run."""

    name: str
    prefix: str  # of its files
    settings: dict[str, Any]  # in effect
    cached: bool  # whether it was trained on features that were computed once
    log: dict[str, np.ndarray]  # column -> (I,) values: iteration, learning_rate, loss and others
    figure: str  # that the scores are; '' without scores
    scores: list[tuple[int, float]]  # (iteration, score) of held-out images
    done: int  # the last iteration
    warnings: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether it was trained to its last iteration, and the snapshot is there."""
        found = snapshots.described(self.prefix)
        return bool(found) and found[-1].iteration >= self.settings["MAX_ITERS"]

    @property
    def seconds(self) -> float:
        """How long its iterations took, about."""
        speeds = self.log.get("images_per_s", np.zeros(0))
        speeds = speeds[speeds > 0]
        return float(self.done * np.mean(self.settings["BATCH_SIZE"] / speeds)) if len(speeds) else 0.0


def stages_of(folder: str) -> list[Stage]:
    """The stages that a run's folder has, in their order. Raises InputError if there are none, or if one is damaged."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder: name the RUN_FOLDER of a run")
    found = [stage for stage in STAGES if os.path.exists(os.path.join(folder, f"{stage}_settings.json"))]
    if not found:
        raise InputError(f"{folder} has no settings of a stage, so it is no run: name the RUN_FOLDER of a run")
    return [_stage(os.path.join(folder, stage), stage) for stage in found]


def _stage(prefix: str, name: str) -> Stage:
    path = f"{prefix}_settings.json"
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        settings = {key: value for key, value in about.items() if key in SCHEMA}
        cached = bool(about["cached"])
        if not all(SCHEMA[key].accepts(value) for key, value in settings.items()):
            raise ValueError
        missing = {"IMAGEPATH", "TRAIN_LIST", "HELD_OUT_LIST", "MAX_ITERS", "BATCH_SIZE"} - set(settings)
        if missing:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged, and it says how the stage began: there is no page without it") from None
    log = read_table(f"{prefix}_log.csv")
    scores = read_table(f"{prefix}_held_out.csv")
    figure = next((column for column in scores if column != "iteration"), "")
    pairs = zip(scores["iteration"].astype(int).tolist(), scores[figure].tolist(), strict=True) if figure else ()
    done = int(log["iteration"][-1]) if len(log.get("iteration", ())) else 0
    warnings = [*_advice(f"{prefix}_plan.txt"), *_problems(prefix, name, settings)]
    return Stage(name, prefix, settings, cached, log, figure, list(pairs), done, warnings)


def read_table(path: str) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers, name -> (R,), with MOST_ROWS rows at most; {} if it has no rows.

    The last row is always among them. A row that is cut off is left out.
    """
    rows: list[list[float]] = []
    every, number, last = 1, 0, None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.reader(file)
            header = next(table, [])
            for number, row in enumerate(table):
                if len(row) != len(header):
                    continue
                last = row
                if number % every == 0:
                    rows.append([float(value) for value in row])
                if len(rows) > MOST_ROWS:
                    rows, every = rows[::2], every * 2
            if last and number % every:
                rows.append([float(value) for value in last])
    except (OSError, ValueError, csv.Error):
        pass  # what was read until there
    return dict(zip(header, np.array(rows).T, strict=True)) if rows else {}


def _advice(path: str) -> list[str]:
    """The advice in a stage's plan."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line[11:].strip() for line in file if line.startswith("advice ")]
    except (OSError, UnicodeDecodeError):
        return []


def _problems(prefix: str, name: str, settings: Mapping[str, Any]) -> list[str]:
    """What went wrong with the embeddings while a triplet stage was trained, each with the iteration."""
    table = read_table(f"{prefix}_embeddings.csv")
    if name != "triplet" or set(diagnosis.Report._fields) - set(table) or np.isnan(table["active_share"]).all():
        return []
    reports = [diagnosis.Report(*row) for row in zip(*(table[f] for f in diagnosis.Report._fields), strict=True)]
    found: dict[str, str] = {}
    for count in range(1, len(reports) + 1, max(1, len(reports) // LOOKS)):
        problem = diagnosis.diagnose(reports[:count], settings["MARGIN"])
        if problem and problem[0] not in found:
            found[problem[0]] = f"iteration {int(table['iteration'][count - 1])}, {problem[0]}: {problem[1]}"
    return list(found.values())
