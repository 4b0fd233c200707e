"""Figures of a mini-batch's embeddings, and each diagnosis provoked."""

import csv

import numpy as np
import pytest

from tests.conftest import run_train, write_config
from tests.test_train import replace
from tripletloss import diagnosis, triplets

LABELS = np.repeat(np.arange(12), 5)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def embeddings(noise, seed=0, size=16):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(12, size))[LABELS] + noise * rng.normal(size=(len(LABELS), size)))


def reports(make, margin, count=30):
    """Reports of embeddings make(0), make(1), ..., with the loss and active share of semi-hard triplets."""
    found = []
    for number in range(count):
        x = make(number)
        distances = triplets.squared_distances(x)
        chosen = triplets.semi_hard(distances, LABELS, margin)
        rows = (x[chosen.anchors], x[chosen.positives], x[chosen.negatives])
        loss = triplets.triplet_loss(*rows, margin)[0]
        found.append(diagnosis.report(x, LABELS, triplets.active_share(chosen, distances, margin), loss))
    return found


def test_a_report_by_plain_loops():
    x = np.random.default_rng(0).normal(size=(20, 6))
    labels = np.repeat(np.arange(5), 4)
    found = diagnosis.report(x, labels, 0.4, 0.1)
    pairs = [(i, j, ((x[i] - x[j]) ** 2).sum()) for i in range(20) for j in range(i)]
    everyone = [d for *_, d in pairs]
    positives = [d for i, j, d in pairs if labels[i] == labels[j]]
    negatives = [d for i, j, d in pairs if labels[i] != labels[j]]
    assert found.mean_distance == pytest.approx(np.mean(everyone)) and found.distance_spread == pytest.approx(np.std(everyone))
    assert found.norm == pytest.approx(np.mean([np.sqrt((row**2).sum()) for row in x]))
    assert found.far_positives == np.mean([d > np.median(negatives) for d in positives])
    assert found.d_ap == pytest.approx(np.median(positives)) and found.d_an == pytest.approx(np.percentile(negatives, 5))
    assert (found.active_share, found.loss) == (0.4, 0.1)


def test_effective_rank_of_known_shapes():
    rng = np.random.default_rng(0)
    assert diagnosis.effective_rank(np.ones((9, 4))) == 0
    assert diagnosis.effective_rank(np.outer(rng.normal(size=9), rng.normal(size=4))) == pytest.approx(1)
    corners = np.concatenate([np.eye(5), -np.eye(5)])
    assert diagnosis.effective_rank(corners) == pytest.approx(5)
    assert diagnosis.effective_rank(corners[:, :3]) == pytest.approx(3)
    wide = rng.normal(size=(6, 40))  # fewer rows than columns
    values = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)
    shares = values[:5] / values[:5].sum()
    assert diagnosis.effective_rank(wide) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))


@pytest.mark.parametrize("labels", [np.zeros(4, int), np.arange(4), np.zeros(1, int)])
def test_batches_without_pairs_of_both_kinds_have_a_report(labels):
    found = diagnosis.report(np.random.default_rng(0).normal(size=(len(labels), 3)), labels)
    assert np.isfinite(found.mean_distance) and found.far_positives == 0


def name_of(found):
    return found and found[0]


def test_a_stage_that_learns_has_nothing_wrong():
    assert diagnosis.diagnose(reports(lambda n: embeddings(0.6 - 0.01 * n, n), 0.2), 0.2) is None
    assert diagnosis.diagnose(reports(lambda n: embeddings(0.6, n), 0.2, count=5), 0.2) is None  # too early to tell


def test_a_collapse_is_named():
    found = reports(lambda n: embeddings(1, 0) * 10.0 ** -(1 + n / 5), 0.2)
    # Semi-hard finds no band in a point; with batch-hard the loss is the margin's half.
    found = [r._replace(loss=0.1, active_share=1.0) for r in found]
    assert name_of(diagnosis.diagnose(found, 0.2)) == "collapsed"


def test_no_active_triplets_are_named():
    assert name_of(diagnosis.diagnose(reports(lambda n: embeddings(0.02, n), 0.05), 0.05)) == "no active triplets"


def test_a_loss_that_grows_is_named():
    found = reports(lambda n: embeddings(0.6, n) * 1.4**n, 0.2)
    assert name_of(diagnosis.diagnose(found, 0.2)) == "learning rate too high"


def test_a_margin_that_cannot_be_reached_is_named():
    """On the unit sphere no squared distance is above 4."""
    found = reports(lambda n: embeddings(0.3, n), 8.0)
    assert name_of(diagnosis.diagnose(found, 8.0)) == "margin unreachable"


def test_wrong_labels_are_suspected():
    rng = np.random.default_rng(0)

    def make(number):
        x = embeddings(0.15, number)
        wrong = rng.integers(0, len(x), 2)  # of 60 images, two show somebody else
        x[wrong] = unit(rng.normal(size=(2, x.shape[1])))
        return x

    assert name_of(diagnosis.diagnose(reports(make, 0.2), 0.2)) == "suspected label noise"
    assert name_of(diagnosis.diagnose(reports(lambda n: embeddings(0.15, n), 0.2), 0.2)) != "suspected label noise"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"MARGIN": 1e-6}, "no active triplets"),
        ({"MARGIN": 50.0, "SELECTION": "batch-hard", "LEARNING_RATE": {"softmax": 0.01, "triplet": 1e-7}}, "margin unreachable"),
        ({"MARGIN": 0.2, "SELECTION": "batch-hard", "LEARNING_RATE": {"softmax": 0.01, "triplet": 6.0}}, "learning rate too high|collapsed"),
    ],
)  # fmt: skip
def test_train_py_says_what_is_wrong(project, settings, name):
    replace(project / "net.prototxt", 'num_output: 8 weight_filler', "num_output: 8 bias_term: false weight_filler")
    write_config(project, MAX_ITERS={"softmax": 4, "triplet": 320}, SNAPSHOT_ITERS=400, **settings)
    result = run_train(project)
    assert any("diagnosis  iteration" in result.stdout and f", {one}: " in result.stdout for one in name.split("|")), result.stdout


def test_train_py_keeps_the_figures_of_the_embeddings_and_draws_the_curves(project):
    write_config(project, MAX_ITERS=20, SNAPSHOT_ITERS=10)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(project / "run" / "triplet_tensorboard"))
    events.Reload()
    losses = {int(row["iteration"]): float(row["loss"]) for row in csv.DictReader((project / "run" / "triplet_log.csv").open())}
    shown = {event.step: event.value for event in events.Scalars("triplet/loss")}
    assert shown == {number: pytest.approx(losses[number]) for number in (10, 20)}
    for stage in ("softmax", "triplet"):
        lines = (project / "run" / f"{stage}_embeddings.csv").read_text().splitlines()
        assert lines[0].split(",") == ["iteration", *diagnosis.Report._fields]
        assert [line.split(",")[0] for line in lines[1:]] == ["10", "20"]
        assert (project / "run" / f"{stage}_curves.png").read_bytes().startswith(b"\x89PNG")
