"""Mini-batches that go through the net in passes: what they compute, and what is refused."""

import caffe
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from tests.helpers import TINY_NET, plain_net, refused, run_train, weights, write_config
from tripletloss import layers
from tripletloss.base.errors import InputError
from tripletloss.core.sampling import count_passes
from tripletloss.data.lists import read_list
from tripletloss.data.loader import BatchMaker
from tripletloss.net.definition import for_stage, read_net
from tripletloss.training.passes import Passes, divide

NORM = """layer {
  name: "embedding" type: "Python" bottom: "fc9_1" top: "embedding"
  python_param { module: "tripletloss.layers" layer: "Norm2Layer" } include { stage: "triplet" }
}
"""
ONE_LOSS = """layer {
  name: "loss" type: "Python" bottom: "EMBEDDING" bottom: "labels" top: "loss" loss_weight: 1
  python_param { module: "tripletloss.layers" layer: "BatchTripletLossLayer" } include { stage: "triplet" }
}
"""
FLAT = 'layer { name: "flat" type: "Flatten" bottom: "embedding" top: "flat" include { stage: "triplet" } }\n'
AUGMENTED = {"MIRROR": True, "CROP_JITTER": 0.1, "LIGHT_JITTER": 0.2}
TRIPLETS = {"STAGES": ["triplet"], "FREEZE": "", "FEATURE_CACHE": "", "MAX_ITERS": 10, "SNAPSHOT_ITERS": 10, "MARGIN": 0.5,
            "BATCH_SIZE": 18, "WEIGHTS": "run/softmax_iter_4.caffemodel", "LEARNING_RATE": 0.02, **AUGMENTED}  # fmt: skip


def without_dropout(text):
    start = text.index('layer {\n  name: "drop7"')
    return text[:start] + text[text.index('layer {\n  name: "fc9"') :]


def with_head(text, head):
    """A net whose triplet section ends with other layers behind fc9_1."""
    return text[: text.index('layer {\n  name: "triplet_select"')] + head


@pytest.fixture
def trained(project):
    """The tiny project without dropout, whose BatchNorm has statistics from the softmax stage."""
    (project / "net.prototxt").write_text(without_dropout(TINY_NET))
    write_config(project, STAGES=["softmax"])
    assert run_train(project).returncode == 0
    return project


def train(project, folder, stage="triplet", **settings):
    """The weights of a run with these settings, and what it said."""
    write_config(project, RUN_FOLDER=folder, **settings)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    [path] = (project / folder).glob(f"{stage}_iter_10.caffemodel")
    return weights(path, project / folder / f"{stage}_train.prototxt"), result.stdout


def check_equal(one, other, start):
    """Weights are equal to 1e-5 of the largest of their layer, and have moved by more than a hundred times that."""
    moved = []
    for name in one:
        for a, b, before in zip(one[name], other[name], start.get(name, one[name]), strict=True):
            scale = max(np.abs(a).max(), 1e-2)  # a bias without a gradient has rounding errors only
            assert np.abs(a - b).max() <= 1e-5 * scale, name
            moved.append(np.abs(a - before).max() / scale)
    assert max(moved) > 1e-3


@pytest.mark.parametrize(
    ("head", "selection"),
    [(None, "semi-hard"), (NORM + ONE_LOSS.replace("EMBEDDING", "embedding"), "distance-weighted"),
     (NORM + FLAT + ONE_LOSS.replace("EMBEDDING", "flat"), "batch-hard")],
)  # fmt: skip
def test_triplets_in_passes_train_like_one_large_pass(trained, head, selection):
    net = trained / "net.prototxt"
    if head:
        net.write_text(with_head(net.read_text(), head))
    settings = {**TRIPLETS, "SELECTION": selection, "BATCHNORM": "stored"}
    # All start from one net, as fc9_1 is not among the softmax stage's weights.
    train(trained, "start", **{**settings, "LEARNING_RATE": 1e-9})
    settings["WEIGHTS"] = "start/triplet_iter_10.caffemodel"
    start = weights(trained / settings["WEIGHTS"], trained / "start" / "triplet_train.prototxt")
    whole, _ = train(trained, "whole", **settings)
    for images in (9, 2):
        found, said = train(trained, f"of{images}", PASS_IMAGES=images, **settings)
        assert f"in passes of {images}" in said
        check_equal(whole, found, start)
    logs = [(trained / run / "triplet_log.csv").read_text().splitlines() for run in ("whole", "of2")]
    columns = logs[0][0].split(",")
    for one, other in zip(*(log[1:] for log in logs), strict=True):
        for column, a, b in zip(columns, one.split(","), other.split(","), strict=True):
            if column not in ("images_per_s", "data_seconds"):
                assert float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-5), column
    assert (trained / "of2" / "triplet_embeddings.csv").read_text().count("\n") == 2  # of all 18 rows, in iteration 10
    looks = [(trained / run / "triplet_embeddings.csv").read_text().splitlines()[1].split(",") for run in ("whole", "of2")]
    np.testing.assert_allclose(*(np.array(look, float) for look in looks), rtol=1e-3)


