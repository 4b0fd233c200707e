"""Glasses and headgear, as surfaces."""

from typing import Any

import numpy as np

from faces.geometry import Landmarks, Surface
from faces.hair import CENTRE, Scalp, skull_radius
from faces.mesh import Head, Part, vertex_normals

LENS_POINTS = 32
TUBE_SIDES = 5


def _surface(vertices, triangles, part):
    """A Surface of one part from its vertices and triangles, which are visible from both sides."""
    vertices, triangles = vertices.astype(np.float32), triangles.astype(np.int32)
    count = len(vertices)
    return Surface(
        vertices, vertex_normals(vertices, triangles), triangles, np.full(len(triangles), part, np.int32),
        vertices, np.ones(count, np.float32), np.zeros((count, 3), np.float32),
    )  # fmt: skip


def _tube(points, radius, closed):
    """Vertices and triangles of a tube along points (N, 3); closed: whether its ends are joined."""
    tangent = np.roll(points, -1, 0) - np.roll(points, 1, 0) if closed else np.gradient(points, axis=0)
    tangent /= np.maximum(np.sqrt((tangent**2).sum(1, keepdims=True)), 1e-9)
    helper = np.where(np.abs(tangent[:, 2:]) < 0.8, np.array([[0, 0, 1.0]]), np.array([[1.0, 0, 0]]))
    first = np.cross(tangent, helper)
    first /= np.sqrt((first**2).sum(1, keepdims=True))
    second = np.cross(tangent, first)
    angle = 2 * np.pi * np.arange(TUBE_SIDES) / TUBE_SIDES
    ring = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    vertices = (points[:, None] + radius * ring).reshape(-1, 3)
    return vertices, _grid(len(points), TUBE_SIDES, closed, True)


def _grid(rows, columns, join_rows, join_columns):
    """Triangles of a rows x columns grid of vertices; the joins say where it is closed."""
    row = np.arange(rows if join_rows else rows - 1)[:, None]
    column = np.arange(columns if join_columns else columns - 1)[None]
    corner = [
        ((row + i) % rows * columns + (column + j) % columns).ravel() for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    return np.concatenate([np.stack([corner[k] for k in order], 1) for order in ((0, 1, 2), (1, 3, 2))])


def wear_glasses(
    glasses: dict[str, Any], head: Head, landmarks: Landmarks, vertices: np.ndarray
) -> tuple[Surface, np.ndarray]:
    """The Surface of a pair of glasses on the head (V, 3), and the outlines of its lenses, (2, LENS_POINTS, 3).

    glasses: Nuisance.glasses, not empty.
    """
    angle = 2 * np.pi * np.arange(LENS_POINTS) / LENS_POINTS
    bend = 2 / glasses["exponent"]
    around = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** bend,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** bend,
        ],
        1,
    )
    size = np.array([glasses["half_width"], glasses["half_height"]])
    eyes = {1: vertices[landmarks.left_eye], -1: vertices[landmarks.right_eye]}
    front = max(eye[:, 2].max() for eye in eyes.values()) + 0.1
    level = np.mean([eye[:, 1].mean() for eye in eyes.values()]) - 0.03 + glasses["slip"]
    pieces, lenses = [], []
    for side, eye in eyes.items():
        across = side * max(abs(eye[:, 0].mean()), size[0] + 0.07)
        centre = np.array([across, level, front])
        outline = centre + np.column_stack([around * size, -0.12 * np.maximum(side * around[:, 0], 0) ** 2])
        lenses.append(outline)
        if glasses["rimless_below"]:
            pieces.append(_tube(outline[: LENS_POINTS // 2 + 1], glasses["wire"], False))
        else:
            pieces.append(_tube(outline, glasses["wire"], True))
        ear = vertices[(head.ears > 0.5) & (np.sign(head.rest[:, 0]) == side)]
        hinge = centre + [side * size[0], 0.35 * size[1], -0.12]
        hook = np.array([np.abs(ear[:, 0]).mean() * side, level + 0.04, ear[:, 2].mean()])
        pieces.append(_tube(np.linspace(hinge, hook, 6), glasses["wire"], False))
    inner = abs(lenses[0][:, 0].min())
    bridge = np.linspace([-inner, 0, 0], [inner, 0, 0], 7) + [0, level + 0.25 * size[1], front]
    bridge[:, 1] += 0.02 * np.cos(np.linspace(-1.5, 1.5, 7))
    pieces.append(_tube(bridge, glasses["wire"], False))
    starts = np.cumsum([0] + [len(points) for points, _ in pieces[:-1]])
    triangles = np.concatenate([triangles + start for (_, triangles), start in zip(pieces, starts, strict=True)])
    return _surface(np.concatenate([points for points, _ in pieces]), triangles, Part.FRAME), np.stack(lenses)


def wear_cover(cover: dict[str, Any], scalp: Scalp) -> Surface:
    """The Surface of a cap, beanie, headband or headscarf. cover: Nuisance.cover, not empty."""
    kind, lift = cover["kind"], cover["height"]
    around = np.linspace(-np.pi, np.pi, 48, endpoint=False)
    if kind == "headscarf":
        # From the opening around the face to the back, by the angle from straight ahead.
        above, beside = np.maximum(np.sin(around), 0), np.abs(np.cos(around))
        opening = np.radians(64) - np.radians(28) * above**2 - np.radians(9) * beside**2 - 0.3 * lift
        share = np.linspace(0, 1, 16)[:, None]
        angle = opening + share * (2.6 - opening)
        directions = np.stack(
            [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle) + 0 * around], 2
        )
        offset = 0.06 + 0.08 * share + 0.015 * np.sin(9 * around + 8 * share)
    else:
        edge = np.radians({"cap": 28, "beanie": 22, "headband": 30}[kind]) + lift
        edge = edge - np.radians({"cap": 10, "beanie": 16, "headband": 6}[kind]) * (1 - np.cos(around)) / 2
        upper = edge + np.radians(12) if kind == "headband" else np.full_like(edge, np.pi / 2)
        share = np.linspace(0, 1, 12)[:, None]
        angle = edge + share * (upper - edge)
        directions = np.stack([np.cos(angle) * np.sin(around), np.sin(angle), np.cos(angle) * np.cos(around)], 2)
        offset = {"cap": 0.07, "beanie": 0.1, "headband": 0.06}[kind] * (1 + 0.5 * share * (kind != "headband"))
    flat = directions.reshape(-1, 3)
    radius = skull_radius(scalp.skull, CENTRE + flat) + np.broadcast_to(offset, angle.shape).ravel()
    vertices = CENTRE + flat * radius[:, None]
    triangles = _grid(*angle.shape, False, True)
    if kind == "cap":
        front = np.flatnonzero(np.abs(around) < np.radians(58))
        rim = vertices[front]
        reach = np.cos(around[front] * np.pi / 2 / np.radians(60))
        peak = rim + np.stack([0 * reach, -0.1 * reach, 0.5 * reach], 1)
        brim = np.concatenate([rim, (rim + peak) / 2 + [0, 0.03, 0], peak])
        triangles = np.concatenate([triangles, len(vertices) + _grid(3, len(front), False, False)])
        vertices = np.concatenate([vertices, brim])
    return _surface(vertices, triangles, Part.CLOTH)
