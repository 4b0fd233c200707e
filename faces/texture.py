"""A person's painted skin: colour, relief and masks on the cylinder that mesh.texture_coordinates unrolls.

Everything is drawn at places (x, y, z) of the rest head, so that it moves with the features as the shape varies.
"""

from typing import Any

import cv2
import numpy as np

from faces.hair import above_hairline
from faces.identity import Identity, step
from faces.mesh import Head
from faces.noise import look_up, smooth_noise, strands

# The layers of painted skin. Masks are from 0 to 1, and relief is in decimetres.
LAYERS = (
    "red", "green", "blue",  # linear albedo without beard, brows and make-up
    "gloss",  # factor on highlights
    "relief",  # pores and wrinkles at rest
    "smile_folds", "frown_folds",  # relief that appears with a smile, or with raised or lowered brows
    "lips",
    "moustache", "goatee", "cheeks",  # where a beard may grow
    "brows",
    "scalp",  # where the hair's roots are
    "eye_colour", "eye_line",  # where eye shadow and eye liner go
    "grain",  # noise that breaks up hair and stubble
)  # fmt: skip
# The depth of a crease, in decimetres.
WRINKLE_DEPTH = 0.008


def bell(x: np.ndarray, width: float) -> np.ndarray:
    """A bump that is 1 at 0, and 1/e at width."""
    return np.exp(-((x / width) ** 2))


def paint_skin(head: Head, person: Identity) -> list[np.ndarray]:
    """The person's skin: LAYERS in order, in fours, (rows, columns, 4) float32, as OpenCV samples four channels."""
    rng = np.random.default_rng([person.seed, person.number, 1 << 20])  # differs from the stream of every image
    x, y, z = (head.texture_rest[:, :, k] for k in range(3))
    lips, lids, ears = (head.texture_masks[:, :, k] for k in range(3))
    front = step(0.55, 1.15, z)
    layers = dict.fromkeys(LAYERS)
    layers["grain"] = rng.standard_normal(x.shape).astype(np.float32)
    colour, spots = _colour(rng, person, x, y, z, front, lids, ears, layers["grain"])
    layers["lips"] = np.clip(lips * 1.1, 0, 1)
    lip_colour = _rgb(person.lip_colour) * (1 + 0.08 * smooth_noise(rng, x.shape, 5))
    colour += layers["lips"] * np.float32(0.85) * (lip_colour - colour)
    layers["red"], layers["green"], layers["blue"] = np.clip(colour, 0.004, 0.95)
    oily = 0.5 + 0.6 * front * (bell(x, 0.2) + 0.6 * bell(np.hypot(np.abs(x) - 0.38, y - 7.0), 0.16))
    layers["gloss"] = person.gloss * oily * (1 + 0.15 * smooth_noise(rng, x.shape, 4)) + 0.5 * layers["lips"]
    layers["relief"], layers["smile_folds"], layers["frown_folds"] = _relief(rng, person, x, y, front, lips, spots)
    layers["moustache"], layers["goatee"], layers["cheeks"] = _beard_zones(rng, x, y, z, lips)
    layers["brows"] = _brows(person.brows, rng, x, y, z, layers["grain"])
    roots = above_hairline(person, head.texture_rest) + 0.02 * smooth_noise(rng, x.shape, 12)
    roots += 0.025 * look_up(strands(), x * 160, y * 30)
    layers["scalp"] = step(-0.05, 0.12, roots) * (1 - np.clip(2 * ears, 0, 1))
    across, up = np.abs(x) - 0.29, y - 7.345
    layers["eye_colour"] = bell(up - 0.06, 0.06) * bell(across, 0.15) * front
    rim = np.abs(np.hypot(across / 0.165, up / np.where(up > 0, 0.07, 0.055)) - 1)
    layers["eye_line"] = bell(rim, 0.2) * np.where(up > -0.01, 1, 0.35) * front
    planes = [layers[name].astype(np.float32) for name in LAYERS]
    return [cv2.merge(planes[k : k + 4]) for k in range(0, len(planes), 4)]


def _rgb(values):
    """Three numbers as (3, 1, 1), for planes (3, rows, columns)."""
    return np.float32(values)[:, None, None]


