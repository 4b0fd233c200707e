"""From a person and a photograph to vertices: shape, expression, pose, and where the picture sees them."""

from typing import NamedTuple

import numpy as np

from faces.mesh import Part, vertex_normals

# Where alignment puts the landmarks, as shares of the picture's side: person's right eye, left eye, nose, right and
# left corner of the mouth. They are the places that funneled press photographs have them at.
TEMPLATE = np.array([[0.334, 0.396], [0.671, 0.396], [0.5, 0.595], [0.38, 0.772], [0.624, 0.772]])
LANDMARK_WEIGHTS = np.array([1, 1, 0.4, 0.8, 0.8])
# The vertices nearest to these places of the rest head are nose tip and corners of the mouth.
NOSE_TIP, MOUTH_CORNER = (0, 7.0, 1.6), (0.235, 6.68, 1.4)
# How the teeth are moved, decimetres: back, so that closed lips hide them, and the upper ones down to where a smile
# shows them.
UPPER_TEETH_MOVE, LOWER_TEETH_MOVE = (0, -0.045, -0.035), (0, -0.01, -0.04)


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


def shape_person(head, person, landmarks):
    """The person's neutral head, (V, 3) float32, with its landmarks about where the rest head has them."""
    vertices = head.blend(head.base, person.coefficients)
    for x, y, z, *move, radius in person.bumps:
        near = np.exp(-((head.rest - np.float32((x, y, z))) ** 2).sum(1) / np.float32(radius**2))
        vertices += near[:, None] * np.float32(move)
    # Tall and old bodies carry their heads elsewhere; hair and hats are made for the rest head's place and size.
    marks, goal = _marks(vertices, landmarks), _marks(head.rest, landmarks)
    growth = np.sqrt(((goal - goal.mean(0)) ** 2).sum() / ((marks - marks.mean(0)) ** 2).sum())
    return ((vertices - marks.mean(0)) * growth + goal.mean(0)).astype(np.float32)


def _marks(vertices, landmarks):
    """The landmarks of a head (V, 3) in the order of TEMPLATE, (5, 3)."""
    eyes = [vertices[chosen].mean(0) for chosen in (landmarks.right_eye, landmarks.left_eye)]
    return np.stack([*eyes, *vertices[[landmarks.nose, landmarks.right_mouth, landmarks.left_mouth]]])


def express(head, neutral, nuisance):
    """The neutral head with the photograph's expression and weight, (V, 3) float32."""
    plump = "head/head-fat-incr" if nuisance.plumpness > 0 else "head/head-fat-decr"
    vertices = head.blend(neutral, {**nuisance.expression, plump: abs(nuisance.plumpness)})
    for part, move in ((Part.UPPER_TEETH, UPPER_TEETH_MOVE), (Part.LOWER_TEETH, LOWER_TEETH_MOVE)):
        vertices[np.unique(head.triangles[head.triangle_part == part])] += np.float32(move)
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
    return np.einsum("ij,jk->ik", nod, turn).astype(np.float32)


class View(NamedTuple):
    """A camera on a turned head."""

    turn: np.ndarray  # (3, 3) float32
    pivot: np.ndarray  # (3,) float32: the middle of the head
    distance: float
    scale: complex  # turn and scale from projected decimetres to pixels, as one complex number
    origin: complex  # the pixel at which the pivot lands

    def turned(self, vectors):
        """Rotate directions (N, 3) as the head."""
        return rotate(vectors, self.turn)

    def placed(self, vertices):
        """Camera-space places (N, 3), z towards the camera, of head-space vertices."""
        return rotate(vertices - self.pivot, self.turn)

    def project(self, places):
        """Pixels with depth, (N, 3) float32, of camera-space places (N, 3)."""
        flat = self.origin + self.scale * _flatten(places, self.distance)
        return np.stack([flat.real, flat.imag, places[:, 2]], 1).astype(np.float32)


def rotate(vectors, matrix):
    """Vectors (N, 3) times the transposed matrix (3, 3); no library's threads have a say in its rounding."""
    return sum(vectors[:, k, None] * matrix[:, k] for k in range(3))


def aim(vertices, landmarks, nuisance, size):
    """The View that puts the landmarks of the unexpressive head (V, 3) where aligned photographs have them."""
    marks = _marks(vertices, landmarks)
    pivot = marks[:2].mean(0) - np.float32((0, 0.3, 1))
    turn = rotation(nuisance.yaw, nuisance.pitch)
    flat = _flatten(rotate(marks - pivot, turn), nuisance.distance)
    ahead = _flatten(marks - pivot, nuisance.distance)
    goal = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    share = LANDMARK_WEIGHTS / LANDMARK_WEIGHTS.sum()
    middle, goal_middle = (share * flat).sum(), (share * goal).sum()
    # A similarity in the plane, with complex numbers: goal = scale * flat + origin. It levels the landmarks as least
    # squares would; its size is the one that the same head has when it looks ahead, as turning shrinks nobody.
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
