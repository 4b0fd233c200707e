"""A projection that makes fewer numbers than the feature has: it starts as scikit-learn's PCA of the training features."""

import caffe
import numpy as np
import pytest
from sklearn.decomposition import PCA

from tests.helpers import ROOT, TINY_NET, refused, replace, run_train, weights, write_config

SOFTMAX = "run/softmax_iter_4.caffemodel"


@pytest.fixture
def narrow(project):
    """The tiny project after a softmax stage; its triplet section is the project's, edited as its comment says."""
    section = (ROOT / "train.prototxt").read_text().partition("#== triplet loss")[2].partition("\n")[2]
    trunk = TINY_NET[: TINY_NET.index('layer {\n  name: "norm2"')]
    lines = [line for line in section.splitlines() if not line.startswith('layer { name: "residual"')]
    section = "\n".join(lines).replace('bottom: "residual"', 'bottom: "fc9_1"').replace("num_output: 256", "num_output: 5")
    (project / "net.prototxt").write_text(trunk + section)
    assert run_train(project, "--stage", "softmax").returncode == 0
    return project


def train_triplets(project, folder, **changes):
    """A run that hardly moves from where it starts. Returns what it said, and fc9_1's parameters."""
    settings = {"STAGES": ["triplet"], "WEIGHTS": SOFTMAX, "RUN_FOLDER": folder, "FEATURE_CACHE": "cache",
                "LEARNING_RATE": 1e-9, "WEIGHT_DECAY": 0.0005}  # fmt: skip
    write_config(project, **{**settings, **changes})
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    return result.stdout, weights(project / folder / "triplet_iter_4.caffemodel", project / folder / "triplet_train.prototxt")["fc9_1"]


def features(project):
    [path] = (project / "cache").glob("*/features.npy")
    return np.load(path).reshape(-1, 16).astype(np.float64)  # both views of all training images


def test_at_iteration_0_the_embedding_is_the_normalised_pca_projection(narrow):
    said, _ = train_triplets(narrow, "run1")
    assert "start      fc9_1 from the 5 principal components of norm2" in said
    rows = features(narrow)
    projected = rows @ PCA(5, svd_solver="full").fit(rows).components_.T
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    net = caffe.Net(str(narrow / "run1" / "triplet_train.prototxt"), caffe.TEST, weights=str(narrow / "run1/triplet_iter_4.caffemodel"))
    net.forward()
    taken = [np.abs(rows - row).sum(1).argmin() for row in net.blobs["norm2"].data]
    found = net.blobs["embedding"].data
    np.testing.assert_allclose(found @ found.T, (expected @ expected.T)[np.ix_(taken, taken)], atol=1e-4)  # any signs


def test_with_a_bias_it_is_scikit_learns_transform(narrow):
    replace(narrow / "net.prototxt", "num_output: 5 bias_term: false", "num_output: 5")
    _, [matrix, bias] = train_triplets(narrow, "run1", FEATURE_TYPE="float16")
    rows = features(narrow)
    expected = PCA(5, svd_solver="full").fit(rows).transform(rows)
    found = rows @ matrix.T + bias
    np.testing.assert_allclose(found * np.sign((found * expected).sum(0)), expected, atol=1e-5)


def test_two_runs_start_and_end_with_the_same_bits(narrow):
    runs = [train_triplets(narrow, folder, LEARNING_RATE=0.1)[1][0] for folder in ("run1", "run2")]
    assert (runs[0] == runs[1]).all()


def test_without_cached_features_its_filler_decides(narrow):
    said, [matrix] = train_triplets(narrow, "run1", FEATURE_CACHE="")
    assert "principal components" not in said and not matrix.any()


def test_a_projection_wider_than_the_feature_is_refused(narrow):
    replace(narrow / "net.prototxt", "num_output: 5", "num_output: 20")
    write_config(narrow, STAGES=["triplet"], WEIGHTS=SOFTMAX, RUN_FOLDER="wide")
    refused(run_train(narrow), "'fc9_1' makes 20 numbers of the 16 of 'norm2', and more than that add nothing: set its num_output")
