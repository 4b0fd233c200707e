"""Metrics against plain loops, scikit-learn and cases worked by hand."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from tripletloss.core import bootstrap, clustering, retrieval, verification
from tripletloss.core.pairs import Pairs, different_weight, pair_distances, pairs_of


def people(identities, images, noise, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(identities), images)
    return rng.normal(size=(identities, 8))[labels] + noise * rng.normal(size=(len(labels), 8)), labels


def plain_distances(x):
    return np.array([[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in x] for p in x])


# --- pairs


def test_all_pairs_where_they_are_few():
    pairs = pairs_of(np.array([4, 7, 4]))
    found = list(zip(pairs.first, pairs.second, pairs.same, strict=True))
    assert found == [(0, 1, False), (0, 2, True), (1, 2, False)]


@pytest.mark.parametrize("most", [50, 400, 2000])
def test_drawn_pairs_are_what_they_say_and_same_ones_do_not_repeat(most):
    labels = np.random.default_rng(1).integers(0, 12, 90)
    pairs = pairs_of(labels, most=most, seed=3)
    np.testing.assert_array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    assert len(pairs.same) == most and (pairs.first != pairs.second).all()
    same = {frozenset(pair) for pair in zip(pairs.first[pairs.same], pairs.second[pairs.same], strict=True)}
    all_same = sum(labels[i] == labels[j] for i in range(90) for j in range(i))
    assert len(same) == pairs.same.sum() == min(all_same, most // 2)
    again = pairs_of(labels, most=most, seed=3)
    assert all((a == b).all() for a, b in zip(pairs, again, strict=True))


def test_all_pairs_of_a_kind_are_drawn_alike():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [1, 3, 4, 6]))
    counts = np.zeros((14, 14))
    for seed in range(600):
        pairs = pairs_of(labels, most=20, seed=seed)  # of 24 same and 67 different ones
        np.add.at(counts, (pairs.first, pairs.second), 1)
    counts = (counts + counts.T)[np.triu_indices(14, 1)]
    same = (labels[:, None] == labels)[np.triu_indices(14, 1)]
    for kind, all_pairs in ((same, 24), (~same, 67)):
        expected = 600 * 10 / all_pairs
        assert len(counts[kind]) == all_pairs and np.abs(counts[kind] - expected).max() < 4.5 * np.sqrt(expected)


def test_drawn_pairs_are_distinct():
    labels = np.repeat(np.arange(9), [70, 4, 4, 1, 1, 1, 1, 1, 1])  # 2427 same pairs, 1059 different ones
    for most in (100, 2000, 3000, 3485):
        pairs = pairs_of(labels, most=most)
        distinct = {frozenset(pair) for pair in zip(pairs.first, pairs.second, strict=True)}
        assert len(distinct) == len(pairs.same) == most
        assert np.sum(~pairs.same) == min(most - most // 2, 1059)
        np.testing.assert_array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)


def test_a_few_different_pairs_of_large_identities_are_not_reported_as_many():
    labels = np.repeat([0, 1], [1500, 20])
    pairs = pairs_of(labels)
    assert np.sum(~pairs.same) == 30_000 and len(pairs.same) == 1_000_000
    found = verification.verification_of_pairs(np.random.default_rng(0).random(len(pairs.same)), pairs.same)
    assert found.different == 30_000 and set(found.tar) == {0.1, 0.01, 0.001}  # three pairs are no FAR of 1e-4


def test_a_different_pair_stands_for_as_many_as_were_not_drawn():
    labels = np.repeat(np.arange(30), 10)  # 1350 same and 43,500 different pairs
    for most in (100, 1000, 20_000, 44_850):
        pairs = pairs_of(labels, most=most)
        kinds = np.bincount(pairs.same.astype(int))
        ratio = different_weight(pairs, labels) * kinds[0] / kinds[1]
        assert ratio == pytest.approx(43_500 / 1350)


@pytest.mark.parametrize("labels", [[1, 1, 1], [1, 2, 3], [1], []])
def test_pairs_of_one_kind_alone_are_refused(labels):
    with pytest.raises(ValueError, match="pairs of the same identity and pairs of different identities"):
        pairs_of(np.array(labels, int))


def test_pair_distances_are_squared_euclidean():
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    got = pair_distances(x, np.array([0, 3]), np.array([5, 3]))
    np.testing.assert_allclose(got, [sum((a - b) ** 2 for a, b in zip(x[0], x[5], strict=True)), 0], rtol=1e-5)


def test_copies_of_one_image_have_distance_0_and_no_others_have():
    x, labels = people(6, 4, 1.0)
    x = np.concatenate([x, x]).astype(np.float32)
    x[len(labels) :] += np.float32(2e-7) * np.abs(x[len(labels) :])  # what rounding in a net does
    n = len(labels)
    first, second = np.triu_indices(2 * n, 1)
    np.testing.assert_array_equal(pair_distances(x, first, second) == 0, second == first + n)


def test_what_is_farther_apart_than_rounding_is_no_copy():
    x = np.array([[1, 0], [1, 1e-6], [1, 1e-5]])  # of length 1
    found = pair_distances(x, np.array([0, 0, 1]), np.array([1, 2, 2]))
    np.testing.assert_allclose(found, [0, 1e-10, 8.1e-11], rtol=1e-9)


def test_distances_of_long_embeddings_take_memory_for_a_few_pairs_at_a_time():
    x = np.random.default_rng(0).normal(size=(20, 100_000)).astype(np.float32)
    first, second = np.triu_indices(20, 1)
    tracemalloc.start()
    found = pair_distances(x, first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, pdist(x.astype(np.float64), "sqeuclidean"))
    assert peak < 190 * 100_000 * 8  # what the differences of all pairs would take


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused_by_their_row(bad):
    x, labels = people(6, 4, 1.0)
    x[17, 2] = x[20, 0] = bad
    pairs = pairs_of(labels)
    for measure in (
        lambda: verification.verification(x, labels),
        lambda: pair_distances(x, pairs.first, pairs.second),
        lambda: retrieval.retrieval(x, labels),
        lambda: clustering.cluster(x, 1.0),
    ):
        with pytest.raises(FloatingPointError, match="row 17 of the embeddings holds NaN or infinity"):
            measure()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_distances_that_are_not_finite_are_refused(bad):
    d, same = np.array([1.0, 2, bad, 3]), np.array([1, 0, 1, 0], bool)
    for measure in (verification.verification_of_pairs, clustering.threshold_of_best_f):
        with pytest.raises(FloatingPointError, match="row 2 of the distances"):
            measure(d, same)
    with pytest.raises(FloatingPointError, match="row 2 of the distances"):
        verification.cross_validated_accuracy(d, same, np.array([0, 0, 1, 1]))


# --- verification


@pytest.mark.parametrize("decimals", [8, 0])  # 0: most distances are shared by several pairs
@pytest.mark.parametrize("seed", range(4))
def test_the_roc_curve_is_scikit_learns(seed, decimals):
    x, labels = people(7, 5, 1.2, seed)
    pairs = pairs_of(labels)
    d = pair_distances(x, pairs.first, pairs.second).round(decimals)
    far, tar = verification.Roc(d, pairs.same).curve()
    theirs_far, theirs_tar, _ = roc_curve(pairs.same, -d, drop_intermediate=False)
    np.testing.assert_allclose(far, theirs_far[1:], atol=1e-12)
    np.testing.assert_allclose(tar, theirs_tar[1:], atol=1e-12)
    assert verification.area(far, tar) == pytest.approx(roc_auc_score(pairs.same, -d), abs=1e-12)


def test_verification_by_hand():
    # Distances of the same pairs 1 2 5, of the different ones 3 4 6 7 8.
    d, same = np.array([1.0, 2, 3, 4, 5, 6, 7, 8]), np.array([1, 1, 0, 0, 1, 0, 0, 0], bool)
    roc = verification.Roc(d, same)
    far, tar = roc.curve()
    assert verification.area(far, tar) == pytest.approx(13 / 15)
    assert verification.accepted_at(far, tar, 0.2) == (pytest.approx(2 / 3), 2)
    assert verification.accepted_at(far, tar, 0.0) == (pytest.approx(2 / 3), 1)
    # 1 - TAR stays at 1/3 while FAR goes from 1/5 to 2/5.
    assert verification.equal_error_rate(far, tar) == pytest.approx(1 / 3)


def test_the_equal_error_rate_lies_on_the_line_between_two_points():
    # 1 - TAR falls from 0.5 to 0.1 while FAR grows from 0.2 to 0.6: they meet after 3/8 of the way.
    assert verification.equal_error_rate(np.array([0.2, 0.6, 1]), np.array([0.5, 0.9, 1])) == pytest.approx(0.35)


def test_accepted_at_the_first_point_of_a_curve_and_before_it():
    far, tar = np.array([0.05, 1]), np.array([0.7, 1])
    assert verification.accepted_at(far, tar, 0.1) == (0.7, 0) == verification.accepted_at(far, tar, 0.05)
    assert verification.accepted_at(far, tar, 0.01) == (0, -1)


@pytest.mark.parametrize("same", [[True, True, True], [False, False, False]])
def test_pairs_of_one_kind_have_no_curve(same):
    d, same = np.array([1.0, 2, 3]), np.array(same)
    with pytest.raises(ValueError, match="needs pairs of the same identity and pairs of different identities"):
        verification.Roc(d, same).curve()
    with pytest.raises(ValueError, match=r"^verification needs pairs of the same identity and pairs of different identities$"):
        verification.verification_of_pairs(d, same)


def test_one_pair_of_each_kind_has_a_curve():
    found = verification.verification_of_pairs(np.array([1.0, 2]), np.array([True, False]))
    assert (found.same, found.different) == (1, 1) and found.figures == {"AUC": 1, "EER": 0}


@pytest.mark.parametrize(("distances", "auc", "eer"), [([1, 1, 9, 9], 1, 0), ([9, 9, 1, 1], 0, 1), ([5, 5, 5, 5], 0.5, 0.5)])
def test_perfect_inverted_and_constant_distances(distances, auc, eer):
    far, tar = verification.Roc(np.array(distances, float), np.array([1, 1, 0, 0], bool)).curve()
    assert verification.area(far, tar) == auc and verification.equal_error_rate(far, tar) == eer


def test_a_far_that_the_pairs_cannot_resolve_is_not_reported():
    x, labels = people(10, 10, 1.0)  # 4,500 different pairs: 4.5 of them at 1e-3
    found = verification.verification(x, labels)
    assert found.different == 4500 and set(found.tar) == {0.1, 0.01} == set(found.thresholds)
    pairs = pairs_of(labels)
    d = pair_distances(x, pairs.first, pairs.second)
    for far, threshold in found.thresholds.items():
        assert np.mean(d[~pairs.same] <= threshold) <= far < np.mean(d[~pairs.same] <= threshold) + 1 / 4500 + 1e-12
        assert np.mean(d[pairs.same] <= threshold) == pytest.approx(found.tar[far])


@pytest.mark.parametrize("different", [99_999, 100_000])
def test_a_far_is_reported_where_ten_different_pairs_are_accepted_at_it(different):
    d = np.arange(different + 7.0)  # the same pairs come last, so that rows and accepted pairs are alike
    found = verification.verification_of_pairs(d, d >= different)
    resolved = {0.1: different // 10, 0.01: different // 100, 0.001: different // 1000, 0.0001: different // 10_000}
    if different < 100_000:
        del resolved[0.0001]  # nine pairs
    assert found.accepted == resolved and (found.same, found.different) == (7, different)
    assert found.thresholds == {far: accepted - 1 for far, accepted in resolved.items()}


def test_a_far_is_reported_at_the_very_first_distance():
    d, same = np.append(np.zeros(10), np.arange(1.0, 1001)), np.arange(1010) >= 1000
    assert verification.verification_of_pairs(d, same).accepted == {0.1: 100, 0.01: 10}


def test_a_far_that_equal_distances_go_beyond_is_not_reported():
    rng = np.random.default_rng(0)
    d, same = rng.random(6000), np.arange(6000) < 1000
    assert verification.verification_of_pairs(d, same).accepted == {0.1: 500, 0.01: 50}
    d[1000:1046] = 0  # more than half of the 50 pairs, but not all
    assert verification.verification_of_pairs(d, same).accepted[0.01] == 50
    d[1000:1060] = 0  # all or none of these 60
    assert set(verification.verification_of_pairs(d, same).accepted) == {0.1}
    d[995:1005] = -1  # 5 different pairs are nearer still, of which a FAR cannot be told
    assert set(verification.verification_of_pairs(d, same).accepted) == {0.1}
    pairs = Pairs(np.arange(6000) % 50, np.arange(6000) % 49, same)
    assert set(verification.resampled_verification(d, pairs, np.arange(50))) == {"AUC", "EER", "TAR@FAR=0.1"}


def test_an_interval_leaves_out_a_fortieth_at_each_end():
    assert bootstrap.interval(np.random.default_rng(0).permutation(1001)) == (25, 975)
    assert bootstrap.interval(np.array([])) is None


@pytest.mark.parametrize(("identities", "resamples"), [(5, 200), (4, 0)])
def test_figures_are_resampled_200_times_from_five_identities_on(identities, resamples):
    x, labels = people(identities, 4, 1.0)
    pairs = pairs_of(labels)
    draws = verification.resampled_verification(pair_distances(x, pairs.first, pairs.second), pairs, labels)
    assert {len(values) for values in draws.values()} == {resamples}
    assert len(bootstrap.resampled_means(np.arange(len(labels)), labels)) == resamples


def test_draws_without_pairs_of_both_kinds_are_left_out_and_no_others():
    """One identity of five has two images: without it there is no same pair, and with it alone no different one."""
    labels = np.array([0, 1, 2, 3, 4, 4])
    drawn = np.random.default_rng(3).integers(0, 5, (200, 5))
    usable = sum(4 in one and set(one.tolist()) != {4} for one in drawn)
    pairs = pairs_of(labels)
    found = verification.resampled_verification(np.arange(15.0), pairs, labels, seed=3)
    assert len(found["AUC"]) == len(found["EER"]) == usable and 100 < usable < 180


def test_intervals_hold_the_figure_and_widen_with_fewer_identities():
    widths = []
    for identities in (40, 8):
        x, labels = people(identities, 6, 1.5)
        pairs = pairs_of(labels)
        d = pair_distances(x, pairs.first, pairs.second)
        figures = verification.verification_of_pairs(d, pairs.same).figures
        draws = verification.resampled_verification(d, pairs, labels)
        assert set(draws) == set(figures)
        for name, value in figures.items():
            low, high = bootstrap.interval(draws[name])
            assert low < value < high, name
        widths.append(np.ptp(bootstrap.interval(draws["AUC"])))
    assert widths[0] < widths[1]


def test_resampled_identities_are_drawn_as_by_hand():
    """A resample is the list with each identity's images written as often as it was drawn, its copies apart."""
    x, labels = people(5, 4, 1.0)
    rng = np.random.default_rng(7)
    expected = []
    for _ in range(20):
        drawn = np.bincount(rng.integers(0, 5, 5), minlength=5)
        same, different = [], []
        for i in range(len(labels)):
            for j in range(i):
                times = drawn[labels[i]] if labels[i] == labels[j] else drawn[labels[i]] * drawn[labels[j]]
                (same if labels[i] == labels[j] else different).extend([((x[i] - x[j]) ** 2).sum()] * times)
        expected.append(np.mean([d > s for s in same for d in different]))
    pairs = pairs_of(labels)
    d = pair_distances(x, pairs.first, pairs.second)
    found = verification.resampled_verification(d, pairs, labels, resamples=20, seed=7)
    np.testing.assert_allclose(found["AUC"], expected, atol=1e-6)


def test_embeddings_of_the_same_images_are_resampled_together():
    x, labels = people(9, 4, 1.0)
    pairs = pairs_of(labels)
    d = pair_distances(x, pairs.first, pairs.second)
    one, other = verification.resampled_verification([d, d * 2], pairs, labels)
    np.testing.assert_array_equal(one["AUC"], other["AUC"])


# --- accuracy in folds


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_one_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 12, 40).astype(float)  # many equal ones
    same = rng.random(40) < np.clip(1 - distances / 10, 0.1, 0.9)
    candidates = [-1, *np.arange(0, 13) + 0.5]
    most = max(np.sum((distances <= t) == same) for t in candidates)
    assert np.sum((distances <= verification.best_threshold(distances, same)) == same) == most


@pytest.mark.parametrize(("same", "threshold"), [([True, True], 2.0), ([False, False], -np.inf), ([True, False], 1.5)])
def test_the_best_threshold_is_half_way_to_the_next_pair_or_beyond_all(same, threshold):
    assert verification.best_threshold(np.array([1.0, 2.0]), np.array(same)) == threshold


def test_a_pair_at_the_very_threshold_is_called_the_same():
    # The thresholds: 2 from fold 0, between 1 and 3; 2.5 from fold 1, between 2 and 3.
    d, same = np.array([1.0, 3, 2, 1, 3]), np.array([True, False, True, True, False])
    found = verification.cross_validated_accuracy(d, same, np.array([0, 0, 1, 1, 1]))
    assert found == (2, 1, 0)  # two folds are enough for a standard error


