"""A z-buffer in NumPy: which triangle each pixel shows, and where on it."""

from collections.abc import Callable

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
    live, areas, tops, bottoms = _live_triangles(x, y, width, height, cull)
    x, y, z = x[:, live], y[:, live], z[:, live]
    planes = [_edge(x, y, areas, k) for k in range(3)]  # vertex k's weight is a plane over the picture
    depth_plane = [sum(z[k] * planes[k][term] for k in range(3)) for term in range(3)]

    # One entry per triangle and line of pixels: the span of x in which all three weights are positive. Along a line,
    # each weight, and the depth, is slope * x + start.
    counts = bottoms - tops
    rows = np.repeat(np.arange(len(live)), counts)
    y = np.arange(len(rows)) + np.repeat(tops - np.cumsum(counts) + counts, counts)
    down = y + 0.5

    def along_lines(plane):
        across, along, start = plane
        return across[rows], along[rows] * down + start[rows]

    lines = [along_lines(plane) for plane in planes]
    low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for slope, start in lines:
            bound = -start / slope
            low = np.where(slope > 0, np.maximum(low, bound), np.where((slope == 0) & (start < 0), np.inf, low))
            high = np.where(slope < 0, np.minimum(high, bound), high)
    firsts = np.ceil(np.clip(low - 0.5, 0, width)).astype(np.int64)
    counts = np.maximum(np.floor(np.clip(high - 0.5, -1, width - 1)).astype(np.int64) + 1 - firsts, 0)
    slope, start = along_lines(depth_plane)

    # One entry per candidate pixel.
    def candidates(chosen):
        counted = counts[chosen]
        line = np.repeat(chosen, counted)
        before = np.cumsum(counted) - counted
        x = np.arange(len(line)) + np.repeat(firsts[chosen] - before, counted)
        return line, x, y[line] * width + x, (slope[line] * (x + 0.5) + start[line]).astype(np.float32)

    def weights_of(line, x):
        weights = np.empty((len(line), 3), np.float32)
        for k in (0, 1):
            weights[:, k] = lines[k][0][line] * (x + 0.5) + lines[k][1][line]
        weights[:, 2] = 1 - weights[:, 0] - weights[:, 1]
        return weights

    depth = np.full(width * height, -np.inf, np.float32)
    hole = np.zeros(len(rows), bool) if keep is None else keep[0][live][rows]
    line, x, pixel, z = candidates(np.flatnonzero(~hole))
    np.maximum.at(depth, pixel, z)
    if keep is not None:
        # Ask about holes only where nothing solid hides the triangle.
        soft_line, soft_x, soft_pixel, soft_z = candidates(np.flatnonzero(hole))
        asked = np.flatnonzero(soft_z > depth[soft_pixel])
        asked = asked[keep[1](live[rows[soft_line[asked]]], weights_of(soft_line[asked], soft_x[asked]))]
        np.maximum.at(depth, soft_pixel[asked], soft_z[asked])
        line, x = np.concatenate([line, soft_line[asked]]), np.concatenate([x, soft_x[asked]])
        pixel, z = np.concatenate([pixel, soft_pixel[asked]]), np.concatenate([z, soft_z[asked]])

    seen = np.flatnonzero(z == depth[pixel])
    triangle = np.full(width * height, -1, np.int32)
    weights = np.zeros((width * height, 3), np.float32)
    triangle[pixel[seen]] = live[rows[line[seen]]]
    weights[pixel[seen]] = weights_of(line[seen], x[seen])
    return triangle.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width)


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
