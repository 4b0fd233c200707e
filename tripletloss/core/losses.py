"""The triplet loss and its gradients, in plain NumPy."""

import numpy as np
from scipy.sparse import coo_array, csr_array


def scatter_gradients(selection, anchor_diff, positive_diff, negative_diff, rows):
    """Sum the gradients of triplets into the rows of the mini-batch that they came from.

    selection: T triplets; the diffs: (T, D) each; rows: N, rows of the mini-batch. Returns (N, D), like the
    diffs; a row that no learning triplet uses gets zeros.
    """
    learns = selection.learns
    take = np.concatenate([selection.anchors[learns], selection.positives[learns], selection.negatives[learns]])
    diffs = np.concatenate([anchor_diff[learns], positive_diff[learns], negative_diff[learns]])  # (3T, D)
    # Row i of the matrix picks take[i]; its transpose adds diffs[i] to that row.
    picks = csr_array((np.ones(len(take), diffs.dtype), take, np.arange(len(take) + 1)), shape=(len(take), rows))
    return picks.T @ diffs


def triplet_loss(anchor, positive, negative, margin):
    """FaceNet's triplet loss (arXiv 1503.03832, eq. 3), averaged and halved.

    L = sum_i max(0, margin + |a_i - p_i|^2 - |a_i - n_i|^2) / (2 N)

    anchor, positive, negative: (N, D) float; margin: a squared distance. Returns the loss, a float, and active:
    (N,) bool, the triplets with a positive hinge. Without triplets the loss is 0.
    """
    d_ap = np.sum(np.square(anchor - positive), axis=1, dtype=np.float64)  # (N,)
    d_an = np.sum(np.square(anchor - negative), axis=1, dtype=np.float64)  # (N,)
    hinge = np.maximum(0, margin + d_ap - d_an)  # (N,)
    return float(hinge.sum() / (2 * max(1, len(hinge)))), hinge > 0


def triplet_loss_gradients(anchor, positive, negative, active, loss_diff):
    """Gradients of triplet_loss: (n - p)/N, (p - a)/N, (a - n)/N for active triplets, times loss_diff, else 0.

    anchor, positive, negative: (N, D); active: (N,) bool from triplet_loss; loss_diff: dL_total/dL, the loss's
    top diff. Returns three (N, D) arrays.
    """
    scale = (loss_diff / max(1, len(active)) * active)[:, None].astype(anchor.dtype)  # (N, 1)
    return (negative - positive) * scale, (positive - anchor) * scale, (anchor - negative) * scale


def selected_loss(embeddings, distances, selection, margin, loss_diff=1.0):
    """triplet_loss of a Selection and its gradient with respect to the embeddings, without copying rows.

    The sum over triplets is one over pairs: d(a,p) counts for, d(a,n) against, and the gradient of c |x_i - x_j|^2 / 2
    with respect to x_i is c (x_i - x_j). So the pairs' counts, a sparse (N, N), times the embeddings is all it takes.

    embeddings: (N, D); distances: (N, N), squared; selection: T triplets; margin: a squared distance; loss_diff: as in
    triplet_loss_gradients. Returns the loss, a float, and the gradient (N, D), like the embeddings.
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
