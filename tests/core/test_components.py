"""Principal components, compared with scikit-learn's."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from tripletloss.core import components
from tripletloss.core.components import principal_components


@pytest.mark.parametrize("rows, count", [(50, 3), (50, 8), (9000, 5)])
def test_they_are_those_of_scikit_learn(rows, count):
    rng = np.random.default_rng(rows)
    data = (rng.normal(size=(rows, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8)).astype(np.float32)
    found, mean = principal_components(data, count)
    expected = PCA(count, svd_solver="full").fit(data.astype(np.float64))
    np.testing.assert_allclose(mean, expected.mean_, atol=1e-9)
    signs = np.sign((found * expected.components_).sum(1))
    np.testing.assert_allclose(found * signs[:, None], expected.components_, atol=1e-7)
    assert (found[np.arange(count), np.abs(found).argmax(1)] > 0).all()


def test_fewer_rows_than_directions_give_perpendicular_ones():
    found, mean = principal_components(np.eye(8)[:2], 6)
    np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(np.abs(found[0, :2]), np.sqrt(0.5))  # the only one in which the two rows differ
    np.testing.assert_allclose(mean, np.eye(8)[:2].mean(0))


def test_blocks_do_not_change_them(monkeypatch):
    data = np.random.default_rng(0).normal(size=(100, 6))
    whole = principal_components(data, 4)
    monkeypatch.setattr(components, "BLOCK_ROWS", 7)
    for one, other in zip(principal_components(data, 4), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
