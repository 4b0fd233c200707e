"""What makes a person: everything drawn at random that all photographs of one identity share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from faces.shape import draw_build, draw_bumps, draw_features

# Natural colours in sRGB, from 0 to 255. Skin tones are ordered from lightest to darkest.
SKIN_TONES = (
    (238, 205, 186),
    (229, 187, 160),
    (214, 168, 140),
    (186, 139, 112),
    (148, 107, 85),
    (106, 75, 60),
    (72, 52, 43),
)
HAIR_COLOURS = {
    "black": (24, 20, 19), "dark brown": (46, 34, 27), "brown": (80, 56, 40), "light brown": (122, 92, 64),
    "blond": (176, 144, 98), "red": (128, 66, 38), "grey": (140, 138, 135), "white": (205, 203, 200),
}  # fmt: skip
EYE_COLOURS = {
    "dark brown": (46, 30, 20), "brown": (80, 50, 30), "hazel": (104, 84, 50), "green": (96, 110, 78),
    "blue": (92, 124, 150), "grey": (116, 126, 132),
}  # fmt: skip
MEN_STYLES = {
    "shaved": 0.1, "cropped": 0.2, "side part": 0.24, "swept back": 0.16, "brushed forward": 0.12, "tousled": 0.12,
    "shoulder": 0.06,
}  # fmt: skip
WOMEN_STYLES = {
    "cropped": 0.04, "side part": 0.06, "swept back": 0.06, "tousled": 0.08, "tied": 0.18, "bob": 0.2,
    "fringed bob": 0.1, "shoulder": 0.16, "long": 0.12,
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """A person. Lengths are in decimetres on the rest head, colours are linear RGB, and shares are from 0 to 1."""

    seed: int  # of the run
    number: int
    masculinity: float
    age: float  # years
    coefficients: dict  # target name: weight
    bumps: tuple  # of (x, y, z, dx, dy, dz, radius): smooth displacements besides the targets
    skin: tuple  # linear RGB
    melanin: float  # 0 lightest to 1 darkest
    ruddiness: float
    freckles: float
    spots: float  # blemishes of age and sun
    mottling: float
    moles: tuple  # of (x, y, radius, darkness)
    eye_shadow: float  # dark rings under the eyes
    wrinkles: float
    pores: float
    gloss: float
    lip_colour: tuple
    iris_colour: tuple
    iris_radius: float  # radians, seen from the eyeball's centre
    hair_colour: tuple
    grey: float
    curl: float  # 0 straight, 1 coily
    thickness: float  # of the hair; 1 is average
    hairline: float  # its height above the average, in decimetres
    recession: float  # at the temples, decimetres
    styles: tuple  # the hair styles the person wears
    brows: dict
    beard: str
    beard_habit: float  # the chance that a photograph shows it
    beard_growth: float
    makeup: float
    glasses_habit: float  # the chance that a photograph shows glasses
    glasses: tuple  # the frames that the person owns; see draw_frame


def linear(colour: Any) -> np.ndarray:
    """The linear RGB of sRGB colours (..., 3) from 0 to 255."""
    return (np.asarray(colour, np.float64) / 255) ** 2.2


def plain(values: Iterable[float]) -> tuple[float, ...]:
    """A tuple of Python floats, which JSON can hold."""
    return tuple(float(value) for value in values)


def step(low: Any, high: Any, x: Any) -> Any:
    """Rise smoothly from 0 at low to 1 at high, or fall if low > high. low, high, x: numbers or arrays."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Draw one key of {key: weight}."""
    keys = list(weights)
    shares = np.array([weights[key] for key in keys], np.float64)
    return keys[rng.choice(len(keys), p=shares / shares.sum())]


def draw_identity(seed: int, number: int, target_names: np.ndarray) -> Identity:
    """Draw person `number` of run `seed`, which is always the same. target_names: Head.target_names."""
    rng = np.random.default_rng([seed, number])
    axes = rng.dirichlet([0.7, 0.45, 0.45])
    man = rng.random() < 0.6
    masculinity = float(rng.beta(6, 1.2) if man else rng.beta(1.2, 6))
    age = float(20 + 55 * rng.beta(1.6, 1.6))
    old = step(38, 75, age)
    coefficients = draw_build(rng, axes, masculinity, age)
    coefficients.update(draw_features(rng, target_names))
    melanin, skin, lips = _complexion(rng, axes)
    hair, grey = _hair(rng, axes, age)
    iris = _iris(rng, axes)
    styles = MEN_STYLES if man else WOMEN_STYLES
    thin = man * max(0.0, rng.normal(0.02, 0.1) + 0.3 * old * rng.random())
    beards = {"none": 0.5, "stubble": 0.16, "moustache": 0.1, "goatee": 0.1, "full": 0.14} if man else {"none": 1}

    return Identity(
        seed=int(seed),
        number=int(number),
        masculinity=masculinity,
        age=age,
        coefficients=coefficients,
        bumps=draw_bumps(rng),
        skin=plain(skin),
        melanin=melanin,
        ruddiness=float(rng.uniform(0, 1)),
        freckles=float(rng.random() ** 3 * (1 - melanin)),
        spots=float(rng.uniform(0, 1) * step(40, 70, age)),
        mottling=float(rng.uniform(0.4, 1.3)),
        moles=tuple(_mole(rng) for _ in range(rng.poisson(1.3))),
        eye_shadow=float(rng.uniform(0, 0.9)),
        wrinkles=float(step(28, 72, age) * rng.uniform(0.6, 1.3) + rng.uniform(0, 0.12)),
        pores=float(rng.uniform(0.4, 1.2)),
        gloss=float(rng.uniform(0.3, 1)),
        lip_colour=plain(np.clip(lips, 0.01, 0.9)),
        iris_colour=plain(iris * np.exp(rng.normal(0, 0.2))),
        iris_radius=float(rng.uniform(0.44, 0.5)),
        hair_colour=plain(np.clip(hair * np.exp(rng.normal(0, 0.15)) * (1 + rng.normal(0, 0.05, 3)), 0.003, 0.8)),
        grey=grey,
        curl=float(np.clip(rng.beta(0.7, 2) + 0.7 * axes[1] * rng.random(), 0, 1)),
        thickness=float(rng.uniform(0.7, 1.25) - 0.5 * min(thin, 0.5)),
        hairline=float(rng.normal(0.0, 0.055)),
        recession=float(min(thin, 0.5)),
        styles=tuple(choose(rng, styles) for _ in range(3)),
        brows=_brows(rng, masculinity),
        beard=choose(rng, beards),
        beard_habit=float(rng.choice([0.3, 0.75, 1.0])),
        beard_growth=float(rng.uniform(0.4, 1)),
        makeup=0.0 if man else float(rng.choice([0, 1], p=[0.3, 0.7]) * rng.uniform(0.3, 1)),
        glasses_habit=float(rng.choice([0, 0.3, 0.85], p=[0.62, 0.2, 0.18])),
        glasses=tuple(draw_frame(rng) for _ in range(2)),
    )


