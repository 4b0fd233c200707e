"""Figures of a mini-batch's embeddings, and each diagnosis provoked."""

import csv

import numpy as np
import pytest

from tests.helpers import replace, run_train, write_config
from tripletloss.core import diagnosis, losses, selection
from tripletloss.core.distances import squared_distances

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
        distances = squared_distances(x)
        chosen = selection.semi_hard(distances, LABELS, margin)
        rows = (x[chosen.anchors], x[chosen.positives], x[chosen.negatives])
        loss = losses.triplet_loss(*rows, margin)[0]
        found.append(diagnosis.report(x, LABELS, selection.active_share(chosen, distances, margin), loss))
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
    assert found.effective_rank == pytest.approx(rank_by_svd(x))
    assert (found.active_share, found.loss) == (0.4, 0.1)


def rank_by_svd(x):
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    return np.exp(-sum(share * np.log(share) for share in shares if share > 1e-12))


def test_effective_rank_is_that_of_the_singular_values_also_of_a_flat_cloud():
    rng = np.random.default_rng(0)
    for directions in (1, 2, 3, 8):
        x = rng.normal(size=(20, directions)) @ rng.normal(size=(directions, 8))
        assert diagnosis.effective_rank(x) == pytest.approx(rank_by_svd(x), rel=1e-5)


def test_effective_rank_of_a_line_far_from_the_origin_is_one():
    steps = np.arange(3000, dtype=np.float32)[:, None] / 1024
    x = 1000 + steps * np.array([1, 2, 0], np.float32)  # exact in single precision
    assert diagnosis.effective_rank(x) == pytest.approx(1, abs=1e-4)


def test_a_batch_that_explodes_has_a_finite_report():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    found = diagnosis.report(x * np.float32(1e25), np.repeat([0, 1], 3), 1, 1)  # its squares are beyond single precision
    assert found.norm == pytest.approx(1e25 * np.linalg.norm(x, axis=1).mean(), rel=1e-6) and np.isfinite(found).all()


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
    x = np.random.default_rng(0).normal(size=(len(labels), 3))
    found = diagnosis.report(x, labels)
    distances = [((x[i] - x[j]) ** 2).sum() for i in range(len(x)) for j in range(i)] or [0]
    assert found.mean_distance == pytest.approx(np.mean(distances)) and found.distance_spread == pytest.approx(np.std(distances))
    assert found.far_positives == 0 and np.isnan([found.d_ap, found.d_an, found.active_share, found.loss]).all()


def test_in_one_point_no_positive_is_farther_than_the_negatives():
    assert diagnosis.report(np.ones((6, 3)), np.repeat([0, 1], 3)).far_positives == 0


def name_of(found):
    return found and found[0]


def test_a_stage_that_learns_has_nothing_wrong():
    assert diagnosis.diagnose(reports(lambda n: embeddings(0.6 - 0.01 * n, n), 0.2), 0.2) is None
    assert diagnosis.diagnose(reports(lambda n: embeddings(0.6, n), 0.2, count=5), 0.2) is None  # too early to tell


HEALTHY = diagnosis.Report(
    mean_distance=1.8, distance_spread=0.3, norm=1.0, effective_rank=30.0, far_positives=0.001, d_ap=0.5, d_an=1.2,
    active_share=0.4, loss=0.08,
)  # fmt: skip
POINT = {"mean_distance": 0.015, "loss": 0.1, "active_share": 1.0}
STUCK = {"active_share": 0.97, "loss": 25.0}


