"""The vertices of one photograph of a person: shape, expression, pose and projection."""

from typing import NamedTuple

import numpy as np

from faces.identity import Identity
from faces.mesh import Head, Part, vertex_normals
from faces.nuisance import Nuisance

# Where alignment puts the landmarks, as shares of the picture's side: the person's right eye, left eye, nose, right and
# left corner of the mouth. Funneled press photographs have them in these places.
TEMPLATE = np.array([[0.334, 0.396], [0.671, 0.396], [0.5, 0.595], [0.38, 0.772], [0.624, 0.772]])
LANDMARK_WEIGHTS = np.array([1, 1, 0.4, 0.8, 0.8])
# The vertices of the rest head nearest to these places are the tip of the nose and the corners of the mouth.
NOSE_TIP, MOUTH_CORNER = (0, 7.0, 1.6), (0.235, 6.68, 1.4)
# How the teeth are moved, in decimetres: backwards, so that closed lips hide them, and the upper ones down, so that a
# smile shows them.
UPPER_TEETH_MOVE, LOWER_TEETH_MOVE = (0, -0.045, -0.035), (0, -0.01, -0.04)


class Surface(NamedTuple):
    """A part of the scene, with V vertices and F triangles. Hair and cloth have zeros where they need nothing."""

    vertices: np.ndarray  # (V, 3) float32, in the head's own space
    normals: np.ndarray  # (V, 3) float32, unit length
    triangles: np.ndarray  # (F, 3) int32
    part: np.ndarray  # (F,) int32, of mesh.Part
    rest: np.ndarray  # (V, 3) float32: place on the rest head; for hair, the direction of its strands
    occlusion: np.ndarray  # (V,) float32: the share of the sky that is visible
    surface_uv: np.ndarray  # (V, 3) float32: column and row in the skin texture; for hair, across, along and strand


class Landmarks(NamedTuple):
    """Vertex numbers of the head model."""

    left_eye: np.ndarray
    right_eye: np.ndarray
    nose: int
    left_mouth: int
    right_mouth: int


def find_landmarks(head: Head) -> Landmarks:
    """The Landmarks of a Head."""
    on_skin = np.unique(head.triangles[head.triangle_part == Part.SKIN])

    def nearest(place):
        return int(on_skin[((head.rest[on_skin] - np.float32(place)) ** 2).sum(1).argmin()])

    x, y, z = MOUTH_CORNER
    eyes = (np.unique(head.triangles[head.triangle_part == part]) for part in (Part.LEFT_EYE, Part.RIGHT_EYE))
    return Landmarks(*eyes, nearest(NOSE_TIP), nearest((x, y, z)), nearest((-x, y, z)))


def shape_person(head: Head, person: Identity, landmarks: Landmarks) -> np.ndarray:
    """The person's neutral head, (V, 3) float32, with its landmarks about where the rest head has them."""
    vertices = head.blend(head.base, person.coefficients)
    for x, y, z, *move, radius in person.bumps:
        near = np.exp(-((head.rest - np.float32((x, y, z))) ** 2).sum(1) / np.float32(radius**2))
        vertices += near[:, None] * np.float32(move)
    # The heads of tall and old bodies are elsewhere, but hair and hats fit the place and size of the rest head.
    marks, goal = _marks(vertices, landmarks), _marks(head.rest, landmarks)
    growth = np.sqrt(((goal - goal.mean(0)) ** 2).sum() / ((marks - marks.mean(0)) ** 2).sum())
    return ((vertices - marks.mean(0)) * growth + goal.mean(0)).astype(np.float32)


def _marks(vertices, landmarks):
    """The landmarks of a head (V, 3) in the order of TEMPLATE, (5, 3)."""
    eyes = [vertices[chosen].mean(0) for chosen in (landmarks.right_eye, landmarks.left_eye)]
    return np.stack([*eyes, *vertices[[landmarks.nose, landmarks.right_mouth, landmarks.left_mouth]]])


