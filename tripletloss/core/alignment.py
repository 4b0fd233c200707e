"""Where a face's points are in the images that a model was made for, and how a photo's points are brought there.

Five points: the eyes, the tip of the nose and the corners of the mouth, from the photo's left to its right. They are
given in shares of an image's side, x from the left and y from the top.
"""

import numpy as np

# By model, (5, 2). Faces that are cut otherwise are told apart worse: see models/dlib_resnet/README.md.
TEMPLATES = {
    # Means of the medians over 1,600 images of `python -m faces` and 2,308 of LFW's central 128 pixels, made
    # symmetrical.
    "face997": np.array([[0.34, 0.40], [0.66, 0.40], [0.50, 0.583], [0.364, 0.725], [0.636, 0.725]]),
    # Fitted on folds 1 to 5 of LFW to where YuNet sees the points in the squares that dlib cuts out (get_face_chip, 150
    # pixels, padding 0.25).
    "dlib_resnet": np.array([[0.322, 0.306], [0.681, 0.315], [0.496, 0.520], [0.345, 0.677], [0.654, 0.691]]),
}


def in_square(template: np.ndarray, size: int, margin: float = 0.0) -> np.ndarray:
    """A template (5, 2) in pixels of a square with sides of `size`. A pixel's centre has whole numbers.

    margin: around the square, in shares of its side; the size includes it.
    """
    return size * (template + margin) / (1 + 2 * margin) - 0.5


def similarity(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The similarity, (2, 3), that brings points (N, 2) nearest to others (N, 2).

    By least squares (Umeyama, IEEE PAMI 13(4), 1991, without reflection).
    """
    here, there = points - points.mean(0), wanted - wanted.mean(0)
    turn = np.sum((there @ [1, 1j]) * np.conj(here @ [1, 1j])) / np.sum(here**2)  # a complex number: scale and angle
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([matrix, wanted.mean(0) - matrix @ points.mean(0)])