def _colour(rng, person, x, y, z, front, lids, ears, grain):
    """Linear skin colour (3, rows, columns) and the relief of moles (rows, columns)."""
    across = np.abs(x)
    blotches = smooth_noise(rng, x.shape, 60) * 0.6 + smooth_noise(rng, x.shape, 18) * 0.5
    fine = cv2.GaussianBlur(grain, (0, 0), 1.2) * 3.5
    colour = _rgb(person.skin) * (1 + person.mottling * (0.025 * blotches + 0.018 * fine))

    # Blood: cheeks, nose, ears and chin are redder.
    cheeks = 0.8 * bell(np.hypot(across - 0.4, y - 6.98), 0.22) + 0.15 * bell(np.hypot(x, y - 6.4), 0.15)
    nose = bell(np.hypot(x, y - 6.98), 0.14) + 0.7 * bell(np.hypot(across - 0.13, y - 6.95), 0.08)
    blood = (0.25 + person.ruddiness) * front * (cheeks + nose) + 0.6 * ears + 0.15 * person.mottling * blotches
    colour *= 1 + blood * _rgb([0.06, -0.16, -0.13])
    # Broad zones that differ from person to person, such as a paler forehead or yellower skin around the mouth.
    zones = smooth_noise(rng, x.shape, 110) * _rgb(rng.normal(0, 0.03, 3) + 0.02)
    colour *= 1 + zones
    # Eye sockets.
    bags = bell(y - 7.22, 0.05) * bell(across - 0.28, 0.13) + 0.5 * bell(y - 7.4, 0.07) * bell(across - 0.27, 0.17)
    inner = 0.3 * bell(np.hypot(across - 0.14, y - 7.33), 0.06)
    shade = np.clip(person.eye_shadow * front * (bags + inner) + 0.35 * lids, 0, 1)
    colour *= 1 - shade * _rgb([0.24, 0.32, 0.28])
    colour *= 1 - (0.35 * bell(np.hypot(across - 0.1, (y - 6.875) * 1.3), 0.045) * front)  # nostrils

    if person.freckles > 0.03:
        dots = cv2.GaussianBlur((fine > 1.4).astype(np.float32), (0, 0), 0.8)
        dots *= front * bell(np.hypot(x * 0.7, y - 7.08), 0.35) * person.freckles * 1.8
        colour *= 1 - np.clip(dots, 0, 0.8) * _rgb([0.32, 0.48, 0.58])
    if person.spots > 0.05:
        patches = step(1.2, 2.0, smooth_noise(rng, x.shape, 14)) * person.spots
        colour *= 1 - patches * _rgb([0.18, 0.26, 0.3])
    relief = np.zeros_like(x)
    for at_x, at_y, radius, darkness in person.moles:
        mole = step(1.3 * radius, 0.6 * radius, np.hypot(x - at_x, y - at_y)) * (z > 0.6)
        colour *= 1 - (darkness * mole) * _rgb([0.72, 0.82, 0.85])
        relief += 0.008 * mole
    return colour, relief


def _relief(rng, person, x, y, front, lips, moles):
    """Relief at rest, and what a smile and the brows add to it, (rows, columns) each, in decimetres."""
    across = np.abs(x)
    pores = smooth_noise(rng, x.shape, 2.2) * (0.6 + 0.4 * smooth_noise(rng, x.shape, 40))
    relief = 0.0005 * person.pores * pores * (1 - lips) + moles
    relief += 0.004 * lips * look_up(strands(), x * 260, y * 20 + 100) * 0.5

    wobble = 0.02 * smooth_noise(rng, x.shape, 30)
    line = 0.006  # decimetres: half the width of a fine wrinkle
    forehead = sum(
        bell(y - height - wobble - 0.03 * np.cos(3 * x), line * 1.6)
        for height in (7.66, 7.75, 7.84) + rng.normal(0, 0.015, 3)
    ) * step(0.52, 0.25, across)
    fan = (across - 0.47) / 0.16
    crows_feet = sum(bell(y - 7.345 - slope * fan - wobble * 0.5, line) for slope in (0.1, 0.03, -0.04, -0.1))
    crows_feet = crows_feet * step(0.46, 0.5, across) * step(0.66, 0.56, across)
    frown = bell(across - 0.045 - 0.15 * wobble, line * 1.3) * step(7.4, 7.45, y) * step(7.62, 7.53, y)
    # Nasolabial fold: from the wing of the nose down and out around the corner of the mouth.
    down = np.clip((6.98 - y) / 0.4, 0, 1)
    fold_x = 0.19 + 0.15 * down**0.8 + 0.5 * wobble
    nasolabial = bell(across - fold_x, 0.022) * step(7.02, 6.94, y) * step(6.56, 6.68, y)
    marionette = bell(across - 0.265 + 0.1 * (6.62 - y), 0.014) * step(6.66, 6.6, y) * step(6.36, 6.5, y)
    bag = bell(y - 7.215 + 0.25 * (across - 0.28) ** 2 / 0.05, 0.014) * bell(across - 0.28, 0.14)

    depth = WRINKLE_DEPTH * person.wrinkles * front
    uneven = 0.75 + 0.35 * smooth_noise(rng, x.shape, 25)
    relief -= (
        depth
        * uneven
        * (0.35 * forehead + 0.4 * crows_feet + 0.5 * frown + 1.1 * nasolabial + 0.7 * marionette + 0.6 * bag)
    )
    deepness = 0.3 + person.wrinkles
    smile = (
        -WRINKLE_DEPTH
        * front
        * ((0.5 + 0.5 * deepness) * nasolabial + 0.7 * deepness * crows_feet + 0.4 * deepness * bag)
    )
    frowning = -WRINKLE_DEPTH * front * deepness * (0.7 * forehead + 0.8 * frown)
    return relief, smile, frowning


