"""Measuring: verification against plain loops, intervals, pairs files, and the command."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.helpers import TINY_NET, hold_out, make_project, run_train, write_config
from tripletloss.base.errors import InputError
from tripletloss.data.pairs import read_pairs
from tripletloss.evaluation.report import measure_pairs


@pytest.fixture
def pairs_folder(tmp_path):
    for name in ("Ann_Lee", "Bo"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in (1, 2, 3):
            cv2.imwrite(str(tmp_path / "faces" / name / f"{name}_{number:04d}.jpg"), np.full((12, 12, 3), 90, np.uint8))
    (tmp_path / "pairs.txt").write_text("2 1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo\t3\nBo\t2\t3\nBo\t1\tAnn_Lee\t3\n")
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_pairs_in_lfws_format(pairs_folder, encoding):
    (pairs_folder / "pairs.txt").write_text((pairs_folder / "pairs.txt").read_text(), encoding=encoding)
    file = read_pairs(str(pairs_folder / "pairs.txt"), str(pairs_folder / "faces"))
    pairs, names = file.pairs, file.images.names
    named = [(names[a], names[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert named[:2] == [("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg"), ("Ann_Lee/Ann_Lee_0001.jpg", "Bo/Bo_0003.jpg")]
    assert list(pairs.same) == [True, False, True, False] and list(file.folds) == [0, 0, 1, 1]
    assert len(names) == 6 and list(file.images.labels) == [name.startswith("Bo") for name in names]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: it must have the number of folds"),
        ("two 1\n", "line 1: it must have the number of folds"),
        ("0 0\n", "has 0 pairs"),
        ("2 1\nBo 1 2\n", "has 1 pairs, but line 1 says 2 folds of 2 x 1"),
        ("1 1\nBo 1 2\nBo 1\n", "line 3: it must be `name n m`"),
        ("1 1\nBo 1 2\nBo ² Ann_Lee 1\n", "line 3: it must be `name n m`"),
        ("1 1\nBo 1 2\nBo 1 Ann_Lee " + "9" * 5000, "line 3: it must be `name n m`"),
        ("¹ 1\n", "line 1: it must have the number of folds"),
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
    write_config(folder, DEPLOY="deploy.prototxt", FEATURE="fc7", HELD_OUT_LIST=hold_out(folder))
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
    assert "24 of 6 identities" in result.stdout and "36 same and 240 different pairs" in result.stdout
    auc = said.split("AUC ")[1][:6]
    assert re.search(rf"^AUC +{auc} +\S+ to \S+ +all pairs$", result.stdout, re.MULTILINE)
    assert re.search(r"^TAR@FAR=0.01 +- +not resolved: it takes 1000 different pairs$", result.stdout, re.MULTILINE)
    known = evaluate(folder, folder / "run" / "softmax_iter_4.caffemodel", "--list", folder / "list.txt")
    assert "6 identities have the same names as" in known.stdout  # it is the training list


def test_the_command_measures_pairs_mirrored_and_cropped(trained, pairs_folder):
    folder, _ = trained
    arguments = [folder / "run" / "softmax_iter_4.caffemodel", "--pairs", pairs_folder / "pairs.txt"]
    result = evaluate(folder, *arguments, "--images", pairs_folder / "faces", "--mirrored", "--crop", 8)
    assert result.returncode == 0, result.stderr
    assert "6 of 2 identities" in result.stdout and "2 same and 2 different pairs" in result.stdout
    assert "mirrored average" in result.stdout
    accuracy = r"^accuracy +0.5000 +\+- 0.0000 .* each fold at the best threshold of the others$"
    assert re.search(accuracy, result.stdout, re.MULTILINE)  # all images are one grey


def test_a_pair_that_a_file_repeats_is_no_other_pair(pairs_folder):
    lines = ["100", *["Ann_Lee 1 2", "Ann_Lee 1 Bo 3"] * 50, *["Ann_Lee 2 1", "Bo 3 Ann_Lee 1"] * 50]
    (pairs_folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    file = read_pairs(str(pairs_folder / "pairs.txt"), str(pairs_folder / "faces"))
    report = measure_pairs(file, np.arange(len(file.images.names))[:, None] + 1.0)
    assert (report["same_pairs"], report["different_pairs"], report["thresholds"]) == (1, 1, {})


def test_one_fold_is_judged_by_its_own_best_threshold_and_has_no_spread(trained, pairs_folder):
    folder, _ = trained
    lines = (pairs_folder / "pairs.txt").read_text().splitlines()
    (pairs_folder / "one.txt").write_text("\n".join(["2", *lines[1:]]) + "\n")
    arguments = ["--pairs", pairs_folder / "one.txt", "--images", pairs_folder / "faces", "--out", pairs_folder / "report"]
    result = evaluate(folder, folder / "run" / "softmax_iter_4.caffemodel", *arguments)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^accuracy +0.5000 +one fold at its own best threshold: too good$", result.stdout, re.MULTILINE)
    text = (pairs_folder / "report" / "report.json").read_text()
    assert json.loads(text)["accuracy"] == {"value": 0.5, "standard_error": None, "folds": 1} and "NaN" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.caffemodel"], "the weights none.caffemodel do not exist"),
        (["WEIGHTS", "--feature", "fc8"], "has no blob 'fc8': --feature, or FEATURE in the config, must be one of"),
        (["WEIGHTS", "--feature", "fc9_1"], "has no weights for fc9_1, which 'fc9_1' depends on"),
        (["WEIGHTS", "--list", "none.txt"], "none.txt cannot be read"),
        (["WEIGHTS", "--pairs", "none.txt"], "the pairs file none.txt cannot be read"),
    ],
)
def test_what_the_command_cannot_measure_is_told(trained, arguments, sentence):
    folder, _ = trained
    weights = folder / "run" / "softmax_iter_4.caffemodel"
    result = evaluate(folder, *[weights if a == "WEIGHTS" else a for a in arguments])
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr
