"""What makes a person: everything drawn at random that all photographs of one identity share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from faces.mesh import SHAPE_AXES

# The ends of a target axis, low and high, as MakeHuman's files name them.
AXIS_ENDS = (
    ("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward"), ("concave", "convex"),
    ("compress", "uncompress"),
)  # fmt: skip
# The standard deviation of an axis' coefficient, by folder; MakeHuman's own sliders go up to 1.
SPREAD = {
    "head": 0.18, "nose": 0.25, "mouth": 0.26, "eyes": 0.29, "ears": 0.22, "cheek": 0.28, "chin": 0.28,
    "forehead": 0.28, "eyebrows": 0.24, "neck": 0.2,
}  # fmt: skip
# Axes that move a whole feature, or that look unnatural at full strength, have this share of their folder's spread.
TAMED = {"trans": 0.6, "push": 0.4, "double": 0.5, "laugh-lines": 0.5, "eyefold": 0.7, "flaring": 0.7, "septum": 0.6}
# Axes whose mean is not 0, by their high end: compared with photographs, MakeHuman's mouth is smaller, its eyes are
# smaller and closer together, and its ears are larger.
MEANS = {
    "mouth/mouth-scale-horiz-incr": 0.4, "eyes/l-eye-scale-incr": 0.25, "eyes/l-eye-height1-incr": 0.15,
    "eyes/l-eye-height2-incr": 0.3, "eyes/l-eye-height3-incr": 0.2, "eyes/l-eye-trans-out": 0.3,
    "ears/l-ear-wing-incr": -0.3, "ears/l-ear-scale-incr": -0.25,
}  # fmt: skip
LEFT_OUT = ("head/head-age", "head/head-trans", "head/head-angle", "neck/neck-trans", "mouth/mouth-trans-in")
LIMIT = 0.95
HEAD_SHAPES = ("oval", "round", "square", "rectangular", "triangular", "invertedtriangular", "diamond")

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
    coefficients = _macro_shape(rng, axes, masculinity, age)
    coefficients.update(_details(rng, target_names))

    melanin = float(np.clip((axes * [0.2, 0.78, 0.34]).sum() + rng.normal(0, 0.1), 0, 1))
    place = melanin * (len(SKIN_TONES) - 1)
    tones = linear(SKIN_TONES)
    skin = np.array([np.interp(place, np.arange(len(tones)), tones[:, k]) for k in range(3)])
    skin = skin * np.exp(rng.normal(0, 0.06)) * (1 + rng.normal(0, 1, 3) * [0.03, 0.015, 0.04])
    lips = skin * [0.9, 0.52, 0.53] * np.exp(rng.normal(0, 0.12)) * (1 + rng.normal(0, 0.06, 3))

    hair = _hair_colour(rng, axes)
    grey = float(np.clip(step(35, 72, age) * rng.uniform(0, 1.5), 0, 1))
    hair = hair * (1 - grey) + linear(HAIR_COLOURS[choose(rng, {"grey": 0.6, "white": 0.4})]) * grey
    light_eyes = rng.random() < axes[0] * 0.8
    iris = linear(
        EYE_COLOURS[choose(rng, dict.fromkeys(list(EYE_COLOURS)[1:] if light_eyes else ["dark brown", "brown"], 1))]
    )
    styles = MEN_STYLES if man else WOMEN_STYLES
    thin = man * max(0.0, rng.normal(0.02, 0.1) + 0.3 * old * rng.random())
    beards = {"none": 0.5, "stubble": 0.16, "moustache": 0.1, "goatee": 0.1, "full": 0.14} if man else {"none": 1}

    return Identity(
        seed=int(seed),
        number=int(number),
        masculinity=masculinity,
        age=age,
        coefficients=coefficients,
        bumps=_bumps(rng),
        skin=plain(skin),
        melanin=melanin,
        ruddiness=float(rng.uniform(0, 1)),
        freckles=float(rng.random() ** 3 * (1 - melanin)),
        spots=float(rng.uniform(0, 1) * step(40, 70, age)),
        mottling=float(rng.uniform(0.4, 1.3)),
        moles=tuple(
            plain((rng.uniform(-0.6, 0.6), rng.uniform(6.35, 7.95), rng.uniform(0.007, 0.016), rng.uniform(0.3, 0.8)))
            for _ in range(rng.poisson(1.3))
        ),
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


def _macro_shape(rng, axes, masculinity, age):
    """Weights of MakeHuman's whole-head targets, which combine shape axes, sex, age, muscle and weight."""
    muscle, weight = rng.uniform(0.25, 0.85), np.clip(rng.normal(0.46, 0.17), 0.12, 0.88)
    # MakeHuman's targets stand for 12, 25 and 90 years.
    ages = {"child": np.clip((25 - age) / 13, 0, 1) * 0.5, "old": np.clip((age - 25) / 65, 0, 1)}
    ages["young"] = 1 - ages["child"] - ages["old"]
    sexes = {"male": masculinity, "female": 1 - masculinity}

    def thirds(value, name):
        return {
            f"min{name}": max(0, 1 - 2 * value),
            f"average{name}": 1 - abs(2 * value - 1),
            f"max{name}": max(0, 2 * value - 1),
        }

    weights = {}
    for sex, of_sex in sexes.items():
        for years, of_age in ages.items():
            for axis, of_axis in zip(SHAPE_AXES, axes, strict=True):
                weights[f"shape/{axis}-{sex}-{years}"] = of_sex * of_age * of_axis
            for strength, of_strength in thirds(muscle, "muscle").items():
                for mass, of_mass in thirds(weight, "weight").items():
                    name = f"shape/universal-{sex}-{years}-{strength}-{mass}"
                    weights[name] = of_sex * of_age * of_strength * of_mass
    # The base mesh has average muscle and weight, so there is nothing to add for those.
    return {
        name: float(v) for name, v in weights.items() if v > 1e-4 and not name.endswith("-averagemuscle-averageweight")
    }