def test_accuracy_judges_each_fold_by_the_threshold_of_the_others():
    # Fold 0 alone would put its threshold at 5, folds 1 and 2 put theirs at 2.
    distances = np.array([1.0, 4, 6, 9, 1, 1, 3, 3, 1, 1, 3, 3])
    same = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0], bool)
    found = verification.cross_validated_accuracy(distances, same, np.repeat([0, 1, 2], 4))
    assert found.folds == 3 and found.mean == pytest.approx((0.75 + 1 + 1) / 3)
    assert found.standard_error == pytest.approx(np.std([0.75, 1, 1], ddof=1) / np.sqrt(3))


def test_one_fold_has_no_spread():
    found = verification.cross_validated_accuracy(np.array([1.0, 4, 3, 9]), np.array([1, 1, 0, 0], bool), np.zeros(4, int))
    assert found == (1, 0.75, None)


def test_random_distances_are_right_half_the_time_and_perfect_ones_always():
    rng = np.random.default_rng(0)
    same, folds = np.arange(2000) % 2 == 0, np.arange(2000) // 200
    assert abs(verification.cross_validated_accuracy(rng.random(2000), same, folds).mean - 0.5) < 0.05
    assert verification.cross_validated_accuracy(np.where(same, 0.1, 0.9), same, folds).mean == 1
    for one_kind in (same | True, same & False):
        with pytest.raises(ValueError, match="pairs of the same identity and pairs of different identities"):
            verification.cross_validated_accuracy(rng.random(2000), one_kind, folds)


