"""What a mini-batch holds."""

import itertools

import numpy as np
import pytest

from tripletloss.base.errors import InputError
from tripletloss.core import batches as batches_module
from tripletloss.core.batches import AnchorBatches, IdentityBatches, MinedBatches, ShuffledBatches
from tripletloss.core.sampling import Share, make_batches
from tripletloss.core.streams import ORDER, random_stream

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


def test_identities_share_their_batches_with_others_in_every_epoch():
    """Eight identities, two in a batch, each once an epoch: who meets whom is drawn anew."""
    labels = np.repeat(np.arange(8), 3)
    batches = IdentityBatches(labels, 6, 3, seed=0)
    epochs = [
        {frozenset(labels[batches.batch(4 * epoch + number).images].tolist()) for number in range(4)}
        for epoch in range(10)
    ]
    assert all(set().union(*pairs) == set(range(8)) for pairs in epochs)
    assert len(set().union(*epochs)) > 20  # of 28 possible pairs; 4 if nobody moved


def test_images_share_their_group_with_others_in_every_epoch():
    """Two identities of six images in groups of three: which three is drawn anew."""
    batches = IdentityBatches(np.repeat([0, 1], 6), 6, 3, seed=0)
    seen = set()
    for iteration in range(80):
        seen.update(frozenset(group) for group in batches.batch(iteration).images.reshape(2, 3).tolist())
    assert len(seen) == 40  # each identity's 20 possible groups; 2 if the images kept their order


def test_the_groups_of_a_large_identity_are_spread_over_the_epoch():
    """Ten identities of ten groups, two in a batch: batches that follow each other seldom show the same ones."""
    labels = np.repeat(np.arange(10), 20)
    batches = IdentityBatches(labels, 4, 2, seed=0)
    assert batches.batches_per_epoch == 50
    shown = [set(labels[batches.batch(number).images].tolist()) for number in range(50)]
    shared = np.mean([len(one & after) for one, after in itertools.pairwise(shown)])
    assert shared < 0.7  # two of two random pairs of ten share 0.4 on average; groups in their order share 1.8


@pytest.mark.parametrize("kind", ["shuffled", "identities", "mined", "anchor"])
def test_a_batch_depends_on_seed_and_iteration_only(kind):
    def rows(batches, iterations):
        return {i: batches.batch(i).images.tolist() for i in iterations}

    forwards = rows(of_kind(kind, 5), range(30))
    assert rows(of_kind(kind, 5), reversed(range(30))) == forwards
    assert {i: of_kind(kind, 5).batch(i).images.tolist() for i in range(30)} == forwards  # as a resumed run begins
    assert rows(of_kind(kind, 6), range(30)) != forwards


def of_kind(kind, seed, batch_size=12):
    """Batches of LABELS, of a kind in BATCHES or "mined"; the mined negatives are any images of others."""
    batches = make_batches("identities" if kind == "mined" else kind, LABELS, batch_size, 3, seed,
                           mined_cap=0.0 if kind == "mined" else None)  # fmt: skip
    if kind == "mined":
        x = np.random.default_rng(0).normal(size=(len(LABELS), 2))
        others = [np.flatnonzero(LABELS != label)[[0, -1]] for label in LABELS]
        batches.take(x, np.array(others))
    return batches


@pytest.mark.parametrize(
    ("kind", "made"),
    [("shuffled", ShuffledBatches), ("identities", IdentityBatches), ("mined", MinedBatches), ("anchor", AnchorBatches)],
)
def test_each_kind_has_its_batches_of_whole_numbers(kind, made):
    batches = of_kind(kind, 1)
    assert type(batches) is made
    images, draws = batches.batch(0)
    assert images.dtype.kind == draws.dtype.kind == "i"
    # Every row is augmented by itself; only the copies of an anchor are copies.
    assert draws.tolist() == ([0] * 4 + list(range(4, 12)) if kind == "anchor" else list(range(12)))


@pytest.mark.parametrize("kind", ["shuffled", "identities", "mined", "anchor"])
def test_no_two_draws_come_from_the_same_random_stream(kind, monkeypatch):
    used = []

    def recorded(*key):
        used.append(key + (0,) * (4 - len(key)))  # a stream's last number is 0 where it is left out
        return random_stream(*key)

    monkeypatch.setattr(batches_module, "random_stream", recorded)
    for seed in (1, 2):
        batches = of_kind(kind, seed)
        for iteration in range(70):  # several epochs, each one's draws made once
            batches.batch(iteration)
    assert len(used) == len(set(used)) and {key[0] for key in used} == {1, 2}


def test_anchor_batches_show_each_image_once_where_there_are_just_enough():
    labels = np.repeat([0, 1], [5, 4])  # four positives and four negatives of each anchor of the first
    batches = AnchorBatches(labels, 12, seed=0)
    for iteration in range(18):
        images = batches.batch(iteration).images
        if labels[images[0]] == 0:
            assert len(set(images[4:8].tolist())) == len(set(images[8:].tolist())) == 4


