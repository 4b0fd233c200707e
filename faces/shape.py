"""The shape of a person's head, drawn at random: weights of MakeHuman's targets, and bumps besides them."""

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


def draw_build(rng: np.random.Generator, axes: np.ndarray, masculinity: float, age: float) -> dict[str, float]:
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


def draw_features(rng: np.random.Generator, target_names: np.ndarray) -> dict[str, float]:
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


def draw_bumps(rng: np.random.Generator) -> tuple[tuple[float, ...], ...]:
    """Smooth displacements of regions of the face, in pairs left and right; see Identity.bumps."""
    bumps = []
    for _ in range(9):
        x, y, radius = rng.uniform(0, 0.6), rng.uniform(6.25, 7.95), rng.uniform(0.16, 0.4)
        z = 1.5 - 0.9 * x * x - 0.25 * abs(y - 7)
        move = rng.normal(0, 0.03, 3)
        bumps.append((x, y, z, *move, radius))
        bumps.append((-x, y, z, -move[0] + rng.normal(0, 0.004), move[1], move[2], radius))
    return tuple(tuple(map(float, bump)) for bump in bumps)