# --- retrieval


@pytest.mark.parametrize("decimals", [8, 0])
def test_retrieval_is_that_of_plain_loops_and_scikit_learn(decimals):
    x, labels = people(6, 4, 1.2)
    x = np.concatenate([x, -x]).round(decimals)  # of mean 0, so that whole numbers stay whole, and ties ties
    labels = np.concatenate([labels, labels + 50])
    labels[-1] = 99  # an only image: searched among, but no query
    d = plain_distances(x)
    found = retrieval.retrieval(x, labels)
    assert len(found.labels) == len(labels) - 1
    for q in range(len(labels) - 1):
        others = [i for i in range(len(labels)) if i != q]
        mine = labels[others] == labels[q]
        row = d[q, others]
        assert found.rank_1[q] == (row[mine].min() < row[~mine].min())
        assert found.average_precision[q] == pytest.approx(average_precision_score(mine, -row))
        # Strangers at the same distance come first.
        order = sorted(range(len(others)), key=lambda i: (row[i], mine[i]))
        hits = [i for i in order[: mine.sum()] if mine[i] and np.sum(row <= row[i]) <= mine.sum()]
        assert found.r_precision[q] == pytest.approx(len(hits) / mine.sum())


def test_identities_of_two_images_are_queries_and_those_of_one_are_not():
    found = retrieval.retrieval(np.array([[0.0], [1], [5], [9], [8.5], [9.2]]), np.array([4, 4, 2, 7, 7, 7]))
    assert found.labels.tolist() == [1, 1, 2, 2, 2]  # by their rank among the labels
    assert found.rank_1.dtype == bool and found.rank_1.all() and found.r_precision.all()


