"""A z-buffer in NumPy: which triangle each pixel shows, and where on it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Triangles whose doubled area, in squared pixels, is less than this cover nothing.
MIN_DOUBLED_AREA = 1e-9


def rasterize(
    points: np.ndarray, triangles: np.ndarray, width: int, height: int, cull: bool | np.ndarray = True,
    keep: tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Find the nearest triangle at the centre of every pixel.

    points: (V, 3) float: x to the right and y down, in pixels, and depth, which increases towards the viewer.
    triangles: (T, 3) int. width, height: of the picture, in pixels.
    cull: leave out triangles seen from behind (counter-clockwise is the front); True, False or (T,) bool.
    keep: None, or a pair (soft, test): soft is (T,) bool, and test(triangle, weights), for the (N,) triangles and
    (N, 3) weights of the pixels that soft triangles cover, returns (N,) bool, where False makes a hole.
    Returns triangle (H, W) int32, -1 where there is none; weights (H, W, 3) float32, the pixel's barycentric
    coordinates on that triangle; depth (H, W) float32, -inf where there is none.
    """
    corners = np.ascontiguousarray(triangles.T)
    x, y, z = (points[:, axis].astype(np.float64)[corners] for axis in range(3))  # (3, T) each
    lines = _lines_of(x, y, z, width, height, cull)
    depth = np.full(width * height, -np.inf, np.float32)
    soft = np.zeros(len(lines.triangle), bool) if keep is None else keep[0][lines.triangle]
    line, x, pixel, z = lines.candidates(np.flatnonzero(~soft), width)
    np.maximum.at(depth, pixel, z)
    if keep is not None:
        # Ask about holes only where nothing solid hides the triangle.
        soft_line, soft_x, soft_pixel, soft_z = lines.candidates(np.flatnonzero(soft), width)
        asked = np.flatnonzero(soft_z > depth[soft_pixel])
        asked = asked[keep[1](lines.triangle[soft_line[asked]], lines.weights(soft_line[asked], soft_x[asked]))]
        np.maximum.at(depth, soft_pixel[asked], soft_z[asked])
        line, x = np.concatenate([line, soft_line[asked]]), np.concatenate([x, soft_x[asked]])
        pixel, z = np.concatenate([pixel, soft_pixel[asked]]), np.concatenate([z, soft_z[asked]])

    seen = np.flatnonzero(z == depth[pixel])
    triangle = np.full(width * height, -1, np.int32)
    weights = np.zeros((width * height, 3), np.float32)
    triangle[pixel[seen]] = lines.triangle[line[seen]]
    weights[pixel[seen]] = lines.weights(line[seen], x[seen])
    return triangle.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width)


class _Lines(NamedTuple):
    """L spans of pixels, one per triangle and row of the picture. Along a span, a value is slope * x + start."""

    triangle: np.ndarray  # (L,) its number
    row: np.ndarray  # (L,)
    first: np.ndarray  # (L,) column in which the span begins
    count: np.ndarray  # (L,) of pixels
    corners: list[tuple[np.ndarray, np.ndarray]]  # slope and start, (L,) each, of the three corners' weights
    depth: tuple[np.ndarray, np.ndarray]  # and of the depth

    def candidates(self, chosen: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Span, column, number of the pixel and depth, (N,) each, of all pixels of the chosen spans."""
        counted = self.count[chosen]
        line = np.repeat(chosen, counted)
        before = np.cumsum(counted) - counted
        x = np.arange(len(line)) + np.repeat(self.first[chosen] - before, counted)
        slope, start = self.depth
        return line, x, self.row[line] * width + x, (slope[line] * (x + 0.5) + start[line]).astype(np.float32)

    def weights(self, line: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The barycentric coordinates (N, 3) float32 at columns x (N,) of spans (N,)."""
        weights = np.empty((len(line), 3), np.float32)
        for k in (0, 1):
            slope, start = self.corners[k]
            weights[:, k] = slope[line] * (x + 0.5) + start[line]
        weights[:, 2] = 1 - weights[:, 0] - weights[:, 1]
        return weights


def _lines_of(x, y, z, width, height, cull):
    """The _Lines of triangles with corners (3, T): the spans of x in which all three weights are positive."""
    live, areas, tops, bottoms = _live_triangles(x, y, width, height, cull)
    x, y, z = x[:, live], y[:, live], z[:, live]
    planes = [_edge(x, y, areas, k) for k in range(3)]  # vertex k's weight is a plane over the picture
    depth_plane = [sum(z[k] * planes[k][term] for k in range(3)) for term in range(3)]
    counts = bottoms - tops
    owner = np.repeat(np.arange(len(live)), counts)
    row = np.arange(len(owner)) + np.repeat(tops - np.cumsum(counts) + counts, counts)
    down = row + 0.5

    def along_lines(plane):
        across, along, start = plane
        return across[owner], along[owner] * down + start[owner]

    corners = [along_lines(plane) for plane in planes]
    low, high = np.full(len(owner), -np.inf), np.full(len(owner), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for slope, start in corners:
            bound = -start / slope
            low = np.where(slope > 0, np.maximum(low, bound), np.where((slope == 0) & (start < 0), np.inf, low))
            high = np.where(slope < 0, np.minimum(high, bound), high)
    first = np.ceil(np.clip(low - 0.5, 0, width)).astype(np.int64)
    count = np.maximum(np.floor(np.clip(high - 0.5, -1, width - 1)).astype(np.int64) + 1 - first, 0)
    return _Lines(live[owner], row, first, count, corners, along_lines(depth_plane))


def _live_triangles(x, y, width, height, cull):
    """The triangles that can cover a pixel's centre: numbers, signed doubled areas, first rows, last rows plus one.

    x, y: (3, T), of the corners.
    """
    areas = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    tops = np.ceil(np.clip(y.min(0) - 0.5, 0, height)).astype(np.int64)
    bottoms = np.ceil(np.clip(y.max(0) - 0.5, 0, height)).astype(np.int64)
    facing = np.where(cull, -areas, np.abs(areas)) > MIN_DOUBLED_AREA
    live = np.flatnonzero(facing & (bottoms > tops) & (x.max(0) > 0) & (x.min(0) < width))
    return live, areas[live], tops[live], bottoms[live]


def _edge(x, y, areas, corner):
    """Coefficients over (x, y, 1), each (T,), that are 1 at a corner and 0 on the line through the other two."""
    start, end = (corner + 1) % 3, (corner + 2) % 3
    across, along = (y[start] - y[end]) / areas, (x[end] - x[start]) / areas
    return across, along, -(across * x[start] + along * y[start])


def interpolate(
    values: np.ndarray, triangles: np.ndarray, triangle: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The values (V,) or (V, C) of vertices at pixels on triangle (N,) with weights (N, 3): (N,) or (N, C)."""
    corners = triangles[triangle]
    shape = (-1,) + (1,) * (values.ndim - 1)
    total = 0
    for k in range(3):
        part = values.take(corners[:, k], axis=0)
        part *= weights[:, k].reshape(shape)
        total += part
    return total
