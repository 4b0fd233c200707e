"""The light at each pixel: from lamps and sky, with shadows and highlights. Colours are linear RGB."""

from typing import Any

import cv2
import numpy as np

from faces.geometry import Surface, View, rotate
from faces.identity import step
from faces.materials import Pixels, rgb, sample, unit
from faces.mesh import Part
from faces.raster import rasterize

SHADOW_SIZE, SHADOW_SCALE = 128, 42.0  # the shadow map's side in pixels, and its pixels per decimetre
SHADOW_BIAS = (0.03, 0.07)  # depths, in decimetres, at which shadow begins and is full
# How far light reaches below the horizon. Under the skin it spreads into shadows, red the furthest.
SKIN_WRAP, PLAIN_WRAP = np.float32([0.32, 0.18, 0.13]), 0.05


def direction_of(azimuth: float, elevation: float) -> np.ndarray:
    """The unit vector (3,) float32 towards a light, from angles in degrees to the picture's right, and up."""
    azimuth, elevation = np.radians([azimuth, elevation])
    return np.float32([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])


def cast_shadows(pixels: Pixels, scene: Surface, light: dict[str, Any], blur: float) -> np.ndarray:
    """How much of the key light reaches each row of pixels, from 0 to 1, (N,) float32.

    scene: in camera space; light: Nuisance.light; blur: sigma in pixels.
    """
    towards = direction_of(light["azimuth"], light["elevation"])
    right = np.cross([0, 1, 0.01], towards)
    right /= np.sqrt((right**2).sum())
    frame = np.stack([right, np.cross(towards, right), towards]).astype(np.float32)
    zoom = np.float32([SHADOW_SCALE, -SHADOW_SCALE, 1])
    middle = np.float32([SHADOW_SIZE / 2, SHADOW_SIZE / 2, 0])

    def onto(places):
        return rotate(places, frame) * zoom + middle

    # Eyes cast no shadow. Ribbons of hair have no holes here, so every third is dense enough.
    number = np.arange(len(scene.part))
    casts = (
        (scene.part != Part.LEFT_EYE) & (scene.part != Part.RIGHT_EYE) & ((scene.part != Part.HAIR) | (number % 3 == 0))
    )
    thin = scene.part[casts] >= Part.HAIR
    corners = onto(scene.vertices)
    _, _, depth = rasterize(corners, scene.triangles[casts], SHADOW_SIZE, SHADOW_SIZE, ~thin)
    depth = np.where(np.isfinite(depth), depth, -100)
    own = onto(pixels.places)
    nearest = sample(depth, own[:, 0] - 0.5, own[:, 1] - 0.5, cv2.INTER_NEAREST, -100)
    lit = step(SHADOW_BIAS[1], SHADOW_BIAS[0], nearest[:, 0] - own[:, 2]).astype(np.float32)
    lit[pixels.of(Part.HAIR)] = 0.5 + 0.5 * lit[pixels.of(Part.HAIR)]
    total = cv2.GaussianBlur(pixels.spread(lit), (0, 0), blur)
    known = cv2.GaussianBlur(pixels.spread(np.ones_like(lit)), (0, 0), blur)
    return pixels.gather(total / np.maximum(known, 1e-3))


def illuminate(pixels: Pixels, light: dict[str, Any], lit: np.ndarray, view: View) -> np.ndarray:
    """The colours (3, N) float32 of all pixels under Nuisance.light; lit: as cast_shadows returns it."""
    key_tint, sky_tint, ground_tint = (rgb(light[f"{name}_tint"]) for name in ("key", "sky", "ground"))
    key = direction_of(light["azimuth"], light["elevation"])
    fill = direction_of(light["fill_azimuth"], 15)
    behind = direction_of(light["rim_side"] * 125, 25)
    normals = np.ascontiguousarray(pixels.normals.T)
    open_sky = pixels.occlusion
    wrap = np.where(pixels.part == Part.SKIN, rgb(SKIN_WRAP), np.float32(PLAIN_WRAP))

    def diffuse(towards):
        return np.clip((_along(normals, towards) + wrap) / (1 + wrap), 0, 1)

    arriving = light["key"] * key_tint * diffuse(key) * lit
    arriving += light["fill"] * sky_tint * diffuse(fill) * open_sky
    upwards = 0.5 + 0.5 * normals[1]
    arriving += 0.75 * open_sky * (light["sky"] * sky_tint * upwards + light["ground"] * ground_tint * (1 - upwards))
    arriving += light["rim"] * np.clip(_along(normals, behind), 0, 1) * open_sky
    colour = pixels.albedo * arriving

    fresnel = 0.04 + 0.5 * (1 - np.clip(normals[2], 0, 1)) ** 5
    for source, strength, tint, reach in (
        (key, light["key"], key_tint, lit),
        (fill, light["fill"], sky_tint, open_sky),
    ):
        facing = np.clip(_along(normals, _halfway(source)), 0, 1)
        lobes = 0.11 * facing**pixels.sharpness + 0.05 * facing ** (0.3 * pixels.sharpness)
        colour += (pixels.gloss * strength * reach * lobes) * tint
    colour += (pixels.gloss * fresnel * light["sky"] * 0.12 * open_sky) * sky_tint

    # The bright band across strands of hair (Kajiya and Kay 1989).
    rows = pixels.of(Part.HAIR)
    strands = unit(view.turned(pixels.rest[rows])).T
    sine = np.sqrt(np.clip(1 - _along(strands, _halfway(key)) ** 2, 0, 1))
    facing = np.clip(_along(normals[:, rows], key) + 0.3, 0, 1)
    band = sine**40 * facing * lit[rows] * open_sky[rows] * light["key"]
    colour[:, rows] += 0.09 * band * (0.5 * pixels.albedo[:, rows] + 0.12)
    return colour


def _along(vectors, direction):
    """The components (N,) of vectors (3, N) along a direction (3,)."""
    return vectors[0] * direction[0] + vectors[1] * direction[1] + vectors[2] * direction[2]


def _halfway(source):
    """The direction (3,) halfway between those of a light and the camera."""
    half = source + np.float32([0, 0, 1])
    return half / np.sqrt((half**2).sum())