@pytest.mark.parametrize("classifier", ["InnerProduct", "CosineLayer"])
def test_the_softmax_stage_in_passes_trains_like_one_large_pass(trained, classifier):
    net = plain_net()
    if classifier == "CosineLayer":
        start = net.index('layer {\n  name: "fc9"')
        net = net[:start] + """layer {
  name: "fc9" type: "Python" bottom: "fc7" bottom: "labels" top: "fc9"
  python_param { module: "tripletloss.layers" layer: "CosineLayer" } include { stage: "softmax" }
}
""" + net[net.index('layer { name: "accuracy"') :]
    (trained / "net.prototxt").write_text(net)
    settings = {**TRIPLETS, "STAGES": ["softmax"], "WEIGHTS": "", "LEARNING_RATE": 1e-4}
    start, _ = train(trained, "start", "softmax", **{**settings, "LEARNING_RATE": 1e-12})
    whole, _ = train(trained, "whole", "softmax", **settings)
    found, _ = train(trained, "passes", "softmax", PASS_IMAGES=6, **settings)
    check_equal(whole, found, start)


def test_features_that_were_computed_before_train_in_passes_like_at_once(trained):
    settings = {**TRIPLETS, "FREEZE": "conv1", "FEATURE_CACHE": "cache", "BATCHNORM": "stored"}
    write_config(trained, RUN_FOLDER="start", **settings)
    assert run_train(trained).returncode == 0
    settings["WEIGHTS"] = "start/triplet_iter_10.caffemodel"
    found = []
    for images in (0, 6):
        write_config(trained, RUN_FOLDER=f"of{images}", PASS_IMAGES=images, **settings)
        result = run_train(trained)
        assert result.returncode == 0 and "features   bn1 of 24 images" in result.stdout, result.stderr
        net = trained / f"of{images}" / "triplet_train.prototxt"
        assert "FeatureLayer" in net.read_text()
        found.append(weights(trained / f"of{images}" / "triplet_iter_10.caffemodel", net))
    check_equal(*found, weights(trained / settings["WEIGHTS"], net))


