"""The setting of a photograph, drawn at random: light, background, clothes, what is in the way, and camera."""


from typing import Any

import numpy as np

from faces.identity import choose, linear, plain


def _colour_cast(rng, spread):
    """The tint of a light, from bluish to warm, as factors for RGB."""
    warmth = rng.normal(0.02, spread)
    green = rng.normal(0, spread * 0.25)
    return plain((1 + warmth, 1 + green, 1 - 1.1 * warmth))


def draw_light(rng: np.random.Generator) -> dict[str, Any]:
    """A key light, a fill light, sky and ground, and sometimes a light from behind. Strengths are relative."""
    kind = choose(rng, {"flash": 0.28, "indoor": 0.34, "outdoor": 0.2, "side": 0.1, "overcast": 0.08})
    azimuth, elevation, key, ambient = {
        "flash": (rng.normal(0, 9), rng.normal(10, 7), rng.uniform(1.2, 2.2), rng.uniform(0.2, 0.5)),
        "indoor": (rng.normal(0, 38), rng.normal(38, 13), rng.uniform(0.7, 1.4), rng.uniform(0.4, 0.8)),
        "outdoor": (rng.normal(0, 50), rng.normal(48, 14), rng.uniform(1, 2), rng.uniform(0.4, 0.8)),
        "side": (
            rng.choice([-1, 1]) * rng.normal(62, 14),
            rng.normal(22, 12),
            rng.uniform(0.8, 1.8),
            rng.uniform(0.3, 0.6),
        ),
        "overcast": (rng.normal(0, 60), rng.normal(65, 10), rng.uniform(0.15, 0.5), rng.uniform(0.8, 1.1)),
    }[kind]
    return {
        "kind": kind,
        "azimuth": float(azimuth),
        "elevation": float(np.clip(elevation, -8, 75)),
        "key": float(key),
        "key_tint": _colour_cast(rng, 0.065),
        "softness": float(rng.uniform(0.5, 2.5)),  # of cast shadows, pixels of the final picture at 112
        "fill": float(rng.uniform(0, 0.5) * key),
        "fill_azimuth": float(-np.sign(azimuth) * rng.uniform(10, 80)),
        "sky": float(ambient * rng.uniform(0.8, 1.5)),
        "ground": float(ambient * rng.uniform(0.25, 0.9)),
        "sky_tint": _colour_cast(rng, 0.06),
        "ground_tint": _colour_cast(rng, 0.1),
        "rim": float(rng.uniform(0.2, 1.1) * (rng.random() < 0.25)),
        "rim_side": float(rng.choice([-1, 1])),
    }


def draw_cloth_colour(rng: np.random.Generator) -> np.ndarray:
    """The colour of a garment, (3,) linear RGB."""
    if rng.random() < 0.5:
        return linear(np.clip(rng.choice([22, 40, 60, 120, 220]) * (1 + rng.normal(0, 0.08, 3)), 8, 245))
    return linear(np.clip(rng.uniform(20, 230) + rng.normal(0, 45, 3), 8, 240))


def draw_backdrop(rng: np.random.Generator) -> dict[str, Any]:
    """What is behind the person; backdrop.paint_backdrop reads it."""
    kind = choose(rng, {"blur": 0.34, "plain": 0.2, "verticals": 0.16, "bokeh": 0.08, "foliage": 0.08, "people": 0.14})
    level = rng.choice([30, 65, 110, 170, 225], p=[0.22, 0.25, 0.23, 0.19, 0.11])
    base = level * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 1, 3) * (6 if rng.random() < 0.65 else 28)
    return {"kind": kind, "colour": plain(linear(np.clip(base, 4, 250))), "blur": float(rng.uniform(0.01, 0.06))}


def draw_clothes(rng: np.random.Generator) -> dict[str, Any]:
    """A jacket over a shirt and perhaps a tie, or one garment."""
    suit = rng.random() < 0.45
    pale = linear(np.clip(rng.choice([235, 215, 190]) + rng.normal(0, 10, 3), 0, 250)) if suit else None
    shirt = draw_cloth_colour(rng) if pale is None else pale
    return {
        "shirt": plain(shirt),
        "jacket": plain(linear(np.clip(rng.choice([20, 35, 60, 100]) + rng.normal(0, 7, 3), 5, 250)))
        if suit
        else plain(shirt),
        "tie": plain(draw_cloth_colour(rng)) if suit and rng.random() < 0.7 else plain(shirt),
        "neckline": float(rng.uniform(5.75, 6.0)),
    }


def draw_occluder(rng: np.random.Generator) -> dict[str, Any]:
    """What is in front of the face: usually nothing, which is {}."""
    if rng.random() > 0.08:
        return {}
    kind = choose(rng, {"microphone": 0.4, "hand": 0.25, "foreground": 0.35})
    return {
        "kind": kind,
        "size": float(rng.uniform(0.6, 1)),
        "side": float(rng.choice([-1, 1])),
        "level": float(rng.uniform(0, 1)),
    }


def draw_camera(rng: np.random.Generator) -> dict[str, Any]:
    """Exposure to JPEG quality; camera.expose and camera.develop read it."""
    return {
        "exposure": float(np.exp(rng.normal(0, 0.24))),
        "white_balance": plain(np.exp(rng.normal(0, 0.035, 3))),
        "contrast": float(rng.uniform(1, 1.45)),
        "saturation": float(rng.uniform(0.7, 1.25)),
        "grey": bool(rng.random() < 0.03),
        "vignette": float(rng.uniform(0, 0.25) * (rng.random() < 0.3)),
        "resolution": float(rng.uniform(0.45, 0.9) if rng.random() < 0.5 else 1),
        "blur": float(np.clip(rng.normal(0.62, 0.2), 0.35, 1.2)),  # sigma, pixels at 112
        "motion": float(rng.uniform(1, 4) if rng.random() < 0.06 else 0),  # length, pixels at 112
        "motion_angle": float(rng.uniform(0, 180)),
        "sharpen": float(rng.uniform(0, 0.6) * (rng.random() < 0.3)),
        "noise": float(abs(rng.normal(0, 0.006))),
        "noise_seed": int(rng.integers(1 << 31)),
        "jpeg": int(rng.integers(45, 96)),
    }
