"""Hair: ribbons of strands that grow from the scalp, are combed, fall, and stay outside the head."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from faces.geometry import Surface
from faces.identity import Identity, step
from faces.mesh import AXIS_Z, Head, Part
from faces.raster import rasterize

# The average hairline: its height in decimetres, by the angle from straight ahead in degrees.
HAIRLINE_ANGLES = (0, 23, 38, 50, 60, 68, 77, 87, 97, 118, 145, 180)
HAIRLINE_HEIGHTS = (7.94, 7.95, 7.94, 7.8, 7.52, 7.2, 7.34, 7.5, 7.4, 7.05, 6.85, 6.8)
CENTRE = np.array([0, 7.35, 0.35], np.float32)  # of the skull on the rest head
JOINTS, SHORT_JOINTS = 7, 4  # segments of a ribbon of hair: long or curly, and short and straight
SKULL_GRID = (64, 128)  # elevations, azimuths


class Style(NamedTuple):
    """How hair is worn. Lengths are in decimetres, and the other values are relative weights."""

    length: float
    sides: float  # length beside and behind the head, as a share of length
    lift: float  # away from the scalp
    back: float
    forward: float
    aside: float  # away from the parting
    fall: float  # gravity
    volume: float  # thickness of the whole, decimetres
    loose: float  # how much farther it may stand off
    fringe: float = 8.2  # hair over the face ends at this height


STYLES = {
    "cropped": Style(0.14, 0.6, 0.8, 0.1, 0.3, 0.1, 0.2, 0.03, 0.03),
    "side part": Style(0.55, 0.4, 0.4, 0.25, 0.1, 1.0, 0.3, 0.1, 0.02),
    "swept back": Style(0.6, 0.45, 0.5, 1.0, 0.0, 0.15, 0.1, 0.1, 0.02),
    "brushed forward": Style(0.42, 0.5, 0.35, 0.0, 0.9, 0.25, 0.3, 0.09, 0.03, 7.8),
    "tousled": Style(0.42, 0.6, 0.8, 0.1, 0.3, 0.3, 0.3, 0.13, 0.1, 7.8),
    "tied": Style(0.8, 0.9, 0.08, 1.0, 0.0, 0.25, 0.0, 0.04, 0.01),
    "bob": Style(1.25, 0.85, 0.3, 0.15, 0.0, 0.9, 0.9, 0.13, 0.12),
    "fringed bob": Style(1.2, 0.9, 0.25, 0.0, 0.8, 0.2, 0.8, 0.13, 0.1, 7.6),
    "shoulder": Style(1.8, 0.9, 0.3, 0.2, 0.0, 1.0, 0.9, 0.13, 0.3),
    "long": Style(2.6, 0.95, 0.2, 0.1, 0.0, 1.0, 1.0, 0.12, 0.3),
}
JAW = -0.3  # its height in camera space, in decimetres
RIBBONS = 1000
RIBBON_HALF_WIDTH = 0.034


def above_hairline(person: Identity, rest: np.ndarray) -> np.ndarray:
    """How far places (..., 3) of the rest head are above the person's hairline, in decimetres."""
    angle = np.degrees(np.arctan2(np.abs(rest[..., 0]), rest[..., 2] - AXIS_Z))
    line = np.interp(angle, HAIRLINE_ANGLES, HAIRLINE_HEIGHTS) + person.hairline * step(70, 50, angle)
    corners, middle = np.exp(-(((angle - 34) / 20) ** 2)), np.exp(-((angle / 22) ** 2))
    return (rest[..., 1] - line - person.recession * (1.0 * corners + 0.5 * middle)).astype(np.float32)


class Scalp(NamedTuple):
    """What hair needs to know about a person's head."""

    triangles: np.ndarray  # (F, 3): the triangles on which hair grows
    areas: np.ndarray  # (F,): the share of the roots that each has
    skull: np.ndarray  # (elevations, azimuths) float32: the distance of the head's surface from CENTRE


def find_scalp(head: Head, person: Identity, neutral: np.ndarray) -> Scalp:
    """The Scalp of a person's neutral head (V, 3)."""
    skin = head.triangles[head.triangle_part == Part.SKIN]
    above = above_hairline(person, head.rest)
    scalp = skin[
        (above[skin] > -0.01).all(1) & (head.ears[skin] < 0.3).all(1) & (head.rest[skin][:, :, 1] > 6.7).all(1)
    ]
    edges = neutral[scalp[:, 1:]] - neutral[scalp[:, :1]]
    areas = np.sqrt((np.cross(edges[:, 0], edges[:, 1]) ** 2).sum(1))
    areas *= np.where(head.rest[scalp][:, :, 2].mean(1) > 0, 1, 0.5)  # the back is seldom visible
    return Scalp(scalp, areas / areas.sum(), _skull(head, neutral))


