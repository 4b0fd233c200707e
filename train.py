#!/usr/bin/env python
"""Train the stages of config.py: python train.py [--stage softmax | triplet] [--config FILE]."""

import argparse
import os
import sys
import tempfile

from tripletloss import config
from tripletloss.base import command, parallel
from tripletloss.base.errors import InputError
from tripletloss.training import check, plan, snapshots, solver


def main():
    """Plan, train and measure each stage in turn. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Train an embedding with Caffe: softmax first, then triplets.")
    config.add_argument(parser)
    parser.add_argument("--stage", choices=config.STAGES, help="train this stage only (default: STAGES of the config)")
    parser.add_argument(
        "--check", action="store_true", help="train nothing: read every image, try a few iterations, say what is wrong"
    )
    parser.add_argument(
        "--allow-module", metavar="NAME", action="append", default=[],
        help="a Python module that NET and DEPLOY may run, besides this package's; once for each",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on in RUN_FOLDER from the last whole snapshot")
    arguments = parser.parse_args()
    if arguments.check:
        return command.run("train.py", lambda: check_once(arguments))
    stopped = "stopped at once; snapshots written before are whole: resume with --resume"
    return command.run("train.py", lambda: run(arguments), stopped)


def run(arguments):
    """Train with all processes that were started. Returns the exit status; raises InputError."""
    try:
        with parallel.join("train.py") as team:
            return train(arguments, team)
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(
            f"{error.filename} cannot be read or written ({error.strerror}): make room, or mend its folder, then "
            "resume with --resume"
        ) from None


def train(arguments, team):
    """Train the stages with all processes of a team. Returns the exit status; raises InputError."""
    locks = []
    settings, stages = team.first(lambda: prepare(arguments, locks))
    gpu, sentence = solver.choose_devices(settings["DEVICE"], team)
    if team.rank == 0:
        print(sentence)
    try:
        for stage in stages:
            run_stage(settings, stage, gpu, team, arguments.resume)
    except solver.Stopped as stopped:
        command.complain("train.py", f"{stopped}: go on with --resume")
        return 128 + stopped.number
    return 0


def load_config(arguments):
    """The settings, once it is said which file they come from."""
    print(f"config     {arguments.config}", flush=True)
    return config.load(arguments.config, arguments.allow_module)


def prepare(arguments, locks):
    """What holds for the whole run: the config and the stages. The folder's lock is added to locks."""
    settings = load_config(arguments)
    stages = [arguments.stage] if arguments.stage else settings["STAGES"]
    locks.append(plan.claim_folder(settings["RUN_FOLDER"], stages, arguments.resume))
    return settings, stages


def run_stage(settings, stage, gpu, team, resume):
    """One stage, from plan to measurement. All processes train and measure; the first one plans and prints."""
    planned = team.first(lambda: plan_stage(settings, stage, gpu, team.size, resume))
    solver.use_device(gpu)
    if said := solver.cache_features(planned, team):
        print(said, flush=True)
    if planned.weights and stage == "softmax" and not planned.snapshot:
        report("before", solver.measure(planned, planned.weights, team))
    weights = solver.train_stage(planned, team, gpu)
    if team.rank == 0:
        print(f"weights    {weights}")
        if said := plan.skipped(planned):
            print(said)
    report_end(planned, weights, team)
    if team.rank == 0:
        print(flush=True)


def check_once(arguments):
    """Check what a run of all processes that were started would use, in the first one. Returns the exit status."""
    with parallel.join("train.py") as team:
        return team.first(lambda: check_stages(arguments, team.size))


def check_stages(arguments, processes):
    """Look closely at everything that a run would use, in a folder that is removed. Returns the exit status, 0."""
    settings = load_config(arguments)
    stages = [arguments.stage] if arguments.stage else settings["STAGES"]
    gpu, sentence = solver.choose_device(settings["DEVICE"])
    print(sentence)
    plan.check_folder(settings["RUN_FOLDER"], stages, arguments.resume)
    trained = snapshots.last_whole(os.path.join(settings["RUN_FOLDER"], "softmax")) if stages[0] == "triplet" else None
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            planned = plan.make_plan(settings.aside(folder, trained and trained.weights), stage, gpu, processes)
            found = check.look_closely(planned, stage != stages[-1], settings["RUN_FOLDER"])
            print("\n".join([planned.describe(), *found]), "\n", flush=True)
    return 0


def plan_stage(settings, stage, gpu, processes, resume):
    """The stage's plan, printed."""
    planned = plan.make_plan(settings, stage, gpu, processes, resume)
    print("\n".join([planned.describe(), *check.look_before(planned)]), flush=True)
    return planned


def report_end(planned, weights, team):
    """Print how good the stage's weights are; after the triplet stage, also what it added."""
    comparison = solver.compare_stages(planned, weights, team) if planned.stage == "triplet" else None
    if comparison:
        print(f"\n{comparison.describe()}", flush=True)
    if not team.first(lambda: comparison is not None):
        report("after", solver.measure(planned, weights, team))


def report(when, held_out):
    """Print how well held-out identities are told apart, a line a feature."""
    for feature, found in held_out.items():
        tar = f"TAR {found.tar[0.01]:.3f} at FAR 1%" if 0.01 in found.tar else "too few pairs for FAR 1%"
        print(
            f"held out   {when} the stage, {feature}: AUC {found.auc:.4f}, {tar} "
            f"({found.same} same and {found.different} different pairs of identities never trained on)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
