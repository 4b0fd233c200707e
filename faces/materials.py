"""What each pixel is made of: skin, eyes, teeth, hair, cloth. All colours are linear RGB."""

from typing import Any

import cv2
import numpy as np

from faces.geometry import Surface, View, rotate
from faces.identity import Identity, linear, step
from faces.mesh import Part
from faces.noise import clouds, look_up, strands
from faces.nuisance import Nuisance
from faces.raster import interpolate
from faces.texture import LAYERS, beard_cover

TEETH, TONGUE, MOUTH = linear((228, 219, 202)), linear((170, 92, 88)), linear((92, 42, 40))
SCLERA = linear((190, 178, 172))
CONVERGENCE = 0.06  # radians by which each eye turns towards the other
PUPIL_RADIUS = 0.19  # radians, from the eyeball's centre
# Skin is bright and lights its own hollows, so its share of the visible sky is raised to this power.
HOLLOWS = 0.6


class Pixels:
    """What the pixels show, with everything that light needs: one row per pixel, or one column for colours."""

    def __init__(self, scene: Surface, triangle: np.ndarray, weights: np.ndarray) -> None:
        """scene: in camera space; triangle (H, W), weights (H, W, 3): as rasterize returns them."""
        self.shape = triangle.shape
        self.index = np.flatnonzero(triangle >= 0)
        triangle, weights = triangle.ravel()[self.index], weights.reshape(-1, 3)[self.index]
        self.part = scene.part[triangle]
        attributes = np.column_stack([scene.vertices, scene.normals, scene.rest, scene.occlusion, scene.surface_uv])
        values = interpolate(attributes, scene.triangles, triangle, weights)
        self.places, normals, self.rest = values[:, :3], values[:, 3:6], values[:, 6:9]
        self.occlusion, self.uv = values[:, 9].copy(), values[:, 10:]
        self.normals = unit(normals)
        self.albedo = np.full((3, len(triangle)), 0.5, np.float32)
        self.gloss = np.zeros(len(triangle), np.float32)  # strength of highlights
        self.sharpness = np.full(len(triangle), 20, np.float32)  # exponent of highlights

    def of(self, *parts: Part) -> np.ndarray:
        """The rows of the pixels that show one of the parts."""
        wanted = np.zeros(len(Part), bool)
        wanted[list(parts)] = True
        return np.flatnonzero(wanted[self.part])

    def spread(self, values: np.ndarray, empty: float = 0.0) -> np.ndarray:
        """The values (N,) or (N, C) of all rows as a picture (H, W) or (H, W, C)."""
        picture = np.full((self.shape[0] * self.shape[1],) + values.shape[1:], empty, np.float32)
        picture[self.index] = values
        return picture.reshape(self.shape + values.shape[1:])

    def gather(self, picture: np.ndarray) -> np.ndarray:
        """The values of a picture (H, W) or (H, W, C) at all rows, (N,) or (N, C)."""
        return picture.reshape((-1,) + picture.shape[2:])[self.index]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 3) scaled to length one."""
    return vectors / np.maximum(np.sqrt(np.einsum("nk,nk->n", vectors, vectors)), 1e-6)[:, None]


def rgb(values: Any) -> np.ndarray:
    """Colours as columns, (3, N) float32, from one colour (3,) or from columns (3, N)."""
    return np.asarray(values, np.float32).reshape(3, -1)


def dress_skin(
    pixels: Pixels, skin: list[np.ndarray], person: Identity, nuisance: Nuisance, pixels_per_unit: float
) -> None:
    """Give the skin its colour, relief, beard, brows and make-up, and the clothes theirs.

    skin: the layers from texture.paint_skin, in fours; pixels_per_unit: pixels of the picture per decimetre.
    """
    rows = pixels.of(Part.SKIN)
    column, row = (pixels.uv[rows, k] - np.float32(0.5) for k in (0, 1))
    sampled = np.concatenate([sample(layer, column, row, cv2.INTER_LINEAR) for layer in skin], 1)
    layers = dict(zip(LAYERS, np.ascontiguousarray(sampled.T), strict=True))
    rest = pixels.rest[rows]
    colour = np.stack([layers["red"], layers["green"], layers["blue"]]) * np.float32(nuisance.tan)
    flush = nuisance.flush * np.exp(-((np.hypot(np.abs(rest[:, 0]) - 0.38, rest[:, 1] - 6.98) / 0.25) ** 2))
    colour *= 1 + flush * rgb([0.05, -0.1, -0.08])

    def cover(colour, mask, other):
        return colour + mask * (rgb(other) - colour)

    makeup = nuisance.makeup
    colour = cover(colour, 0.5 * makeup["eyes"] * layers["eye_colour"], makeup["eye_colour"])
    colour = cover(colour, (0.5 + 0.45 * makeup["liner"]) * layers["eye_line"], 0.25 * colour)
    colour = cover(colour, 0.7 * makeup["lips"] * layers["lips"], makeup["lip_colour"])
    hair = np.float32(person.hair_colour)
    brow_colour = hair * (1 - 0.5 * person.grey) * person.brows["darkness"] + 0.02 * np.float32(person.skin)
    colour = cover(colour, 0.9 * nuisance.brows * layers["brows"], brow_colour)
    beard, thick = beard_cover(layers, nuisance.beard)
    colour = cover(colour, beard, 0.75 * rgb(hair) * (1 + 0.2 * np.clip(layers["grain"], -2, 2)))
    roots = layers["scalp"] * {"shaved": 0.3, "cropped": 0.85}.get(nuisance.hair["style"], 0.92)
    colour = cover(colour, np.clip(roots, 0, 1), 0.6 * np.float32(nuisance.hair["colour"]))

    pixels.albedo[:, rows] = colour
    pixels.occlusion[rows] **= np.float32(HOLLOWS)
    hairy = np.clip(beard + layers["brows"] + roots, 0, 1)
    pixels.gloss[rows] = layers["gloss"] * nuisance.shine * (1 - hairy) + makeup["lips"] * layers["lips"]
    smile = np.mean([nuisance.expression.get(f"expression/mouthSmile{side}", 0) for side in ("Left", "Right")])
    frown = sum(nuisance.expression.get(f"expression/{unit}", 0) for unit in ("browInnerUp", "browDownLeft"))
    relief = nuisance.ageing * layers["relief"] + smile * layers["smile_folds"] + min(frown, 1) * layers["frown_folds"]
    relief += thick * (1 + 0.3 * layers["grain"]) + 0.003 * layers["brows"] * layers["grain"]
    _emboss(pixels, rows, relief, pixels_per_unit)
    _dress_clothes(pixels, rows, rest, nuisance.clothes)


def sample(
    picture: np.ndarray, column: np.ndarray, row: np.ndarray, interpolation: int, outside: float | None = None
) -> np.ndarray:
    """The picture's values (N, channels) at columns and rows (N,); beyond it, those of its border, or `outside`."""
    width, count = 1024, len(column)  # OpenCV allows at most 32767 rows
    places = np.zeros((2, -(-count // width) * width), np.float32)
    places[0, :count], places[1, :count] = column, row
    x, y = places.reshape(2, -1, width)
    border = {"borderMode": cv2.BORDER_REPLICATE} if outside is None else {"borderValue": outside}
    return cv2.remap(picture, x, y, interpolation, **border).reshape(x.size, -1)[:count]


def _emboss(pixels, rows, relief, pixels_per_unit):
    """Tilt the normals of some rows by the slope of their relief (in decimetres) in the picture."""
    full = np.zeros(len(pixels.index), np.float32)
    full[rows] = relief
    known = np.zeros(len(pixels.index), np.float32)
    known[rows] = 1
    height, inside = pixels.spread(full), pixels.spread(known)
    for axis, sign in ((1, 1), (0, -1)):  # x increases with the columns, y decreases with the rows
        slope = np.zeros_like(height)
        ahead, behind = [slice(None)] * 2, [slice(None)] * 2
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        rise = (height[tuple(ahead)] - height[tuple(behind)]) * inside[tuple(ahead)] * inside[tuple(behind)]
        slope[tuple(behind)] += 0.5 * rise
        slope[tuple(ahead)] += 0.5 * rise
        tilt = np.clip(pixels.gather(slope)[rows] * pixels_per_unit * sign, -0.8, 0.8)
        pixels.normals[rows, 0 if axis == 1 else 1] -= tilt
    pixels.normals[rows] = unit(pixels.normals[rows])


def _dress_clothes(pixels, rows, rest, clothes):
    """Cover the body below the neckline with shirt, jacket and tie."""
    across = np.abs(rest[:, 0])
    neckline = (
        clothes["neckline"] + 0.35 * np.clip(across - 0.35, 0, 0.6) - 0.2 * step(0.3, 0, across) * (rest[:, 2] > 0.4)
    )
    below = neckline - rest[:, 1]
    dressed = below > 0
    rows, across, below = rows[dressed], across[dressed], below[dressed]
    jacket, tie = (across > 0.22 + 0.5 * below) & (below > 0.04), (across < 0.09) & (below > 0.05)
    colour = np.where(jacket, rgb(clothes["jacket"]), np.where(tie, rgb(clothes["tie"]), rgb(clothes["shirt"])))
    weave = look_up(clouds(), rest[dressed, 0] * 200, rest[dressed, 1] * 200)
    pixels.albedo[:, rows] = colour * (1 + 0.06 * weave)
    pixels.gloss[rows] = 0
    pixels.part[rows] = Part.CLOTH


def dress_mouth(pixels: Pixels) -> None:
    """Colour teeth, tongue and the inside of the mouth, which get darker with depth."""
    teeth = pixels.of(Part.UPPER_TEETH, Part.LOWER_TEETH)
    pixels.albedo[:, teeth] = rgb(TEETH)
    pixels.gloss[teeth], pixels.sharpness[teeth] = 0.8, 60
    side = np.abs(pixels.rest[teeth, 0])
    pixels.albedo[:, teeth] *= step(0.36, 0.12, side) * 0.6 + 0.4
    pixels.albedo[:, pixels.of(Part.TONGUE)] = rgb(TONGUE)
    pixels.albedo[:, pixels.of(Part.INNER_MOUTH)] = rgb(MOUTH)
    # The lips' shadow: within a few pixels, light increases with the distance from skin. The back gets none.
    rows = pixels.of(Part.UPPER_TEETH, Part.LOWER_TEETH, Part.TONGUE, Part.INNER_MOUTH)
    depth = step(0.9, 1.35, pixels.rest[rows, 2])
    pixels.occlusion[rows] = (0.05 + 0.95 * depth**2) * _openness(pixels, rows, 0.018, 0.5)
    pixels.albedo[:, rows] *= 0.4 + 0.6 * pixels.occlusion[rows]  # the key light does not reach there, either


def _openness(pixels, rows, reach, floor):
    """How open rows are, from `floor` next to or below skin to 1; reach: as a share of the picture's side."""
    mask = np.zeros(len(pixels.index), np.float32)
    mask[rows] = 1
    sigma = reach * pixels.shape[0]
    lit = cv2.GaussianBlur(pixels.spread(mask), (0, 0), sigma)
    lit = np.roll(lit, round(0.8 * sigma), axis=0)  # lids and lips cast their shadows downwards
    return floor + (1 - floor) * np.clip(pixels.gather(lit)[rows] * 1.6 - 0.45, 0, 1)


def dress_eyes(
    pixels: Pixels, person: Identity, nuisance: Nuisance, centres: dict[Part, np.ndarray], view: View
) -> None:
    """Give both eyeballs sclera, iris and pupil, the shadow of the lids, and a wet shine.

    centres: {part: (3,)}, the centres of the eyeballs in head space.
    """
    for part, centre in centres.items():
        inwards = CONVERGENCE if part == Part.RIGHT_EYE else -CONVERGENCE
        gaze = np.array([np.sin(nuisance.gaze[0] + inwards), np.sin(nuisance.gaze[1]), 1])
        gaze /= np.sqrt((gaze**2).sum())
        rows = pixels.of(part)
        if not len(rows):
            continue
        looking = unit(pixels.places[rows] - view.placed(centre[None]))
        direction = rotate(looking, view.turn.T)  # back into the head's space
        angle = np.arccos(np.clip(np.einsum("nk,k->n", direction, np.float32(gaze)), -1, 1))
        around = np.arctan2(direction[:, 1] - gaze[1], direction[:, 0] - gaze[0])
        share = angle / person.iris_radius
        fibres = 0.8 + 0.5 * share**2 + 0.15 * np.sin(around * 23 + 4 * np.sin(around * 5)) * (share > 0.4)
        iris = rgb(person.iris_colour) * (fibres * (1 - 0.65 * step(0.8, 1, share)))
        iris *= step(PUPIL_RADIUS * 0.9, PUPIL_RADIUS * 1.15, angle)
        veins = 0.04 * look_up(strands(), angle * 90, around * 30)
        corners = step(0.5, 1.1, angle) * rgb([0.12, 0.3, 0.3])
        white = rgb(SCLERA) * (1 - corners - veins * rgb([0.2, 1, 1]))
        inside = step(1.06, 0.95, share)
        pixels.albedo[:, rows] = white + inside * (iris - white)
        # The cornea bulges: across the iris, the surface curves more than the eyeball does.
        bulge = direction + 0.7 * inside[:, None] * (direction - np.float32(gaze))
        pixels.normals[rows] = view.turned(unit(bulge))
        pixels.occlusion[rows] = 0.75 * _openness(pixels, rows, 0.012, 0.15)
        pixels.gloss[rows], pixels.sharpness[rows] = 6 * pixels.occlusion[rows], 150


def dress_hair(pixels: Pixels, colour: tuple[float, ...]) -> None:
    """Colour the strands of hair, some lighter and some darker."""
    rows = pixels.of(Part.HAIR)
    across, along, strand = pixels.uv[rows].T
    lock = look_up(strands(), across * 14 + strand * 500, along * 120 + strand * 300)
    pixels.albedo[:, rows] = rgb(colour) * np.clip((1 + 0.3 * lock) * (0.75 + 0.5 * strand), 0.2, 2.2)


def hair_holes(uv: np.ndarray) -> np.ndarray:
    """Which places (N, 3) (across, along, strand) of ribbons are hair, (N,) bool: ribbons fray at sides and tips."""
    across, along, strand = uv.T
    lock = look_up(strands(), across * 14 + strand * 500, along * 120 + strand * 300)
    return lock > -1.3 + 1.5 * np.abs(across) ** 2 + 1.8 * np.clip(along - 0.55, 0, 1) - 0.3 * (along < 0.1)


def dress_plain(pixels: Pixels, part: Part, colour: tuple[float, ...], gloss: float, sharpness: float) -> None:
    """Give everything of a part the same colour and highlights."""
    rows = pixels.of(part)
    pixels.albedo[:, rows] = rgb(colour)
    pixels.gloss[rows], pixels.sharpness[rows] = gloss, sharpness
