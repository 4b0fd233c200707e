"""How well an image finds the others of its identity: rank-1, mAP, R-precision."""

from typing import NamedTuple

import numpy as np

from tripletloss.core.distances import distance_blocks, rounding_of


class Retrieval(NamedTuple):
    """Figures of Q queries, (Q,) each: every image whose identity has another image, compared with all other images."""

    labels: np.ndarray  # of the queries
    rank_1: np.ndarray  # bool: the nearest other image is of the query's identity
    average_precision: np.ndarray  # mean of the precisions at the images of the query's identity
    r_precision: np.ndarray  # share of the query's R images among the R nearest


def retrieval(embeddings: np.ndarray, labels: np.ndarray) -> Retrieval:
    """Retrieval figures per query; their means are rank-1 (recall at 1), mAP and mean R-precision.

    embeddings: (N, D); labels: (N,). Average precision as in Manning, Raghavan, Schuetze, Introduction to Information
    Retrieval, section 8.4 (mAP over queries), and R-precision as in the same section. Of images at the same distance,
    those of other identities come first. Distances count as the same if they differ by no more than rounding can cause
    (distances.ROUNDING), so that all copies of one image are equally near. Memory grows with N, never with N^2.
    Raises FloatingPointError if an embedding contains NaN or infinity; the message names the first such row.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(labels)
    queries = np.flatnonzero(sizes[labels] > 1)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    rank_1, average, r_precision = np.zeros(len(queries), bool), np.zeros(len(queries)), np.zeros(len(queries))
    done, rounding = 0, rounding_of(embeddings)
    for block, distances in distance_blocks(embeddings, queries):  # (B, N)
        distances[np.arange(len(block)), block] = np.inf  # not itself
        for query, row in zip(block, distances, strict=True):
            mine = members[labels[query]]
            mine = np.sort(row[mine[mine != query]])  # (R,)
            row.sort()
            reach = np.square(np.sqrt(mine) + rounding)  # (R,) copies may be this much farther apart, not squared
            ranks = np.searchsorted(row, reach, side="right")  # (R,) images at that distance or nearer
            hits = np.searchsorted(mine, reach, side="right")  # (R,) those of them that show the query's identity
            rank_1[done] = ranks[0] == hits[0]
            average[done] = np.mean(hits / ranks)
            r_precision[done] = np.mean(ranks <= len(mine))
            done += 1
    return Retrieval(labels[queries], rank_1, average, r_precision)
