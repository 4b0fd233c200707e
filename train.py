#!/usr/bin/env python
"""Train the stages of config.py: python train.py [--stage softmax | triplet] [--config FILE]."""

import argparse
import os
import sys

from tripletloss import config, parallel, solver
from tripletloss.errors import InputError

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    """Plan, train and measure each stage in turn. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Train an embedding with Caffe: softmax first, then triplets.")
    parser.add_argument("--config", default=os.path.join(HERE, "config.py"), help="the settings (default: %(default)s)")
    parser.add_argument("--stage", choices=config.STAGES, help="train this stage only (default: STAGES of the config)")
    arguments = parser.parse_args()
    try:
        with parallel.join() as team:
            return train(arguments, team)
    except InputError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        complain("stopped at once; snapshots written before are whole")
        return 130


def complain(sentence):
    """Say what ends the run: once, however many processes there are."""
    if parallel.launched()[0] == 0:
        print(f"train.py: {sentence}", file=sys.stderr, flush=True)


def train(arguments, team):
    """Train the stages with all processes of a team. Returns the exit status; raises InputError."""
    settings, stages, gpu = team.first(lambda: prepare(arguments))
    try:
        for stage in stages:
            run_stage(settings, stage, gpu, team)
    except solver.Stopped as stopped:
        complain(stopped)
        return 128 + stopped.number
    return 0


def prepare(arguments):
    """What holds for the whole run: the config, the stages, the GPU's number or None."""
    settings = config.load(arguments.config)
    stages = [arguments.stage] if arguments.stage else settings["STAGES"]
    solver.claim_folder(settings["RUN_FOLDER"], stages)
    gpu, sentence = solver.choose_device(settings["DEVICE"])
    print(sentence)
    return settings, stages, gpu


def run_stage(settings, stage, gpu, team):
    """One stage, from plan to measurement. The first process plans, measures and prints; all of them train."""
    plan = team.first(lambda: plan_stage(settings, stage, gpu, team.size))
    solver.use_device(gpu)
    team.first(lambda: cache_features(plan))
    if plan.weights and stage == "softmax":
        team.first(lambda: report("before", solver.measure(plan, plan.weights)))
    weights = solver.train_stage(plan, team)
    if team.rank == 0:
        print(f"weights    {weights}")
    team.first(lambda: report_end(plan, weights))
    if team.rank == 0:
        print(flush=True)


def plan_stage(settings, stage, gpu, processes):
    """The stage's plan, printed."""
    plan = solver.make_plan(settings, stage, gpu, processes)
    print(plan.describe(), flush=True)
    return plan


def cache_features(plan):
    """Compute what is frozen once, where that is worth it, and say so."""
    said = solver.cache_features(plan)
    if said:
        print(said, flush=True)


def report_end(plan, weights):
    """Print how good the stage's weights are; after the triplet stage, also what it added."""
    comparison = solver.compare_stages(plan, weights) if plan.stage == "triplet" else None
    if comparison is None:
        report("after", solver.measure(plan, weights))
    else:
        print(f"\n{comparison.describe()}", flush=True)


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
