"""python train.py as a user runs it: both stages, finetuning, nets of 2015, and every kind of bad input."""

import csv
import itertools
import json
import re
import signal
import subprocess
import sys
import time

import caffe
import cv2
import h5py
import numpy as np
import pytest

from tests.helpers import ROOT, TINY_NET, hold_out, in_net, refused, replace, run_train, weights, write_config
from tripletloss.data.images import Preprocessing, read_image, to_blob
from tripletloss.evaluation import plots
from tripletloss.formats import caffemodel


def test_both_stages_end_to_end(project):
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    run = project / "run"
    for stage in ("softmax", "triplet"):
        assert (run / f"{stage}_iter_2.caffemodel").exists() and (run / f"{stage}_iter_4.caffemodel").exists()
        assert (run / f"{stage}_iter_4.solverstate").exists() and (run / f"{stage}_caffe.log").stat().st_size > 0
        assert json.loads((run / f"{stage}_settings.json").read_text())["BATCH_SIZE"] == 12
        rows = list(csv.DictReader((run / f"{stage}_log.csv").open()))
        assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4]
        assert all(float(row["loss"]) >= 0 and float(row["learning_rate"]) == pytest.approx(0.01) for row in rows)
    assert {"active_share", "d_ap", "d_an"} < set(rows[0])
    assert "loaded   conv1, bn1, fc7\n  fresh    fc9_1" in result.stdout
    assert "active_share=" in result.stderr and "images/s" in result.stderr
    assert "] Creating Layer" not in result.stderr
    before = weights(run / "softmax_iter_4.caffemodel", run / "softmax_train.prototxt")
    after = weights(run / "triplet_iter_4.caffemodel", run / "triplet_uncut.prototxt")
    for name in ("conv1", "bn1", "fc7"):
        for b, a in zip(before[name], after[name], strict=True):
            np.testing.assert_array_equal(b, a)
    started = weights(run / "triplet_iter_2.caffemodel", run / "triplet_train.prototxt")
    assert not np.array_equal(started["fc9_1"][0], after["fc9_1"][0])


def test_the_same_run_twice_gives_the_same_weights(project):
    settings = {"MIRROR": True, "CROP_JITTER": 0.1}
    for folder in ("one", "two"):
        write_config(project, RUN_FOLDER=folder, **settings)
        assert run_train(project).returncode == 0
    write_config(project, RUN_FOLDER="other", SEED=2, **settings)
    assert run_train(project).returncode == 0
    for name in ("softmax_iter_4.caffemodel", "triplet_iter_4.caffemodel"):
        one, two, other = ((project / folder / name).read_bytes() for folder in ("one", "two", "other"))
        assert one == two != other


def test_both_losses_fall_on_identities_that_differ(project):
    write_config(project, MAX_ITERS=60, SNAPSHOT_ITERS=60, LEARNING_RATE={"softmax": 0.02, "triplet": 0.3},
                 BATCH_SIZE=18, SELECTION="batch-hard", MARGIN=2.0)  # fmt: skip
    assert run_train(project).returncode == 0
    for stage in ("softmax", "triplet"):
        losses = [float(row["loss"]) for row in csv.DictReader((project / "run" / f"{stage}_log.csv").open())]
        assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10]), stage


def test_held_out_identities_are_measured(project):
    deploy = TINY_NET[: TINY_NET.index('layer {\n  name: "fc9"')]
    start = deploy.index('layer {\n  name: "conv1"')
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    (project / "deploy.prototxt").write_text(head + deploy[start:])
    write_config(project, DEPLOY="deploy.prototxt", FEATURE="fc7", HELD_OUT_LIST=hold_out(project))
    result = run_train(project, "--stage", "softmax")
    assert result.returncode == 0, result.stderr
    line = r"^held out   fc7: AUC 0\.\d{4} after the stage \(36 same and 240 different pairs of identities never trained on\)$"
    assert re.search(line, result.stdout, re.MULTILINE), result.stdout


