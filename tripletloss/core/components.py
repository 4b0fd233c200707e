"""Principal components, with which a projection that makes fewer numbers than it takes starts. Plain NumPy."""

import numpy as np

BLOCK_ROWS = 4096  # that are in memory as float64 at a time


def principal_components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The directions in which rows vary most, and the rows' mean (Pearson 1901; Hotelling 1933).

    rows: (N, D), N of one or more, which may be mapped from a file; count: 1 to D. Returns (count, D) float64, of
    length one, perpendicular to each other, the direction of the largest variance first, and (D,) float64. The largest
    entry of each direction, by its absolute value, is positive, so that the signs are always the same.
    """
    total, products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
    blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(rows), BLOCK_ROWS)]
    for block in blocks:
        total += rows[block].sum(axis=0, dtype=np.float64)
    mean = total / len(rows)
    for block in blocks:
        centred = rows[block] - mean
        products += centred.T @ centred
    directions = np.linalg.eigh(products)[1][:, ::-1][:, :count].T  # eigh has the smallest variance first
    largest = np.abs(directions).argmax(axis=1)
    return directions * np.sign(directions[np.arange(count), largest])[:, None], mean