def _skull(head, neutral):
    """The surface of the head, without ears, as seen from CENTRE, by elevation and azimuth."""
    rows, columns = SKULL_GRID
    offset = neutral - CENTRE
    radius = np.sqrt((offset**2).sum(1))
    azimuth, elevation = np.arctan2(offset[:, 0], offset[:, 2]), np.arcsin(offset[:, 1] / radius)
    points = np.stack([(azimuth / np.pi + 1) / 2 * columns, (elevation / np.pi + 0.5) * rows, radius], 1)
    skin = head.triangles[(head.triangle_part == Part.SKIN) & (head.ears[head.triangles] < 0.1).all(1)]
    wide = np.ptp(points[skin][:, :, 0], axis=1) > columns / 2
    _, _, depth = rasterize(points, skin[~wide], columns, rows, cull=False)
    empty = ~np.isfinite(depth)
    # Extend what is known into the gaps: the poles, the seam at the back, the ears.
    depth = np.where(empty, 0, depth).astype(np.float32)
    known = (~empty).astype(np.float32)
    smear = cv2.GaussianBlur(depth, (0, 0), 3) / np.maximum(cv2.GaussianBlur(known, (0, 0), 3), 1e-3)
    return cv2.GaussianBlur(np.where(empty, smear, depth), (0, 0), 1)