def draw_frame(rng: np.random.Generator) -> dict[str, Any]:
    """A pair of glasses: half widths of a lens, exponent of its outline (2 for an ellipse), wire and colour."""
    metal = rng.random() < 0.55
    colour = (
        rng.choice([0.1, 0.35, 0.55]) * np.array([1, rng.uniform(0.75, 1), rng.uniform(0.5, 1)])
        if metal
        else (rng.choice([0.05, 0.08, 0.25]) * np.array([1, rng.uniform(0.5, 1), rng.uniform(0.4, 1)]))
    )
    return {
        "half_width": float(rng.uniform(0.2, 0.255)),
        "half_height": float(rng.uniform(0.12, 0.2)),
        "exponent": float(rng.uniform(2, 4.5)),
        "wire": float(rng.uniform(0.007, 0.012) if metal else rng.uniform(0.014, 0.028)),
        "rimless_below": bool(rng.random() < 0.2),
        "colour": plain(colour**2.2),
    }


def _complexion(rng, axes):
    """Melanin, from 0 to 1, and the linear RGB of skin and lips."""
    melanin = float(np.clip((axes * [0.2, 0.78, 0.34]).sum() + rng.normal(0, 0.1), 0, 1))
    place = melanin * (len(SKIN_TONES) - 1)
    tones = linear(SKIN_TONES)
    skin = np.array([np.interp(place, np.arange(len(tones)), tones[:, k]) for k in range(3)])
    skin = skin * np.exp(rng.normal(0, 0.06)) * (1 + rng.normal(0, 1, 3) * [0.03, 0.015, 0.04])
    lips = skin * [0.9, 0.52, 0.53] * np.exp(rng.normal(0, 0.12)) * (1 + rng.normal(0, 0.06, 3))
    return melanin, skin, lips


def _hair(rng, axes, age):
    """The linear RGB of a natural hair colour, and how far it has turned grey, from 0 to 1."""
    if rng.random() < axes[0]:
        shares = {"black": 0.12, "dark brown": 0.3, "brown": 0.3, "light brown": 0.14, "blond": 0.1, "red": 0.04}
    else:
        shares = {"black": 0.65, "dark brown": 0.3, "brown": 0.05}
    hair = linear(HAIR_COLOURS[choose(rng, shares)])
    grey = float(np.clip(step(35, 72, age) * rng.uniform(0, 1.5), 0, 1))
    return hair * (1 - grey) + linear(HAIR_COLOURS[choose(rng, {"grey": 0.6, "white": 0.4})]) * grey, grey


def _iris(rng, axes):
    """The linear RGB of an iris."""
    light_eyes = rng.random() < axes[0] * 0.8
    colours = list(EYE_COLOURS)[1:] if light_eyes else ["dark brown", "brown"]
    return linear(EYE_COLOURS[choose(rng, dict.fromkeys(colours, 1))])


def _mole(rng):
    """Its place, radius and darkness."""
    return plain((rng.uniform(-0.6, 0.6), rng.uniform(6.35, 7.95), rng.uniform(0.007, 0.016), rng.uniform(0.3, 0.8)))


def _brows(rng, masculinity):
    """Where the brows are, and how thick; texture._brows reads it."""
    man = masculinity > 0.5
    return {
        "thickness": float(np.clip(rng.normal(0.068 if man else 0.05, 0.014), 0.028, 0.105)),
        "arch": float(rng.uniform(0, 0.055) if man else rng.uniform(0.01, 0.08)),
        "height": float(rng.normal(7.462 if man else 7.482, 0.026)),
        "inner": float(rng.uniform(0.08, 0.16)),
        "outer": float(rng.uniform(0.47, 0.58)),
        "tilt": float(rng.normal(0.005, 0.025)),
        "peak": float(rng.uniform(0.55, 0.8)),
        "taper": float(rng.uniform(0.5, 0.85)),
        "density": float(rng.uniform(0.6, 1)),
        "darkness": float(rng.uniform(0.35, 0.85)),
    }
