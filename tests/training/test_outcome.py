"""Which weights a run ends with: scores with few pairs, the snapshot that the triplet stage starts from, the last lines."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.helpers import TINY_NET, hold_out, run_train, write_config
from tripletloss.core.pairs import pairs_of
from tripletloss.core.verification import headline_figure
from tripletloss.training import outcome
from tripletloss.training.outcome import Candidate

MEASURED = {"DEPLOY": "deploy.prototxt", "FEATURE": {"softmax": "fc7", "triplet": "fc9_1"}, "HELD_OUT_LIST": "held.txt"}
LABELS = np.repeat(np.arange(8), 5)


@pytest.fixture
def measured(project):
    """The tiny project with a deploy net and held-out people: too few pairs for a FAR of 1%."""
    trunk = TINY_NET[TINY_NET.index('layer {\n  name: "conv1"') : TINY_NET.index('layer {\n  name: "fc9"')]
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    tail = 'layer { name: "fc9_1" type: "InnerProduct" bottom: "fc7" top: "fc9_1" inner_product_param { num_output: 8 } }\n'
    (project / "deploy.prototxt").write_text(head + trunk + tail)
    hold_out(project)
    write_config(project, **MEASURED)
    return project


def candidate(stage, name, noise):
    """Rows around a point for each identity, farther from it with more noise."""
    rng = np.random.default_rng(0)
    return Candidate(stage, f"/run/{name}", "norm2", rng.normal(size=(8, 4))[LABELS] + noise * rng.normal(size=(40, 4)))


def describe(found, *about):
    judged = outcome.judge(found, LABELS)
    return outcome.describe(judged, outcome.export(judged.found[judged.best], *about))


def auc(one):
    """By scikit-learn, over all pairs in a plain loop."""
    pairs = [(i, j) for i in range(40) for j in range(i)]
    near = [-np.square(one.rows[i] - one.rows[j]).sum() for i, j in pairs]
    return roc_auc_score([LABELS[i] == LABELS[j] for i, j in pairs], near)


def test_the_figure_of_a_score_is_auc_up_to_a_thousand_different_pairs():
    for sizes, figure in (((5, 200), "TAR@FAR=0.01"), ((1, 999), "AUC"), ((10, 100), "TAR@FAR=0.01"), ((5,) * 8, "AUC")):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        assert headline_figure(labels) == figure
        different = int((~pairs_of(labels).same).sum())
        assert (different >= 1000) == (figure != "AUC"), sizes


def test_the_best_weights_are_named_with_their_gain_and_the_next_command():
    start, softmax, triplet = candidate("", "w", 0.9), candidate("softmax", "s", 0.7), candidate("triplet", "t", 0.3)
    best, following = describe([start, softmax, triplet], "embedding", "my.py", "/run/mine")
    found = re.fullmatch(
        r"best {7}/run/t, norm2: AUC (\S+) on the held-out identities, (\S+) \(95% interval (\S+) to (\S+)\) from where the "
        "run began, /run/w, norm2", best,
    )  # fmt: skip
    value, gain, low, high = map(float, found.groups())
    assert value == pytest.approx(auc(triplet), abs=1e-4) and gain == pytest.approx(auc(triplet) - auc(start), abs=1e-4)
    assert 0 < low < gain < high
    assert following == "next       python -m tripletloss.export /run/t --config my.py --feature norm2 --out mine.onnx"


def test_a_stage_that_made_it_worse_is_named_with_the_weights_before_it():
    start, softmax, triplet = candidate("", "w", 0.7), candidate("softmax", "s", 0.3), candidate("triplet", "t", 0.9)
    best, worse, following = describe([start, softmax, triplet], "norm2", "", "/run/mine")
    assert best.startswith("best       /run/s, norm2: AUC ")
    change = f"{auc(triplet) - auc(softmax):+.4f}"
    assert worse.startswith(f"worse      the triplet stage, /run/t, norm2: {change} (95% interval -")
    assert worse.endswith("from /run/s, norm2: use those")
    assert following == "next       python -m tripletloss.export /run/s --out mine.onnx"
    best, *worse = describe([candidate("", "w", 0.3), candidate("softmax", "s", 0.9)], "norm2", "", "/run/mine")
    assert best.startswith("best       /run/w, norm2: ") and "the run began with these weights, and training did not improve on them" in best
    assert len(worse) == 2 and worse[0].startswith("worse      the softmax stage, /run/s, norm2: -")


def test_a_run_ends_with_its_best_weights_as_evaluate_measures_them(measured):
    result = run_train(measured)
    assert result.returncode == 0, result.stderr
    found = re.search(r"^best       (\S+), (\w+): AUC (\S+) on the held-out identities", result.stdout, re.MULTILINE)
    arguments = [found[1], "--feature", found[2], "--config", str(measured / "config.py")]
    command = [sys.executable, "-m", "tripletloss.evaluate", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, cwd=measured).stdout
    assert re.search(rf"^AUC +{found[3]} ", said, re.MULTILINE), said
    following, page = result.stdout.splitlines()[-2:]
    assert following.startswith("next       python -m tripletloss.export run/")
    assert page.startswith("report     run/report.html (")
    scores = (measured / "run" / "softmax_held_out.csv").read_text().splitlines()
    assert scores[0] == "iteration,AUC" and [line.split(",")[0] for line in scores[1:]] == ["2", "4"]


def set_scores(project, **scores):
    """Change the scores in the descriptions of the softmax stage's snapshots, which no digest guards."""
    for name, score in scores.items():
        path = project / "run" / f"softmax_{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "held_out": score}))


def test_the_triplet_stage_starts_from_the_best_snapshot_or_the_last(measured):
    assert run_train(measured, "--stage", "softmax").returncode == 0
    set_scores(measured, iter_2=0.9, iter_4=0.8)
    for which, number, more in (("last", 4, ["--check"]), ("best", 2, ["--check"]), ("best", 2, [])):
        write_config(measured, **MEASURED, START_FROM=which)
        result = run_train(measured, "--stage", "triplet", *more)
        assert f"weights    run/softmax_iter_{number}.caffemodel" in result.stdout, result.stderr
    write_config(measured, **MEASURED, START_FROM="best", MAX_ITERS=6)
    assert run_train(measured, "--stage", "triplet", "--resume").returncode == 0  # from the same
    set_scores(measured, iter_2=None, iter_4=None)
    write_config(measured, **MEASURED, START_FROM="best")
    assert "softmax_iter_4.caffemodel" in run_train(measured, "--stage", "triplet", "--check", "--resume").stdout


def test_a_snapshot_that_was_not_scored_before_a_kill_is_scored_on_resuming(measured):
    """Otherwise the triplet stage might start from other weights than without the kill."""
    assert run_train(measured, "--stage", "softmax").returncode == 0
    path = measured / "run" / "softmax_iter_4.json"
    whole = json.loads(path.read_text())
    for iterations in (4, 6):
        set_scores(measured, iter_4=None)
        write_config(measured, **MEASURED, MAX_ITERS=iterations)
        assert run_train(measured, "--stage", "softmax", "--resume").returncode == 0
        assert json.loads(path.read_text()) == whole and whole["held_out"] is not None
