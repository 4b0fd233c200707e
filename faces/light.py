"""Light: what reaches each pixel from the lamps and the sky, what is in shadow, what shines. Colours are linear RGB."""

import cv2
import numpy as np

from faces.identity import step
from faces.materials import sample, unit
from faces.mesh import Part
from faces.raster import rasterize

SHADOW_SIZE, SHADOW_SCALE = 128, 42.0  # pixels of the shadow map, and of it a decimetre
SHADOW_BIAS = (0.03, 0.07)  # decimetres between no shadow and full shadow
# Light creeps around the edge of a shadow under the skin, red the furthest: how far below the horizon it reaches.
SKIN_WRAP = np.float32([0.32, 0.18, 0.13])


def direction_of(azimuth, elevation):
    """Unit vector (3,) float32 towards a light, from angles in degrees: to the picture's right, and up."""
    azimuth, elevation = np.radians([azimuth, elevation])
    return np.float32([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])


def cast_shadows(pixels, scene, view, light, blur):
    """How much of the key light reaches each row, 0..1, (N,) float32. blur: sigma in pixels."""
    towards = direction_of(light["azimuth"], light["elevation"])
    right = np.cross([0, 1, 0.01], towards)
    right /= np.sqrt((right**2).sum())
    frame = np.stack([right, np.cross(towards, right), towards]).astype(np.float32)
    zoom = np.float32([SHADOW_SCALE, -SHADOW_SCALE, 1])
    middle = np.float32([SHADOW_SIZE / 2, SHADOW_SIZE / 2, 0])

    def onto(turned):
        return np.einsum("nk,jk->nj", turned, frame) * zoom + middle

    solid = ~np.isin(scene.part, (Part.LEFT_EYE, Part.RIGHT_EYE))
    corners = onto(view.turned(scene.vertices - view.pivot))
    thin = np.isin(scene.part[solid], (Part.HAIR, Part.FRAME, Part.CLOTH))
    _, _, depth = rasterize(corners, scene.triangles[solid], SHADOW_SIZE, SHADOW_SIZE, ~thin)
    depth = np.where(np.isfinite(depth), depth, -100)
    own = onto(pixels.turned)
    nearest = sample(depth, own[:, 0] - 0.5, own[:, 1] - 0.5, cv2.INTER_NEAREST, -100)
    lit = step(SHADOW_BIAS[1], SHADOW_BIAS[0], nearest[:, 0] - own[:, 2]).astype(np.float32)
    lit[pixels.of(Part.HAIR)] = 0.5 + 0.5 * lit[pixels.of(Part.HAIR)]
    total = cv2.GaussianBlur(pixels.spread(lit), (0, 0), blur)
    known = cv2.GaussianBlur(pixels.spread(np.ones_like(lit)), (0, 0), blur)
    return pixels.gather(total / np.maximum(known, 1e-3))


def illuminate(pixels, light, lit, view):
    """Colours (N, 3) float32 of all rows under the light; lit: cast_shadows'."""
    key_tint, sky_tint, ground_tint = (np.float32(light[f"{name}_tint"]) for name in ("key", "sky", "ground"))
    key = direction_of(light["azimuth"], light["elevation"])
    fill = direction_of(light["fill_azimuth"], 15)
    normals = pixels.normals
    skin = np.isin(pixels.part, (Part.SKIN,))[:, None]
    wrap = np.where(skin, SKIN_WRAP, np.float32(0.05))

    def diffuse(towards):
        return np.clip((np.einsum("nk,k->n", normals, towards)[:, None] + wrap) / (1 + wrap), 0, 1)

    arriving = light["key"] * key_tint * diffuse(key) * lit[:, None]
    arriving += light["fill"] * sky_tint * diffuse(fill) * pixels.occlusion[:, None]
    upwards = (0.5 + 0.5 * normals[:, 1])[:, None]
    sky = light["sky"] * sky_tint * upwards + light["ground"] * ground_tint * (1 - upwards)
    arriving += sky * pixels.occlusion[:, None] * 0.75
    behind = direction_of(light["rim_side"] * 125, 25)
    arriving += (light["rim"] * np.clip(np.einsum("nk,k->n", normals, behind), 0, 1) * pixels.occlusion)[:, None]
    colour = pixels.albedo * arriving

    towards_eye = np.float32([0, 0, 1])
    fresnel = 0.04 + 0.5 * (1 - np.clip(normals[:, 2], 0, 1)) ** 5
    for source, strength, tint, reach in (
        (key, light["key"], key_tint, lit),
        (fill, light["fill"], sky_tint, pixels.occlusion),
    ):
        half = source + towards_eye
        half /= np.sqrt((half**2).sum())
        facing = np.clip(np.einsum("nk,k->n", normals, half), 0, 1)
        lobes = 0.11 * facing**pixels.sharpness + 0.05 * facing ** (0.3 * pixels.sharpness)
        colour += (pixels.gloss * strength * reach * lobes)[:, None] * tint
    colour += (pixels.gloss * fresnel * light["sky"] * 0.12 * pixels.occlusion)[:, None] * sky_tint
    colour += _hair_shine(pixels, key, light, lit, view, colour.shape)
    return colour


def _hair_shine(pixels, key, light, lit, view, shape):
    """The bright band across strands (Kajiya and Kay 1989), (N, 3), zero off the hair."""
    shine = np.zeros(shape, np.float32)
    rows = pixels.of(Part.HAIR)
    along = unit(view.turned(pixels.rest[rows]))
    half = key + np.float32([0, 0, 1])
    half /= np.sqrt((half**2).sum())
    sine = np.sqrt(np.clip(1 - np.einsum("nk,k->n", along, half) ** 2, 0, 1))
    facing = np.clip(np.einsum("nk,k->n", pixels.normals[rows], key) + 0.3, 0, 1)
    band = sine**40 * facing * lit[rows] * pixels.occlusion[rows] * light["key"]
    shine[rows] = (0.09 * band)[:, None] * (0.5 * pixels.albedo[rows] + 0.12)
    return shine
