#!/usr/bin/env python
"""Train the stages of config.py: python train.py [--stage softmax | triplet] [--config FILE]."""

import argparse
import os
import sys

from tripletloss import config, solver
from tripletloss.errors import InputError

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    """Plan, train and measure each stage in turn. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Train an embedding with Caffe: softmax first, then triplets.")
    parser.add_argument("--config", default=os.path.join(HERE, "config.py"), help="the settings (default: %(default)s)")
    parser.add_argument("--stage", choices=config.STAGES, help="train this stage only (default: STAGES of the config)")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config)
        stages = [arguments.stage] if arguments.stage else settings["STAGES"]
        solver.claim_folder(settings["RUN_FOLDER"], stages)
        gpu, sentence = solver.choose_device(settings["DEVICE"])
        print(sentence)
        for stage in stages:
            run_stage(settings, stage, gpu)
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except solver.Stopped as stopped:
        print(f"train.py: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("train.py: stopped at once; snapshots written before are whole", file=sys.stderr)
        return 130
    return 0


def run_stage(settings, stage, gpu):
    """One stage, from plan to measurement, in words."""
    plan = solver.make_plan(settings, stage, gpu)
    print(plan.describe(), flush=True)
    solver.use_device(gpu)
    if plan.weights and stage == "softmax":
        report("before", solver.measure(plan, plan.weights))
    weights = solver.train_stage(plan)
    print(f"weights    {weights}")
    report("after", solver.measure(plan, weights))
    print(flush=True)


def report(when, held_out):
    """Print how well held-out identities are told apart, a line a feature."""
    for feature, found in held_out.items():
        print(
            f"held out   {when} the stage, {feature}: AUC {found.auc:.4f}, TAR {found.tar_at_far_1:.3f} at FAR 1% "
            f"({found.same} same and {found.different} different pairs of identities never trained on)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
