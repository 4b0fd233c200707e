"""L2 normalisation and the cosine classifier, in NumPy: against plain loops, scikit-learn and finite differences."""

import re

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from tests.helpers import ROOT
from tripletloss.core.cosine import cosine_gradients, cosine_scores
from tripletloss.core.norm import EPSILON, l2_normalize, l2_normalize_gradient


def differences(function, x, step=1e-6):
    """Gradient of a function of one array by finite differences."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 2, 3)])
def test_each_row_is_one_vector_and_gets_length_one(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 7
    y, lengths = l2_normalize(x)
    assert y.dtype == np.float32 and y.shape == shape and lengths.shape == (shape[0], *[1] * (len(shape) - 1))
    for row, one, length in zip(x, y, lengths.ravel(), strict=True):
        assert length == pytest.approx(sum(v * v for v in row.ravel().tolist()) ** 0.5)
        np.testing.assert_allclose(one, row / length, rtol=1e-6)


def test_zeros_stay_zeros_and_tiny_rows_get_the_length_of_the_deploy_net():
    """A row whose squared length is that of the shift in deploy.prototxt comes out with the length 1 / sqrt(2)."""
    shifts = {float(shift) for shift in re.findall(r"shift: (\S+)", (ROOT / "deploy.prototxt").read_text())}
    assert shifts == {EPSILON}
    x = np.array([[0.0, 0, 0], [EPSILON**0.5, 0, 0]])
    y, _ = l2_normalize(x)
    np.testing.assert_allclose(y, [[0, 0, 0], [0.5**0.5, 0, 0]])


@pytest.mark.parametrize("shape", [(4, 5), (2, 2, 3)])
def test_the_gradient_of_normalising_is_that_of_finite_differences(shape):
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(2, *shape))
    found = l2_normalize_gradient(*l2_normalize(x), g)
    np.testing.assert_allclose(found, differences(lambda x: np.sum(g * l2_normalize(x)[0]), x), atol=1e-8)


LABELS = np.array([2, 0, 1, 2, 2])


def test_cosine_scores_are_scikit_learns_less_the_margin_of_the_own_class():
    rng = np.random.default_rng(0)
    x, w = 3 * rng.normal(size=(5, 4)), rng.normal(size=(3, 4)) / 5
    expected = cosine_similarity(x, w)
    for row, label in enumerate(LABELS):
        expected[row, label] -= 0.3
    np.testing.assert_allclose(cosine_scores(x, w, LABELS, 6, 0.3)[0], 6 * expected, atol=1e-7)


def test_cosine_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(1)
    x, w, g = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 3))
    by_x, by_w = cosine_gradients(cosine_scores(x, w, LABELS, 6, 0.3)[1], g)
    np.testing.assert_allclose(by_x, differences(lambda x: np.sum(g * cosine_scores(x, w, LABELS, 6, 0.3)[0]), x), atol=1e-7)
    np.testing.assert_allclose(by_w, differences(lambda w: np.sum(g * cosine_scores(x, w, LABELS, 6, 0.3)[0]), w), atol=1e-7)