def _details(rng, target_names):
    """Weights of the targets for single features; both sides of the face are nearly alike."""
    names = set(target_names.tolist())
    weights = {}
    for name in sorted(names):
        folder = name.split("/")[0]
        if folder not in SPREAD or name.startswith(LEFT_OUT) or "/r-" in name:
            continue
        for low, high in AXIS_ENDS:
            stem = name.removesuffix(f"-{low}")
            if stem == name or f"{stem}-{high}" not in names:
                continue
            spread = SPREAD[folder] * np.prod([share for word, share in TAMED.items() if word in name])
            value = float(np.clip(rng.normal(MEANS.get(f"{stem}-{high}", 0), spread), -LIMIT, LIMIT))
            end = f"{stem}-{high if value > 0 else low}"
            weights[end] = abs(value)
            if "/l-" in end:
                weights[end.replace("/l-", "/r-")] = abs(value) * float(np.clip(rng.normal(1, 0.05), 0.8, 1.2))
    shares = rng.dirichlet([0.35] * len(HEAD_SHAPES)) * rng.uniform(0.3, 0.95)
    weights.update({f"head/head-{shape}": float(share) for shape, share in zip(HEAD_SHAPES, shares, strict=True)})
    for name in sorted(names):
        if name.startswith("asym/asym-") and rng.random() < 0.3:
            weights[name] = float(abs(rng.normal(0, 0.2)))
    return {name: value for name, value in weights.items() if value > 0.01}


def _bumps(rng):
    """Smooth displacements of regions of the face, in pairs left and right."""
    bumps = []
    for _ in range(9):
        x, y, radius = rng.uniform(0, 0.6), rng.uniform(6.25, 7.95), rng.uniform(0.16, 0.4)
        z = 1.5 - 0.9 * x * x - 0.25 * abs(y - 7)
        move = rng.normal(0, 0.03, 3)
        bumps.append(plain((x, y, z, *move, radius)))
        bumps.append(plain((-x, y, z, -move[0] + rng.normal(0, 0.004), move[1], move[2], radius)))
    return tuple(bumps)


def _hair_colour(rng, axes):
    """A natural hair colour without grey, in linear RGB."""
    if rng.random() < axes[0]:
        shares = {"black": 0.12, "dark brown": 0.3, "brown": 0.3, "light brown": 0.14, "blond": 0.1, "red": 0.04}
    else:
        shares = {"black": 0.65, "dark brown": 0.3, "brown": 0.05}
    return linear(HAIR_COLOURS[choose(rng, shares)])


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
