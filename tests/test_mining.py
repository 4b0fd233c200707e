"""Negatives that are hard among all images: what is found, what mini-batches are made of it, and training on them."""

import io
import threading
import time

import caffe
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tests.conftest import run_train, write_config
from tests.test_features import losses, softmax, triplet  # noqa: F401 (softmax is a fixture)
from tripletloss import layers
from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.core import distances
from tripletloss.core.distances import hardest_negatives
from tripletloss.core.sampling import MinedBatches, make_batches

LABELS = np.repeat([3, 5, 6, 9, 12, 15], [1, 2, 4, 9, 13, 3])  # 32 images of 6 identities


def embeddings(count=32):
    return np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)


@pytest.mark.parametrize("block", [7, 10**7])
@pytest.mark.parametrize("identities", [1, 3, 5, 9])
def test_hardest_negatives_equal_a_plain_loop(identities, block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ENTRIES", block)
    rng = np.random.default_rng(1)
    labels, x = rng.permutation(LABELS), embeddings()
    found = hardest_negatives(x, labels, identities)
    assert found.shape == (len(labels), min(identities, 5))
    for image, row in enumerate(found):
        nearest = {}
        for other in range(len(labels)):
            distance = float(np.square(x[image] - x[other]).sum())
            if labels[other] != labels[image]:
                nearest[labels[other]] = min(nearest.get(labels[other], (np.inf, 0)), (distance, other))
        assert list(row) == [other for _, other in sorted(nearest.values())[:identities]]


def test_the_nearest_of_many_identities_are_found_in_their_order():
    rng = np.random.default_rng(2)
    labels, x = rng.permutation(np.repeat(np.arange(600), 2)), rng.normal(size=(1200, 4)).astype(np.float32)
    lengths = cdist(x, x)
    lengths[labels[:, None] == labels] = np.inf
    for identities in (1, 4, 40):
        found = hardest_negatives(x, labels, identities)
        for image, row in list(enumerate(found))[::20]:
            firsts, seen = [], set()
            for other in np.argsort(lengths[image]):
                if len(firsts) < identities and labels[other] not in seen:
                    firsts.append(other)
                    seen.add(labels[other])
            assert row.tolist() == firsts


def test_of_equally_near_images_of_an_identity_the_first_of_the_list_is_taken():
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(3), 30))
    x = np.repeat([[1.0], [-1], [0]], 30, axis=0)[np.argsort(np.argsort(labels, kind="stable"))]  # copies, identity by identity
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in range(3)]
    for label, row in zip(labels, hardest_negatives(x, labels, 2), strict=True):
        assert set(row.tolist()) == set(firsts) - {firsts[label]}


def test_negatives_are_found_far_from_the_origin_and_refused_where_not_finite():
    x = embeddings()
    assert (hardest_negatives(x + 1000, LABELS, 2) == hardest_negatives(x, LABELS, 2)).mean() > 0.9
    x[4, 1] = np.nan
    with pytest.raises(FloatingPointError, match="row"):
        hardest_negatives(x, LABELS, 2)


def mined(batch_size=12, per_identity=3, seed=2, cap=0.0, found=2):
    batches = MinedBatches(LABELS, batch_size, per_identity, seed, cap)
    x = embeddings()
    batches.take(x, hardest_negatives(x, LABELS, found))
    return batches


def test_a_mined_batch_holds_p_identities_by_k_images_and_anchors_with_their_hardest_negatives():
    batches, anchors = mined(), []
    for iteration in range(2 * len(LABELS)):
        images = batches.batch(iteration).images
        groups = images.reshape(4, 3)
        assert (LABELS[groups] == LABELS[groups][:, :1]).all() and len(set(LABELS[groups[:, 0]])) == 4
        anchors.append(groups[0, 0])
        assert list(groups[1:3, 0]) == list(batches.negatives[groups[0, 0]])
    assert sorted(anchors) == sorted(2 * list(range(len(LABELS))))  # each image once an epoch


def test_mined_batches_depend_on_seed_and_iteration_alone():
    batches, same, other = mined(), mined(), mined(seed=3)
    forward = [batches.batch(i).images for i in range(40)]
    backward = [same.batch(i).images for i in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert not np.array_equal(forward, [other.batch(i).images for i in range(40)])


def test_no_image_brings_one_of_its_identity_beyond_the_cap():
    x, cap = embeddings(), 6.0
    alone = 0
    for iteration in range(60):
        for image, *others in mined(cap=cap).batch(iteration).images.reshape(4, 3):
            within = np.square(x[others] - x[image]).sum(axis=1) <= cap
            assert within.all()
            alone += set(others) == {image}
    assert 0 < alone < 120  # some have nobody within the cap, and then repeat


def test_large_batches_take_several_anchors_and_ranks_share_them():
    labels = np.repeat(np.arange(20), 5)
    x = embeddings(100)
    whole = make_batches("identities", labels, 48, 4, seed=1, mined_cap=0.0)
    parts = [make_batches("identities", labels, 48, 4, 1, rank, 2, 0.0) for rank in range(2)]
    for one in (whole, *parts):
        one.take(x, hardest_negatives(x, labels, 3))
    rows = whole.batch(5).images
    assert whole.anchors == 3 and len(set(labels[rows])) == 12
    np.testing.assert_array_equal(np.concatenate([part.batch(5).images for part in parts]), rows)


def test_training_mines_again_with_what_was_learnt(softmax):  # noqa: F811
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


def test_mining_counts_iterations_of_several_passes(softmax):  # noqa: F811
    (softmax / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed" iter_size: 2\n')
    _, folder = triplet(softmax, "passes", MINE_ITERS=10)
    with np.load(folder / "triplet_mined.npz") as last:
        assert last["iteration"] == 40  # the last of 0, 10 and 20 iterations of two passes


def mined_file(iteration):
    """The content of a Miner's file, of the 24 images of a project."""
    x, content = embeddings(24), io.BytesIO()
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
        (None, r"mined\.npz cannot be read \(No such file or directory\): go on with --resume"),
        (mined_file(20), r"mined\.npz was not mined in iteration 0: go on with --resume"),
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
def test_mining_without_cached_features_of_identities_is_refused(softmax, change):  # noqa: F811
    write_config(softmax, STAGES=["triplet"], RUN_FOLDER="new", WEIGHTS="run/softmax_iter_4.caffemodel", MINE_ITERS=5,
                 **change)  # fmt: skip
    result = run_train(softmax)
    assert result.returncode == 1 and "MINE_ITERS looks for negatives in cached features" in result.stderr


def test_mined_batches_refuse_what_batches_of_identities_refuse():
    with pytest.raises(InputError, match="IMAGES_PER_IDENTITY"):
        MinedBatches(LABELS, 7, 3, 0, 0.0)
