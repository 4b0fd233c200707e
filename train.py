#!/usr/bin/env python
"""Train the stages of config.py: python train.py [--stage softmax | triplet] [--config FILE]."""

import argparse
import os
import sys
import tempfile
from typing import IO, NamedTuple

from tripletloss import config
from tripletloss.base import command, parallel
from tripletloss.base.errors import InputError
from tripletloss.base.files import short, write_whole
from tripletloss.core.verification import Verification
from tripletloss.evaluation.compare import Comparison
from tripletloss.reporting import page
from tripletloss.reporting import run as run_page
from tripletloss.training import check, outcome, snapshots, tuning
from tripletloss.training.device import choose_device, choose_devices, use_device
from tripletloss.training.features import cache_features
from tripletloss.training.folder import check_folder, claim_folder
from tripletloss.training.plan import Plan, make_plan, on_a_screen
from tripletloss.training.score import HeldOut, compare_stages
from tripletloss.training.stage import Stopped, train_stage


def main() -> int:
    """Plan, train and measure each stage in turn. Returns the exit status."""
    parser = command.Parser(description="Train an embedding with Caffe: softmax first, then triplets.")
    config.add_argument(parser)
    parser.add_argument("--stage", choices=config.STAGES, help="train this stage only (default: STAGES of the config)")
    parser.add_argument(
        "--check", action="store_true", help="train nothing: read all images, try a few iterations, report problems"
    )
    config.add_modules(parser)
    parser.add_argument("--resume", action="store_true", help="resume RUN_FOLDER from its last whole snapshot")
    parser.add_argument(
        "--tune", action="store_true",
        help="choose WEIGHT_DECAY, MARGIN and SELECTION of the triplet stage by cross-validation before it is trained",
    )  # fmt: skip
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[], metavar="N",
        help="with --tune: choose among embeddings of these many numbers, too",
    )  # fmt: skip
    arguments = parser.parse_args()
    if (arguments.widths and not arguments.tune) or (arguments.tune and arguments.check):
        parser.error("--widths needs --tune, and --tune does not go with --check")
    if arguments.check:
        return command.run("train.py", lambda: check_once(arguments))
    stopped = "stopped at once; snapshots written before are whole: resume with --resume"
    return command.run("train.py", lambda: run(arguments), stopped)


def run(arguments: argparse.Namespace) -> int:
    """Train with all processes that were started. Returns the exit status; raises InputError."""
    try:
        with parallel.join("train.py") as team:
            return train(arguments, team)
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(
            f"{error.filename} cannot be read or written ({error.strerror}): make room, or repair its folder, then "
            "resume with --resume"
        ) from None


def train(arguments: argparse.Namespace, team: parallel.OneProcess) -> int:
    """Train the stages with all processes of a team. Returns the exit status; raises InputError."""
    locks: list[IO[str]] = []
    settings, stages = team.first(lambda: prepare(arguments, locks))
    gpu, sentence = choose_devices(settings["DEVICE"], team)
    if team.rank == 0:
        print(sentence)
    device = sentence.removeprefix("device").strip()
    ongoing = run_page.Ongoing(settings["RUN_FOLDER"], config_given(settings), device, team.size)
    held_out, done = HeldOut(team), []
    try:
        for stage in stages:
            done.append(run_stage(settings, stage, gpu, arguments, ongoing, held_out, is_first=not done))
    except Stopped as stopped:
        write_page(settings["RUN_FOLDER"], None, team)
        command.complain("train.py", f"{stopped}: resume with --resume")
        return 128 + stopped.number
    report_outcome(settings, done, held_out)
    return 0


def config_given(settings: config.Config) -> str:
    """The config file as commands need it; '' for the one that they find themselves."""
    return "" if settings.source == config.default_file() else settings.source


def load_config(arguments: argparse.Namespace) -> config.Config:
    """The settings of --config, whose path is printed."""
    print(f"config     {arguments.config}", flush=True)
    return config.load(arguments.config, arguments.allow_module)


def stages_of(arguments: argparse.Namespace, settings: config.Config) -> list[str]:
    """The stages to train: --stage, or STAGES."""
    return [arguments.stage] if arguments.stage else settings["STAGES"]


def prepare(arguments: argparse.Namespace, locks: list[IO[str]]) -> tuple[config.Config, list[str]]:
    """The settings and the stages of the run. Its folder is locked, and the lock is added to locks."""
    settings = load_config(arguments)
    stages = stages_of(arguments, settings)
    if arguments.tune and "triplet" not in stages:
        raise InputError("--tune chooses settings of the triplet stage, which is not to be trained: see STAGES")
    locks.append(claim_folder(settings["RUN_FOLDER"], stages, arguments.resume))
    return settings, stages


class Done(NamedTuple):
    """A stage that was trained."""

    plan: Plan
    weights: str  # path
    comparison: Comparison | None  # of the stages


