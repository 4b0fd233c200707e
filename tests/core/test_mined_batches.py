"""Negatives found among all images, and mini-batches around them, against plain loops."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tripletloss.base.errors import InputError
from tripletloss.core import distances
from tripletloss.core.batches import MinedBatches
from tripletloss.core.distances import hardest_negatives
from tripletloss.core.sampling import make_batches

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


def test_mined_batches_refuse_what_batches_of_identities_refuse():
    with pytest.raises(InputError, match="IMAGES_PER_IDENTITY"):
        MinedBatches(LABELS, 7, 3, 0, 0.0)