def test_gradients_with_dropout_are_those_of_finite_differences(project):
    """Each pass has the same dropout when it goes forward the second time."""
    write_config(project, **{**TRIPLETS, "WEIGHTS": "", "BATCHNORM": "batch", "SELECTION": "batch-all", "MARGIN": 4.0})
    assert run_train(project).returncode == 0
    settings = {"BATCH_SIZE": 18, "RANKS": 1, "PASS_IMAGES": 6, "SEED": 1, "NET": "net"}
    prototxt = project / "run" / "triplet_train.prototxt"
    prototxt.write_text(prototxt.read_text().replace("pass_images: 0", "pass_images: 6"))
    solver = caffe.get_solver(str(project / "run" / "triplet_solver.prototxt"))
    solver.net.copy_from(str(project / "run" / "triplet_iter_10.caffemodel"))
    passes = Passes(solver, read_net(str(prototxt)), settings, 0, 1)
    assert passes.count == 3 and solver.net.blobs["bn1"].data.shape[0] == 6

    def loss():
        layers.start_at(solver.net, 0)
        passes.compute()
        return float(solver.net.blobs["loss"].data)

    value = loss()
    assert value > 0 and solver.net.blobs["fc9_1"].data.shape[0] == solver.net.blobs["labels"].data.shape[0] == 18
    for name in ("conv1", "fc7", "fc9_1"):
        blob = solver.net.params[name][0]
        assert loss() == value
        gradient, before = blob.diff.copy(), blob.data.copy()
        size = np.sqrt(np.square(gradient).sum())
        step = 2e-3 * np.abs(before).max() / np.abs(gradient).max()
        sides = []
        for sign in (1, -1):
            blob.data[...] = before + sign * step * gradient
            sides.append(loss())
        blob.data[...] = before
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(size**2, rel=0.02), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_in_passes_is_resumed_to_the_same_bits(project, workers):
    settings = {**TRIPLETS, "WEIGHTS": "", "SELECTION": "distance-weighted", "PASS_IMAGES": 6, "WORKERS": workers}
    net = project / "net.prototxt"
    net.write_text(with_head(net.read_text(), NORM + ONE_LOSS.replace("EMBEDDING", "embedding")))
    (project / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed" iter_size: 2\n')
    write_config(project, RUN_FOLDER="whole", **settings)
    assert run_train(project).returncode == 0
    for end in (5, 10):
        write_config(project, RUN_FOLDER="halves", **{**settings, "MAX_ITERS": end})
        assert run_train(project, "--resume").returncode == 0
    one, other = ((project / run / "triplet_iter_10.caffemodel").read_bytes() for run in ("whole", "halves"))
    assert one == other
    write_config(project, RUN_FOLDER="halves", **{**settings, "MAX_ITERS": 20, "PASS_IMAGES": 9})
    refused(run_train(project, "--resume"), "PASS_IMAGES changed from 6 to 9")


@pytest.mark.parametrize("batches", ["identities", "anchor", "shuffled"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_passes_are_the_parts_of_the_mini_batch_with_the_same_pixels(project, batches, ranks):
    if (batches, ranks) == ("anchor", 2):
        return
    keys = layers.DataLayer.keys
    settings = {key: default for key in keys if (default := layers.settings.SCHEMA[key.upper()].default) is not None}
    settings.update(train_list=str(project / "list.txt"), imagepath=str(project / "images"), batches=batches, batch_size=12,
                    images_per_identity=3, image_size=12, mirror=True, crop_jitter=0.3, ranks=ranks)  # fmt: skip
    listed = read_list(settings["train_list"], settings["imagepath"])
    whole, parts = (BatchMaker({**settings, "pass_images": images}, listed) for images in (0, 2))
    count = 12 // ranks // 2
    assert (whole.passes, parts.passes, parts.shape) == (1, count, (2, 3, 12, 12))
    for iteration in (0, 3):
        numbers = range(iteration * count, (iteration + 1) * count)
        found = np.concatenate([parts.pixels(number) for number in numbers])
        np.testing.assert_array_equal(found, whole.pixels(iteration))
        np.testing.assert_array_equal(
            np.concatenate([parts.labels(number) for number in numbers]), whole.labels(iteration)
        )


def test_the_number_of_passes():
    assert [count_passes(240, 1, images) for images in (0, 8, 240, 500)] == [1, 30, 1, 1]
    assert count_passes(240, 4, 20) == 3
    with pytest.raises(InputError, match=r"PASS_IMAGES 50 does not divide the BATCH_SIZE 240: set it to 48"):
        count_passes(240, 1, 50)
    with pytest.raises(InputError, match=r"share of 60 images of each of 4 processes: set it to 30"):
        count_passes(240, 4, 40)


AUXILIARY = """layer {
  name: "side" type: "InnerProduct" bottom: "conv1" top: "side" inner_product_param { num_output: 1 }
  include { stage: "triplet" }
}
"""


@pytest.mark.parametrize(
    ("net", "settings", "sentence"),
    [
        (TINY_NET + AUXILIARY, {}, "layer 'side' takes more than 'fc9_1' and 'labels'"),
        (TINY_NET.replace('bottom: "fc9_1" bottom: "labels"', 'bottom: "fc9_1"'),
         {"BATCHES": "anchor", "SELECTION": "rank-paired"}, "PASS_IMAGES needs a net that begins with a DataLayer"),
        (TINY_NET, {"PASS_IMAGES": 5}, "PASS_IMAGES 5 does not divide the BATCH_SIZE 18: set it to 3"),
        (TINY_NET, {"PASS_IMAGES": -1}, "PASS_IMAGES is -1, but must be a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_run_in_passes_is_refused(project, net, settings, sentence):
    (project / "net.prototxt").write_text(net)
    write_config(project, **{**TRIPLETS, "WEIGHTS": "", "PASS_IMAGES": 6, **settings})
    refused(run_train(project), sentence)


def test_a_net_is_divided_at_the_embedding_or_at_the_feature_of_the_classifier():
    net = caffe_pb2.NetParameter()
    text_format.Parse(TINY_NET, net)
    for stage, division in (("triplet", ("fc9_1", "labels", "fc9_1")), ("softmax", ("fc7", "labels", "drop7"))):
        assert divide(for_stage(net, caffe.TRAIN, stage), "net") == division


def test_check_tries_a_stage_in_passes(trained):
    write_config(trained, PASS_IMAGES=6, BATCHNORM="stored", **TRIPLETS)
    result = run_train(trained, "--check")
    assert result.returncode == 0 and "in passes of 6" in result.stdout and "no gradient" not in result.stdout


@pytest.mark.parametrize("images", [0, 6])
def test_stored_statistics_stay_as_the_weights_have_them(trained, images):
    settings = {**TRIPLETS, "PASS_IMAGES": images}
    before = weights(trained / "run" / "softmax_iter_4.caffemodel", trained / "run" / "softmax_train.prototxt")["bn1"]
    for mode in ("stored", "batch"):
        after, said = train(trained, mode, BATCHNORM=mode, **settings)
        assert [np.array_equal(a, b) for a, b in zip(after["bn1"], before, strict=True)] == [mode == "stored"] * 3
        assert "batchnorm" not in said


def test_batchnorm_without_stored_statistics_uses_the_mini_batchs_and_the_plan_says_so(trained):
    (trained / "net.prototxt").write_text((trained / "net.prototxt").read_text().replace('name: "bn1"', 'name: "bn1_new"'))
    found, said = train(trained, "fresh", BATCHNORM="stored", **TRIPLETS)
    assert "batchnorm  a mini-batch's statistics in bn1_new" in said and found["bn1_new"][2][0] > 0
