"""A z-buffer in NumPy: which triangle each pixel sees, and where on it."""

import numpy as np

# Triangles of less than this doubled area, in pixels squared, cover nothing.
MIN_DOUBLED_AREA = 1e-9


def rasterize(points, triangles, width, height, cull=True, keep=None):
    """Find the nearest triangle at every pixel's centre.

    points: (V, 3) float: x to the right and y down in pixels, depth growing towards the viewer.
    triangles: (T, 3) int. width, height: of the picture, in pixels.
    cull: leave out triangles seen from behind (a front one runs counter-clockwise before the viewer); True, False or
    (T,) bool.
    keep: None, or a pair (soft, test): soft is (T,) bool, and test(triangle, weights), for the (N,) triangles and
    (N, 3) weights of the pixels that soft triangles cover, returns (N,) bool: False makes a hole.
    Returns triangle (H, W) int32, -1 where there is none; weights (H, W, 3) float32, the pixel's barycentric
    coordinates on that triangle; depth (H, W) float32, -inf where there is none.
    """
    corners = [points[triangles[:, k]].astype(np.float64) for k in range(3)]
    live, areas, tops, bottoms = _live_triangles(corners, width, height, cull)
    a, b, c = (corner[live] for corner in corners)
    planes = [_edge(p, q, areas) for p, q in ((b, c), (c, a), (a, b))]  # vertex k's weight is a plane over the picture
    depth_plane = sum(corner[:, 2, None] * plane for corner, plane in zip((a, b, c), planes, strict=True))

    # One entry a triangle and line of pixels: the span of x on which all three weights are positive.
    counts = bottoms - tops
    rows = np.repeat(np.arange(len(live)), counts)
    y = tops[rows] + np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for plane in planes:
            slope, rest = plane[rows, 0], plane[rows, 1] * (y + 0.5) + plane[rows, 2]
            bound = -rest / slope
            low = np.where(slope > 0, np.maximum(low, bound), np.where((slope == 0) & (rest < 0), np.inf, low))
            high = np.where(slope < 0, np.minimum(high, bound), high)
    starts = np.ceil(np.clip(low - 0.5, 0, width)).astype(np.int64)
    counts = np.maximum(np.floor(np.clip(high - 0.5, -1, width - 1)).astype(np.int64) + 1 - starts, 0)

    # One entry a candidate pixel.
    spans = np.repeat(np.arange(len(rows)), counts)
    x = starts[spans] + np.arange(len(spans)) - np.repeat(np.cumsum(counts) - counts, counts)
    pixel = y[spans] * width + x
    plane = depth_plane[rows]
    z = ((plane[:, 1] * (y + 0.5) + plane[:, 2])[spans] + plane[:, 0][spans] * (x + 0.5)).astype(np.float32)
    local = rows[spans]

    def weights_of(chosen):
        of_row = spans[chosen]
        across, down = x[chosen] + 0.5, y[of_row] + 0.5
        weights = np.empty((len(chosen), 3), np.float32)
        for k in (0, 1):
            plane = planes[k][rows[of_row]]
            weights[:, k] = plane[:, 0] * across + (plane[:, 1] * down + plane[:, 2])
        weights[:, 2] = 1 - weights[:, 0] - weights[:, 1]
        return weights

    if keep is not None:
        soft, test = keep
        asked = np.flatnonzero(soft[live][local])
        z[asked[~test(live[local[asked]], weights_of(asked))]] = -np.inf

    depth = np.full(width * height, -np.inf, np.float32)
    np.maximum.at(depth, pixel, z)
    seen = np.flatnonzero((z == depth[pixel]) & (z > -np.inf))
    triangle = np.full(width * height, -1, np.int32)
    weights = np.zeros((width * height, 3), np.float32)
    triangle[pixel[seen]] = live[local[seen]]
    weights[pixel[seen]] = weights_of(seen)
    return triangle.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width)


def _live_triangles(corners, width, height, cull):
    """The triangles that can cover a pixel's centre: numbers, signed doubled areas, first and last-plus-one rows."""
    a, b, c = corners
    areas = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    x, y = (np.stack([corner[:, axis] for corner in corners]) for axis in (0, 1))
    tops = np.ceil(np.clip(y.min(0) - 0.5, 0, height)).astype(np.int64)
    bottoms = np.ceil(np.clip(y.max(0) - 0.5, 0, height)).astype(np.int64)
    facing = np.where(cull, -areas, np.abs(areas)) > MIN_DOUBLED_AREA
    live = np.flatnonzero(facing & (bottoms > tops) & (x.max(0) > 0) & (x.min(0) < width))
    return live, areas[live], tops[live], bottoms[live]


def _edge(start, end, areas):
    """(T, 3) coefficients over (x, y, 1) that are 0 on the line from start to end and 1 at the third corner."""
    across, along = -(end[:, 1] - start[:, 1]) / areas, (end[:, 0] - start[:, 0]) / areas
    return np.stack([across, along, -(across * start[:, 0] + along * start[:, 1])], 1)


def interpolate(values, triangles, triangle, weights):
    """Values at pixels: values (V,) or (V, C), for pixels on triangle (N,) at weights (N, 3). Returns (N,) or (N, C)."""
    corners = triangles[triangle]
    if values.ndim == 1:
        return sum(weights[:, k] * values[corners[:, k]] for k in range(3))
    return sum(weights[:, k, None] * values[corners[:, k]] for k in range(3))
