"""extract, evaluate --out and --compare, cluster, suspects: the commands on a tiny trained net."""

import argparse
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import caffe
import cv2
import h5py
import numpy as np
import pytest

from tests.helpers import ROOT, TINY_NET, make_project, run_train, write_config
from tripletloss import config
from tripletloss.base.errors import InputError, NotFiniteError
from tripletloss.base.files import digest
from tripletloss.core import clustering, verification
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.data.folders import list_folder
from tripletloss.data.images import Preprocessing, read_image, to_blob
from tripletloss.data.lists import ImageList, read_list, shared_identities
from tripletloss.evaluation import compare, grouping, suspects
from tripletloss.evaluation import report as reports
from tripletloss.evaluation.embed import embed, extract_all
from tripletloss.formats.embeddings import load

DEPLOY_HEAD = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
DEPLOY_TAIL = """
layer { name: "fc9_1" type: "InnerProduct" bottom: "fc7" top: "fc9_1" inner_product_param { num_output: 8 } }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny project after both stages, with 2 of its 6 identities held out."""
    folder = make_project(tmp_path_factory.mktemp("commands"))
    trunk = TINY_NET[TINY_NET.index('layer {\n  name: "conv1"') : TINY_NET.index('layer {\n  name: "fc9"')]
    (folder / "deploy.prototxt").write_text(DEPLOY_HEAD + trunk + DEPLOY_TAIL)
    lines = (folder / "list.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join(lines[:16]) + "\n")
    (folder / "held_out.txt").write_text("\n".join(lines[16:]) + "\n")
    write_config(folder, DEPLOY="deploy.prototxt", FEATURE={"softmax": "fc7", "triplet": "fc9_1"}, TRAIN_LIST="train.txt",
                 HELD_OUT_LIST="held_out.txt")  # fmt: skip
    result = run_train(folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def run(module, folder, *arguments, **options):
    """A command with config.py of the folder, unless the arguments name another one."""
    command = [sys.executable, "-m", f"tripletloss.{module}", "--config", str(folder / "config.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, **options)


def test_embeddings_are_the_rows_of_the_net_one_image_at_a_time(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    result = run("extract", folder, weights, "--out", "all.h5", "--list", "list.txt", "--mirrored")
    assert result.returncode == 0 and "all.h5: 24 embeddings of 8 numbers, fc9_1" in result.stdout, result.stderr
    found = load(folder / "all.h5")
    images = read_list(str(folder / "list.txt"), str(folder / "images"))
    assert found.images.names == images.names and (found.images.labels == images.labels).all() and found.mirrored
    assert found.weights_sha256 == digest(weights) and found.feature == "fc9_1"
    net = caffe.Net(str(folder / "deploy.prototxt"), caffe.TEST, weights=str(weights))
    for number in (0, 23):
        blob = to_blob(read_image(images.path(number)), Preprocessing(0, 12, [102.9801, 115.9465, 122.7717]))
        both = []
        for pixels in (blob, blob[..., ::-1]):
            net.blobs["data"].data[0] = pixels
            net.forward()
            both.append(net.blobs["fc9_1"].data[0].copy())
        np.testing.assert_allclose(found.rows[number], np.mean(both, axis=0), rtol=1e-4, atol=1e-5)
    assert [path.name for path in folder.glob("*.part")] == []


def test_a_folder_is_taken_as_it_is_and_any_blob(trained):
    folder, _ = trained
    weights = folder / "run" / "softmax_iter_4.caffemodel"
    result = run("extract", folder, weights, "--out", "folder.h5", "--images", folder / "images", "--feature", "conv1")
    assert result.returncode == 0, result.stderr
    found = load(folder / "folder.h5")
    assert found.rows.shape == (24, 8 * 5 * 5) and sorted(set(found.images.labels)) == list(range(6))


def test_evaluate_says_the_same_of_weights_and_of_their_embeddings(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    assert run("extract", folder, weights, "--out", "again.h5", "--list", "list.txt").returncode == 0
    one = run("evaluate", folder, weights, "--list", "list.txt", "--out", "report", "--tsne")
    other = run("evaluate", folder, "again.h5")
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    assert one.stdout == f"{other.stdout}report     report/report.html\n"
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["same_pairs"] == 36 and report["images"] == 24 and report["weights_sha256"] == digest(weights)
    assert report["AUC"]["interval"][0] <= report["AUC"]["value"] <= report["AUC"]["interval"][1]
    for name in ("roc.png", "distances.png", "tsne.png"):
        assert (folder / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_after_the_triplet_stage_both_features_are_compared(trained):
    folder, said = trained
    table = re.search(r"^compared +AUC +EER\nfc7 +(\S+) .*\nfc9_1 +(\S+) .*\ndifference +(\S+) .*\n95% interval .*\n", said, re.MULTILINE)
    first, last, difference = map(float, table.groups())
    assert last - first == pytest.approx(difference, abs=1.1e-4)
    assert re.search(r"^the triplet stage (helped|did not)", said, re.MULTILINE)
    assert "did not clearly help" in said and "too few identities" in said  # two are held out
    again = run("evaluate", folder, folder / "run" / "triplet_iter_4.caffemodel", "--compare")
    assert again.returncode == 0, again.stderr
    assert re.search(r"compared   on \S*held_out.txt: 8 images of 2 identities, 12 same and 16 different pairs", again.stdout)
    shown = re.sub(r"<[^>]*>", " ", (folder / "run" / "report.html").read_text())
    for name in ("fc7", "PCA to 8", "random projection to 8", "fc9_1", "minus fc7"):
        assert re.search(rf"^{name}", again.stdout, re.MULTILINE) and name in shown, name
    for value in re.findall(r"^fc7 +(\S+) +(\S+)", again.stdout, re.MULTILINE)[0]:
        assert value in shown and value in said
    assert again.stdout.strip().splitlines()[-1] in said


def test_the_comparison_is_written_into_the_report(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    result = run("evaluate", folder, weights, "--compare", "--out", "compared")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (folder / "compared").iterdir()) == ["report.html", "report.json", "roc.png"]
    report = json.loads((folder / "compared" / "report.json").read_text())
    assert report["weights_sha256"] == digest(weights) and report["identities"] == 2 and report["different_pairs"] == 16
    assert list(report["features"]) == ["fc7", "PCA to 8", "random projection to 8", "fc9_1"]
    for name, figures in report["features"].items():
        row = f"{name} +{figures['AUC']['value']:.4f} +{figures['EER']['value']:.4f}$"
        assert re.search(f"^{row}", result.stdout, re.MULTILINE), row
    embedding = report["features"]["fc9_1"]["AUC"]
    assert embedding["difference"] == pytest.approx(embedding["value"] - report["features"]["fc7"]["AUC"]["value"])
    assert embedding["difference_interval"] is None and "difference" not in report["features"]["fc7"]["AUC"]  # two identities
    assert result.stdout.strip().splitlines()[-2:] == [report["verdict"], "report     compared/report.html"]
    again = run("evaluate", folder, weights, "--compare", "--out", "compared")
    assert again.returncode == 1 and "compared/report.json exists already" in again.stderr
    assert run("evaluate", folder, weights, "--compare", "--out", "compared", "--tsne").returncode == 2


@pytest.mark.parametrize(("noise", "sign"), [(0.2, 1), (1.0, 0), (3.0, -1)])
def test_the_verdict_says_whether_the_triplet_stage_helped(noise, sign):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 6)
    centres = rng.normal(size=(40, 12))[labels]
    softmax = centres + rng.normal(size=centres.shape)
    triplet = softmax if sign == 0 else centres + noise * rng.normal(size=centres.shape)
    images = ImageList("some", "", [""] * len(labels), labels)
    found = compare.compare_embeddings({"norm2": softmax, "embedding": triplet}, images, pairs_of(labels))
    assert found.helped("AUC") == found.helped("EER") == sign
    words = {1: "the triplet stage helped", 0: "did not clearly help", -1: "made it worse"}
    assert words[sign] in found.verdict()
    difference, (low, high) = found.differences[0]["AUC"]
    assert low <= difference <= high
    theirs = [verification.verification(rows, labels).auc for rows in (softmax, triplet)]
    assert difference == pytest.approx(theirs[1] - theirs[0])


def test_what_one_of_the_embeddings_does_not_resolve_is_not_compared():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 6)
    softmax = rng.normal(size=(40, 12))[labels] + rng.normal(size=(240, 12))
    images = ImageList("some", "", [""] * 240, labels)
    found = compare.compare_embeddings({"norm2": softmax, "embedding": np.ones((240, 4))}, images, pairs_of(labels))
    assert "TAR@FAR=0.01" not in found.describe() and found.figures[1] == {"AUC": 0.5, "EER": 0.5}
    assert "made it worse: AUC -0." in found.verdict()


def test_principal_axes_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 5)) * [5, 1, 3, 0.5, 2] + 7
    centre, axes = compare.principal_axes(rows, 3)
    np.testing.assert_allclose(centre, rows.mean(axis=0))
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    for mine, theirs in zip(axes, vectors.T[np.argsort(-values)][:3], strict=True):
        assert abs(mine @ theirs) == pytest.approx(1)


# --- cluster


def test_a_folder_is_grouped_and_scored(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    result = run("cluster", folder, weights, "--images", folder / "images", "--out", "groups")
    assert result.returncode == 0, result.stderr
    lists = sorted((folder / "groups").glob("cluster*.txt"))
    names = [line for path in lists for line in path.read_text().splitlines()]
    assert sorted(names) == sorted(path.name for path in (folder / "images").iterdir())
    assert f"24 images in {len(lists)} clusters" in result.stdout
    assert re.search(r"best pairwise F of the 2 identities of \S*held_out.txt", result.stdout)
    # Neither those that were trained on without a word, nor those that the threshold was chosen on.
    assert re.search(r"^note +4 identities have the same names as identities of \S*train.txt", result.stdout, re.MULTILINE)
    assert "; 16 images of 4 identities, none of which the threshold was chosen on" in result.stdout
    assert cv2.imread(str(folder / "groups" / "clusters.jpg")) is not None
    again = run("cluster", folder, weights, "--images", folder / "images", "--out", "groups")
    assert again.returncode == 1 and "groups exists already" in again.stderr
    copied = run("cluster", folder, weights, "--images", folder / "images", "--out", "copies", "--copy", "--method", "dbscan")
    assert copied.returncode == 0 and len(list((folder / "copies").glob("cluster*/*.jpg"))) == 24, copied.stderr


def test_a_threshold_given_is_scored_on_all_and_identities_too_few_to_divide_on_none(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    given = run("cluster", folder, weights, "--list", "held_out.txt", "--out", "given", "--threshold", 0.5)
    assert given.returncode == 0, given.stderr
    assert re.search(r"distance 0.5 \(given\): given\nscore .*; 8 images of 2 identities$", given.stdout, re.MULTILINE)
    assert "note" not in given.stdout  # none of them was trained on
    chosen = run("cluster", folder, weights, "--list", "held_out.txt", "--out", "chosen")
    assert chosen.returncode == 0, chosen.stderr
    assert "score      none: the threshold was chosen on these identities" in chosen.stdout


def test_the_threshold_of_a_list_is_chosen_on_half_of_its_identities_and_scored_on_the_others(trained):
    folder, _ = trained
    weights = str(folder / "run" / "triplet_iter_4.caffemodel")
    settings = config.load(str(folder / "config.py")).stage("triplet")
    settings["HELD_OUT_LIST"] = str(folder / "list.txt")
    images = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    found = grouping.threshold_of(weights, settings, False, images)
    assert "best pairwise F of 3 of the 6 identities of" in found.origin
    assert len(set(images.labels[found.scored])) == 3 and found.scored.sum() == 12
    rows = embed(weights, settings, "fc9_1", images, False).rows[~found.scored]
    labels = images.labels[~found.scored]
    pairs = pairs_of(labels)
    distances = pair_distances(rows, pairs.first, pairs.second)
    assert found.value == pytest.approx(clustering.threshold_of_best_f(distances, pairs.same), rel=1e-4)


@pytest.mark.parametrize("method", ["average", "dbscan"])
def test_identities_apart_are_found_and_loners_stay_alone(method):
    labels = np.array([0] * 6 + [1] * 4 + [2])
    rows = np.eye(3)[labels] + 0.05 * np.random.default_rng(0).normal(size=(11, 3))
    np.testing.assert_array_equal(grouping.group(rows, method, 0.5), labels)
    copies = np.repeat(rows, 2, axis=0)
    np.testing.assert_array_equal(np.sort(np.bincount(grouping.group(copies, method, 0.0))), [2] * 11)


# --- NaN

ROOT_LAYER = 'layer { name: "root" type: "Power" bottom: "BOTTOM" top: "root" power_param { power: 0.5 shift: SHIFT } }'


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_first_image_whose_embedding_is_nan_is_named(tmp_path, mirrored):
    """A square root of the pixels minus 100: every image is finite but two in the second mini-batch."""
    text = DEPLOY_HEAD + ROOT_LAYER.replace("BOTTOM", "data").replace("SHIFT", "0")
    (tmp_path / "root.prototxt").write_text(text)
    for number in range(50):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), np.full((12, 12, 3), 50 if number in (41, 45) else 200, np.uint8))
    images = list_folder(str(tmp_path))
    net = caffe.Net(str(tmp_path / "root.prototxt"), caffe.TEST)
    with pytest.raises(NotFiniteError, match=r"the blob 'root' is NaN or infinite for the image 41\.png"):
        extract_all(net, ["data", "root"], images, Preprocessing(0, 12, [100, 100, 100]), mirrored)
    good = images.only(np.arange(40))
    rows, roots = extract_all(net, ["data", "root"], good, Preprocessing(0, 12, [100, 100, 100]), mirrored)
    np.testing.assert_array_equal(rows, np.full((40, 432), 100))
    np.testing.assert_allclose(roots, 10, rtol=1e-6)


@pytest.mark.parametrize("module", ["extract", "evaluate", "cluster", "suspects"])
def test_no_command_uses_embeddings_that_are_nan(trained, tmp_path, module):
    folder, _ = trained
    deploy = (folder / "deploy.prototxt").read_text() + ROOT_LAYER.replace("BOTTOM", "fc7").replace("SHIFT", "-1e9")
    (tmp_path / "deploy.prototxt").write_text(deploy)
    write_config(tmp_path, DEPLOY="deploy.prototxt", FEATURE={"softmax": "fc7", "triplet": "root"}, IMAGEPATH=str(folder / "images"),
                 TRAIN_LIST=str(folder / "train.txt"), HELD_OUT_LIST=str(folder / "held_out.txt"))  # fmt: skip
    more = {"extract": ["--out", "x.h5"], "cluster": ["--out", "groups"], "suspects": ["--list", "held_out.txt"]}.get(module, [])
    shutil.copy(folder / "held_out.txt", tmp_path)
    result = run(module, tmp_path, folder / "run" / "triplet_iter_4.caffemodel", *more)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"tripletloss.{module}: the blob 'root' is NaN or infinite for the image person4@0.jpg" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.py", "deploy.prototxt", "held_out.txt"]


# --- what a report says


def write_embeddings(path, rows, labels):
    with h5py.File(path, "w") as file:
        file["embeddings"], file["labels"] = rows.astype(np.float32), labels
        file["names"] = [f"person{label}@{number}.jpg" for number, label in enumerate(labels)]
        file.attrs.update(list="some", folder=".", feature="drawn", weights="none", weights_sha256="", mirrored=False)


def test_embeddings_in_a_file_that_are_nan_are_named(trained):
    folder, _ = trained
    rows = np.ones((6, 4))
    rows[3, 1] = np.nan
    write_embeddings(folder / "nan.h5", rows, [0, 0, 0, 1, 1, 1])
    result = run("evaluate", folder, "nan.h5")
    assert result.returncode == 1 and "nan.h5 is damaged: the embedding of person1@3.jpg holds NaN or infinity" in result.stderr


def test_an_identity_of_more_images_than_are_clustered_is_measured(monkeypatch):
    monkeypatch.setattr(reports, "MOST_CLUSTERED", 100)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [10, 150, 120, 8])
    few = reports.few_images(labels, 100)
    assert len(few) <= 100 and len(np.unique(labels[few])) >= 2 and (np.diff(few) > 0).all()
    assert max(np.bincount(labels[few])) == 100 // 2
    report = reports.measure_list(labels, rng.normal(size=(4, 2))[labels] + 0.1 * rng.normal(size=(len(labels), 2)))
    assert report["clustering"]["images"] == len(few) and report["clustering"]["B-cubed"]["F"] > 0.5
    labels = np.repeat(np.arange(20), 10)  # whole identities, where they are small
    assert set(np.bincount(labels[reports.few_images(labels, 100)])) == {0, 10}


def test_images_that_are_a_part_of_a_list_are_clustered_at_the_threshold_for_that_part(monkeypatch):
    monkeypatch.setattr(reports, "MOST_CLUSTERED", 120)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 12)
    rows = rng.normal(size=(100, 8))[labels] + 0.6 * rng.normal(size=(1200, 8))
    few = reports.few_images(labels, 120)
    d = ((rows[few, None] - rows[None, few]) ** 2).sum(2)[np.triu_indices(120, 1)]
    same = (labels[few, None] == labels[few])[np.triu_indices(120, 1)]

    def f(threshold):
        hits = np.sum(same & (d <= threshold))
        return 2 * hits / (np.sum(d <= threshold) + same.sum())

    assert f(reports.measure_list(labels, rows)["clustering"]["threshold"]) > max(f(t) for t in d) - 0.03


def strict(text):
    """A report.json, read as JSON's definition has it: NaN and infinities are errors."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_report_is_json_and_says_what_is_not_measured(trained):
    """All embeddings are one point: no threshold tells a share of the pairs."""
    folder, _ = trained
    write_embeddings(folder / "point.h5", np.ones((60, 4)), np.arange(60) // 6)
    result = run("evaluate", folder, "point.h5", "--out", "point")
    assert result.returncode == 0, result.stderr
    report = strict((folder / "point" / "report.json").read_text())
    assert report["AUC"]["value"] == 0.5 and report["thresholds"] == {} and report["different_pairs"] == 1620
    assert re.search(r"^TAR@FAR=0.01 +- +not resolved: too many of the nearest different pairs are equally", result.stdout, re.MULTILINE)


def answered(module, folder, *arguments):
    """What a command answers with --json, beside nothing else on standard output."""
    result = run(module, folder, *arguments, "--json")
    assert result.returncode == 0 and result.stdout.count("\n") == 1, result.stderr
    return strict(result.stdout), result.stderr


def test_evaluate_answers_in_json_as_in_its_report(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    for name, arguments in (("said", []), ("said_both", ["--compare"])):
        answer, errors = answered("evaluate", folder, weights, *arguments, "--out", name)
        assert answer == strict((folder / name / "report.json").read_text())
        assert errors.endswith(f"report     {name}/report.html\n")  # which is no part of the answer


def test_cluster_answers_in_json_with_the_groups_that_it_writes(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    answer, _ = answered("cluster", folder, weights, "--list", "held_out.txt", "--out", "in_json", "--threshold", 0.5)
    lists = [path.read_text().splitlines() for path in sorted((folder / "in_json").glob("cluster*.txt"))]
    assert answer["groups"] == lists and answer["images"] == 8 and answer["threshold"] == 0.5
    assert answer["score"]["identities"] == 2 and 0 < answer["score"]["B-cubed"]["F"] <= 1
    unscored, _ = answered("cluster", folder, weights, "--list", "held_out.txt", "--out", "in_json_too")
    assert unscored["score"] is None


def test_suspects_answers_in_json_with_the_first_rows_of_its_table(trained):
    folder, _ = trained
    lines = (folder / "list.txt").read_text().splitlines()
    (folder / "alone.txt").write_text("\n".join(lines[:5]) + "\n")  # the last identity has one image
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    answer, _ = answered("suspects", folder, weights, "--list", "alone.txt", "--out", "in_json")
    rows = list(csv.DictReader((folder / "in_json.csv").open()))
    assert [one["image"] for one in answer["suspects"]] == [row["image"] for row in rows] and len(rows) == 5
    assert answer["nearer_to_another"] == sum(float(row["score"]) > 0.5 for row in rows)
    for one, row in zip(answer["suspects"], rows, strict=True):
        assert list(one) == list(row) and str(one["nearest_other_label"]) == row["nearest_other_label"]
        assert one["d_own"] == (None if row["d_own"] == "inf" else pytest.approx(float(row["d_own"]), rel=1e-5))
    assert answer["suspects"][-1]["d_own"] is None  # JSON has no infinity


def test_the_table_shows_the_threshold_of_each_far(trained):
    folder, _ = trained
    rng = np.random.default_rng(0)
    labels = np.arange(60) // 6
    write_embeddings(folder / "apart.h5", rng.normal(size=(10, 4))[labels] + 0.5 * rng.normal(size=(60, 4)), labels)
    result = run("evaluate", folder, "apart.h5", "--out", "apart")
    assert result.returncode == 0, result.stderr
    report = strict((folder / "apart" / "report.json").read_text())
    assert set(report["thresholds"]) == {"FAR=0.1", "FAR=0.01"}
    for far, threshold in report["thresholds"].items():
        row = next(line for line in result.stdout.splitlines() if line.startswith(f"TAR@{far} "))
        behind = f"{report['accepted_different_pairs'][far]} different pairs accepted"
        assert re.search(rf" {threshold:.4g} +{behind}$", row), row


# --- suspects


def test_planted_wrong_labels_come_first():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(50), 10)
    rows = rng.normal(size=(50, 16))[labels] + 0.5 * rng.normal(size=(500, 16))
    wrong = rng.permutation(500)[:10]  # 2%
    given = labels.copy()
    given[wrong] = (labels[wrong] + rng.integers(1, 50, 10)) % 50
    found = suspects.suspicion(rows, given)
    assert set(suspects.rank(found)[:10]) == set(wrong)
    np.testing.assert_array_equal(found.nearest[wrong], labels[wrong])
    assert (found.score[wrong] > 0.5).all() and np.median(found.score) < 0.4


def test_suspicion_is_that_of_plain_loops():
    rng = np.random.default_rng(1)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 7, 7, 9])
    rows = rng.normal(size=(12, 3))
    found = suspects.suspicion(rows, labels)
    for i in range(12):
        d = ((rows - rows[i]) ** 2).sum(axis=1)
        mine = [d[j] for j in range(12) if labels[j] == labels[i] and j != i]
        assert found.own[i] == pytest.approx(np.median(mine) if mine else np.inf)
        seen, others = {}, sorted((d[j], labels[j]) for j in range(12) if labels[j] != labels[i])
        for distance, label in others:
            seen.setdefault(label, []).append(distance)
            if len(seen[label]) == min(3, np.sum(labels == label)):
                break
        assert found.nearest[i] == label and found.other[i] == pytest.approx(np.mean(seen[label]))
    assert found.score[11] == 0  # an only image has nothing to be far from


def test_the_command_ranks_all_images_and_shows_the_first(trained):
    folder, _ = trained
    result = run("suspects", folder, folder / "run" / "triplet_iter_4.caffemodel", "--list", "list.txt", "--top", 5, "--out", "ranked",
                 "--review", "page.html")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (folder / "page.html").read_text().count('class="suspect"') == 5
    rows = list(csv.DictReader((folder / "ranked.csv").open()))
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 24 and scores == sorted(scores, reverse=True)
    assert cv2.imread(str(folder / "ranked.jpg")) is not None
    lines = result.stdout.splitlines()
    assert lines[0] == "images     24 of 6 identities (list.txt)"
    for line, row in zip(lines[4:9], rows, strict=False):
        mine, other = row["label"], row["nearest_other_label"]
        assert row["identity"] == f"person{mine}" and row["nearest_other_identity"] == f"person{other}"
        assert re.split(r"  +", line)[:4] == [row["image"], f"{mine} person{mine}", f"{other} person{other}", f"{float(row['score']):.3f}"]


def test_suspects_are_looked_for_where_the_labels_are_trained_on(trained):
    folder, _ = trained
    result = run("suspects", folder, folder / "run" / "triplet_iter_4.caffemodel", "--out", "trained")
    assert result.returncode == 0 and f"images     16 of 4 identities ({folder / 'train.txt'})" in result.stdout, result.stderr
    (folder / "bare.txt").write_text("".join(f"{i}.jpg {i // 2}\n" for i in range(4)))
    for i in range(4):
        (folder / "images" / f"{i}.jpg").write_bytes((folder / "images" / f"person{i}@0.jpg").read_bytes())
    bare = run("suspects", folder, folder / "run" / "triplet_iter_4.caffemodel", "--list", "bare.txt", "--out", "bare")
    for i in range(4):
        (folder / "images" / f"{i}.jpg").unlink()
    assert bare.returncode == 0 and re.search(r"^0\.jpg +0 +1 +0\.\d{3} ", bare.stdout, re.MULTILINE), bare.stdout


# --- what is written


def test_embeddings_are_the_same_in_every_format(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    for suffix in ("h5", "npz", "csv"):
        result = run("extract", folder, weights, "--out", f"formats.{suffix}", "--list", "list.txt")
        assert result.returncode == 0 and f"formats.{suffix}: 24 embeddings of 8 numbers" in result.stdout, result.stderr
    found = load(folder / "formats.h5")
    with np.load(folder / "formats.npz") as arrays:
        assert arrays["embeddings"].dtype == np.float32 and np.array_equal(arrays["embeddings"], found.rows)
        assert arrays["names"].tolist() == found.images.names and np.array_equal(arrays["labels"], found.images.labels)
        assert arrays["weights_sha256"] == found.weights_sha256 and not arrays["mirrored"]
    header, *rows = csv.reader((folder / "formats.csv").open())
    assert header == ["name", "label", *map(str, range(8))] and [row[0] for row in rows] == found.images.names
    assert [int(row[1]) for row in rows] == found.images.labels.tolist()
    assert np.array_equal(np.array([row[2:] for row in rows], np.float32), found.rows)


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (9_000, ["extract", "WEIGHTS", "--out", "full.h5", "--list", "list.txt", "--feature", "conv1"]),
        (9_000, ["extract", "WEIGHTS", "--out", "full.npz", "--list", "list.txt", "--feature", "conv1"]),
        (9_000, ["extract", "WEIGHTS", "--out", "full.csv", "--list", "list.txt", "--feature", "conv1"]),
        (9_000, ["evaluate", "WEIGHTS", "--list", "list.txt", "--out", "full_report"]),
        (3_000, ["cluster", "WEIGHTS", "--list", "list.txt", "--out", "full", "--threshold", "1"]),
        (3_000, ["suspects", "WEIGHTS", "--list", "list.txt", "--out", "full"]),
        (9_000, ["export", "WEIGHTS", "--out", "full.onnx"]),
    ],
)
def test_a_disk_that_is_full_ends_in_one_sentence_and_leaves_nothing(trained, limit, arguments):
    """A limit on the size of a file stands for the disk: more is refused in the middle of a write, as there."""
    folder, _ = trained
    weights = str(folder / "run" / "triplet_iter_4.caffemodel")
    module, *rest = [weights if a == "WEIGHTS" else a for a in arguments]
    result = run(module, folder, *rest, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1, (result.returncode, result.stderr)
    assert "cannot be" in result.stderr.splitlines()[-1] and "(File too large): " in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    left = [path for path in folder.rglob("*full*") if not (path.is_dir() and not any(path.iterdir()))]
    assert not left and not list(folder.rglob("*.part"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_that_is_full_ends_in_one_sentence(trained, tmp_path):
    folder, _ = trained
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this system allows no mounts")
    try:
        weights = folder / "run" / "triplet_iter_4.caffemodel"
        result = run("extract", folder, weights, "--out", tmp_path / "x.h5", "--list", "list.txt", "--feature", "conv1")
        assert result.returncode == 1 and "x.h5 cannot be written (No space left on device): choose another" in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("tripletloss.extract:")]) == 1
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_outputs_that_are_there_are_kept_unless_force(trained):
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    for path in ("kept.h5", "kept.onnx", "kept.csv", "report2/roc.png"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("kept")
    for module, *arguments in [
        ("extract", "--out", "kept.h5"), ("export", "--out", "kept.onnx"), ("suspects", "--out", "kept"),
        ("evaluate", "--out", "report2"),
    ]:  # fmt: skip
        result = run(module, folder, weights, *arguments)
        assert result.returncode == 1 and "exists already: move it away, write elsewhere, or replace it with --force" in result.stderr
    assert [(folder / path).read_text() for path in ("kept.h5", "kept.onnx", "kept.csv", "report2/roc.png")] == ["kept"] * 4
    assert run("extract", folder, weights, "--out", "kept.h5", "--force").returncode == 0
    assert len(load(folder / "kept.h5").rows) == 8
    assert run("suspects", folder, weights, "--out", "kept", "--force").returncode == 0
    assert len((folder / "kept.csv").read_text().splitlines()) == 17


def test_inputs_are_never_written(trained):
    """Under another name, or as a member of the list, too."""
    folder, _ = trained
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    os.link(weights, folder / "weights.h5")
    os.link(weights, folder / "weights.onnx")
    os.link(folder / "images" / "person0@0.jpg", folder / "suspect.jpg")
    os.link(folder / "held_out.txt", folder / "suspects2.csv")
    before = {path: path.read_bytes() for path in (weights, folder / "held_out.txt", folder / "images" / "person0@0.jpg")}
    for module, out in [("extract", "weights.h5"), ("export", "weights.onnx"), ("suspects", "suspect"), ("suspects", "suspects2")]:
        result = run(module, folder, weights, "--out", out, "--force")
        assert result.returncode == 1 and f"{out}" in result.stderr and "is an input of this command, so it is not replaced" in result.stderr
    result = run("cluster", folder, weights, "--out", "images", "--force")
    assert result.returncode == 1 and "images contains an input of this command, so it is not replaced" in result.stderr
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(("module", "out"), [("extract", "x.hdf5"), ("extract", "x"), ("export", "x.caffemodel")])
def test_a_suffix_without_a_format_is_refused_at_once(trained, module, out):
    folder, _ = trained
    result = run(module, folder, "none.caffemodel", "--out", out)
    assert result.returncode == 1 and f"{out} does not say" in result.stderr and not (folder / out).exists()


def test_copies_have_names_of_their_own(trained, tmp_path):
    """Three images whose folders make the same name, and one whose name is too long for a file with its folder."""
    folder, _ = trained
    sources = sorted((folder / "images").iterdir())[:5]
    names = ["a/b/c.jpg", "a__b/c.jpg", "a/b__c.jpg", "a__b__c_2.jpg", f"{'d' * 150}/{'e' * 150}.jpg"]
    for name, source in zip(names, sources, strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "in" / name)
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    arguments = weights, "--images", tmp_path / "in", "--out", tmp_path / "out", "--copy", "--threshold", "1e6"
    result = run("cluster", folder, *arguments)
    assert result.returncode == 0 and "5 images in 1 clusters" in result.stdout, result.stderr
    copies = list((tmp_path / "out" / "cluster0000").iterdir())
    assert len(copies) == 5 and {path.read_bytes() for path in copies} == {path.read_bytes() for path in sources}
    assert {"a__b__c.jpg", "a__b__c_2.jpg", "a__b__c_3.jpg", "a__b__c_4.jpg"} < {path.name for path in copies}
    (tmp_path / "in" / "a__b__c_2.jpg").unlink()
    again = run("cluster", folder, *arguments, "--force")
    assert again.returncode == 0 and len(list((tmp_path / "out" / "cluster0000").iterdir())) == 4, again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("module", ["extract", "cluster", "evaluate", "suspects"])
def test_names_that_are_not_utf8_are_refused_before_any_work(trained, tmp_path, module):
    folder, _ = trained
    for name in (b"a@1.jpg", b"b@1.jpg", b"caf\xe9@1.jpg"):
        shutil.copy(folder / "images" / "person0@0.jpg", os.path.join(os.fsencode(tmp_path), name))
    more = {"extract": ["--out", "latin.h5"], "cluster": ["--out", "latin"]}.get(module, [])
    result = run(module, folder, folder / "run" / "triplet_iter_4.caffemodel", "--images", tmp_path, *more)
    assert result.returncode == 1 and "'caf\\udce9@1.jpg' in" in result.stderr
    assert "has a name that is not UTF-8 text: rename it" in result.stderr and "image/s" not in result.stderr
    named = run(module, folder, "w\udcff.caffemodel", *more)
    assert named.returncode == 1 and "'w\\udcff.caffemodel' is not UTF-8 text: rename" in named.stderr


# --- what a person gets wrong


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("extract", ["none.caffemodel", "--out", "x.h5"], "the weights none.caffemodel do not exist"),
        ("extract", ["WEIGHTS", "--out", "x.h5", "--config", "moved/my.py"], "IMAGEPATH is FOLDER/moved/images, which does not exist: correct it in the config file. Paths in it"),
        ("extract", ["WEIGHTS", "--out", "x.h5", "--config", "moved/deploys.py"], "HELD_OUT_LIST is FOLDER/moved/held_out.txt, which does not exist"),
        ("export", ["WEIGHTS", "--out", "x.onnx", "--config", "moved/my.py"], "DEPLOY is FOLDER/moved/deploy.prototxt, which does not exist"),
        ("extract", ["WEIGHTS", "--out", "no/where.h5"], "no/where.h5 cannot be written"),
        ("extract", ["WEIGHTS", "--out", "x.h5", "--images", "empty"], "there is no image (.bmp, "),
        ("extract", ["WEIGHTS", "--out", "x.h5", "--crop", "-3"], "CROP is -3, but must be a whole number from 0"),
        ("evaluate", ["broken.h5"], "broken.h5 cannot be read as embeddings"),
        ("evaluate", ["run/softmax_iter_4.caffemodel", "--compare"], "is a snapshot of the softmax stage: it has no triplet stage to compare"),
        ("evaluate", ["renamed.caffemodel", "--compare"], "renamed.caffemodel has no triplet stage to compare: renamed"),
        ("evaluate", ["WEIGHTS", "--images", "loose"], "a.jpg has no identity: name it"),
        ("evaluate", ["WEIGHTS", "--list", "one.txt"], "needs two identities or more"),
        ("cluster", ["WEIGHTS", "--images", "nowhere", "--out", "g"], "the folder nowhere cannot be read (No such file or directory)"),
        ("suspects", ["WEIGHTS", "--list", "one.txt"], "must have two identities or more"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(trained, module, arguments, sentence):
    folder, _ = trained
    with h5py.File(folder / "broken.h5", "w") as file:
        file["embeddings"] = np.zeros((2, 2))
    for name in ("loose", "empty"):
        (folder / name).mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "loose" / "a.jpg"), np.zeros((9, 9, 3), np.uint8))
    shutil.copy(folder / "run" / "softmax_iter_4.caffemodel", folder / "renamed.caffemodel")
    (folder / "one.txt").write_text("person0@0.jpg 0\nperson0@1.jpg 0\n")
    (folder / "moved").mkdir(exist_ok=True)
    (folder / "moved" / "my.py").write_text((folder / "config.py").read_text())
    (folder / "moved" / "deploys.py").write_text((folder / "config.py").read_text().replace("'deploy", "'../deploy").replace("'images", "'../images"))
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    result = run(module, folder, *[weights if a == "WEIGHTS" else a for a in arguments])
    sentence = sentence.replace("FOLDER", str(folder))
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not (folder / "x.h5").exists() and not list(folder.glob("**/*.part"))


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("evaluate", ["WEIGHTS"]),
        ("evaluate", ["WEIGHTS", "--compare"]),
        ("extract", ["WEIGHTS", "--out", "x.h5"]),
        ("cluster", ["WEIGHTS", "--images", "images", "--out", "g"]),
        ("suspects", ["WEIGHTS", "--list", "list.txt"]),
        ("train", ["--check", "--resume"]),
    ],
)
def test_no_command_lets_a_deploy_net_write_a_file(trained, module, arguments):
    folder, _ = trained
    precious = folder / "precious.txt"
    precious.write_text("the only copy")
    text = (folder / "deploy.prototxt").read_text()
    layer = 'layer { name: "w" type: "HDF5Output" bottom: "fc7" bottom: "fc9_1" hdf5_output_param { file_name: "FILE" } }'
    (folder / "deploy.prototxt").write_text(text + layer.replace("FILE", str(precious)))
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    arguments = [weights if a == "WEIGHTS" else a for a in arguments]
    try:
        if module == "train":  # for the folder of another run, as this one is refused for its snapshots
            config_text = (folder / "config.py").read_text().replace("RUN_FOLDER = 'run'", "RUN_FOLDER = 'fresh'")
            (folder / "fresh.py").write_text(config_text)
            result = run_train(folder, *arguments, config="fresh.py")
        else:
            result = run(module, folder, *arguments)
    finally:
        (folder / "deploy.prototxt").write_text(text)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert f": {folder}/deploy.prototxt: layer 'w' writes a file" in result.stderr.splitlines()[-1]
    assert precious.read_text() == "the only copy"


def poison(folder, value, name, layer="conv1"):
    """The trained weights with one number of a layer replaced, in the folder; returns the file's name."""
    weights = folder / "run" / "triplet_iter_4.caffemodel"
    net = caffe.Net(str(folder / "deploy.prototxt"), caffe.TEST, weights=str(weights))
    net.params[layer][0].data.flat[5] = value
    (net.save_hdf5 if name.endswith(".h5") else net.save)(str(folder / name))
    return name


@pytest.mark.parametrize(
    ("module", "arguments", "value", "name"),
    [
        ("evaluate", [], np.nan, "nan.caffemodel"),
        ("evaluate", ["--compare"], np.inf, "inf.caffemodel"),
        ("extract", ["--out", "x.h5"], np.nan, "nan.caffemodel.h5"),
        ("cluster", ["--images", "images", "--out", "g", "--threshold", "1"], -np.inf, "inf.caffemodel.h5"),
        ("suspects", ["--list", "list.txt"], np.nan, "nan.caffemodel"),
        ("export", ["--out", "x.onnx"], np.nan, "nan.caffemodel"),
    ],
)
def test_weights_that_are_not_numbers_are_refused_by_every_command(trained, module, arguments, value, name):
    folder, _ = trained
    result = run(module, folder, poison(folder, value, name), *arguments)
    [which, said] = result.stderr.splitlines()
    assert result.returncode == 1 and which.startswith("config     ") and said.startswith(f"tripletloss.{module}: ")
    assert f"{name}: the weights of layer 'conv1' hold NaN or infinity" in result.stderr
    assert not [made for made in ("x.h5", "g", "x.onnx") if (folder / made).exists()]


def test_training_refuses_weights_that_are_not_numbers(trained):
    folder, _ = trained
    before = (folder / "config.py").read_text()
    (folder / "config.py").write_text(before + f"WEIGHTS = {poison(folder, np.nan, 'nan.caffemodel')!r}\n")
    (folder / "config.py").write_text((folder / "config.py").read_text().replace("'run'", "'other'"))
    try:
        for arguments in (["--check"], []):
            result = run_train(folder, *arguments)
            assert result.returncode == 1
            assert "nan.caffemodel: the weights of layer 'conv1' hold NaN or infinity" in result.stderr, result.stderr
    finally:
        (folder / "config.py").write_text(before)


def test_embeddings_that_are_not_finite_are_refused(trained):
    folder, _ = trained
    result = run("evaluate", folder, poison(folder, 3e38, "huge.caffemodel", "fc9_1"))
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "tripletloss.evaluate: the blob 'fc9_1' is NaN or infinite for the image person4@0.jpg" in result.stderr


@pytest.mark.parametrize("command", [["-m", "tripletloss.extract", "w", "--out", "x.h5"], ["-m", "tripletloss.export", "w", "--out", "x"],
                                     [str(ROOT / "train.py")], [str(ROOT / "train.py"), "--check"]])  # fmt: skip
def test_train_and_the_commands_take_and_name_the_same_config(tmp_path, command):
    (tmp_path / "config.py").write_text("MARGN = 1\n")
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "config.py, line 1: there is no setting MARGN" in result.stderr
    assert "config     config.py\n" in result.stdout + result.stderr


@pytest.mark.parametrize("here", [True, False])
def test_the_config_is_that_of_the_current_folder_or_else_the_projects(tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    if here:
        (tmp_path / "config.py").write_text("")
    parser = argparse.ArgumentParser()
    config.add_argument(parser)
    assert Path(parser.parse_args([]).config).resolve() == (tmp_path if here else ROOT) / "config.py"
    assert parser.parse_args(["--config", "other.py"]).config == "other.py"


def test_identities_in_two_lists_are_found_by_name():
    def images(*names):
        return ImageList("", "", list(names), np.zeros(len(names), int))

    assert shared_identities(images("a@1.jpg", "b/1.jpg", "c.jpg"), images("b/7.jpg", "d@1.jpg", "c.jpg", "a@2.jpg")) == ["a", "b"]


def test_images_of_a_folder_without_identities_have_none(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("loose.jpg", "ann@1.png", "x/1.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = list_folder(str(tmp_path))
    assert dict(zip(found.names, found.labels, strict=True)) == {"ann@1.png": 0, "loose.jpg": -1, "x/1.jpg": 1}
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="there is no image"):
        list_folder(str(tmp_path / "nothing"))