def test_copies_of_one_image_under_two_names_do_not_count_as_found():
    found = retrieval.retrieval(np.zeros((6, 3)), np.array([0, 0, 0, 1, 1, 1]))
    assert not found.rank_1.any() and not found.r_precision.any()
    np.testing.assert_allclose(found.average_precision, 2 / 5)


def test_copies_of_one_image_are_equally_near_though_rounding_differs():
    """Two names for every image of four identities: no figure may depend on which copy rounding puts first."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 300.0):
        x = scale * rng.normal(size=(40, 64)).astype(np.float32)
        x = np.concatenate([x, x[::-1]])
        x += np.float32(1e-7) * np.abs(x) * rng.uniform(-1, 1, x.shape).astype(np.float32)  # as a net rounds
        labels = np.concatenate([np.arange(40) % 4, np.arange(40)[::-1] % 4 + 4])
        found = retrieval.retrieval(x, labels)
        assert not found.rank_1.any()  # each image's copy under the other name is nearest
        exact = plain_distances(np.concatenate([x[:40], x[:40][::-1]]).astype(np.float64))
        for q in range(80):
            others = np.delete(np.arange(80), q)
            mine, row = labels[others] == labels[q], exact[q, others]
            precisions = [np.sum(mine & (row <= d)) / np.sum(row <= d) for d in row[mine]]
            assert found.average_precision[q] == pytest.approx(np.mean(precisions))


def test_resampled_means_weigh_identities_as_often_as_they_are_drawn():
    values, labels = np.array([1.0, 0, 0.5, 0.5, 0.1, 0.2, 0.3]), np.array([3, 3, 3, 8, 9, 11, 10])
    rng = np.random.default_rng(0)
    expected = [np.concatenate([values[labels == [3, 8, 9, 10, 11][p]] for p in drawn]).mean() for drawn in rng.integers(0, 5, (50, 5))]
    np.testing.assert_allclose(bootstrap.resampled_means(values, labels, resamples=50), expected)
    assert bootstrap.interval(bootstrap.resampled_means(values[:4], labels[:4])) is None  # two identities


# --- clustering


@pytest.mark.parametrize("seed", range(3))
def test_clustering_figures_are_those_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    labels, clusters = rng.integers(0, 5, 40), rng.integers(3, 9, 40)
    found = clustering.clustering(clusters, labels)
    n = range(40)
    both = sum(labels[i] == labels[j] and clusters[i] == clusters[j] for i in n for j in range(i))
    precision = both / sum(clusters[i] == clusters[j] for i in n for j in range(i))
    recall = both / sum(labels[i] == labels[j] for i in n for j in range(i))
    np.testing.assert_allclose(found.pairwise, (precision, recall, 2 * precision * recall / (precision + recall)))
    b_precision = np.mean([np.mean(labels[clusters == clusters[i]] == labels[i]) for i in n])
    b_recall = np.mean([np.mean(clusters[labels == labels[i]] == clusters[i]) for i in n])
    np.testing.assert_allclose(found.b_cubed, (b_precision, b_recall, 2 * b_precision * b_recall / (b_precision + b_recall)))
    joint = np.array([[np.mean((labels == a) & (clusters == b)) for b in range(3, 9)] for a in range(5)])
    p, q = joint.sum(1), joint.sum(0)
    information = sum(joint[a, b] * np.log(joint[a, b] / p[a] / q[b]) for a in range(5) for b in range(6) if joint[a, b])
    entropy = (-np.sum(p * np.log(p)) - np.sum(q * np.log(q))) / 2
    assert found.nmi == pytest.approx(information / entropy)


@pytest.mark.parametrize(
    ("clusters", "pairwise", "b_cubed"),
    [([0, 0, 1, 1], (1, 1, 1), (1, 1, 1)), ([0, 0, 0, 0], (1 / 3, 1, 0.5), (0.5, 1, 2 / 3)), ([0, 1, 2, 3], (1, 0, 0), (1, 0.5, 2 / 3))],
)
def test_clustering_by_hand(clusters, pairwise, b_cubed):
    found = clustering.clustering(np.array(clusters), np.array([5, 5, 6, 6]))
    np.testing.assert_allclose(found.pairwise, pairwise)
    np.testing.assert_allclose(found.b_cubed, b_cubed)


def test_clusters_without_one_right_pair_have_an_f_of_zero():
    found = clustering.clustering(np.array([3, 3, 8, 8]), np.array([5, 6, 5, 6]))
    assert found.clusters == 2 and found.pairwise == (0, 0, 0)


def test_average_linkage_reaches_to_the_threshold_and_as_much_farther_as_rounding_does():
    for beyond, clusters in ((-1e-6, [0, 0]), (1e-6, [0, 0]), (4e-6, [0, 1])):
        half = (0.1 + beyond) / 2
        x = np.array([[np.sqrt(1 - half**2), half], [np.sqrt(1 - half**2), -half]])  # of length 1
        found = clustering.cluster(x, 0.1**2)
        assert found.tolist() == clusters and found.dtype.kind == "i"
    assert clustering.cluster(x[:1], 0.1).dtype.kind == "i"


def test_identities_far_apart_are_clusters_numbered_by_size():
    labels = np.repeat([0, 1, 2], [2, 5, 3])
    x = 10.0 * labels[:, None] + np.random.default_rng(0).normal(size=(10, 3)) / 10
    np.testing.assert_array_equal(clustering.cluster(x, 4.0), np.repeat([2, 0, 1], [2, 5, 3]))
    np.testing.assert_array_equal(clustering.cluster(x[:1], 4.0), [0])


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_of_the_best_f_is_that_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    d = rng.random(300)
    same = rng.random(300) < (1 - d) ** 2

    def f(threshold):
        hits = np.sum(same & (d <= threshold))
        return 2 * hits / (np.sum(d <= threshold) + same.sum())

    assert f(clustering.threshold_of_best_f(d, same)) == pytest.approx(max(f(t) for t in d))
    d = d.round(1)  # a threshold takes all pairs of one distance
    assert f(clustering.threshold_of_best_f(d, same)) == pytest.approx(max(f(t) for t in d))


def test_drawn_pairs_give_the_threshold_and_the_f_of_all_pairs():
    x, labels = people(60, 10, 0.6)
    everyone = pairs_of(labels)
    d = pair_distances(x, everyone.first, everyone.second)

    def f(threshold):
        hits = np.sum(everyone.same & (d <= threshold))
        return 2 * hits / (np.sum(d <= threshold) + everyone.same.sum())

    best = max(f(t) for t in np.quantile(d, np.linspace(0, 0.1, 400)))
    for seed in range(3):
        pairs = pairs_of(labels, most=20_000, seed=seed)
        drawn = pair_distances(x, pairs.first, pairs.second)
        threshold = clustering.threshold_of_best_f(drawn, pairs.same, different_weight(pairs, labels))
        assert f(threshold) > best - 0.005
        assert f(clustering.threshold_of_best_f(drawn, pairs.same)) < best - 0.05  # as if the draw were all there is


def test_copies_are_one_cluster_at_threshold_0():
    x = np.repeat(np.random.default_rng(0).normal(size=(5, 8)), 3, axis=0)
    np.testing.assert_array_equal(clustering.cluster(x, 0.0), np.repeat(np.arange(5), 3))


# --- size


def test_a_large_set_is_measured_in_bounded_memory():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 6)
    x = (rng.normal(size=(1000, 16))[labels] + rng.normal(size=(6000, 16))).astype(np.float32)
    tracemalloc.start()
    pairs = pairs_of(labels, most=200_000)
    verification.verification_of_pairs(pair_distances(x, pairs.first, pairs.second), pairs.same)
    found = retrieval.retrieval(x, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.labels) == 6000 and peak < 6000**2 * 8 / 2  # half of what all distances at once would take


def test_hardly_any_same_pair_lies_beyond_the_distance_that_rejects():
    """Against a plain loop over all thresholds."""
    rng = np.random.default_rng(0)
    for count in (99, 100, 999, 1000, 2500):
        distances = np.round(rng.gamma(2, 0.2, count + 4000), 2)  # many are equal
        same = np.arange(len(distances)) < count
        found = verification.rejected_from(distances, same)
        if count < 100:  # a tenth of them is fewer than ten pairs
            assert found is None
            continue
        frr, at, trr = found
        assert frr == {100: 0.1, 999: 0.1, 1000: 0.01, 2500: 0.01}[count]
        possible = [d for d in sorted(set(distances[same])) if sum(distances[same] > d) <= frr * count]
        assert at == possible[0] and trr == np.mean([d > at for d in distances[~same]])
