"""Measuring: verification against plain loops, intervals, pairs files, and the command."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.conftest import TINY_NET, make_project, run_train, write_config
from tripletloss.errors import InputError
from tripletloss.evaluate import read_pairs
from tripletloss.metrics import (
    best_threshold,
    cross_validated_accuracy,
    pair_distances,
    verification,
    verification_intervals,
)


def clusters(identities, images, noise, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), images)
    return rng.normal(size=(identities, 8))[labels] + noise * rng.normal(size=(len(labels), 8)), labels


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_one_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 12, 40).astype(float)  # many equal ones
    same = rng.random(40) < np.clip(1 - distances / 10, 0.1, 0.9)
    candidates = [-1, *np.arange(0, 13) + 0.5]
    most = max(np.sum((distances <= t) == same) for t in candidates)
    assert np.sum((distances <= best_threshold(distances, same)) == same) == most


@pytest.mark.parametrize(("same", "threshold"), [([True, True], np.inf), ([False, False], -np.inf)])
def test_one_kind_of_pair_alone_puts_the_threshold_beyond_all(same, threshold):
    found = best_threshold(np.array([1.0, 2.0]), np.array(same))
    assert found >= 2 if threshold > 0 else found < 1


def test_accuracy_judges_each_fold_by_the_threshold_of_the_others():
    # Fold 0 alone would put its threshold at 5, folds 1 and 2 put theirs at 2.
    distances = np.array([1.0, 4, 6, 9, 1, 1, 3, 3, 1, 1, 3, 3])
    same = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0], bool)
    folds = np.repeat([0, 1, 2], 4)
    found = cross_validated_accuracy(distances, same, folds)
    assert found.folds == 3 and found.mean == pytest.approx((0.75 + 1 + 1) / 3)
    assert found.standard_error == pytest.approx(np.std([0.75, 1, 1], ddof=1) / np.sqrt(3))
    assert found.auc == pytest.approx(np.mean([(d > s) + 0.5 * (d == s) for s in distances[same] for d in distances[~same]]))


def test_random_distances_are_right_half_the_time_and_perfect_ones_always():
    rng = np.random.default_rng(0)
    same, folds = np.arange(2000) % 2 == 0, np.arange(2000) // 200
    assert abs(cross_validated_accuracy(rng.random(2000), same, folds).mean - 0.5) < 0.05
    assert cross_validated_accuracy(np.where(same, 0.1, 0.9), same, folds).mean == 1
    for one_kind in (same | True, same & False):
        with pytest.raises(ValueError, match="pairs of one identity and pairs of two"):
            cross_validated_accuracy(rng.random(2000), one_kind, folds)


def test_pair_distances_are_squared_euclidean():
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    got = pair_distances(x, np.array([0, 3]), np.array([5, 3]))
    np.testing.assert_allclose(got, [sum((a - b) ** 2 for a, b in zip(x[0], x[5], strict=True)), 0], rtol=1e-5)


def test_intervals_hold_the_figure_and_widen_with_fewer_identities():
    widths = []
    for identities in (40, 8):
        embeddings, labels = clusters(identities, 6, 1.5)
        found = verification(embeddings, labels)
        auc, tar = verification_intervals(embeddings, labels)
        assert auc[0] < found.auc < auc[1] and tar[0] < found.tar_at_far_1 < tar[1]
        assert verification_intervals(embeddings, labels) == (auc, tar)
        widths.append(auc[1] - auc[0])
    assert widths[0] < widths[1]


def test_intervals_of_identities_drawn_by_hand():
    """A resample is the list with each identity's images written as often as it was drawn, its copies apart."""
    embeddings, labels = clusters(5, 4, 1.0)
    rng = np.random.default_rng(7)
    expected = []
    for _ in range(20):
        drawn = np.bincount(rng.integers(0, 5, 5), minlength=5)
        same, different = [], []
        for i in range(len(labels)):
            for j in range(i):
                times = drawn[labels[i]] if labels[i] == labels[j] else drawn[labels[i]] * drawn[labels[j]]
                (same if labels[i] == labels[j] else different).extend([((embeddings[i] - embeddings[j]) ** 2).sum()] * times)
        expected.append(np.mean([d > s for s in same for d in different]))
    auc, _ = verification_intervals(embeddings, labels, resamples=20, seed=7)
    np.testing.assert_allclose(auc, np.percentile(expected, (2.5, 97.5)), atol=1e-3)