def express(head: Head, neutral: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """The neutral head with the photograph's expression and weight, (V, 3) float32."""
    plump = "head/head-fat-incr" if nuisance.plumpness > 0 else "head/head-fat-decr"
    vertices = head.blend(neutral, {**nuisance.expression, plump: abs(nuisance.plumpness)})
    for part, move in ((Part.UPPER_TEETH, UPPER_TEETH_MOVE), (Part.LOWER_TEETH, LOWER_TEETH_MOVE)):
        vertices[np.unique(head.triangles[head.triangle_part == part])] += np.float32(move)
    return vertices


def head_surface(head: Head, vertices: np.ndarray) -> Surface:
    """The Surface of the head itself, without lashes (they are painted)."""
    shown = head.triangle_part != Part.LASHES
    coordinates = np.column_stack([head.texture_uv, head.ears])
    return Surface(
        vertices, vertex_normals(vertices, head.triangles), head.triangles[shown], head.triangle_part[shown],
        head.rest, head.occlusion, coordinates,
    )  # fmt: skip


def join(surfaces: list[Surface]) -> Surface:
    """Join several Surfaces into one."""
    starts = np.cumsum([0] + [len(surface.vertices) for surface in surfaces[:-1]])
    joined = [np.concatenate(field) for field in zip(*surfaces, strict=True)]
    joined[2] = np.concatenate([s.triangles + start for s, start in zip(surfaces, starts, strict=True)])
    return Surface(*joined)


def rotation(yaw: float, pitch: float) -> np.ndarray:
    """The matrix (3, 3) float32 that turns the head to its left by yaw and up by pitch, in degrees."""
    yaw, pitch = np.radians([yaw, -pitch])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    return np.einsum("ij,jk->ik", nod, turn).astype(np.float32)


class View(NamedTuple):
    """A camera and a turned head."""

    turn: np.ndarray  # (3, 3) float32
    pivot: np.ndarray  # (3,) float32: the middle of the head
    distance: float
    scale: complex  # turn and scale from projected decimetres to pixels, as one complex number
    origin: complex  # the pixel onto which the pivot is projected

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Rotate directions (N, 3) with the head."""
        return rotate(vectors, self.turn)

    def placed(self, vertices: np.ndarray) -> np.ndarray:
        """The places (N, 3) in camera space, with z towards the camera, of vertices (N, 3) in head space."""
        return rotate(vertices - self.pivot, self.turn)

    def project(self, places: np.ndarray) -> np.ndarray:
        """The pixels, with depth, (N, 3) float32, of places (N, 3) in camera space."""
        flat = self.origin + self.scale * _flatten(places, self.distance)
        return np.stack([flat.real, flat.imag, places[:, 2]], 1).astype(np.float32)


def rotate(vectors: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Vectors (N, 3) times the transposed matrix (3, 3), with rounding that does not depend on a library's threads."""
    return sum(vectors[:, k, None] * matrix[:, k] for k in range(3))


def aim(vertices: np.ndarray, landmarks: Landmarks, nuisance: Nuisance, size: int) -> View:
    """The View that puts the landmarks of the neutral head (V, 3) where aligned photographs have them."""
    marks = _marks(vertices, landmarks)
    pivot = marks[:2].mean(0) - np.float32((0, 0.3, 1))
    turn = rotation(nuisance.yaw, nuisance.pitch)
    flat = _flatten(rotate(marks - pivot, turn), nuisance.distance)
    ahead = _flatten(marks - pivot, nuisance.distance)
    goal = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    share = LANDMARK_WEIGHTS / LANDMARK_WEIGHTS.sum()
    middle, goal_middle = (share * flat).sum(), (share * goal).sum()
    # A similarity in the plane, as complex numbers: goal = scale * flat + origin. It levels the landmarks by least
    # squares, but takes the scale for the head looking straight ahead, as turning a head does not make it smaller.
    upright = (share * np.conj(flat - middle) * (goal - goal_middle)).sum()
    spread = (share * np.abs(goal - goal_middle) ** 2).sum() / (
        share * np.abs(ahead - (share * ahead).sum()) ** 2
    ).sum()
    scale = upright / abs(upright) * np.sqrt(spread) * nuisance.scale * np.exp(1j * np.radians(nuisance.roll))
    origin = goal_middle + complex(*nuisance.shift) - scale * middle
    return View(turn, pivot, nuisance.distance, complex(scale * size), complex(origin * size))


def _flatten(places, distance):
    """Perspective: places (N, 3) to complex x + iy, with y down."""
    shrink = distance / (distance - places[:, 2])
    return (places[:, 0] - 1j * places[:, 1]) * shrink
