"""A ceiling camera in place of a press photographer: small, grey, grainy pictures of people seen from above."""

from dataclasses import replace
from typing import Any

import numpy as np

from faces.identity import Identity, choose, linear, plain
from faces.nuisance import Nuisance, draw_nuisance


def draw_from_ceiling(person: Identity, image: int) -> Nuisance:
    """Draw image number `image` of a person as a ceiling camera takes it, which is always the same.

    Face, hair and what is worn are those of draw_nuisance; pose, light, place and camera are others.
    """
    rng = np.random.default_rng([person.seed, person.number, image, 1])  # differs from the stream of draw_nuisance
    # People look where they walk. Seen from above, their heads are nodded.
    return replace(
        draw_nuisance(person, image),
        yaw=float(np.clip(rng.normal(0, 24), -50, 50)),
        pitch=float(np.clip(rng.normal(-26, 9), -45, 0)),
        roll=float(rng.normal(0, 3)),
        scale=float(np.exp(rng.normal(0, 0.05))),
        shift=plain(rng.normal(0, 0.02, 2)),
        distance=float(rng.uniform(25, 60)),
        gaze=plain(rng.normal(0, 1, 2) * (0.12, 0.08)),
        light=_light(rng),
        backdrop=_backdrop(rng),
        occluder={},
        camera=_camera(rng),
    )


def _light(rng: np.random.Generator) -> dict[str, Any]:
    """Lamps in the ceiling, of which one is nearest; setting.draw_light has the keys."""
    key, ambient = rng.uniform(0.5, 1.5), rng.uniform(0.25, 0.7)
    azimuth = rng.normal(0, 55)
    return {
        "kind": "ceiling",
        "azimuth": float(azimuth),
        "elevation": float(rng.uniform(30, 75)),
        "key": float(key),
        "key_tint": (1.0, 1.0, 1.0),
        "softness": float(rng.uniform(0.5, 2.5)),
        "fill": float(rng.uniform(0, 0.4) * key),
        "fill_azimuth": float(-np.sign(azimuth) * rng.uniform(10, 80)),
        "sky": float(ambient * rng.uniform(0.8, 1.5)),
        "ground": float(ambient * rng.uniform(0.2, 0.7)),
        "sky_tint": (1.0, 1.0, 1.0),
        "ground_tint": (1.0, 1.0, 1.0),
        "rim": 0.0,
        "rim_side": 1.0,
    }


def _backdrop(rng: np.random.Generator) -> dict[str, Any]:
    """Floor, walls and passers-by; backdrop.paint_backdrop reads it."""
    kind = choose(rng, {"blur": 0.4, "plain": 0.2, "verticals": 0.2, "people": 0.2})
    return {
        "kind": kind, "colour": plain(linear(np.full(3, rng.uniform(40, 170)))), "blur": float(rng.uniform(0.01, 0.03)),
    }  # fmt: skip


def _camera(rng: np.random.Generator) -> dict[str, Any]:
    """A small sensor in poor light, and strong compression; setting.draw_camera explains the keys."""
    return {
        "exposure": float(np.exp(rng.normal(-0.1, 0.3))),
        "white_balance": (1.0, 1.0, 1.0),
        "contrast": float(rng.uniform(0.9, 1.4)),
        "saturation": 0.0,
        "grey": True,
        "vignette": 0.0,
        "resolution": float(rng.uniform(0.6, 1)),
        "blur": float(rng.uniform(0.6, 1.8)),
        "motion": float(rng.uniform(1, 6) if rng.random() < 0.15 else 0),
        "motion_angle": float(rng.normal(0, 30) % 180),
        "sharpen": 0.0,
        "noise": float(rng.uniform(0.01, 0.035)),
        "noise_seed": int(rng.integers(1 << 31)),
        "jpeg": int(rng.integers(40, 80)),
    }