@pytest.fixture
def pairs_folder(tmp_path):
    for name in ("Ann_Lee", "Bo"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in (1, 2, 3):
            cv2.imwrite(str(tmp_path / "faces" / name / f"{name}_{number:04d}.jpg"), np.full((12, 12, 3), 90, np.uint8))
    (tmp_path / "pairs.txt").write_text("2 1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo\t3\nBo\t2\t3\nBo\t1\tAnn_Lee\t3\n")
    return tmp_path


def test_pairs_in_lfws_format(pairs_folder):
    pairs = read_pairs(str(pairs_folder / "pairs.txt"), str(pairs_folder / "faces"))
    named = [(pairs.images.names[a], pairs.images.names[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert named[:2] == [("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg"), ("Ann_Lee/Ann_Lee_0001.jpg", "Bo/Bo_0003.jpg")]
    assert list(pairs.same) == [True, False, True, False] and list(pairs.folds) == [0, 0, 1, 1]
    assert len(pairs.images.names) == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: it must hold the number of folds"),
        ("two 1\n", "line 1: it must hold the number of folds"),
        ("0 0\n", "has 0 pairs"),
        ("2 1\nBo 1 2\n", "has 1 pairs, which are not 2 folds of 2 x 1"),
        ("1 1\nBo 1 2\nBo 1\n", "line 3: it must be `name n m`"),
        ("1 1\nBo 1 2\nBo one Ann_Lee 1\n", "line 3: it must be `name n m`"),
        ("1 1\nBo 1 2\nBo 1 Ann_Lee 9\n", "line 3: there is no .*Ann_Lee_0009.jpg"),
    ],
)
def test_bad_pairs_files_are_named(pairs_folder, text, sentence):
    (pairs_folder / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_pairs(str(pairs_folder / "pairs.txt"), str(pairs_folder / "faces"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny project with a deploy net and softmax weights."""
    folder = make_project(tmp_path_factory.mktemp("trained"))
    trunk = TINY_NET[TINY_NET.index('layer {\n  name: "conv1"') : TINY_NET.index('layer {\n  name: "fc9"')]
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    more = 'layer { name: "fc9_1" type: "InnerProduct" bottom: "fc7" top: "fc9_1" inner_product_param { num_output: 4 } }\n'
    (folder / "deploy.prototxt").write_text(head + trunk + more)
    write_config(folder, DEPLOY="deploy.prototxt", FEATURE="fc7", HELD_OUT_LIST="list.txt")
    result = run_train(folder, "--stage", "softmax")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def evaluate(folder, *arguments):
    command = [sys.executable, "-m", "tripletloss.evaluate", *map(str, arguments), "--config", str(folder / "config.py")]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_gives_the_figures_that_training_ended_with(trained):
    folder, said = trained
    result = evaluate(folder, folder / "run" / "softmax_iter_4.caffemodel")
    assert result.returncode == 0, result.stderr
    assert "24 images of 6 identities, 36 same and 240 different pairs" in result.stdout
    auc = said.split("AUC ")[1][:6]
    assert f"AUC        {auc} (95% interval" in result.stdout


def test_the_command_measures_pairs_mirrored_and_cropped(trained, pairs_folder):
    folder, _ = trained
    arguments = [folder / "run" / "softmax_iter_4.caffemodel", "--pairs", pairs_folder / "pairs.txt"]
    result = evaluate(folder, *arguments, "--images", pairs_folder / "faces", "--mirrored", "--crop", 8)
    assert result.returncode == 0, result.stderr
    assert "2 same and 2 different, 6 images" in result.stdout and "mirrored average" in result.stdout
    assert "accuracy   50.00%" in result.stdout  # all images are one grey


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.caffemodel"], "there are no weights none.caffemodel"),
        (["WEIGHTS", "--feature", "fc8"], "has no blob 'fc8': --feature must be one of"),
        (["WEIGHTS", "--feature", "fc9_1"], "lacks fc9_1, which 'fc9_1' is made by"),
        (["WEIGHTS", "--list", "none.txt"], "none.txt cannot be read"),
        (["WEIGHTS", "--pairs", "none.txt"], "the pairs file none.txt cannot be read"),
    ],
)
def test_what_the_command_cannot_measure_is_told(trained, arguments, sentence):
    folder, _ = trained
    weights = folder / "run" / "softmax_iter_4.caffemodel"
    result = evaluate(folder, *[weights if a == "WEIGHTS" else a for a in arguments])
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr
