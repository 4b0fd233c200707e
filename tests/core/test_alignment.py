"""Where the points of faces are, and how they are brought there."""

import numpy as np
import pytest
from skimage.transform import SimilarityTransform

from tripletloss.core.alignment import TEMPLATES, in_square, similarity


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_is_a_face_in_a_square(template):
    """From the photo's left to its right, and from the top to the chin."""
    left, right, nose, mouth_left, mouth_right = template
    assert template.shape == (5, 2) and 0.2 < template.min() and template.max() < 0.8
    assert left[0] < nose[0] < right[0] and mouth_left[0] < nose[0] < mouth_right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])


def test_a_pixels_centre_has_whole_numbers():
    """The middle of a square of 4 pixels lies between its second and third pixel, with and without an edge."""
    middle = np.full((5, 2), 0.5)
    assert np.array_equal(in_square(middle, 4), np.full((5, 2), 1.5))
    assert np.array_equal(in_square(middle, 4, margin=0.5), np.full((5, 2), 1.5))
    corner = np.zeros((5, 2))
    assert np.array_equal(in_square(corner, 4), np.full((5, 2), -0.5))
    assert np.array_equal(in_square(corner, 4, margin=0.5), np.full((5, 2), 0.5))  # a quarter of the side is edge


def test_the_similarity_is_scikit_images():
    rng = np.random.default_rng(0)
    for template in TEMPLATES.values():
        wanted = in_square(template, 150)
        points = 300 + 2 * wanted @ [[0.8, 0.6], [-0.6, 0.8]] + rng.normal(0, 8, (5, 2))
        theirs = SimilarityTransform()
        assert theirs.estimate(points, wanted)
        assert np.allclose(similarity(points, wanted), theirs.params[:2])


def test_points_that_fit_exactly_end_where_they_are_wanted():
    wanted = in_square(TEMPLATES["face997"], 64)
    points = wanted @ [[0, 3], [-3, 0]] + [10, 20]  # turned by 90 degrees and three times as large
    matrix = similarity(points, wanted)
    assert np.allclose(points @ matrix[:, :2].T + matrix[:, 2], wanted)
    assert np.sqrt(np.linalg.det(matrix[:, :2])) == pytest.approx(1 / 3)