@pytest.mark.parametrize(
    ("margin", "tens", "name"),
    [
        # Each dictionary is what differs from HEALTHY in ten reports.
        (0.2, [{}], None),
        (0.2, [{}, {}, {}], None),
        # One point.
        (0.2, [POINT], "collapsed"),
        (0.2, [{}, {}, POINT], "collapsed"),
        (0.2, [{**POINT, "mean_distance": 0.03}], None),  # not small beside the margin
        (0.2, [{**POINT, "loss": 0.075}], None),  # not the loss of one point
        (5.0, [{"norm": 3.0, "mean_distance": 3.9, "loss": 2.5}] * 2 + [{"norm": 3.0, "mean_distance": 0.4, "loss": 2.5}], "collapsed"),
        (15.0, [{"norm": 3.0, "mean_distance": 1.2, "loss": 7.5, "active_share": 1.0}] * 3, "margin unreachable"),
        (50.0, [{"norm": 1.5, **STUCK}] * 3, "margin unreachable"),  # the margin is large, not the embeddings together
        (0.2, [{}, {}, {"mean_distance": 0.015, "norm": 0.01, "loss": 0.1}], "collapsed"),  # at the origin
        (2.0, [{"mean_distance": 0.5, "loss": 1.0}] * 2 + [{"mean_distance": 0.15, "loss": 1.0}], None),  # nearer, no more
        # Growing loss, growing length.
        (0.2, [{}, {"loss": 0.21}], "learning rate too high"),
        (0.2, [{}, {"loss": 0.50}], "learning rate too high"),
        (0.2, [{}, {"loss": 0.18}], None),  # less than double that of one point
        (0.2, [{"loss": 0.3}, {"loss": 0.5}], None),  # less than double what it was
        (0.2, [{"norm": 3.0}, {"norm": 31.5}], "learning rate too high"),
        (0.2, [{"norm": 3.0}, {"norm": 12.0}], None),
        # Nothing to learn from.
        (0.2, [{"active_share": 0.004}], "no active triplets"),
        (0.2, [{"active_share": 0.006}], None),
        # Some pairs of one identity among the strangers.
        (0.2, [{"far_positives": 0.1}], "suspected label noise"),
        (0.2, [{"far_positives": 0.1, "d_ap": 0.7}], None),  # identities are not close together yet
        (0.2, [{"far_positives": 0.3}], None),  # that many are no accident
        # All hinges open, and no progress.
        (50.0, [{**STUCK, "loss": 30.0}, STUCK, STUCK], "margin unreachable"),
        (50.0, [{**STUCK, "loss": 25.0}, {**STUCK, "loss": 30.0}, STUCK], None),  # still falls
        (50.0, [STUCK, STUCK], None),  # too early to tell
        (50.0, [STUCK, STUCK, {**STUCK, "active_share": 0.9}], None),
        (50.0, [{**STUCK, "loss": 12.0}] * 3, None),  # less than half the loss of one point
        (0.2, [{**STUCK, "loss": 0.1}] * 2 + [{**STUCK, "loss": 0.09}], None),
    ],
)  # fmt: skip
def test_a_diagnosis_is_made_on_one_side_of_its_limits_and_not_on_the_other(margin, tens, name):
    found = [HEALTHY._replace(**changes) for changes in tens for _ in range(10)]
    assert name_of(diagnosis.diagnose(found, margin)) == name
    if name:
        early = found[:2] if name == "collapsed" else found[:9]
        assert diagnosis.diagnose(early, margin) is None  # so few reports tell nothing
    if name == "collapsed":
        assert name_of(diagnosis.diagnose(found[:-7], margin)) == name  # three points are enough
        assert f"MARGIN / 2 = {margin / 2:g}" in diagnosis.diagnose(found, margin)[1]
    if name == "learning rate too high":
        assert diagnosis.diagnose(found[:-1], margin) is None  # the latest ten and the first ten are not apart yet


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


@pytest.mark.parametrize(("strategy", "collapses"), [("batch-hard", True), ("semi-hard", False)])
def test_a_whole_net_that_collapses_by_batch_hard_selection_is_told_so_at_once(project, strategy, collapses):
    """With labels that say nothing, identities are as alike as the images of one: as faces are for a new net."""
    replace(project / "net.prototxt", 'bottom: "fc9_1" bottom: "labels"', 'bottom: "embedding" bottom: "labels"')
    replace(project / "net.prototxt", 'layer {\n  name: "triplet_select"', """layer {
  name: "embedding" type: "Python" bottom: "fc9_1" top: "embedding"
  python_param { module: "tripletloss.layers" layer: "Norm2Layer" } include { stage: "triplet" }
}
layer {
  name: "triplet_select\"""")
    lines = (project / "list.txt").read_text().splitlines()
    mixed = [f"{line.split()[0]} {number % 6}" for number, line in enumerate(lines)]
    (project / "list.txt").write_text("\n".join(line.replace("@", "_") for line in mixed))
    for path in (project / "images").iterdir():
        path.rename(path.with_name(path.name.replace("@", "_")))
    write_config(project, STAGES=["triplet"], FREEZE="", MAX_ITERS=60, SNAPSHOT_ITERS=60, SELECTION=strategy,
                 LEARNING_RATE=0.1, MARGIN=0.4)  # fmt: skip
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert ("diagnosis  iteration" in result.stdout and ", collapsed: " in result.stdout) == collapses, result.stdout
