"""Strategies, loss and gradients against plain loops, finite differences and scikit-learn."""

import itertools
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from tripletloss.core import distances, losses, norm, selection
from tripletloss.core.distances import distance_blocks, squared_distances


def make_batch(seed=0, rows=14, identities=4, size=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, size)).astype(np.float32) * 0.5, rng.integers(identities, size=rows)


def as_set(chosen):
    rows = zip(chosen.anchors, chosen.positives, chosen.negatives, strict=True)
    return {tuple(int(i) for i in triplet) for triplet in rows}


def valid_triplets(labels):
    for a, p, n in itertools.product(range(len(labels)), repeat=3):
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
            yield a, p, n


def test_distances_equal_scikit_learns():
    x, _ = make_batch()
    np.testing.assert_allclose(squared_distances(x), pairwise_distances(x.astype(float)) ** 2, atol=1e-9)


def test_distances_of_near_duplicates_far_from_the_origin_are_kept():
    x = np.full((3, 4), 1000, np.float32)
    x[1, 0] += 0.125
    x[2, 0] += 0.25
    np.testing.assert_allclose(squared_distances(x)[0], [0, 0.125**2, 0.25**2], rtol=1e-6)


def test_distances_of_near_duplicates_are_kept_where_each_dimension_lies_elsewhere():
    x = np.array([1e6, -1e6]) / 3 + np.array([[0, 0], [0.125, 0], [0, 0.25]])
    expected = np.array([[0, 1, 4], [1, 0, 5], [4, 5, 0]]) / 64
    np.testing.assert_allclose(squared_distances(x), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_distance_is_negative_and_those_of_rows_to_themselves_are_zero(dtype):
    x = np.repeat(np.random.default_rng(0).normal(size=(40, 64)), 5, axis=0).astype(dtype)  # rounding hits copies both ways
    d = squared_distances(x, dtype)
    assert d.min() == 0 and not d.diagonal().any() and d.max() > 100
    for numbers, rows in distance_blocks(x, np.arange(0, 200, 3)):
        assert rows.min() == 0 and not rows[np.arange(len(numbers)), numbers].any() and rows.max() > 100


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_distances_in_blocks_equal_scikit_learns(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ENTRIES", block)
    x, _ = make_batch()
    rows = np.array([3, 0, 13, 7, 8])
    numbers, blocks = zip(*distance_blocks(x, rows), strict=True)
    np.testing.assert_array_equal(np.concatenate(numbers), rows)
    np.testing.assert_allclose(np.concatenate(blocks), pairwise_distances(x.astype(float))[rows] ** 2, atol=1e-9)


def test_distances_in_single_precision_are_good_to_a_millionth():
    x, _ = norm.l2_normalize(np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    found = squared_distances(x, np.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, squared_distances(x), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_distances_refuse_what_is_not_finite(bad):
    x, _ = make_batch()
    x[5, 1] = bad
    with pytest.raises(FloatingPointError, match="row 5"):
        squared_distances(x)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_semi_hard_equals_a_plain_loop(seed, block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ENTRIES", block)
    x, labels = make_batch(seed)
    d, margin = squared_distances(x), 0.3
    expected, pairs = set(), 0
    for a, p in itertools.permutations(range(len(x)), 2):
        if labels[a] != labels[p]:
            continue
        pairs += 1
        band = [n for n in range(len(x)) if labels[n] != labels[a] and d[a, p] < d[a, n] < d[a, p] + margin]
        if band:
            expected.add((a, p, min(band, key=lambda n: d[a, n])))
    chosen = selection.semi_hard(d, labels, margin)
    assert expected and as_set(chosen) == expected
    assert chosen.considered == pairs
    assert selection.active_share(chosen, d, margin) == pytest.approx(len(expected) / pairs)


@pytest.mark.parametrize("seed", range(5))
def test_batch_hard_equals_a_plain_loop(seed):
    x, labels = make_batch(seed)
    d = squared_distances(x)
    expected = set()
    for a in range(len(x)):
        positives = [p for p in range(len(x)) if p != a and labels[p] == labels[a]]
        negatives = [n for n in range(len(x)) if labels[n] != labels[a]]
        if positives and negatives:
            expected.add((a, max(positives, key=lambda p: d[a, p]), min(negatives, key=lambda n: d[a, n])))
    assert as_set(selection.batch_hard(d, labels, 0.2)) == expected


def test_batch_hard_keeps_anchors_whose_positives_are_exact_copies():
    x = np.array([[0.0, 0], [0, 0], [3, 4], [3, 4], [3, 4]])
    chosen = selection.batch_hard(squared_distances(x), np.array([0, 0, 1, 1, 1]), 0.2)
    assert list(chosen.anchors) == [0, 1, 2, 3, 4] and chosen.considered == 5
    assert list(chosen.positives[:2]) == [1, 0] and (chosen.positives[2:] != chosen.anchors[2:]).all()
    assert (chosen.positives[2:] >= 2).all() and (chosen.negatives[:2] >= 2).all() and (chosen.negatives[2:] < 2).all()


def test_limits_are_open_by_hand():
    """Rows 0 and 1 are one identity, at distance 1 of each other; the others are alone."""
    d = np.full((5, 5), 9.0)
    d[0, 1] = d[1, 0] = 1
    d[0, 2:], d[1, 2:] = (1, 1.5, 1.25), (1.5, 1, 4)  # the positive's own distance, the end of the band, inside
    labels = np.array([0, 0, 1, 2, 3])
    assert as_set(selection.semi_hard(d, labels, 0.5)) == {(0, 1, 4)}
    everything = selection.batch_all(d, labels, 0.5)  # a negative at the end of the band has no loss
    assert as_set(everything) == {(0, 1, 2), (0, 1, 4), (1, 0, 3)} and everything.considered == 6
    at_the_end = selection.Selection(np.array([0, 1]), np.array([1, 0]), np.array([3, 2]), np.ones(2, bool), 2)
    assert selection.active_share(at_the_end, d, 0.5) == 0
    loss, gradient = losses.selected_loss(np.eye(5), d, at_the_end, 0.5)
    assert loss == 0 and not gradient.any()
    learning = at_the_end._replace(learns=np.array([True, False]))
    assert selection.active_share(learning, d, 0.75) == 0.5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 10**6])
def test_batch_all_equals_a_plain_loop(seed, block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ENTRIES", block)
    x, labels = make_batch(seed)
    d = squared_distances(x)
    valid = list(valid_triplets(labels))
    active = {(a, p, n) for a, p, n in valid if d[a, n] < d[a, p] + 0.2}
    chosen = selection.batch_all(d, labels, 0.2)
    assert as_set(chosen) == active and len(chosen.anchors) == len(active)
    assert chosen.considered == len(valid)


def test_rank_paired_by_hand():
    # One dimension: the anchor at 0 twice, positives at 1 and 2, negatives at 1.5 and 3.
    x = np.array([[0], [0], [1], [2], [1.5], [3]], np.float32)
    chosen = selection.rank_paired(squared_distances(x), None, 0.2)
    assert as_set(chosen) == {(0, 3, 5), (1, 2, 4)}  # 4 with 9, 1 with 2.25
    assert chosen.learns.all()
    x[5] = 1.2  # now the ranks pair 4 with 2.25, which does not learn, and 1 with 1.44, which does
    chosen = selection.rank_paired(squared_distances(x), None, 0.2)
    assert list(chosen.positives) == [3, 2] and list(chosen.negatives) == [4, 5]
    assert list(chosen.learns) == [False, True]


def test_rank_paired_of_three_rows_and_of_equal_distances():
    x = np.array([[0.0], [1], [2]])
    chosen = selection.rank_paired(squared_distances(x), None, 0.2)
    assert as_set(chosen) == {(0, 1, 2)} and list(chosen.learns) == [True] and chosen.considered == 1
    x[2] = -1
    assert list(selection.rank_paired(squared_distances(x), None, 0.2).learns) == [False]


def test_rank_paired_takes_equal_distances_in_the_order_of_the_rows():
    d = np.tile(np.random.default_rng(0).integers(1, 4, 600).astype(float), (600, 1))
    chosen = selection.rank_paired(d, None, 0.2)
    assert chosen.positives.tolist() == sorted(range(200, 400), key=lambda row: (-d[0, row], row))
    assert chosen.negatives.tolist() == sorted(range(400, 600), key=lambda row: (-d[0, row], row))


def test_rank_paired_refuses_a_batch_that_has_no_three_parts():
    with pytest.raises(ValueError, match="three equal parts"):
        selection.rank_paired(np.zeros((4, 4)), None, 0.2)


@pytest.mark.parametrize("dimension", [2, 3, 64])
def test_distance_weighted_draws_by_the_density_of_distances_on_a_sphere(dimension):
    rng = np.random.default_rng(0)
    x, _ = norm.l2_normalize(rng.normal(size=(9, dimension)))
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    d = squared_distances(x)
    drawn = np.zeros((9, 9))
    for seed in range(4000):
        chosen = selection.distance_weighted(d, labels, dimension, np.random.default_rng(seed))
        np.add.at(drawn, (chosen.anchors, chosen.negatives), 1)
    pairs = [(a, p) for a in range(9) for p in range(9) if a != p and labels[a] == labels[p]]
    assert list(zip(chosen.anchors, chosen.positives, strict=True)) == pairs
    for a in range(9):
        weights = []
        for n in range(9):
            length = max(np.sqrt(d[a, n]), 0.5)
            density = length ** (dimension - 2) * (1 - length**2 / 4) ** ((dimension - 3) / 2)
            weights.append(0 if labels[n] == labels[a] or d[a, n] >= 1.4**2 else 1 / density)
        assert sum(weights) > 0
        np.testing.assert_allclose(drawn[a] / drawn[a].sum(), np.array(weights) / sum(weights), atol=0.03)


def test_the_histogram_of_drawn_distances_is_that_of_the_exact_weights_from_0_to_2():
    """Points all over a sphere of four dimensions, so that negatives of every distance are there."""
    x, _ = norm.l2_normalize(np.random.default_rng(1).normal(size=(600, 4)))
    labels = np.arange(600) // 2
    lengths = pairwise_distances(x)
    bins = np.linspace(0, 2, 11)  # 0.5 is inside one, 1.4 between two
    expected, there = np.zeros(10), np.zeros(10)
    for a in range(600):
        others = lengths[a, labels != labels[a]]
        density = np.maximum(others, 0.5) ** 2 * np.sqrt(1 - np.maximum(others, 0.5) ** 2 / 4)
        weights = np.where(others < 1.4, 1 / density, 0)
        expected += np.histogram(others, bins, weights=weights / weights.sum())[0]
        there += np.histogram(others, bins)[0]
    assert there.min() > 100
    drawn = np.zeros(10)
    for seed in range(100):
        chosen = selection.distance_weighted(lengths**2, labels, 4, np.random.default_rng(seed))
        assert len(chosen.anchors) == chosen.considered == 600
        drawn += np.histogram(lengths[chosen.anchors, chosen.negatives], bins)[0]
    assert not expected[7:].any() and not drawn[7:].any()
    near = slice(7)
    spread = np.sqrt(100 * expected[near])
    assert (np.abs(drawn[near] - 100 * expected[near]) < 4.5 * spread).all()
    # What the weights are for: beyond the clipped distances, near negatives come as often as far ones.
    assert drawn[3:7].max() < 1.1 * drawn[3:7].min()


def test_no_distance_weighted_negative_lies_beyond_the_cut_off_where_most_random_points_do():
    x, _ = norm.l2_normalize(np.random.default_rng(0).normal(size=(120, 256)).astype(np.float32))
    d = squared_distances(x, np.float32)
    chosen = selection.distance_weighted(d, np.arange(120) // 4, 256, np.random.default_rng(0))
    assert np.mean(d > 1.4**2) > 0.6
    assert len(chosen.anchors) == 120 * 3 and d[chosen.anchors, chosen.negatives].max() < 1.4**2


def test_an_anchor_whose_negatives_all_lie_beyond_the_cut_off_gives_no_distance_weighted_triplet():
    x = np.array([[1, 0], [1, 0], [0.6, 0.8], [0.6, 0.8], [-1, 0], [-1, 0]])
    labels = np.array([0, 0, 1, 1, 2, 2])  # identity 2 is 1.79 from its nearest negative, and 2 from the other
    d = squared_distances(x)
    for seed in range(20):
        chosen = selection.distance_weighted(d, labels, 2, np.random.default_rng(seed))
        assert list(zip(chosen.anchors, chosen.positives, strict=True)) == [(0, 1), (1, 0), (2, 3), (3, 2)]
        assert set(chosen.negatives[:2]) <= {2, 3} and set(chosen.negatives[2:]) <= {0, 1}
        assert chosen.considered == 6
    far = selection.distance_weighted(d[[0, 1, 4, 5]][:, [0, 1, 4, 5]], labels[[0, 1, 4, 5]], 2, np.random.default_rng(0))
    assert len(far.anchors) == 0 and far.considered == 4


def test_anchors_far_from_all_others_draw_as_evenly_as_those_with_near_negatives():
    """In many dimensions the weights of near negatives are e^260 times those of far ones; each anchor has its own."""
    labels = np.repeat(np.arange(4), 2)
    d = np.full((8, 8), 1.39**2)  # identities 2 and 3 are far from all
    d[:4, :4] = 0.5**2
    for group in range(4):
        d[2 * group : 2 * group + 2, 2 * group : 2 * group + 2] = 0
    drawn = np.zeros((8, 8), int)
    with np.errstate(all="raise", under="ignore"):
        for seed in range(300):
            chosen = selection.distance_weighted(d, labels, 256, np.random.default_rng(seed))
            np.add.at(drawn, (chosen.anchors, chosen.negatives), 1)
    expected = np.zeros((8, 8))
    expected[:2, 2:4] = expected[2:4, :2] = 150
    expected[4:6, [0, 1, 2, 3, 6, 7]] = expected[6:, :6] = 50
    assert (np.abs(drawn - expected) <= 0.4 * expected).all()


def test_every_anchor_draws_by_itself():
    """Twenty copies of a point, all with the same ten negatives: one call draws them all."""
    d = np.zeros((30, 30))
    d[:20, 20:] = d[20:, :20] = d[20:, 20:] = 1
    chosen = selection.distance_weighted(d, np.repeat([0, *range(1, 11)], [20] + [1] * 10), 8, np.random.default_rng(0))
    assert set(chosen.negatives) == set(range(20, 30)) and len(chosen.anchors) == 20 * 19


def test_a_negative_at_the_very_cut_off_is_not_drawn_and_an_opposite_one_does_no_harm():
    d = np.array([[0, 0, selection.CUT_OFF_DISTANCE**2, 4, 1.9], [0, 0, 4, 4, 4], *[[9.0] * 5] * 3])
    with np.errstate(all="raise"):
        chosen = selection.distance_weighted(d, np.array([0, 0, 1, 2, 3]), 256, np.random.default_rng(0))
    assert as_set(chosen) == {(0, 1, 4)} and chosen.considered == 2


@pytest.mark.parametrize("name", ["semi-hard", "batch-hard", "batch-all", "distance-weighted"])
@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [7]])
def test_batches_without_triplets_give_an_empty_selection(name, labels):
    x = np.random.default_rng(0).normal(size=(len(labels), 2))
    d = squared_distances(x)
    chosen = selection.select(name, d, np.array(labels), 0.2, 2, np.random.default_rng(0))
    assert len(chosen.anchors) == 0
    assert selection.active_share(chosen, d, 0.2) == 0


def test_duplicate_images_do_not_become_semi_hard_negatives_at_equal_distance():
    x = np.zeros((4, 2))
    chosen = selection.semi_hard(squared_distances(x), np.array([0, 0, 1, 1]), 0.2)
    assert len(chosen.anchors) == 0  # d(a,n) = d(a,p) = 0 is outside the open band


def test_loss_equals_the_formula_in_a_plain_loop():
    rng = np.random.default_rng(0)
    a, p, n = rng.normal(size=(3, 9, 4))
    expected = sum(
        max(0.0, 0.2 + sum((a[i] - p[i]) ** 2) - sum((a[i] - n[i]) ** 2)) for i in range(9)
    ) / (2 * 9)
    loss, active = losses.triplet_loss(a, p, n, 0.2)
    assert loss == pytest.approx(expected) and 0 < active.sum() < 9


def test_loss_of_a_collapsed_embedding_is_half_the_margin():
    x = np.ones((5, 3))
    assert losses.triplet_loss(x, x, x, 0.2)[0] == pytest.approx(0.1)


def test_loss_without_triplets_is_zero():
    none = np.zeros((0, 3), np.float32)
    loss, active = losses.triplet_loss(none, none, none, 0.2)
    assert loss == 0
    assert all(g.shape == (0, 3) for g in losses.triplet_loss_gradients(none, none, none, active, 1.0))


def test_loss_and_gradients_of_one_triplet_by_hand():
    a, p, n = np.zeros((1, 2), np.float32), np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    loss, active = losses.triplet_loss(a, p, n, 0.5)
    assert loss == 0.25 and list(active) == [True]
    gradients = losses.triplet_loss_gradients(a, p, n, active, 1.0)
    assert [gradient.tolist() for gradient in gradients] == [[[-1, 1]], [[1, 0]], [[0, -1]]]
    assert {gradient.dtype for gradient in gradients} == {np.dtype(np.float32)}
    x = np.concatenate([a, p, n])
    one = selection.Selection(*np.array([[0], [1], [2]]), np.ones(1, bool), 1)
    assert losses.selected_loss(x, squared_distances(x), one, 0.5)[0] == 0.25
    assert losses.selected_loss(x, squared_distances(x), one, 0.5)[1].tolist() == [[-1, 1], [1, 0], [0, -1]]


def test_the_loss_of_large_distances_in_single_precision_is_exact():
    a, p, n = np.zeros((1, 2), np.float32), np.array([[4096, 1]], np.float32), np.array([[4096, 0]], np.float32)
    assert losses.triplet_loss(a, p, n, 0.5)[0] == 0.75  # 4096^2 + 1 has 25 bits
    assert losses.triplet_loss(a, n, p, 1.5)[0] == 0.25


def test_loss_gradients_equal_finite_differences():
    rng = np.random.default_rng(1)
    inputs = list(rng.normal(size=(3, 6, 4)))
    _, active = losses.triplet_loss(*inputs, 0.5)
    gradients = losses.triplet_loss_gradients(*inputs, active, 3.0)
    for which, row, column in itertools.product(range(3), range(6), range(4)):
        moved = [x.copy() for x in inputs]
        moved[which][row, column] += 1e-6
        up = losses.triplet_loss(*moved, 0.5)[0]
        moved[which][row, column] -= 2e-6
        down = losses.triplet_loss(*moved, 0.5)[0]
        assert gradients[which][row, column] == pytest.approx(3.0 * (up - down) / 2e-6, abs=1e-6)


def test_scattered_gradients_equal_a_plain_loop():
    x, labels = make_batch(3)
    chosen = selection.batch_all(squared_distances(x), labels, 0.2)
    chosen = chosen._replace(learns=np.arange(len(chosen.anchors)) % 3 > 0)
    diffs = np.random.default_rng(0).normal(size=(3, len(chosen.anchors), 3)).astype(np.float32)
    expected = np.zeros_like(x, dtype=float)
    for t in np.flatnonzero(chosen.learns):
        expected[chosen.anchors[t]] += diffs[0, t]
        expected[chosen.positives[t]] += diffs[1, t]
        expected[chosen.negatives[t]] += diffs[2, t]
    found = losses.scatter_gradients(chosen, *diffs, rows=len(x))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_l2_norm_and_its_gradient():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 4, 5))
    x[2] = 0
    y, lengths = norm.l2_normalize(x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), [1, 1, 0, 1], atol=1e-6)
    gradient = norm.l2_normalize_gradient(y, lengths, g)
    assert np.isfinite(gradient).all()
    for row, column in itertools.product((0, 1, 3), range(5)):
        up, down = x.copy(), x.copy()
        up[row, column] += 1e-6
        down[row, column] -= 1e-6
        change = np.sum(g * (norm.l2_normalize(up)[0] - norm.l2_normalize(down)[0])) / 2e-6
        assert gradient[row, column] == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("name", ["semi-hard", "batch-hard", "batch-all", "distance-weighted", "rank-paired"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_of_a_selection_are_those_of_its_rows(name, seed):
    x, labels = make_batch(seed, rows=15)
    d = squared_distances(x)
    chosen = selection.select(name, d, labels, 0.3, 3, np.random.default_rng(0))
    rows = [x[i] for i in (chosen.anchors, chosen.positives, chosen.negatives)]
    loss, active = losses.triplet_loss(*rows, 0.3)
    diffs = losses.triplet_loss_gradients(*rows, active, 1.7)
    mine, gradient = losses.selected_loss(x, d, chosen, 0.3, 1.7)
    assert mine == pytest.approx(loss, rel=1e-5) and gradient.dtype == x.dtype
    np.testing.assert_allclose(gradient, losses.scatter_gradients(chosen, *diffs, rows=15), atol=1e-6)


def test_the_loss_of_no_triplets_is_nothing():
    x, labels = make_batch()
    d = squared_distances(x)
    loss, gradient = losses.selected_loss(x, d, selection.semi_hard(d, labels * 0, 0.2), 0.2)
    assert loss == 0 and gradient.shape == x.shape and not gradient.any()


def test_semi_hard_of_a_large_batch_takes_memory_by_its_square_only():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 40)
    x = rng.normal(size=(30, 16))[labels] + rng.normal(size=(1200, 16))
    tracemalloc.start()
    d = squared_distances(x)
    chosen = selection.semi_hard(d, labels, 5.0)
    losses.selected_loss(x, d, chosen, 5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(chosen.anchors) > 20_000 and peak < 12 * 1200**2 * 8
    for t in rng.integers(0, len(chosen.anchors), 50):
        a, p, n = chosen.anchors[t], chosen.positives[t], chosen.negatives[t]
        others = np.flatnonzero((labels != labels[a]) & (d[a] > d[a, p]))
        assert n == others[d[a, others].argmin()]
