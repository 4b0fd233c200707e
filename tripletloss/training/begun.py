"""How a stage began: what a run that resumes must have in common with it.

Of paths, the contents count, but those of images are not compared. Settings that may change are marked in the schema.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, write_whole
from tripletloss.config import SCHEMA, default_of
from tripletloss.training import snapshots

Settings = Mapping[str, Any]
ANOTHER_RUN = "start another run, with a new RUN_FOLDER and WEIGHTS set to a snapshot of this one"


class Beginning(NamedTuple):
    """What is known about how a stage began."""

    cached: bool  # whether it is trained on features that were computed once
    last_iteration: int  # MAX_ITERS
    processes: int


def write(prefix: str, settings: Settings, weights: str, cached: bool) -> None:
    """Write PREFIX_settings.json, which check() reads if the stage is resumed. weights: path, or '' for none."""
    about = {**settings, "WEIGHTS": weights, "inputs": _inputs(settings, weights), "cached": cached}
    write_whole(f"{prefix}_settings.json", json.dumps(about, indent=2).encode())


def check(prefix: str, stage: str, settings: Settings, weights: str, say: Callable[[str], None]) -> Beginning:
    """How the stage began that is to resume. say: gets a sentence if another number of processes trained it.

    Raises InputError if a setting or a file has changed that may not, or if the file about it is missing or damaged.
    """
    before, beginning = _read(f"{prefix}_settings.json")
    _compare(before, _inputs(settings, weights), stage)
    if beginning.processes != settings["RANKS"]:
        say(
            f"processes  {settings['RANKS']} instead of {beginning.processes} from now on: weights differ by rounding "
            "only, unless dropout, BatchNorm or (with GATHER False) triplet selection works on each process's share"
        )
    if stage == "softmax" and settings["MAX_ITERS"] > beginning.last_iteration:
        if snapshots.described(os.path.join(settings["RUN_FOLDER"], "triplet")):
            raise InputError(
                f"MAX_ITERS of the softmax stage grew from {beginning.last_iteration} to {settings['MAX_ITERS']}, but "
                f"the triplet stage has begun where it ended: change it back, or {ANOTHER_RUN}"
            )
    return beginning


def _inputs(settings, weights):
    """What a run must have in common with the run that it resumes: name -> value, or digest of a file."""
    inputs = {name: value for name, value in settings.items() if not (SCHEMA[name].may_change or SCHEMA[name].is_path)}
    inputs["FEATURE_CACHE"] = bool(settings["FEATURE_CACHE"])
    for name, path in {**settings, "WEIGHTS": weights}.items():
        if name in ("NET", "SOLVER", "TRAIN_LIST", "WEIGHTS") and path:
            try:
                inputs[f"content of {name}"] = digest(path)
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}): the run began with this {name}") from None
    return json.loads(json.dumps(inputs))  # as they will be read


def _read(path):
    """What a settings.json says: the inputs, and the Beginning. Raises InputError."""
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        return dict(about["inputs"]), Beginning(about["cached"], about["MAX_ITERS"], about["RANKS"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is missing or damaged, and it says how the run began: start a new run") from None


def _compare(before, now, stage):
    """Raise InputError where inputs changed. A setting that the older ones lack is newer, and was at its default."""
    for name in sorted({*before, *now}):
        if name in SCHEMA and SCHEMA[name].may_change:
            continue
        was = before.get(name, default_of(name, stage) if name in SCHEMA else None)
        if was != now.get(name):
            values = "" if name.startswith("content") else f" from {was!r} to {now.get(name)!r}"
            raise InputError(
                f"{name} changed{values} since the run began, so it cannot resume: change it back, or {ANOTHER_RUN}"
            )