def test_each_stage_trains_on_its_own_list(project):
    lines = (project / "list.txt").read_text().splitlines()
    (project / "few.txt").write_text("\n".join(lines[:12]))
    lists = {"softmax": "few.txt", "triplet": "list.txt"}
    write_config(project, TRAIN_LIST=lists, MAX_ITERS=2)
    said = run_train(project, "--check").stdout
    assert "images     12 of 3 identities" in said and "images     24 of 6 identities" in said
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("images")] == [
        "images     12 of 3 identities (few.txt)", "images     24 of 6 identities (list.txt)"
    ]  # fmt: skip
    write_config(project, TRAIN_LIST=lists, MAX_ITERS=4)
    assert run_train(project, "--resume", "--stage", "triplet").returncode == 0
    write_config(project, TRAIN_LIST={**lists, "triplet": "few.txt"}, MAX_ITERS=6)
    refused(run_train(project, "--resume", "--stage", "triplet"), "content of TRAIN_LIST changed since the run began")


def test_a_held_out_identity_on_the_list_of_any_stage_is_refused_before_the_first(project):
    lines = (project / "list.txt").read_text().splitlines()
    (project / "few.txt").write_text("\n".join(lines[:12]))
    (project / "held.txt").write_text("\n".join(lines[16:]))
    write_config(project, TRAIN_LIST={"softmax": "few.txt", "triplet": "list.txt"}, HELD_OUT_LIST="held.txt")
    for arguments in ((), ("--check",)):
        refused(run_train(project, *arguments), "list.txt has 8 images of identities that "
                f"{project}/held.txt holds out (person4@0.jpg, person4@1.jpg, person4@2.jpg ...): remove these")  # fmt: skip
    write_config(project, TRAIN_LIST="few.txt", HELD_OUT_LIST="held.txt", MAX_ITERS=1)
    assert run_train(project, "--stage", "softmax").returncode == 0


def scores(run, stage):
    """Iteration -> held-out score of a stage, as its table has them."""
    rows = csv.DictReader((run / f"{stage}_held_out.csv").open())
    return {int(row["iteration"]): float(row["TAR@FAR=0.01"]) for row in rows}


def tar_at_one_percent(deploy, weights, project):
    """TAR at FAR 1% of the blob fc7 on held.txt, image by image and pair by pair."""
    net, rows, labels = caffe.Net(str(deploy), caffe.TEST, weights=str(weights)), [], []
    for line in (project / "held.txt").read_text().splitlines():
        name, label = line.split()
        net.blobs["data"].data[0] = to_blob(read_image(str(project / "images" / name)), Preprocessing(0, 12, [102.9801, 115.9465, 122.7717]))
        net.forward()
        rows.append(net.blobs["fc7"].data[0].copy())
        labels.append(label)
    pairs = list(itertools.combinations(range(len(rows)), 2))
    same, different = (
        sorted(float(((rows[i] - rows[j]) ** 2).sum()) for i, j in pairs if (labels[i] == labels[j]) == wanted)
        for wanted in (True, False)
    )
    return np.mean(np.array(same) < different[len(different) // 100])


def test_held_out_scores_begin_before_the_first_iteration_and_outlive_a_resume(project):
    rng = np.random.default_rng(1)
    for label in range(12):  # 1,056 different pairs, of which 1% can be measured
        colour = rng.integers(40, 215, 3)
        for number in range(4):
            image = np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(project / "images" / f"held{label}@{number}.jpg"), image)
    (project / "held.txt").write_text("".join(f"held{label}@{n}.jpg {label}\n" for label in range(12) for n in range(4)))
    trunk = TINY_NET[TINY_NET.index('layer {\n  name: "conv1"') : TINY_NET.index('layer {\n  name: "fc9"')]
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    tail = 'layer { name: "fc9_1" type: "InnerProduct" bottom: "fc7" top: "fc9_1" inner_product_param { num_output: 8 } }\n'
    (project / "deploy.prototxt").write_text(head + trunk + tail)
    settings = {"DEPLOY": "deploy.prototxt", "FEATURE": {"softmax": "fc7", "triplet": "fc9_1"}, "HELD_OUT_LIST": "held.txt",
                "KEEP_SNAPSHOTS": 1, "LEARNING_RATE": {"softmax": 0.01, "triplet": 1e-12}}  # fmt: skip
    write_config(project, **settings)
    assert run_train(project).returncode == 0
    fresh, triplet = (scores(project / "run", stage) for stage in ("softmax", "triplet"))
    assert list(fresh) == [2, 4]  # before them, every weight was random
    assert list(triplet) == [0, 2, 4] and triplet[0] == triplet[2] == triplet[4] > 0  # at a rate that changes nothing

    weights = project / "run" / "softmax_iter_4.caffemodel"
    finetune = {**settings, "STAGES": ["softmax"], "RUN_FOLDER": "again", "WEIGHTS": str(weights)}
    write_config(project, **finetune, MAX_ITERS=2)
    assert run_train(project).returncode == 0
    first = scores(project / "again", "softmax")
    assert list(first) == [0, 2] and first[0] == fresh[4]
    assert first[0] == pytest.approx(tar_at_one_percent(project / "deploy.prototxt", weights, project))
    write_config(project, **finetune, MAX_ITERS=6)
    assert run_train(project, "--resume").returncode == 0
    then = scores(project / "again", "softmax")
    assert list(then) == [0, 2, 4, 6] and then == {**then, **first}

    # Killed before the last score was in the table: it comes from the snapshot.
    table = project / "again" / "softmax_held_out.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    write_config(project, **finetune, MAX_ITERS=8)
    assert run_train(project, "--resume").returncode == 0
    assert scores(project / "again", "softmax") == {**then, 8: scores(project / "again", "softmax")[8]}


def test_the_curves_show_the_score_before_the_first_iteration(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    table = {"iteration": [1, 2, 3], "learning_rate": [1, 1, 1], "loss": [3, 2, 1]}
    plots.curves(str(tmp_path / "curves.png"), "a run", table, [[0, 0.5], [2, 0.75]], "TAR")
    [axes] = [axes for axes in drawn[0].axes if axes.get_ylabel() == "held out"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0.5], [2, 0.75]])
    low, high = axes.get_xlim()
    assert low < 0 and high > 3


