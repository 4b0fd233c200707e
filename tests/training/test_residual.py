"""The residual projection of train.prototxt: it starts as the softmax stage's feature, and decay keeps it there."""

import caffe
import numpy as np
import pytest

from tests.helpers import ROOT, TINY_NET, refused, replace, run_train, weights, write_config
from tripletloss.formats import caffemodel

SOFTMAX = "run/softmax_iter_4.caffemodel"


@pytest.fixture
def residual(project):
    """The tiny project after a softmax stage, with the triplet section of the project's own train.prototxt."""
    section = (ROOT / "train.prototxt").read_text().partition("#== triplet loss")[2].partition("\n")[2]
    trunk = TINY_NET[: TINY_NET.index('layer {\n  name: "norm2"')]
    (project / "net.prototxt").write_text(trunk + section.replace("num_output: 256", "num_output: 16"))
    assert run_train(project, "--stage", "softmax").returncode == 0
    return project


def train_triplets(project, folder, rate, decay):
    write_config(project, STAGES=["triplet"], WEIGHTS=SOFTMAX, RUN_FOLDER=folder, MAX_ITERS=40, SNAPSHOT_ITERS=40,
                 SELECTION="batch-hard", MARGIN=1.0, LEARNING_RATE=rate, WEIGHT_DECAY=decay)  # fmt: skip
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    assert f"learning rate {rate:g}, weight decay {decay:g}, seed 1" in result.stdout


def distance_from_norm2(project, folder, weights):
    """How far the embedding of a mini-batch is from norm2, the largest of all images."""
    net = caffe.Net(str(project / folder / "triplet_train.prototxt"), caffe.TEST, weights=str(project / weights))
    net.forward()
    np.testing.assert_allclose(np.linalg.norm(net.blobs["embedding"].data, axis=1), 1, rtol=1e-5)
    return np.linalg.norm(net.blobs["embedding"].data - net.blobs["norm2"].data, axis=1).max()


def test_the_embedding_starts_as_norm2_and_a_high_decay_returns_it_there(residual):
    """With a rate x decay of 1, the projection is all but lost in every iteration; without decay, it stays."""
    train_triplets(residual, "free", 0.3, 0)
    train_triplets(residual, "held", 0.001, 1000)
    assert distance_from_norm2(residual, "free", SOFTMAX) < 1e-6
    assert distance_from_norm2(residual, "free", "free/triplet_iter_40.caffemodel") > 0.1
    assert distance_from_norm2(residual, "held", "held/triplet_iter_40.caffemodel") < 1e-3
    held = weights(residual / "held" / "triplet_iter_40.caffemodel", residual / "held" / "triplet_train.prototxt")
    assert np.abs(held["fc9_1"][0]).max() > 0  # it did get gradients


def test_a_projection_made_for_another_cnn_is_not_kept(residual):
    """A softmax stage that starts from weights with a projection: the triplet stage after it starts with none."""
    train_triplets(residual, "first", 0.3, 0)
    write_config(residual, RUN_FOLDER="second", WEIGHTS={"softmax": "first/triplet_iter_40.caffemodel"})
    result = run_train(residual)
    assert result.returncode == 0, result.stderr
    assert "fc9_1" not in caffemodel.weight_shapes(str(residual / "second" / "softmax_iter_4.caffemodel"))
    assert "fresh    fc9_1" in result.stdout
    assert "fc9_1" in caffemodel.weight_shapes(str(residual / "second" / "triplet_iter_4.caffemodel"))


def test_a_residual_of_another_width_is_explained(residual):
    replace(residual / "net.prototxt", "num_output: 16 bias_term: false", "num_output: 8 bias_term: false")
    write_config(residual, STAGES=["triplet"], WEIGHTS=SOFTMAX, RUN_FOLDER="narrow")
    refused(run_train(residual), "residual adds fc9_1 to norm2, so give fc9_1 as many outputs as the other has; for fewer,")
