#!/usr/bin/env python
"""Train the stages of config.py: python train.py [--stage softmax | triplet] [--config FILE]."""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, NamedTuple

from tripletloss import config
from tripletloss.base import command, parallel
from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.core.verification import Verification
from tripletloss.evaluation.compare import Comparison
from tripletloss.reporting import page
from tripletloss.reporting import run as run_page
from tripletloss.training import check, outcome, snapshots, tuning
from tripletloss.training.device import choose_device, choose_devices, use_device
from tripletloss.training.features import cache_features
from tripletloss.training.folder import check_folder, claim_folder
from tripletloss.training.plan import Plan, make_plan
from tripletloss.training.score import compare_stages, measure
from tripletloss.training.stage import Stopped, train_stage


def main() -> int:
    """Plan, train and measure each stage in turn. Returns the exit status."""
    parser = command.Parser(description="Train an embedding with Caffe: softmax first, then triplets.")
    config.add_argument(parser)
    parser.add_argument("--stage", choices=config.STAGES, help="train this stage only (default: STAGES of the config)")
    parser.add_argument(
        "--check", action="store_true", help="train nothing: read all images, try a few iterations, report problems"
    )
    parser.add_argument(
        "--allow-module", metavar="NAME", action="append", default=[],
        help="a Python module that NET and DEPLOY may run, besides this package's; once for each module",
    )  # fmt: skip
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
    try:
        done = [run_stage(settings, stage, gpu, team, arguments, ongoing) for stage in stages]
    except Stopped as stopped:
        write_page(settings["RUN_FOLDER"], None, team)
        command.complain("train.py", f"{stopped}: resume with --resume")
        return 128 + stopped.number
    plans, ends = [stage.plan for stage in done], [stage.weights for stage in done]
    report_outcome(settings, plans, ends, done[-1].comparison, team)
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
    settings: config.Config, stage: str, gpu: int | None, team: parallel.OneProcess, arguments: argparse.Namespace,
    ongoing: run_page.Ongoing,
) -> Done:  # fmt: skip
    """One stage, from plan to measurement. All processes train and measure, and the first one plans and prints."""
    own = team.first(lambda: choose_settings(settings, gpu, team.size, arguments)) if stage == "triplet" else settings
    plan = team.first(lambda: plan_stage(own, stage, gpu, team.size, arguments.resume))
    team.first(ongoing.begin)
    use_device(gpu)
    if line := cache_features(plan, team):
        print(line, flush=True)
    if plan.weights and stage == "softmax" and not plan.snapshot:
        report("before", measure(plan, plan.weights, team))
    weights = train_stage(plan, team, gpu, ongoing.write)
    if team.rank == 0:
        print(f"weights    {weights}")
        if line := plan.skipped():
            print(line)
    comparison = report_end(plan, weights, team)
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


def report_outcome(
    settings: config.Config, plans: list[Plan], ends: list[str], comparison: Comparison | None,
    team: parallel.OneProcess,
) -> None:  # fmt: skip
    """Print which of the weights are best, and what to do with them, and write the page about the run.

    plans, ends: as for outcome.candidates(); comparison: of the last stage.
    """
    found = outcome.candidates(plans, ends, team)
    held_out, folder = plans[-1].held_out, settings["RUN_FOLDER"]
    judged = outcome.judge(found, held_out.labels) if held_out else None
    kept = None
    if judged and held_out:
        best = judged.found[judged.best]
        following = outcome.export(best, settings.stage("triplet")["FEATURE"], config_given(settings), folder)
        print(*outcome.describe(judged, following), sep="\n", flush=True)
        kept = outcome.kept(judged, held_out, following, comparison.report() if comparison else None)
    write_page(folder, kept, team)


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
            print("\n".join([plan.describe(), *found]), "\n", flush=True)
    return 0


def plan_stage(settings: config.Config, stage: str, gpu: int | None, processes: int, resume: bool) -> Plan:
    """The stage's plan, printed."""
    plan = make_plan(settings, stage, gpu, processes, resume)
    lines = [*plan.describe().splitlines(), *check.look_before(plan)]
    write_whole(f"{plan.prefix}_plan.txt", "".join(f"{line}\n" for line in lines).encode())
    print(*lines, sep="\n", flush=True)
    return plan


def report_end(plan: Plan, weights: str, team: parallel.OneProcess) -> Comparison | None:
    """Print how good the stage's weights are; after the triplet stage, also what it added, which is returned."""
    comparison = compare_stages(plan, weights, team) if plan.stage == "triplet" else None
    if comparison:
        print(f"\n{comparison.describe()}", flush=True)
    if not team.first(lambda: comparison is not None):
        report("after", measure(plan, weights, team))
    return comparison


def report(when: str, held_out: Mapping[str, Verification]) -> None:
    """Print how well held-out identities are told apart, one line per feature."""
    for feature, found in held_out.items():
        tar = f"TAR {found.tar[0.01]:.3f} at FAR 1%" if 0.01 in found.tar else "too few pairs for FAR 1%"
        print(
            f"held out   {when} the stage, {feature}: AUC {found.auc:.4f}, {tar} "
            f"({found.same} same and {found.different} different pairs of identities never trained on)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