def test_a_snapshot_whose_embeddings_are_nan_has_no_score_and_is_said_to_be_broken(project):
    deploy = TINY_NET[: TINY_NET.index('layer {\n  name: "fc9"')]
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    root = 'layer { name: "root" type: "Power" bottom: "fc7" top: "root" power_param { power: 0.5 shift: -1e9 } }\n'
    (project / "deploy.prototxt").write_text(head + deploy[deploy.index('layer {\n  name: "conv1"') :] + root)
    write_config(project, DEPLOY="deploy.prototxt", FEATURE="root", HELD_OUT_LIST=hold_out(project), MAX_ITERS=4, SNAPSHOT_ITERS=2)
    result = run_train(project, "--stage", "softmax")
    broken = "the blob 'root' is NaN or infinite for the image held_person0@0.jpg"
    assert result.returncode == 1 and f"train.py: {broken}" in result.stderr
    for number in (2, 4):
        assert f"no score   for iteration {number}: {broken}" in result.stdout
        assert json.loads((project / "run" / f"softmax_iter_{number}.json").read_text())["held_out"] is None


def test_stages_one_by_one_and_finetuning_with_a_renamed_layer(project):
    assert run_train(project, "--stage", "softmax").returncode == 0
    assert run_train(project, "--stage", "triplet").returncode == 0
    replace(project / "net.prototxt", '"fc9"', '"fc9_mine"')
    write_config(project, RUN_FOLDER="again", WEIGHTS="run/softmax_iter_4.caffemodel", STAGES=["softmax"])
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert "loaded   conv1, bn1, fc7\n  fresh    fc9_mine" in result.stdout


def test_finetuning_on_other_identities_starts_the_classifier_fresh_and_counts_its_outputs(project):
    replace(project / "net.prototxt", "num_output: 6", "")
    assert run_train(project, "--stage", "softmax").returncode == 0
    lines = (project / "list.txt").read_text().splitlines()
    (project / "list.txt").write_text("\n".join(lines[:20]))  # 5 of the 6 identities
    write_config(project, RUN_FOLDER="again", WEIGHTS="run/softmax_iter_4.caffemodel", STAGES=["softmax"])
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert "loaded   conv1, bn1, fc7\n  fresh    fc9_5\n  renamed  fc9 to fc9_5" in result.stdout
    assert caffemodel.weight_shapes(str(project / "again" / "softmax_iter_4.caffemodel"))["fc9_5"][0] == (5, 16)


