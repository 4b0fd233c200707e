"""Negatives that are hard among all images: what is found, what mini-batches are made of it, and training on them."""

import io
import threading
import time

import caffe
import numpy as np
import pytest

from tests.helpers import losses, run_train, triplet, write_config
from tripletloss import layers
from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.core.distances import hardest_negatives


def test_training_mines_again_with_what_was_learnt(softmax):
    _, plain = triplet(softmax, "plain")
    said, first = triplet(softmax, "first", MINE_ITERS=10)
    assert "around hard negatives, mined every 10 iterations" in said
    _, again = triplet(softmax, "again", MINE_ITERS=10)
    assert losses(first) == losses(again) != losses(plain)
    with np.load(first / "triplet_mined.npz") as last:
        assert last["embeddings"].shape == (24, 8) and last["negatives"].shape == (24, 3)
        late = last["embeddings"]
    _, once = triplet(softmax, "once", MINE_ITERS=1000)
    with np.load(once / "triplet_mined.npz") as early:
        assert not np.allclose(early["embeddings"], late)


def test_mining_counts_iterations_of_several_passes(softmax):
    (softmax / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed" iter_size: 2\n')
    _, folder = triplet(softmax, "passes", MINE_ITERS=10)
    with np.load(folder / "triplet_mined.npz") as last:
        assert last["iteration"] == 40  # the last of 0, 10 and 20 iterations of two passes


def mined_file(iteration):
    """The content of a Miner's file, of the 24 images of a project."""
    x, content = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32), io.BytesIO()
    np.savez(content, iteration=iteration, embeddings=x, negatives=hardest_negatives(x, np.arange(24) // 4, 3))
    return content.getvalue()


def feature_layer(project):
    """A net of a FeatureLayer alone, which waits for mined.npz in its first iteration."""
    np.save(project / "features.npy", np.random.default_rng(0).normal(size=(1, 24, 5)).astype(np.float32))
    settings = {"features": str(project / "features.npy"), "train_list": str(project / "list.txt"),
                "imagepath": str(project / "images"), "batches": "identities", "batch_size": 12,
                "images_per_identity": 3, "mine_iters": 10, "mined": str(project / "mined.npz")}  # fmt: skip
    (project / "features.prototxt").write_text(
        'layer { name: "features" type: "Python" top: "x" top: "labels" python_param { module: "tripletloss.layers" '
        f'layer: "FeatureLayer" param_str: "{settings}" }} }}'
    )
    return caffe.Net(str(project / "features.prototxt"), caffe.TRAIN)


@pytest.mark.parametrize("before", [None, b"", b"PK", mined_file(20)], ids=["missing", "empty", "half", "old"])
def test_training_waits_for_mined_negatives_that_another_machine_sees_late(project, before):
    net = feature_layer(project)
    if before is not None:
        (project / "mined.npz").write_bytes(before)
    writer = threading.Timer(0.5, write_whole, (str(project / "mined.npz"), mined_file(0)))
    start = time.monotonic()
    writer.start()
    net.forward()
    writer.join()
    assert time.monotonic() - start >= 0.5 and len(set(net.blobs["labels"].data)) == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"mined\.npz cannot be read \(No such file or directory\): resume with --resume"),
        (mined_file(20), r"mined\.npz was not mined in iteration 0: resume with --resume"),
    ],
)
def test_mined_negatives_that_never_come_end_in_a_sentence(project, monkeypatch, content, sentence):
    monkeypatch.setattr(layers.data, "LATEST_S", 0.3)
    net = feature_layer(project)
    if content:
        (project / "mined.npz").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        net.forward()


@pytest.mark.parametrize("change", [{"FEATURE_CACHE": ""}, {"BATCHES": "anchor"}])
def test_mining_without_cached_features_of_identities_is_refused(softmax, change):
    write_config(softmax, STAGES=["triplet"], RUN_FOLDER="new", WEIGHTS="run/softmax_iter_4.caffemodel", MINE_ITERS=5,
                 **change)  # fmt: skip
    result = run_train(softmax)
    assert result.returncode == 1 and "MINE_ITERS looks for negatives in cached features" in result.stderr
