"""Classification by cosine, with a margin: scores and their gradients, in plain NumPy.

Wang et al., CosFace (arXiv 1801.09414, equation 4) and Additive Margin Softmax (arXiv 1801.05599): features and class
weights have length one, so that only the direction decides the class, as it does when embeddings are compared.
"""

from typing import Any

import numpy as np

from tripletloss.core.norm import l2_normalize, l2_normalize_gradient


def cosine_scores(
    features: np.ndarray, weights: np.ndarray, labels: np.ndarray, scale: float, margin: float
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """scale * (cos(x_i, w_j) - margin if j is the label of i), the input of a softmax.

    features: (N, D); weights: (C, D), one row per class; labels: (N,) whole numbers from 0 to C-1; scale, margin:
    numbers. Returns the scores (N, C), and what cosine_gradients needs.
    """
    x, x_lengths = l2_normalize(features)  # (N, D), (N, 1)
    w, w_lengths = l2_normalize(weights)  # (C, D), (C, 1)
    scores = x @ w.T  # (N, C)
    scores[np.arange(len(x)), labels] -= margin
    scores *= scale
    return scores, (x, x_lengths, w, w_lengths, scale)


def cosine_gradients(state: tuple[Any, ...], top_diff: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dL/dfeatures (N, D) and dL/dweights (C, D), from the state that cosine_scores returned and dL/dscores (N, C)."""
    x, x_lengths, w, w_lengths, scale = state
    diff = scale * top_diff
    return l2_normalize_gradient(x, x_lengths, diff @ w), l2_normalize_gradient(w, w_lengths, diff.T @ x)
