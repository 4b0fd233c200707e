"""The commands to go on with after a run."""

import os
import shlex
from collections.abc import Sequence

from tripletloss.base.files import short
from tripletloss.reporting.folder import Stage
from tripletloss.reporting.page import Command
from tripletloss.training.outcome import Kept


def commands(folder: str, stages: Sequence[Stage], kept: Kept | None, config_file: str) -> list[Command]:
    """What to do next. config_file: of the run, '' if commands find it themselves."""
    config = ["--config", config_file] if config_file else []
    complete = all(stage.is_complete for stage in stages)
    found = [] if complete else [Command("go on", shlex.join(["python", "train.py", *config, "--resume"]))]
    if not kept:
        again = shlex.join(["python", "-m", "tripletloss.report", short(folder)])
        return [*found, Command("write this page again", again)]
    best, name = kept.about["candidates"][kept.about["best"]], os.path.basename(os.path.abspath(folder))
    default = next((stage.settings["FEATURE"] for stage in stages if stage.name == "triplet"), None)
    feature = ["--feature", best["feature"]] if best["feature"] != default else []

    def command(module: str, *more: str) -> str:
        return shlex.join(["python", "-m", f"tripletloss.{module}", short(best["weights"]), *config, *feature, *more])

    return [
        *found,
        Command("use them without Caffe", kept.about["export"]),
        Command("measure them on another list", command("evaluate", "--list", "LIST", "--out", f"{name}_report")),
        Command("find wrong labels in the training list", command("suspects", "--out", f"{name}_suspects")),
        Command("sort photos by person", command("cluster", "--images", "PHOTOS", "--out", f"{name}_groups")),
    ]