def skull_radius(skull: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The distances (N,) from CENTRE to the head's outside in the direction of places (N, 3)."""
    rows, columns = skull.shape
    offset = places - CENTRE
    azimuth = np.arctan2(offset[:, 0], offset[:, 2])
    elevation = np.arctan2(offset[:, 1], np.hypot(offset[:, 0], offset[:, 2]))
    column = np.clip((azimuth / np.pi + 1) / 2 * columns, 0, columns - 1).astype(int)
    row = np.clip((elevation / np.pi + 0.5) * rows, 0, rows - 1).astype(int)
    return skull[row, column]


def grow(
    scalp: Scalp, vertices: np.ndarray, normals: np.ndarray, person: Identity, hair: dict[str, Any],
    rng: np.random.Generator,
) -> Surface | None:  # fmt: skip
    """The Surface of the hair of one photograph, or None if none is visible.

    vertices, normals: of the head, (V, 3); hair: Nuisance.hair.
    """
    if hair["style"] not in STYLES:
        return None
    style = STYLES[hair["style"]]
    curl = hair["curl"] if hair["style"] not in ("tied", "cropped") else 0.3 * hair["curl"]
    count = int(RIBBONS * (1.25 if style.length > 0.8 else 1) * person.thickness)
    chosen = scalp.triangles[rng.choice(len(scalp.triangles), count, p=scalp.areas)]
    corners = rng.dirichlet((1, 1, 1), count).astype(np.float32)
    root = np.einsum("nk,nkj->nj", corners, vertices[chosen])
    out = np.einsum("nk,nkj->nj", corners, normals[chosen])

    top = step(7.5, 8.0, root[:, 1])
    length = style.length * hair["length"] * (style.sides + (1 - style.sides) * top) * rng.uniform(0.75, 1.1, count)
    length *= 1 - 0.25 * curl
    volume = style.volume * hair["volume"] * person.thickness * (1 - 0.75 * hair["wet"]) * (1 + 0.8 * curl)
    layer = volume * (0.25 + 0.75 * rng.random(count)) * (style.sides + (1 - style.sides) * top)
    front = step(-0.1, 0.9, root[:, 2])
    aside = np.tanh((root[:, 0] - hair["part"] * (abs(style.aside) > 0.3)) * 12)
    comb = np.stack(
        [style.aside * aside * top, -0.3 * style.forward * front, style.forward * front - style.back], 1
    )  # fmt: skip
    mess = (hair["messy"] + 0.8 * curl) * (1 - 0.7 * hair["wet"])
    direction = _unit(
        out * (style.lift * (0.35 + 0.65 * top))[:, None] + comb + mess * 0.45 * rng.standard_normal((count, 3))
    )
    down = np.array([0, -1, 0])

    joints = JOINTS if style.length > 0.8 or curl > 0.4 else SHORT_JOINTS
    points = [root]
    alive = np.ones(count, bool)
    for joint in range(1, joints + 1):
        along = joint / joints
        pull = comb + style.fall * down * (0.4 + along) + 0.12 * mess * rng.standard_normal((count, 3))
        direction = _unit(direction + 0.5 * pull)
        place = points[-1] + direction * (length / joints)[:, None]
        offset = place - CENTRE
        distance = np.sqrt((offset**2).sum(1))
        least = skull_radius(scalp.skull, place) + 0.01 + layer * min(1, 2.5 * along)
        most = least + style.loose + volume * curl
        place = CENTRE + offset * (np.clip(distance, least, most) / distance)[:, None]
        direction = _unit(place - points[-1])
        alive &= ~_over_face(person, place, style.fringe + 0.05 * rng.standard_normal(count))
        points.append(np.where(alive[:, None], place, points[-1]))
    points = np.stack(points, 1)
    return _ribbons(points, curl, length, hair, rng)


def behind_the_head(scene: Surface) -> np.ndarray:
    """Which triangles of a Surface in camera space are hair that the head hides, (F,) bool.

    Hair that hangs below the jaw is visible from inside, beside the neck.
    """
    corner = scene.triangles[:, 0]
    return (scene.part == Part.HAIR) & (scene.normals[corner, 2] < -0.25) & (scene.vertices[corner, 1] > JAW)


def _over_face(person, places, fringe):
    """Which places (N, 3) would hide the face: in front of it, below the hairline and below the fringe's end (N,)."""
    x, y, z = np.abs(places[:, 0]), places[:, 1], places[:, 2]
    beside = 0.56 + 0.1 * step(7.6, 7.2, y)
    return (z > 0.55) & (x < beside) & (y < fringe) & (above_hairline(person, places) < -0.03)


def _ribbons(points, curl, length, hair, rng):
    """The Surface of ribbons along points (N, joints + 1, 3)."""
    count, joints = points.shape[0], points.shape[1] - 1
    along = np.linspace(0, 1, joints + 1)
    tangent = _unit(np.gradient(points, axis=1))
    outward = _unit(points - CENTRE)
    side = _unit(np.cross(tangent, outward))
    # Waves: they swing wider in longer and curlier hair, but not at the roots.
    turns = rng.uniform(1.5, 3, (count, 1)) * np.maximum(length, 0.4)[:, None] * (1 + 2 * curl)
    phase = rng.uniform(0, 2 * np.pi, (count, 1)) + 2 * np.pi * turns * along
    swing = 0.05 * curl * np.minimum(along * 3, 1) * np.minimum(length, 1)[:, None]
    points = points + (swing * np.sin(phase))[..., None] * side + (swing * np.cos(phase))[..., None] * outward
    width = (
        RIBBON_HALF_WIDTH
        * (0.7 + 0.3 * min(float(length.mean()), 1))
        * (1 - 0.7 * along**3)
        * rng.uniform(0.6, 1.2, (count, 1))
    )
    half = width[..., None] * side
    vertices = np.stack([points - half, points + half], 2).reshape(-1, 3)
    lean = 0.55 * side
    normals = _unit(np.stack([outward - lean, outward + lean], 2)).reshape(-1, 3)
    strand = np.broadcast_to(rng.random((count, 1)), along.shape[:0] + (count, joints + 1))
    uv = np.stack(
        [np.stack([np.full_like(strand, sign), np.broadcast_to(along, strand.shape), strand], -1) for sign in (-1, 1)],
        2,
    )
    first = (np.arange(count)[:, None] * (joints + 1) + np.arange(joints)).ravel() * 2
    triangles = np.concatenate(
        [np.stack([first, first + 1, first + 2], 1), np.stack([first + 1, first + 3, first + 2], 1)]
    )
    # It is dark deep inside the hair.
    depth = np.broadcast_to(0.35 + 0.65 * np.minimum(along * 2.2, 1), strand.shape)
    return Surface(
        vertices.astype(np.float32),
        normals.astype(np.float32),
        triangles.astype(np.int32),
        np.full(len(triangles), Part.HAIR, np.int32),
        np.repeat(tangent.reshape(-1, 3), 2, 0).astype(np.float32),
        np.repeat(depth.ravel(), 2).astype(np.float32),
        uv.reshape(-1, 3).astype(np.float32),
    )


def _unit(vectors):
    """Vectors (..., 3) scaled to length one."""
    return vectors / np.maximum(np.sqrt(np.einsum("...k,...k", vectors, vectors)), 1e-6)[..., None]