def _beard_zones(rng, x, y, z, lips):
    """Masks of moustache, goatee and cheeks with the jaw, (rows, columns) each."""
    across = np.abs(x) + 0.012 * smooth_noise(rng, x.shape, 10)
    y = y + 0.02 * smooth_noise(rng, x.shape, 14)
    bare = 1 - np.clip(lips * 1.6, 0, 1)
    upper = 6.895 - 0.3 * np.maximum(across - 0.1, 0)
    moustache = step(0.33, 0.25, across) * step(upper + 0.01, upper - 0.05, y) * step(6.64, 6.7, y) * step(1.0, 1.2, z)
    corner = step(0.34, 0.27, across) * step(0.17, 0.23, across) * step(6.75, 6.69, y)
    chin = step(0.3, 0.2, across) * step(6.56, 6.5, y)
    goatee = np.maximum(corner, chin) * step(6.08, 6.2, y) * step(0.75, 1.0, z)
    edge = np.interp(
        across, (0, 0.1, 0.22, 0.34, 0.45, 0.55, 0.64, 0.72, 0.8), (6.5, 6.52, 6.66, 6.7, 6.74, 6.84, 7.02, 7.3, 7.4)
    )
    cheeks = step(edge + 0.06, edge - 0.08, y) * step(6.02, 6.2, y) * step(0.25, 0.5, z)
    return moustache * bare, goatee * bare, np.maximum(cheeks, goatee) * bare


def _brows(brows, rng, x, y, z, grain):
    """How densely hair covers each texel of the brows, from 0 to 1."""
    across = np.abs(x) + 0.01 * rng.normal() * np.sign(x)
    along = (across - brows["inner"]) / (brows["outer"] - brows["inner"])
    clipped = np.clip(along, 0, 1)
    rise = np.where(
        clipped < brows["peak"], clipped / brows["peak"], 1 - 0.9 * (clipped - brows["peak"]) / (1 - brows["peak"])
    )
    middle = brows["height"] + brows["tilt"] * clipped + brows["arch"] * np.sin(rise * np.pi / 2)
    half = brows["thickness"] * (1 - brows["taper"] * clipped**1.8) * (0.75 + 0.25 * step(-0.1, 0.3, along))
    lean = look_up(strands(), across * 330 - y * 170, y * 90 + across * 60)
    shape = step(1.1, 0.45, np.abs(y - middle + 0.006 * lean) / half)
    shape *= step(-0.12, 0.08, along) * step(1.06, 0.9, along) * step(0.7, 0.9, z)
    return np.clip(shape * brows["density"] * (0.9 + 0.22 * lean + 0.15 * grain), 0, 1)


def beard_cover(layers: dict[str, np.ndarray], beard: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """How much a beard hides of each place, from 0 to 1, (N,), and how thick it is there, in decimetres, (N,).

    layers: {name: (N,) array}; beard: Nuisance.beard.
    """
    moustache, goatee, cheeks = layers["moustache"], layers["goatee"], layers["cheeks"]
    everywhere = np.maximum(moustache, cheeks)
    area = {
        "none": 0,
        "stubble": 0.5 * everywhere,
        "moustache": moustache,
        "goatee": np.maximum(moustache, goatee),
        "full": everywhere,
    }[beard["style"]]
    patchy = 0.8 + 0.16 * np.clip(layers["grain"], -2, 2)
    cover = np.clip(np.maximum(area * beard["growth"] * 1.15, beard["shadow"] * everywhere) * patchy, 0, 0.97)
    thick = 0 if beard["style"] in ("none", "stubble") else 0.02 * beard["growth"]
    return cover, thick * area
