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

    # One entry a triangle and line of pixels: the span of x on which all three weights are positive. Along a line
    # each weight, and the depth, is slope * x + start.
    counts = bottoms - tops
    rows = np.repeat(np.arange(len(live)), counts)
    y = tops[rows] + np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    lines = [(plane[rows, 0], plane[rows, 1] * (y + 0.5) + plane[rows, 2]) for plane in planes]
    low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for slope, start in lines:
            bound = -start / slope
            low = np.where(slope > 0, np.maximum(low, bound), np.where((slope == 0) & (start < 0), np.inf, low))
            high = np.where(slope < 0, np.minimum(high, bound), high)
    firsts = np.ceil(np.clip(low - 0.5, 0, width)).astype(np.int64)
    counts = np.maximum(np.floor(np.clip(high - 0.5, -1, width - 1)).astype(np.int64) + 1 - firsts, 0)
    slope, start = depth_plane[rows, 0], depth_plane[rows, 1] * (y + 0.5) + depth_plane[rows, 2]

    # One entry a candidate pixel.
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
        # What has holes is asked about only where nothing solid hides it.
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
    """Values (V,) or (V, C) of vertices, at pixels on triangle (N,) with weights (N, 3): (N,) or (N, C)."""
    corners = triangles[triangle]
    if values.ndim == 1:
        return sum(weights[:, k] * values[corners[:, k]] for k in range(3))
    return sum(weights[:, k, None] * values[corners[:, k]] for k in range(3))