def run_stage(
    settings: config.Config, stage: str, gpu: int | None, arguments: argparse.Namespace, ongoing: run_page.Ongoing,
    held_out: HeldOut, is_first: bool,
) -> Done:  # fmt: skip
    """One stage, from plan to measurement. All processes train and measure, and the first one plans and prints.

    is_first: whether it is the run's first stage, which is measured as it begins, too.
    """
    team = held_out.team
    own = team.first(lambda: choose_settings(settings, gpu, team.size, arguments)) if stage == "triplet" else settings
    plan = team.first(lambda: plan_stage(own, stage, gpu, team.size, arguments.resume))
    team.first(ongoing.begin)
    use_device(gpu)
    if line := cache_features(plan, team):
        print(line, flush=True)
    before = plan.weights if is_first else ""
    if before and not plan.snapshot:
        held_out.embed(plan, before)
    weights = train_stage(plan, team, gpu, ongoing.write)
    if team.rank == 0:
        print(f"weights    {short(weights)}")
        if line := plan.skipped():
            print(line)
    comparison = report_end(plan, before, weights, held_out)
    if team.rank == 0:
        print(flush=True)
    return Done(plan, weights, comparison)


def choose_settings(
    settings: config.Config, gpu: int | None, processes: int, arguments: argparse.Namespace
) -> config.Config:
    """The settings of the triplet stage, with what --tune chooses now or has chosen before. Prints both."""
    begun = snapshots.described(os.path.join(settings["RUN_FOLDER"], "triplet"))
    if arguments.tune and not begun:
        use_device(gpu)
        print(*tuning.tune(settings, arguments.widths, processes), sep="\n")
    chosen, line = tuning.applied(settings)
    if arguments.tune and not line:
        raise InputError(
            "the triplet stage has begun without --tune, which is too late now: resume without it, or set RUN_FOLDER "
            "to a new folder"
        )
    if line:
        print(line, flush=True)
    return chosen


def report_outcome(settings: config.Config, done: list[Done], held_out: HeldOut) -> None:
    """Print which of the weights are best, and what to do with them, and write the page about the run."""
    found = outcome.candidates([stage.plan for stage in done], [stage.weights for stage in done], held_out)
    images, comparison, folder = done[-1].plan.held_out, done[-1].comparison, settings["RUN_FOLDER"]
    judged = outcome.judge(found, images.labels) if images else None
    kept = None
    if judged and images:
        best = judged.found[judged.best]
        following = outcome.export(best, settings.stage("triplet")["FEATURE"], config_given(settings), folder)
        print(*outcome.describe(judged, following), sep="\n", flush=True)
        kept = outcome.kept(judged, images, following, comparison.report() if comparison else None)
    write_page(folder, kept, held_out.team)


def write_page(folder: str, kept: outcome.Kept | None, team: parallel.OneProcess) -> None:
    """Write the page about the run, and print its path. kept: the run's outcome, if it has one."""

    def write() -> str:
        if kept:
            outcome.save(folder, kept)
        return run_page.write(folder)

    if team.rank == 0:
        print(page.attempt(write), flush=True)


def check_once(arguments: argparse.Namespace) -> int:
    """Check what a run of all processes that were started would use, in the first one. Returns the exit status."""
    with parallel.join("train.py") as team:
        return team.first(lambda: check_stages(arguments, team.size))


def check_stages(arguments: argparse.Namespace, processes: int) -> int:
    """Check closely all that a run would use, in a temporary folder. Returns the exit status, 0."""
    settings = load_config(arguments)
    stages, run_folder = stages_of(arguments, settings), settings["RUN_FOLDER"]
    gpu, sentence = choose_device(settings["DEVICE"])
    print(sentence)
    check_folder(run_folder, stages, arguments.resume)
    softmax = os.path.join(run_folder, "softmax")
    trained = snapshots.chosen(softmax, settings["START_FROM"]) if stages[0] == "triplet" else None
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            own = tuning.applied(settings)[0] if stage == "triplet" else settings
            plan = make_plan(own.aside(folder, trained and trained.weights), stage, gpu, processes)
            found = check.look_closely(plan, stage != stages[-1], run_folder)
            print(*plan.describe(), *found, "", sep="\n", flush=True)
    return 0


def plan_stage(settings: config.Config, stage: str, gpu: int | None, processes: int, resume: bool) -> Plan:
    """The stage's plan, printed."""
    plan = make_plan(settings, stage, gpu, processes, resume)
    lines, path = [*plan.describe(), *check.look_before(plan)], f"{plan.prefix}_plan.txt"
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    print(*on_a_screen(lines, path), sep="\n", flush=True)
    return plan


def report_end(plan: Plan, before: str, weights: str, held_out: HeldOut) -> Comparison | None:
    """Print how good a stage's weights are; after the triplet stage also what it added, which is returned.

    before: the weights that it began with, '' if they are not to be measured.
    """
    began = held_out.measure(plan, before) if before else {}
    found = held_out.measure(plan, weights)
    comparison = compare_stages(plan, weights, held_out.team) if plan.stage == "triplet" else None
    for feature in [name for name in (plan.settings["FEATURE"], *found) if name in found][:1]:
        print(f"held out   {feature}: {how_good(began.get(feature), found[feature])}")
    if comparison:
        print(f"\n{comparison.describe_briefly()}")
    return comparison


def how_good(before: Verification | None, after: Verification) -> str:
    """How well held-out identities are told apart, before a stage if that is known, and after it."""
    parts = []
    for name, wanted in (("AUC", "AUC"), ("TAR at FAR 1%", "TAR@FAR=0.01")):
        values = [one.figures[wanted] for one in (before, after) if one and wanted in one.figures]
        parts += [f"{name} {' before, '.join(f'{value:.4f}' for value in values)} after"] if values else []
    pairs = f"{after.same} same and {after.different} different pairs of identities never trained on"
    return f"{'; '.join(parts)} the stage ({pairs})"


if __name__ == "__main__":
    sys.exit(main())