def test_a_cosine_classifier_learns(project):
    text = (project / "net.prototxt").read_text()
    start, end = text.index('  name: "fc9" type'), text.index('layer { name: "accuracy"')
    cosine = """  name: "fc9" type: "Python" bottom: "fc7" bottom: "labels" top: "fc9" include { stage: "softmax" }
  python_param { module: "tripletloss.layers" layer: "CosineLayer" } }
"""
    (project / "net.prototxt").write_text(text[:start] + cosine + text[end:])
    write_config(project, STAGES=["softmax"], MAX_ITERS=60, SNAPSHOT_ITERS=60, LEARNING_RATE=0.05, BATCH_SIZE=18)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    losses = [float(row["loss"]) for row in csv.DictReader((project / "run" / "softmax_log.csv").open())]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert caffemodel.weight_shapes(str(project / "run" / "softmax_iter_60.caffemodel"))["fc9"] == [(6, 16)]


def test_hdf5_snapshots_start_the_next_stage(project):
    (project / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed" snapshot_format: HDF5\n')
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert "softmax_iter_4.caffemodel.h5\n  loaded   conv1, bn1, fc7" in result.stdout
    with h5py.File(project / "run" / "softmax_iter_4.caffemodel.h5") as before, h5py.File(
        project / "run" / "triplet_iter_4.caffemodel.h5"
    ) as after:
        np.testing.assert_array_equal(before["data/fc7/0"], after["data/fc7/0"])


def test_a_net_of_2015_is_trained_as_it_stands(project):
    """Its module names, its param_str, frozen by hand, no stage rules, one bottom for the selection."""
    (project / "net.prototxt").write_text("""
        layer { name: 'data' type: 'Python' top: 'data' top: 'labels'
          python_param { module: 'datalayer' layer: 'DataLayer' } }
        layer { name: "fc7" type: "InnerProduct" bottom: "data" top: "fc7"
          param { lr_mult: 0 } param { lr_mult: 0 }
          inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
        layer { name: "drop7" type: "Dropout" bottom: "fc7" top: "fc7" }
        layer { name: "norm2" type: "Python" bottom: "fc7" top: "norm2"
          python_param { module: 'norm2layer' layer: 'Norm2Layer' param_str: "" } }
        layer { name: "fc9_1" type: "InnerProduct" bottom: "norm2" top: "fc9_1"
          inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
        layer { name: "triplet_select" type: "Python" bottom: "fc9_1"
          top: "archor" top: "positive" top: "negative"
          python_param { module: 'tripletselectlayer' layer: 'TripletSelectLayer' } }
        layer { name: "tripletloss" type: "Python" bottom: "archor" bottom: "positive" bottom: "negative" top: "loss"
          loss_weight: 1
          python_param { module: 'tripletlosslayer' layer: 'TripletLayer' param_str: "'margin': 0.3" } }
    """)
    write_config(project, STAGES=["triplet"], BATCHES="anchor", FREEZE=None)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert "frozen     fc7" in result.stdout and "layer tripletloss sets MARGIN to 0.3" in result.stdout
    assert "layer triplet_select sets SELECTION to rank-paired" in result.stdout
    assert "triplets   rank-paired, margin 0.3" in result.stdout


def test_interrupting_finishes_the_iteration_and_keeps_the_weights(project):
    write_config(project, MAX_ITERS=10**6, SNAPSHOT_ITERS=10**6)
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(project / "config.py"), "--stage", "softmax"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = project / "run" / "softmax_log.csv"
    deadline = time.time() + 60
    while not (log.exists() and log.stat().st_size > 1000) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "train.py: stopped after iteration" in errors
    assert len(list((project / "run").glob("softmax_iter_*.caffemodel"))) == 1


def test_a_finished_stage_is_not_overwritten(project):
    assert run_train(project, "--stage", "softmax").returncode == 0
    refused(run_train(project, "--stage", "softmax"), "already has snapshots of a softmax stage: resume it with --resume, set RUN_FOLDER")


def test_after_a_refusal_the_same_folder_is_used_once_the_input_is_mended(project):
    write_config(project, LEARNING_RATE=1e30)
    refused(run_train(project, "--stage", "softmax"), "lower LEARNING_RATE")
    write_config(project)
    bad_label(project)
    refused(run_train(project, "--stage", "softmax"), "has label 6")
    replace(project / "net.prototxt", "num_output: 6", "num_output: 7")
    assert run_train(project, "--stage", "softmax").returncode == 0


def bad_label(p):
    replace(p / "list.txt", "person5@3.jpg 5", "person6@3.jpg 6")
    (p / "images" / "person5@3.jpg").rename(p / "images" / "person6@3.jpg")


def one_identity(p):
    lines = (p / "list.txt").read_text().splitlines()[:4]
    (p / "list.txt").write_text("\n".join(lines) + "\n")


def cut_image(p):
    path = p / "images" / "person2@1.jpg"
    path.write_bytes(path.read_bytes()[:300])


def margins_that_differ(p):
    for layer, margin in (("TripletSelectLayer", 0.3), ("TripletLossLayer", 0.2)):
        replace(p / "net.prototxt", f'layer: "{layer}"', f'layer: "{layer}" param_str: "{{margin: {margin}}}"')


def in_config(**changes):
    return lambda p: write_config(p, **changes)


def with_weights(content):
    def change(p):
        (p / "w.caffemodel").write_bytes(content)
        write_config(p, WEIGHTS={"softmax": "w.caffemodel"})

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: replace(p / "list.txt", "person0@1.jpg 0", "person0@1.jpg"), "list.txt, line 2: 'person0@1.jpg' is not"),
        (lambda p: replace(p / "list.txt", "person0@1.jpg 0", "person0@1.jpg x"), "line 2: the label 'x' is not a whole number"),
        (lambda p: replace(p / "list.txt", "person0@1.jpg 0", "person0@1.jpg -1"), "line 2: the label -1"),
        (one_identity, "only one identity"),
        (bad_label, "the image person6@3.jpg has label 6, but 'fc9' has 6 outputs, for labels 0 to 5"),
        (lambda p: (p / "images" / "person1@1.jpg").unlink(), "names the image person1@1.jpg, but there is no"),
        (cut_image, "person2@1.jpg is"),
        (lambda p: (p / "images" / "person2@1.jpg").write_text("hello"), "person2@1.jpg is not an image"),
        (in_config(WEIGHTS={"softmax": "none.caffemodel"}), "WEIGHTS is {0}/none.caffemodel, which does not exist: correct it in the config file"),
        (in_config(DEPLOY="none.prototxt"), "DEPLOY is {0}/none.prototxt, which does not exist"),
        (in_config(SOLVER="none.prototxt"), "SOLVER is {0}/none.prototxt, which does not exist"),
        (in_config(TRAIN_LIST={"triplet": "list.txt"}), "TRAIN_LIST has no value for the softmax stage: add it, or give one value for both"),
        (in_config(HELD_OUT_LIST="none.txt"), "HELD_OUT_LIST is {0}/none.txt, which does not exist"),
        (in_config(IMAGEPATH="nowhere"), "IMAGEPATH is {0}/nowhere, which does not exist"),
        (in_config(NET=""), "NET is '', but must be a path"),
        (with_weights(b"this is no caffemodel, but a text of some length"), "is not a caffemodel, or is cut off"),
        (with_weights(b""), "has no weights, so it is not a caffemodel"),
        (in_net("stride: 2", "strid: 2"), 'net.prototxt, line 9, column'),
        (in_net('name: "fc7" type', 'name: "fc7" typo'), 'net.prototxt, line'),
        (in_net('bottom: "conv1" top: "bn1"', 'bottom: "conv" top: "bn1"'), "layer 'bn1' takes the bottom 'conv', which no layer above makes: did you mean 'conv1'"),
        (in_net('type: "ReLU"', 'type: "Relu"'), "unknown type 'Relu': did you mean 'ReLU'"),
        (in_net('layer: "DataLayer"', 'layer: "DataLayr"'), "layer 'data' wants 'DataLayr' from the Python module"),
        (in_net('"tripletloss.layers" layer: "DataLayer"', '"nowhere" layer: "DataLayer"'), "would run the Python module 'nowhere', which is not from this package: if you trust it, add --allow-module nowhere"),
        (in_net("kernel_size: 3", "kernel_size: 99"), "Caffe stopped in layer 'conv1': Check failed"),
        (in_net("num_output: 8 kernel", "num_output: 0 kernel"), "Caffe stopped in layer 'conv1': Check failed"),
        (in_config(DEVICE="gpu"), "DEVICE asks for GPU 0"),
        (in_config(RUN_FOLDER="list.txt/run"), "cannot be written (Not a directory): set RUN_FOLDER"),
        (in_config(MARGN=3), "there is no setting MARGN: did you mean MARGIN"),
        (in_config(NET="none.prototxt"), "NET is {0}/none.prototxt, which does not exist: correct it in the config file. Paths in it are relative to its folder"),
        (in_config(NET="images"), "images cannot be read (Is a directory)"),
        (in_config(LEARNING_RATE=1e30), "lower LEARNING_RATE"),
        (lambda p: (p / "solver.prototxt").write_text('lr_policy: "fxed"'), "Unknown learning rate policy: fxed"),
        (lambda p: (p / "solver.prototxt").write_text('type: "Adm"'), "the type 'Adm' must be one of SGD"),
        (lambda p: (p / "solver.prototxt").write_text("test_iter: 3"), "remove test_iter"),
        (lambda p: (p / "config.py").unlink(), "config.py cannot be read (No such file"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_and_status_1(project, change, sentence):
    change(project)
    refused(run_train(project, "--stage", "softmax"), sentence.replace("{0}", str(project)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (one_identity, "only one identity"),
        (in_config(BATCH_SIZE=24), "a mini-batch of 24 holds 8 identities x 3 images, but the list has 6 identities: set BATCH_SIZE to at most 18"),
        (in_config(SELECTION="rank-paired"), "set BATCHES to 'anchor'"),
        (margins_that_differ, "layer 'triplet_select' has the margin 0.3 and layer 'tripletloss' has the margin 0.2: give both"),
        (in_net("top: \"loss\" loss_weight: 1", "top: \"loss\""), "no layer has a loss: give the loss layer `loss_weight: 1`"),
        (in_config(FREEZE="fc9_1", STAGES=["triplet"]), "all layers are frozen"),
        (in_config(FREEZE="fc99", STAGES=["triplet"]), "FREEZE names the blob 'fc99'"),
        (in_config(STAGES=["triplet"]), "FREEZE would keep conv1, bn1, fc7"),
        (lambda p: None, "WEIGHTS is '' for the triplet stage, which means the softmax stage's weights, but RUN_FOLDER has none"),
    ],
)  # fmt: skip
def test_bad_input_of_the_triplet_stage(project, change, sentence):
    change(project)
    refused(run_train(project, "--stage", "triplet"), sentence)


def test_weights_of_other_shapes_name_layer_and_both_shapes(project):
    assert run_train(project, "--stage", "softmax").returncode == 0
    replace(project / "net.prototxt", "num_output: 16", "num_output: 17")
    refused(run_train(project, "--stage", "triplet"), "layer 'fc7' is 16x200 and 16 in the weights and 17x200 and 17 in the net")


@pytest.mark.parametrize("kind", ["BINARYPROTO", "HDF5"])
def test_weights_for_a_layer_that_has_none_in_the_net_name_it_and_both_sides(project, kind):
    with open(project / "solver.prototxt", "a") as file:
        file.write(f"snapshot_format: {kind}\n")
    assert run_train(project).returncode == 0
    text = (project / "net.prototxt").read_text()
    start = text.index('layer {\n  name: "fc9_1"')
    end = text.index('layer {\n  name: "triplet_select"')
    layer = 'layer { name: "fc9_1" type: "Power" bottom: "norm2" top: "fc9_1" include { stage: "triplet" } }\n'
    (project / "net.prototxt").write_text(text[:start] + layer + text[end:])
    weights = f"run/triplet_iter_4.caffemodel{'.h5' if kind == 'HDF5' else ''}"
    write_config(project, RUN_FOLDER="again", FREEZE="", STAGES=["triplet"], WEIGHTS=weights)
    refused(run_train(project), "layer 'fc9_1' is 8x16 and 8 in the weights and without parameters in the net: rename")


def test_cut_off_weights_are_refused(project):
    assert run_train(project, "--stage", "softmax").returncode == 0
    path = project / "run" / "softmax_iter_4.caffemodel"
    path.write_bytes(path.read_bytes()[:-1000])
    write_config(project, WEIGHTS={"triplet": "run/softmax_iter_4.caffemodel"})
    refused(run_train(project, "--stage", "triplet"), "softmax_iter_4.caffemodel is not a caffemodel, or is cut off")
