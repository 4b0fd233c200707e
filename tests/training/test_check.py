"""What --check and the start of a run find: each kind of problem is made, and must be told."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.helpers import (
    ROOT,
    TINY_NET,
    few_people,
    hold_out,
    in_net,
    lines_for_config,
    list_faces,
    refused,
    replace,
    run_train,
    write_config,
)
from tripletloss import config
from tripletloss.base.files import amount
from tripletloss.training import folder
from tripletloss.training.plan import layers_text, on_a_screen


def advice(project, *arguments, **changes):
    if changes:
        write_config(project, **changes)
    result = run_train(project, "--check", *arguments)
    assert result.returncode == 0, result.stderr
    assert not (project / "run").exists()
    return result.stdout


def test_a_sound_project_gets_its_plan_and_no_advice(project):
    said = advice(project, MAX_ITERS=8)
    assert "advice" not in said
    for line in ("epochs     4: 96 images shown", "sizes      shorter side in pixels, of all: below 32: 24",
                 "time       about", " kB for snapshots; ", "embedding  conv1 > bn1 > fc7 > norm2 > fc9_1; normalised by norm2"):  # fmt: skip
        assert line in said, line


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (15_400, "15 kB"), (4_210_000, "4.2 MB"), (1.26e12, "1260 GB")],
)
def test_amounts_of_bytes_are_never_rounded_to_nothing(count, text):
    assert amount(count) == text


def test_a_long_plan_fits_on_a_screen_and_keeps_its_advice():
    lines = [f"line {number}" for number in range(14)]
    assert on_a_screen(lines, "/run/softmax_plan.txt") == lines
    long = [*lines, *lines, *(f"advice     {number}" for number in range(4))]
    shown = on_a_screen(long, "/run/softmax_plan.txt")
    assert len(shown) == 20 and shown[:15] == long[:15] and shown[15:19] == long[-4:]
    assert shown[-1] == "more       13 lines are in /run/softmax_plan.txt"
    assert len(on_a_screen([*lines, *long[-4:] * 9], "plan.txt")) == 20


def test_a_long_row_of_layers_is_shown_by_its_ends():
    order = ["conv1", *(f"conv{i}" for i in range(2, 14)), "fc6", "fc7", "fc9"]
    assert layers_text(order[:13], order) == "conv1 to conv13 (13 layers)"
    assert layers_text([*order[10:], "conv2", "conv1"], order) == "conv1, conv2, conv11 to fc9 (6 layers)"
    assert layers_text([name for name in order if name != "conv5"], order) == "conv1, conv2, conv3, conv4, conv6 to fc9 (11 layers)"
    assert layers_text(order[1::2], order) == "8 of the 15 layers from conv2 to fc9"
    assert layers_text([], order) == "none"


def test_a_run_folder_that_a_run_would_refuse_is_refused(project):
    (project / "run").mkdir()
    (project / "run" / "triplet_iter_4.caffemodel").write_bytes(b"weights")
    for arguments in ((), ("--stage", "triplet")):
        said = [run_train(project, *more, *arguments) for more in ((), ("--check",))]
        for result in said:
            refused(result, "run already has snapshots of a triplet stage: resume it with --resume, set RUN_FOLDER")
        assert said[0].stderr == said[1].stderr
    for arguments in (("--stage", "softmax"), ("--resume",)):
        assert run_train(project, "--check", *arguments).returncode == 0
    write_config(project, RUN_FOLDER="list.txt/run/a")
    refused(run_train(project, "--check"), "list.txt is not a folder): set RUN_FOLDER")
    assert sorted(path.name for path in (project / "run").iterdir()) == [".lock", "triplet_iter_4.caffemodel"]


def test_faces_that_were_cut_for_another_model_are_not_trained_on(project):
    (project / "images" / "cut_for.txt").write_text("dlib_resnet\n")
    for arguments in ((), ("--check",)):
        refused(run_train(project, *arguments), "images were cut for dlib_resnet, but ALIGNMENT is 'face997': cut them again")
    write_config(project, ALIGNMENT="dlib_resnet")
    assert run_train(project, "--check").returncode == 0


def test_a_run_folder_in_which_a_run_is_at_work_is_refused(project):
    lock = folder.claim_folder(str(project / "run"), ["softmax"], False)
    refused(run_train(project, "--check"), "another run is at work in ")
    lock.close()
    assert run_train(project, "--check").returncode == 0


def copy(p, one, two):
    (p / "images" / two).write_bytes((p / "images" / one).read_bytes())


def small(p):
    cv2.imwrite(str(p / "images" / "person1@2.jpg"), np.full((5, 9, 3), 90, np.uint8))


def few(p):
    lines = (p / "list.txt").read_text().splitlines()
    (p / "list.txt").write_text("\n".join(lines[:21]) + "\n")  # of the last identity, one


def leak(p):
    write_config(p, HELD_OUT_LIST=hold_out(p))


def duplicates(p):
    copy(p, "person0@1.jpg", "person0@2.jpg")
    copy(p, "person0@1.jpg", "person4@2.jpg")


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ([duplicates, small, few, leak], [
            "identical files of one identity (1): person0@2.jpg = person0@1.jpg",
            "identical files of two identities, so a label is wrong (1): person4@2.jpg = person0@1.jpg",
            "images of less than half of IMAGE_SIZE 12 per side, which are enlarged (1): person1@2.jpg",
            "1 of 6 identities have fewer than IMAGES_PER_IDENTITY 3 images, so these repeat in a mini-batch; 1 of them",
            "held-out images that are trained on, so figures are too good (21): ",
        ]),
        ([lambda p: replace(p / "list.txt", ".jpg 4", ".jpg 9"), in_net("num_output: 6", "num_output: 10")], [
            "list.txt has no image for 4 of the labels up to 9 (the first is 4), whose outputs learn nothing: number the identities from 0",
        ]),
        ([lambda p: write_config(p, MAX_ITERS=1, CROP=20)], [
            "training ends before it has seen every image once: raise MAX_ITERS to 2", "images smaller than CROP 20 (24): ",
        ]),
        ([in_net('bottom: "norm2" top: "fc9_1"', 'bottom: "fc7" top: "fc9_1"'),
          in_net('name: "fc9_1" type: "InnerProduct"', 'name: "fc9_1" type: "InnerProduct" param { lr_mult: 0 } param { lr_mult: 1 }'),
          in_net('name: "fc7" type: "InnerProduct"', 'name: "fc7" type: "InnerProduct" param { lr_mult: 1 } param { lr_mult: 20 }')], [
            "nothing normalises the embedding", "fc9_1 has lr_mult 0 for the weights but not for the bias: freeze both or neither",
            "the bias of fc7 learns 20 times as fast",
        ]),
    ],
    ids=["images", "labels", "settings", "net"],
)  # fmt: skip
def test_problems_are_named_and_stop_nothing(project, changes, sentences):
    for change in changes:
        change(project)
    said = advice(project)
    assert [sentence for sentence in sentences if sentence not in said] == [], said


@pytest.mark.parametrize("people", [3, 4])
def test_what_dataset_writes_for_a_handful_of_people_can_be_trained_on(project, people):
    few_people(project / "faces", [2] * people)
    result = list_faces(project / "faces", "--out", project)
    assert result.returncode == 0, result.stderr
    settings = lines_for_config(result.stdout)
    assert bool(settings["HELD_OUT_LIST"]) == (people == 4)
    per = config.load(str(ROOT / "config.py"))["IMAGES_PER_IDENTITY"]
    said = advice(project, **{**settings, "RUN_FOLDER": "run", "IMAGES_PER_IDENTITY": per})
    assert f"images     {2 * people - 4 * (people == 4)} of" in said


@pytest.mark.parametrize(
    ("settings", "warns"),
    [({"FREEZE": ""}, True), ({"FREEZE": {"triplet": "fc7"}}, False), ({"FREEZE": "", "SELECTION": "semi-hard"}, False)],
)
def test_batch_hard_selection_for_convolutions_is_advised_against(project, settings, warns):
    write_config(project, MAX_ITERS=4, **{"SELECTION": "batch-hard", "MARGIN": 0.4, **settings})
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    advice = "advice     with batch-hard selection, conv1 and what is above it are likely to move all embeddings to one point"
    assert (f"{advice}, where the loss is MARGIN / 2 = 0.2: set SELECTION to 'semi-hard'" in result.stdout) == warns


@pytest.mark.parametrize(
    ("settings", "warns"),
    [({"FREEZE": ""}, True), ({"FREEZE": {"triplet": "fc7"}}, False), ({"FREEZE": "", "WEIGHTS": {"triplet": ""}}, False)],
)
def test_few_identities_are_advised_against_where_convolutions_with_weights_learn_from_triplets(softmax, settings, warns):
    given = {"STAGES": ["triplet"], "WEIGHTS": "run/softmax_iter_4.caffemodel", "RUN_FOLDER": "again", "SELECTION": "semi-hard"}
    write_config(softmax, MAX_ITERS=2, **{**given, **settings})
    result = run_train(softmax)
    assert result.returncode == 0, result.stderr
    said = "6 identities are few for conv1 and what is above it to learn from triplets"
    assert (f"advice     {said}" in result.stdout) == warns, result.stdout


def test_a_label_for_which_the_classifier_is_too_large_is_blamed(project):
    replace(project / "list.txt", ".jpg 4", ".jpg 16777215")
    replace(project / "net.prototxt", "num_output: 6 ", "")
    replace(project / "net.prototxt", "num_output: 16", "num_output: 256")
    refused(run_train(project, "--check", "--stage", "softmax"), "blob size exceeds INT_MAX; ")
    refused(run_train(project, "--check", "--stage", "softmax"), "no image for 16777210 of the labels up to 16777215 (the first is 4)")


def test_a_layer_that_passes_no_gradient_is_named(project):
    (project / "wall.py").write_text(
        "import caffe\n\n\nclass Wall(caffe.Layer):\n    def setup(self, bottom, top):\n        pass\n\n"
        "    def reshape(self, bottom, top):\n        top[0].reshape(*bottom[0].shape)\n\n"
        "    def forward(self, bottom, top):\n        top[0].data[...] = bottom[0].data\n\n"
        "    def backward(self, top, propagate_down, bottom):\n        bottom[0].diff[...] = 0\n"
    )
    wall = 'layer { name: "wall" type: "Python" bottom: "fc7" top: "wall" python_param { module: "wall" layer: "Wall" } }\n'
    text = TINY_NET.replace('layer {\n  name: "fc9" type: "InnerProduct" bottom: "fc7"',
                            wall + 'layer {\n  name: "fc9" type: "InnerProduct" bottom: "wall"')  # fmt: skip
    (project / "net.prototxt").write_text(text)
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config", str(project / "config.py"), "--check", "--stage", "softmax",
         "--allow-module", "wall"],
        capture_output=True, text=True, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, timeout=120,
    )  # fmt: skip
    assert "no gradient reaches conv1, fc7, which should learn: wall passes none on" in result.stdout, result.stderr


def test_a_deploy_net_whose_layer_differs_is_an_error(project):
    deploy = TINY_NET[: TINY_NET.index('layer {\n  name: "fc9"')]
    head = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }\n'
    body = deploy[deploy.index('layer {\n  name: "conv1"') :]
    (project / "deploy.prototxt").write_text(head + body)
    replace(project / "deploy.prototxt", "kernel_size: 3 stride: 2", "kernel_size: 3 stride: 2 dilation: 1")
    write_config(project, DEPLOY="deploy.prototxt", FEATURE="fc7", HELD_OUT_LIST=hold_out(project))
    refused(run_train(project, "--check", "--stage", "softmax"), "deploy.prototxt: layer 'conv1' is convolution_param")


def test_broken_images_are_an_error_at_the_start_or_are_counted(project):
    path = project / "images" / "person2@1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    refused(run_train(project, "--check"), "is cut off: replace it, or leave it out, or set BROKEN_IMAGES to 'skip'")
    (project / "images" / "person3@1.jpg").unlink()
    said = advice(project, BROKEN_IMAGES="skip")
    assert "images that cannot be read and are skipped (2): " in said


@pytest.mark.parametrize(("workers", "cache"), [(0, "cache"), (2, "")])
def test_skipped_images_are_replaced_listed_and_trained_without(project, workers, cache):
    path = project / "images" / "person2@1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    (project / "images" / "person3@1.jpg").unlink()
    settings = {"BROKEN_IMAGES": "skip", "WORKERS": workers, "FEATURE_CACHE": cache, "MAX_ITERS": 10, "SNAPSHOT_ITERS": 5}
    write_config(project, **settings)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    for stage in ("softmax", "triplet"):
        assert f"broken     2 images were skipped, and others of their identities stood in: {project / 'run' / stage}_broken.txt" in result.stdout
        lines = (project / "run" / f"{stage}_broken.txt").read_text().splitlines()
        assert sorted(line.split("\t")[0] for line in lines) == ["person2@1.jpg", "person3@1.jpg"]
    write_config(project, RUN_FOLDER="again", **{**settings, "WORKERS": 2 - workers})
    assert run_train(project).returncode == 0
    for name in ("softmax_iter_10.caffemodel", "triplet_iter_10.caffemodel"):
        assert (project / "run" / name).read_bytes() == (project / "again" / name).read_bytes()


def test_an_identity_without_a_good_image_stops_even_where_images_are_skipped(project):
    for number in range(4):
        (project / "images" / f"person3@{number}.jpg").write_text("no image")
    write_config(project, BROKEN_IMAGES="skip", MAX_ITERS=10)
    refused(run_train(project, "--stage", "softmax"), "and all others of its identity are broken")
