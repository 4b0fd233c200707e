"""L2 normalisation of rows and its gradient, in plain NumPy."""

import numpy as np

# Added to the squared norm, so that a row of zeros stays zero and the gradient is finite everywhere.
# It is also the shift of the Power layer in deploy.prototxt.
EPSILON = 1e-10


def l2_normalize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale every row to length one: y = x / sqrt(|x|^2 + EPSILON).

    x: (N, ...) float; every row is one vector.
    Returns y, of the shape of x, and the lengths sqrt(|x|^2 + EPSILON), shape (N, 1, ...), which the gradient needs.
    """
    axes = tuple(range(1, x.ndim))
    lengths = np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True) + EPSILON)
    return x / lengths, lengths


def l2_normalize_gradient(y: np.ndarray, lengths: np.ndarray, top_diff: np.ndarray) -> np.ndarray:
    """Gradient of l2_normalize: dL/dx = (g - y (y . g)) / length, for g = dL/dy.

    y, lengths: as l2_normalize returned them; top_diff: dL/dy, of the shape of y. Returns dL/dx, of the same shape.
    """
    axes = tuple(range(1, y.ndim))
    along = np.sum(y * top_diff, axis=axes, keepdims=True)
    return (top_diff - y * along) / lengths
