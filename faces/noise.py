"""Noise to paint with, smooth or drawn out into strands. Tables are made once."""

from functools import cache

import cv2
import numpy as np

SIDE = 512  # of a table; a power of two, so that masking wraps coordinates around
OCTAVES = ((8, 0.5), (16, 0.5), (32, 0.45), (64, 0.35), (128, 0.25))  # cells per side, and weight


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> np.ndarray:
    """Noise of unit variance, (rows, columns) float32, whose lumps are about `cell` pixels wide."""
    rows, columns = (int(side / cell) + 3 for side in shape)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    lumps = cv2.resize(grid, (int(columns * cell) + 1, int(rows * cell) + 1), interpolation=cv2.INTER_CUBIC)
    offset = int(cell)
    return 1.3 * lumps[offset : offset + shape[0], offset : offset + shape[1]]


@cache
def clouds() -> np.ndarray:
    """A tileable table of smooth noise with lumps of all sizes, (SIDE, SIDE) float32 of unit variance."""
    rng = np.random.default_rng(7)
    table = np.zeros((SIDE, SIDE), np.float32)
    for cells, weight in OCTAVES:
        grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        cell = SIDE // cells
        lumps = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        table += weight * lumps[2 * cell : 2 * cell + SIDE, 2 * cell : 2 * cell + SIDE]
    return (table - table.mean()) / table.std()


@cache
def strands() -> np.ndarray:
    """A tileable table of strands down its columns, with fine ones within locks, (SIDE, SIDE) float32."""
    rng = np.random.default_rng(8)
    table = np.zeros((SIDE, SIDE), np.float32)
    for across, along, weight in ((0.9, 22, 1.0), (4, 50, 0.9)):
        grid = np.pad(rng.standard_normal((SIDE, SIDE)).astype(np.float32), SIDE // 2, mode="wrap")
        grid = cv2.GaussianBlur(grid, (0, 0), sigmaX=across, sigmaY=along)[
            SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2
        ]
        table += weight * grid / grid.std()
    return table / table.std()


def look_up(table: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The nearest entries of a table at (column, row), arrays of the same shape, which wrap around."""
    return table[row.astype(np.int64) & (SIDE - 1), column.astype(np.int64) & (SIDE - 1)]
