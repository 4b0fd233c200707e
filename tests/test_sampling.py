"""What a mini-batch holds."""

import numpy as np
import pytest

from tripletloss.errors import InputError
from tripletloss.sampling import AnchorBatches, IdentityBatches, ShuffledBatches, make_batches, random_stream

LABELS = np.repeat([3, 5, 6, 9, 12], [1, 2, 4, 9, 13])  # 29 images of 5 identities


def test_shuffled_batches_show_every_image_once_an_epoch():
    batches = ShuffledBatches(LABELS, 7, seed=1)
    rows = np.concatenate([batches.batch(i).images for i in range(29)])  # 7 epochs
    for epoch in range(7):
        assert sorted(rows[29 * epoch : 29 * epoch + 29]) == list(range(29))
    assert list(rows[:29]) != list(rows[29:58])


def test_a_batch_larger_than_the_list_holds_several_epochs():
    assert sorted(ShuffledBatches(LABELS[:3], 6, 0).batch(0).images) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("identities", "per_identity"), [(2, 2), (3, 4), (5, 3), (4, 6)])
def test_identity_batches_hold_p_identities_by_k_images_and_an_epoch_holds_all(identities, per_identity):
    batches = IdentityBatches(LABELS, identities * per_identity, per_identity, seed=2)
    for epoch in range(3):
        seen = set()
        for number in range(batches.batches_per_epoch):
            batch = batches.batch(epoch * int(batches.batches_per_epoch) + number)
            groups = LABELS[batch.images].reshape(identities, per_identity)
            assert (groups == groups[:, :1]).all()
            assert len(set(groups[:, 0])) == identities
            seen.update(batch.images.tolist())
        assert seen == set(range(29))


def test_an_image_repeats_in_a_group_only_where_the_identity_is_too_small():
    batches = IdentityBatches(LABELS, 12, 4, seed=2)
    for iteration in range(40):
        for group in batches.batch(iteration).images.reshape(3, 4):
            size = int((LABELS == LABELS[group[0]]).sum())
            assert len(set(group.tolist())) == min(4, size)


def test_anchor_batches_hold_copies_positives_and_negatives():
    batches = AnchorBatches(LABELS, 12, seed=3)
    anchors = []
    for iteration in range(28):  # the identity with one image cannot be an anchor
        images, draws = batches.batch(iteration)
        assert (images[:4] == images[0]).all() and (draws[:4] == 0).all() and len(set(draws[4:])) == 8
        assert (LABELS[images[4:8]] == LABELS[images[0]]).all() and images[0] not in images[4:8]
        assert (LABELS[images[8:]] != LABELS[images[0]]).all()
        others = int((LABELS == LABELS[images[0]]).sum()) - 1
        if others >= 4:  # fewer repeat
            assert len(set(images[4:8].tolist())) == 4
        anchors.append(images[0])
    assert sorted(anchors) == list(range(1, 29)) and anchors != sorted(anchors)


@pytest.mark.parametrize("kind", ["shuffled", "identities", "anchor"])
def test_a_batch_depends_on_seed_and_iteration_only(kind):
    def rows(seed, iterations):
        batches = make_batches(kind, LABELS, 12, 3, seed)
        return {i: batches.batch(i).images.tolist() for i in iterations}

    forwards = rows(5, range(30))
    assert rows(5, reversed(range(30))) == forwards
    assert rows(6, range(30)) != forwards


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: IdentityBatches(LABELS, 24, 4, 0), "the list has 5 identities: set BATCH_SIZE to at most 20"),
        (lambda: IdentityBatches(LABELS, 10, 4, 0), "BATCH_SIZE 10 must be IMAGES_PER_IDENTITY"),
        (lambda: IdentityBatches(LABELS, 10, 1, 0), "IMAGES_PER_IDENTITY must be 2 or more"),
        (lambda: IdentityBatches(np.zeros(9), 6, 3, 0), "one identity only"),
        (lambda: ShuffledBatches(np.zeros(9), 6, 0), "one identity only"),
        (lambda: AnchorBatches(np.zeros(9), 6, 0), "one identity only"),
        (lambda: AnchorBatches(np.arange(9), 6, 0), "no identity of the list has two images"),
        (lambda: AnchorBatches(LABELS, 10, 0), "multiple of 3 for anchor batches, for example 9"),
    ],
)
def test_lists_that_do_not_fit_are_refused_with_what_does(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_random_streams_of_different_purposes_differ():
    numbers = {random_stream(1, purpose, a, b).random() for purpose in range(3) for a in range(3) for b in range(3)}
    assert len(numbers) == 27
