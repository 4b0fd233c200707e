"""The triplet loss and its gradients, in plain NumPy."""

import numpy as np
from scipy.sparse import coo_array, csr_array

from tripletloss.core.selection import Selection


def scatter_gradients(
    selection: Selection, anchor_diff: np.ndarray, positive_diff: np.ndarray, negative_diff: np.ndarray, rows: int
) -> np.ndarray:
    """Sum the gradients of triplets into the rows of the mini-batch that they came from.

    selection: T triplets; the diffs: (T, D) each; rows: N, the rows of the mini-batch. Returns (N, D) of the dtype of
    the diffs; a row that no learning triplet uses gets zeros.
    """
    learns = selection.learns
    take = np.concatenate([selection.anchors[learns], selection.positives[learns], selection.negatives[learns]])
    diffs = np.concatenate([anchor_diff[learns], positive_diff[learns], negative_diff[learns]])  # (3T, D)
    # Row i of the matrix picks take[i]; its transpose adds diffs[i] to that row.
    picks = csr_array((np.ones(len(take), diffs.dtype), take, np.arange(len(take) + 1)), shape=(len(take), rows))
    return picks.T @ diffs


def triplet_loss(
    anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray, margin: float
) -> tuple[float, np.ndarray]:
    """FaceNet's triplet loss (arXiv 1503.03832, eq. 3), averaged and halved.

    L = sum_i max(0, margin + |a_i - p_i|^2 - |a_i - n_i|^2) / (2 N)

    anchor, positive, negative: (N, D) float; margin: a squared distance. Returns the loss, and `active`, (N,) bool:
    the triplets with a positive hinge. Without triplets the loss is 0.
    """
    d_ap = np.sum(np.square(anchor - positive), axis=1, dtype=np.float64)  # (N,)
    d_an = np.sum(np.square(anchor - negative), axis=1, dtype=np.float64)  # (N,)
    hinge = np.maximum(0, margin + d_ap - d_an)  # (N,)
    return float(hinge.sum() / (2 * max(1, len(hinge)))), hinge > 0


def triplet_loss_gradients(
    anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray, active: np.ndarray, loss_diff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of triplet_loss: loss_diff times (n - p)/N, (p - a)/N, (a - n)/N for active triplets, 0 for others.

    anchor, positive, negative: (N, D); active: (N,) bool from triplet_loss; loss_diff: dL_total/dL, the loss's
    top diff. Returns three (N, D) arrays.
    """
    scale = (loss_diff / max(1, len(active)) * active)[:, None].astype(anchor.dtype)  # (N, 1)
    return (negative - positive) * scale, (positive - anchor) * scale, (anchor - negative) * scale


def selected_loss(
    embeddings: np.ndarray, distances: np.ndarray, selection: Selection, margin: float, loss_diff: float = 1.0
) -> tuple[float, np.ndarray]:
    """triplet_loss of a Selection and its gradient with respect to the embeddings, without copying rows.

    The sum over triplets is a sum over pairs, in which d(a,p) counts positively and d(a,n) negatively. The gradient of
    c |x_i - x_j|^2 / 2 with respect to x_i is c (x_i - x_j). So the gradient is a product of a sparse (N, N) matrix,
    which is made from the counts c of the pairs, and the embeddings.

    embeddings: (N, D); distances: (N, N), squared; selection: T triplets; margin: a squared distance; loss_diff: as in
    triplet_loss_gradients. Returns the loss, and the gradient (N, D) of the dtype of the embeddings.
    """
    a, p, n = selection.anchors, selection.positives, selection.negatives
    hinge = margin + distances[a, p] - distances[a, n]  # (T,)
    loss = float(np.maximum(hinge, 0).sum() / (2 * max(1, len(a))))
    learns = selection.learns & (hinge > 0)
    a, p, n = a[learns], p[learns], n[learns]
    each = np.full(len(a), loss_diff / max(1, len(hinge)), embeddings.dtype)
    rows, columns, counts = np.concatenate([a, a]), np.concatenate([p, n]), np.concatenate([each, -each])
    pairs = coo_array((counts, (rows, columns)), shape=distances.shape).tocsr()
    pairs = pairs + pairs.T
    return loss, pairs.sum(axis=1)[:, None] * embeddings - pairs @ embeddings