def test_a_mined_image_at_the_very_cap_is_near_enough():
    x = np.array([[0.0], [2], [50], [51]])
    batches = make_batches("identities", [0, 0, 1, 1], 4, 2, seed=0, mined_cap=4.0)
    batches.take(x, np.array([[2], [2], [1], [1]]))
    for iteration in range(4):
        groups = batches.batch(iteration).images.reshape(2, 2).tolist()
        assert sorted(map(sorted, groups)) == [[0, 1], [2, 3]]
    x[1] = 2.1
    groups = np.concatenate([batches.batch(iteration).images.reshape(2, 2) for iteration in range(4)]).tolist()
    assert [0, 0] in groups and [0, 1] not in groups


def test_mined_batches_of_several_anchors_go_through_all_images_in_order():
    """By a plain loop: the batch's anchors, each followed by its hardest negatives, an identity once."""
    labels = np.repeat(np.arange(20), 3)
    batches = make_batches("identities", labels, 24, 2, seed=4, mined_cap=0.0)
    rng = np.random.default_rng(0)
    negatives = np.array([rng.choice(np.flatnonzero(labels != label), 3, replace=False) for label in labels])
    batches.take(rng.normal(size=(60, 2)), negatives)
    assert batches.anchors == 3
    anchors = np.concatenate([random_stream(4, ORDER, epoch).permutation(60) for epoch in range(2)])
    for iteration in range(40):
        expected = []
        for anchor in anchors[3 * iteration : 3 * iteration + 3]:
            for image in (anchor, *negatives[anchor]):
                if labels[image] not in labels[expected]:
                    expected.append(image)
        heads = batches.batch(iteration).images.reshape(12, 2)[:, 0]
        assert heads[: len(expected)].tolist() == expected


@pytest.mark.parametrize("kind", ["shuffled", "identities", "mined"])
def test_the_shares_of_all_processes_are_the_batch(kind):
    whole = of_kind(kind, 3)
    parts = [Share(of_kind(kind, 3), 12, rank, 2) for rank in range(2)]
    for iteration in range(20):
        shares = [part.batch(iteration) for part in parts]
        for together, rows in zip(zip(*shares, strict=True), whole.batch(iteration), strict=True):
            assert [len(one) for one in together] == [6, 6]
            np.testing.assert_array_equal(np.concatenate(together), rows)


@pytest.mark.parametrize(
    ("kind", "batch_size", "ranks", "sentence"),
    [
        ("shuffled", 3, 3, None),  # one row each
        ("shuffled", 10, 3, r"BATCH_SIZE 10 does not divide among 3 processes: .* multiple of 3, for example 9$"),
        ("shuffled", 2, 3, "multiple of 3, for example 3$"),
        ("identities", 12, 2, None),  # two identities each
        ("identities", 15, 2, r"among 2 processes x IMAGES_PER_IDENTITY \(3\), two .* multiple of 6, for example 12$"),
        ("identities", 6, 2, "multiple of 6, for example 12$"),  # one identity each has no negatives
        ("anchor", 12, 2, "anchor batches cannot be divided among 2 processes, .* set BATCHES to 'identities', or"),
    ],
)
def test_a_batch_is_divided_among_processes_evenly_or_refused_with_a_size_that_can_be(kind, batch_size, ranks, sentence):
    batches = of_kind(kind, 1)
    if sentence is None:
        assert Share(batches, batch_size, ranks - 1, ranks).rows == slice(batch_size - batch_size // ranks, batch_size)
    else:
        with pytest.raises(InputError, match=sentence):
            Share(batches, batch_size, 0, ranks)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: IdentityBatches(LABELS, 24, 4, 0), "the list has 5 identities: set BATCH_SIZE to at most 20"),
        (lambda: IdentityBatches(LABELS, 10, 4, 0), r"BATCH_SIZE 10 must be IMAGES_PER_IDENTITY \(4\) .* for example 8$"),
        (lambda: IdentityBatches(LABELS, 4, 4, 0), "for example 8$"),  # one identity has no negatives
        (lambda: IdentityBatches(LABELS, 17, 4, 0), "for example 16$"),
        (lambda: IdentityBatches(LABELS, 10, 1, 0), "IMAGES_PER_IDENTITY must be 2 or more"),
        (lambda: IdentityBatches(np.zeros(9), 6, 3, 0), "only one identity"),
        (lambda: ShuffledBatches(np.zeros(9), 6, 0), "only one identity"),
        (lambda: AnchorBatches(np.zeros(9), 6, 0), "only one identity"),
        (lambda: AnchorBatches(np.arange(9), 6, 0), "no identity in the list has two images"),
        (lambda: AnchorBatches(LABELS, 10, 0), "multiple of 3 for anchor batches, for example 9$"),
        (lambda: AnchorBatches(LABELS, 2, 0), "multiple of 3 for anchor batches, for example 3$"),
    ],
)
def test_lists_that_do_not_fit_are_refused_with_what_does(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_random_streams_of_different_purposes_differ():
    numbers = {random_stream(1, purpose, a, b).random() for purpose in range(3) for a in range(3) for b in range(3)}
    assert len(numbers) == 27
    assert random_stream(1, 2, 3).random() == random_stream(1, 2, 3, 0).random()
