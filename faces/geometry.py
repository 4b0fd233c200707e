"""From a person and a photograph to vertices: shape, expression, pose, and where the picture sees them."""

from typing import NamedTuple

import numpy as np

from faces.mesh import Part, vertex_normals

# Where alignment puts the landmarks, as shares of the picture's side: person's right eye, left eye, nose, right and
# left corner of the mouth. They are the places that funneled press photographs have them at.
TEMPLATE = np.array([[0.339, 0.396], [0.666, 0.396], [0.5, 0.588], [0.385, 0.757], [0.619, 0.757]])
LANDMARK_WEIGHTS = np.array([1, 1, 0.4, 0.8, 0.8])
# The vertices nearest to these places of the rest head are nose tip and corners of the mouth.
NOSE_TIP, MOUTH_CORNER = (0, 7.0, 1.6), (0.235, 6.68, 1.4)
# The teeth are set back a little, so that closed lips hide them.
TEETH_BACK = 0.03


class Surface(NamedTuple):
    """A piece of the scene. V vertices, F triangles; what hair and cloth do not need is zero there."""

    vertices: np.ndarray  # (V, 3) float32, in the head's own space
    normals: np.ndarray  # (V, 3) float32, unit length
    triangles: np.ndarray  # (F, 3) int32
    part: np.ndarray  # (F,) int32, of mesh.Part
    rest: np.ndarray  # (V, 3) float32: place on the rest head; of hair the direction in which it runs
    occlusion: np.ndarray  # (V,) float32: share of the sky that is seen
    surface_uv: np.ndarray  # (V, 3) float32: column and row in the skin texture; of hair across, along and strand


class Landmarks(NamedTuple):
    """Vertex numbers of the head model."""

    left_eye: np.ndarray
    right_eye: np.ndarray
    nose: int
    left_mouth: int
    right_mouth: int


def find_landmarks(head):
    """The Landmarks of a Head."""
    on_skin = np.unique(head.triangles[head.triangle_part == Part.SKIN])

    def nearest(place):
        return int(on_skin[((head.rest[on_skin] - np.float32(place)) ** 2).sum(1).argmin()])

    x, y, z = MOUTH_CORNER
    eyes = (np.unique(head.triangles[head.triangle_part == part]) for part in (Part.LEFT_EYE, Part.RIGHT_EYE))
    return Landmarks(*eyes, nearest(NOSE_TIP), nearest((x, y, z)), nearest((-x, y, z)))


def shape_person(head, person):
    """The person's neutral head, (V, 3) float32."""
    vertices = head.blend(head.base, person.coefficients)
    for x, y, z, *move, radius in person.bumps:
        near = np.exp(-((head.rest - np.float32((x, y, z))) ** 2).sum(1) / np.float32(radius**2))
        vertices += near[:, None] * np.float32(move)
    return vertices


def express(head, neutral, nuisance):
    """The neutral head with the photograph's expression and weight, (V, 3) float32."""
    plump = "head/head-fat-incr" if nuisance.plumpness > 0 else "head/head-fat-decr"
    vertices = head.blend(neutral, {**nuisance.expression, plump: abs(nuisance.plumpness)})
    teeth = np.unique(head.triangles[head.triangle_part == Part.TEETH])
    vertices[teeth, 2] -= TEETH_BACK
    return vertices


def head_surface(head, vertices):
    """The Surface of the head itself, without lashes (they are painted)."""
    shown = head.triangle_part != Part.LASHES
    coordinates = np.column_stack([head.texture_uv, head.ears])
    return Surface(
        vertices, vertex_normals(vertices, head.triangles), head.triangles[shown], head.triangle_part[shown],
        head.rest, head.occlusion, coordinates,
    )  # fmt: skip


def join(surfaces):
    """One Surface of several."""
    starts = np.cumsum([0] + [len(surface.vertices) for surface in surfaces[:-1]])
    joined = [np.concatenate(field) for field in zip(*surfaces, strict=True)]
    joined[2] = np.concatenate([s.triangles + start for s, start in zip(surfaces, starts, strict=True)])
    return Surface(*joined)


def rotation(yaw, pitch):
    """Matrix (3, 3) float32 that turns the head to its left by yaw and up by pitch, degrees."""
    yaw, pitch = np.radians([yaw, -pitch])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    return (nod @ turn).astype(np.float32)


class View(NamedTuple):
    """A camera on a turned head."""

    turn: np.ndarray  # (3, 3) float32
    pivot: np.ndarray  # (3,) float32: the middle of the head
    distance: float
    scale: complex  # turn and scale from projected decimetres to pixels, as one complex number
    origin: complex  # the pixel at which the pivot lands

    def turned(self, vectors):
        """Rotate vectors (N, 3) as the head."""
        return np.einsum("nk,jk->nj", vectors, self.turn)

    def project(self, vertices):
        """Camera-space places (N, 3), z towards the camera, and pixels with depth (N, 3), of head-space vertices."""
        places = self.turned(vertices - self.pivot)
        flat = self.origin + self.scale * _flatten(places, self.distance)
        return places, np.stack([flat.real, flat.imag, places[:, 2]], 1).astype(np.float32)


def aim(vertices, landmarks, nuisance, size):
    """The View that puts the landmarks of the unexpressive head (V, 3) where aligned photographs have them."""
    eyes = [vertices[chosen].mean(0) for chosen in (landmarks.right_eye, landmarks.left_eye)]
    marks = np.stack([*eyes, *vertices[[landmarks.nose, landmarks.right_mouth, landmarks.left_mouth]]])
    pivot = (eyes[0] + eyes[1]) / 2 - np.float32((0, 0.3, 1))
    turn = rotation(nuisance.yaw, nuisance.pitch)
    flat = _flatten((marks - pivot) @ turn.T, nuisance.distance)
    goal = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    share = LANDMARK_WEIGHTS / LANDMARK_WEIGHTS.sum()
    middle, goal_middle = (share * flat).sum(), (share * goal).sum()
    # The least-squares similarity in the plane, with complex numbers: goal = scale * flat + origin.
    scale = (share * np.conj(flat - middle) * (goal - goal_middle)).sum() / (share * np.abs(flat - middle) ** 2).sum()
    scale = scale * nuisance.scale * np.exp(1j * np.radians(nuisance.roll))
    origin = goal_middle + complex(*nuisance.shift) - scale * middle
    return View(turn, pivot, nuisance.distance, complex(scale * size), complex(origin * size))


def _flatten(places, distance):
    """Perspective: places (N, 3) to complex x + iy, with y down."""
    shrink = distance / (distance - places[:, 2])
    return (places[:, 0] - 1j * places[:, 1]) * shrink
