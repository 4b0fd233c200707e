"""What differs between the photographs of one person: everything drawn at random for a single image."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from faces import setting
from faces.identity import HAIR_COLOURS, Identity, choose, draw_frame, linear, plain

MOODS = {
    "neutral": 0.21, "smile": 0.18, "broad smile": 0.26, "laugh": 0.07, "talk": 0.15, "stern": 0.08, "sad": 0.03,
    "raised": 0.02,
}  # fmt: skip
# Expression targets that exist for the left and the right side. UNITS are those of a mood at full strength.
SIDED = ("browDown", "browOuterUp", "cheekSquint", "eyeBlink", "eyeSquint", "eyeWide", "mouthDimple", "mouthFrown",
         "mouthLowerDown", "mouthPress", "mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer")  # fmt: skip
UNITS = {
    "neutral": {},
    "smile": {"mouthSmile": 0.75, "cheekSquint": 0.35, "eyeSquint": 0.3, "mouthDimple": 0.2},
    "broad smile": {"mouthSmile": 1, "cheekSquint": 0.6, "eyeSquint": 0.4, "mouthUpperUp": 0.8, "mouthLowerDown": 0.8,
                    "mouthStretch": 0.5, "jawOpen": 0.1},
    "laugh": {"mouthSmile": 0.9, "cheekSquint": 0.9, "eyeSquint": 0.7, "mouthUpperUp": 0.7, "mouthLowerDown": 0.5,
              "mouthStretch": 0.3, "jawOpen": 0.28},
    "talk": {"jawOpen": 0.22, "mouthLowerDown": 0.25, "mouthUpperUp": 0.12},
    "stern": {"browDown": 0.8, "mouthPress": 0.5, "eyeSquint": 0.4},
    "sad": {"browInnerUp": 0.6, "mouthFrown": 0.6},
    "raised": {"browInnerUp": 0.8, "browOuterUp": 0.7, "jawOpen": 0.12},
}  # fmt: skip
# What faces may do besides, in any mood: the probability, and the largest weight.
STRAY_UNITS = {
    "browInnerUp": (0.2, 0.5), "browDown": (0.2, 0.5), "browOuterUp": (0.1, 0.4), "eyeSquint": (0.3, 0.5),
    "jawOpen": (0.1, 0.15), "mouthRollLower": (0.08, 0.5), "mouthPucker": (0.06, 0.4),
}  # fmt: skip

# The largest severity of a photograph; see severity().
MAX_SEVERITY = 1.5


@dataclass
class Nuisance:
    """One photograph of a person. Angles are in degrees, lengths in decimetres, and colours are linear RGB."""

    seed: int  # for patterns and noise of this image
    yaw: float
    pitch: float
    roll: float  # remaining after alignment
    scale: float  # remaining after alignment
    shift: tuple  # remaining after alignment, right and down, as shares of the picture's side
    distance: float  # of the camera, in decimetres
    mood: str
    expression: dict  # expression target: weight
    gaze: tuple  # radians to the person's left and up, relative to the head
    hair: dict
    cover: dict  # a hat, headband or headscarf, or empty
    glasses: dict  # a frame and its tint, or empty
    beard: dict
    makeup: dict
    tan: float  # factor on the skin's colour
    brows: float  # factor on their density: plucked, pencilled or bleached
    flush: float
    shine: float
    plumpness: float  # weight of the fat or thin target of the head
    ageing: float  # factor on wrinkles
    light: dict
    backdrop: dict
    clothes: dict
    occluder: dict
    camera: dict


def draw_nuisance(person: Identity, image: int) -> Nuisance:
    """Draw image number `image` of a person, which is always the same."""
    rng = np.random.default_rng([person.seed, person.number, image])
    mood = choose(rng, MOODS)
    yaw = float(np.clip(rng.normal(0, 16) if rng.random() < 0.88 else rng.normal(0, 28), -48, 48))
    pitch = float(np.clip(rng.normal(0, 8), -22, 22))
    # People look at the camera, ahead, or somewhere in between.
    attention = rng.uniform(0, 1)
    gaze = np.clip(-attention * np.radians([yaw, pitch]) + rng.normal(0, 1, 2) * (0.1, 0.06), -0.5, 0.5)
    nuisance = Nuisance(
        seed=int(rng.integers(1 << 31)),
        yaw=yaw,
        pitch=pitch,
        roll=float(rng.normal(0, 2.2)),
        scale=float(np.exp(rng.normal(0, 0.03))),
        shift=plain(rng.normal(0, 0.013, 2)),
        distance=float(rng.uniform(7, 30)),
        mood=mood,
        expression=_expression(rng, mood),
        gaze=plain(gaze),
        hair=_hair(rng, person),
        cover=_cover(rng, person),
        glasses=_glasses(rng, person),
        beard=_beard(rng, person),
        makeup=_makeup(rng, person),
        tan=float(np.exp(rng.normal(0, 0.14))),
        brows=float(rng.uniform(0.75, 1.1)),
        flush=float(np.clip(rng.normal(0, 0.4), -0.6, 1.2)),
        shine=float(np.exp(rng.normal(0, 0.4))),
        plumpness=float(rng.normal(0, 0.14)),
        ageing=float(np.exp(rng.normal(0, 0.25))),
        light=setting.draw_light(rng),
        backdrop=setting.draw_backdrop(rng),
        clothes=setting.draw_clothes(rng),
        occluder=setting.draw_occluder(rng),
        camera=setting.draw_camera(rng),
    )
    _soften(nuisance)
    return nuisance


def summarize(nuisance: Nuisance) -> dict[str, Any]:
    """What a manifest says about a photograph; everything else follows from seed, person and image number."""
    return {
        "yaw": nuisance.yaw,
        "pitch": nuisance.pitch,
        "roll": nuisance.roll,
        "mood": nuisance.mood,
        "light": nuisance.light["kind"],
        "light_from": [nuisance.light["azimuth"], nuisance.light["elevation"]],
        "hair": nuisance.hair["style"],
        "beard": nuisance.beard["style"],
        "glasses": nuisance.glasses.get("tint", -1.0),  # of the lenses; -1 without glasses
        "cover": nuisance.cover.get("kind", ""),
        "occluder": nuisance.occluder.get("kind", ""),
        "backdrop": nuisance.backdrop["kind"],
        "severity": severity(nuisance),
    }


def _expression(rng, mood):
    """Expression targets of a mood, its strength and its sides varied, with lids as relaxed people have them."""
    strength = rng.uniform(0.4, 1.1)
    weights = {unit: value * strength * rng.uniform(0.7, 1.3) for unit, value in UNITS[mood].items()}
    for unit, (chance, most) in STRAY_UNITS.items():
        if rng.random() < chance:
            weights[unit] = weights.get(unit, 0) + rng.uniform(0, most)
    weights["eyeBlink"] = rng.uniform(0.5, 0.95) if rng.random() < 0.03 else rng.uniform(0, 0.15)
    weights["eyeWide"] = rng.uniform(0, 0.35)
    sided = {}
    for unit, value in weights.items():
        if unit in SIDED:
            for side in ("Left", "Right"):
                uneven = 1 if unit == "eyeBlink" else rng.uniform(0.85, 1.15)
                sided[f"expression/{unit}{side}"] = float(min(value * uneven, 1))
        else:
            sided[f"expression/{unit}"] = float(min(value, 1))
    return sided


def _hair(rng, person):
    """Style, colour and shape; hair.grow reads it."""
    style = person.styles[rng.integers(len(person.styles))]
    colour = np.array(person.hair_colour) * np.exp(rng.normal(0, 0.12))
    if person.masculinity < 0.5 and rng.random() < 0.15:
        dyed = linear(
            HAIR_COLOURS[choose(rng, {"dark brown": 1, "brown": 1, "light brown": 1, "blond": 1.5, "red": 0.6})]
        )
        colour = dyed * np.exp(rng.normal(0, 0.15))
    return {
        "style": style,
        "colour": plain(np.clip(colour, 0.003, 0.8)),
        "length": float(rng.uniform(0.75, 1.3)),
        "volume": float(rng.uniform(0.6, 1.4)),
        "part": float(rng.choice([-1, 1]) * rng.uniform(0.1, 0.45)),
        "wet": float(rng.random() < 0.06),
        "messy": float(rng.uniform(0.1, 0.5)),
        "curl": float(np.clip(person.curl + rng.normal(0, 0.1), 0, 1)),
    }


def _cover(rng, person):
    """What is worn on the head: usually nothing, which is {}."""
    if rng.random() > 0.05:
        return {}
    man = person.masculinity > 0.5
    kind = choose(rng, {"cap": 0.5, "beanie": 0.25, "headscarf": 0.08 if man else 0.4, "headband": 0.15})
    return {"kind": kind, "colour": plain(setting.draw_cloth_colour(rng)), "height": float(rng.uniform(-0.06, 0.1))}


def _glasses(rng, person):
    """One of the person's own frames, or occasionally other ones or sunglasses; {} for none."""
    sun = rng.random() < 0.02
    if not sun and rng.random() >= person.glasses_habit:
        return {}
    frame = person.glasses[int(rng.random() < 0.25)] if rng.random() < 0.85 else draw_frame(rng)
    tint = rng.uniform(0.75, 0.95) if sun else rng.uniform(0.0, 0.12) if rng.random() < 0.9 else rng.uniform(0.1, 0.45)
    return {
        **frame,
        "tint": float(tint),
        "glare": float(rng.uniform(0.1, 0.5) * (rng.random() < 0.25)),
        "slip": float(rng.uniform(-0.03, 0.03)),
    }


def _beard(rng, person):
    """The person's beard, trimmed or grown. Men without one have a shaven shadow."""
    shadow = float(person.masculinity > 0.5) * rng.uniform(0.02, 0.16)
    worn = (
        person.beard
        if rng.random() < person.beard_habit
        else "stubble"
        if person.beard == "full" and rng.random() < 0.5
        else "none"
    )
    growth = float(np.clip(person.beard_growth * np.exp(rng.normal(0, 0.25)), 0.25, 1))
    return {"style": worn, "growth": growth, "shadow": float(shadow)}


def _makeup(rng, person):
    """Lipstick, eye shadow and liner, mascara, powder."""
    strength = person.makeup * (rng.random() < 0.8) * rng.uniform(0.3, 1)
    lipstick = ((170, 40, 50), (160, 70, 75), (120, 40, 60), (190, 95, 85), (200, 60, 90))[rng.integers(5)]
    return {
        "lips": float(strength * rng.uniform(0, 1)),
        "lip_colour": plain(linear(lipstick)),
        "eyes": float(strength * rng.uniform(0, 1)),
        "eye_colour": plain(linear(rng.uniform(20, 90) * (1 + rng.normal(0, 0.2, 3)))),
        "liner": float(strength * rng.uniform(0, 1)),
    }


def severity(nuisance: Nuisance) -> float:
    """How much of the face is lost to blur, darkness, pose and things in the way; 1 is a lot."""
    camera = nuisance.camera
    blurred = 0.5 * camera["blur"] + 0.15 * camera["motion"] + 1.2 * (1 - camera["resolution"])
    noisy, dark = 15 * max(camera["noise"] - 0.01, 0), 1.5 * max(-np.log(camera["exposure"]), 0)
    hidden = 0.6 * (nuisance.glasses.get("tint", 0) > 0.5) + 0.3 * bool(nuisance.cover) + 0.5 * bool(nuisance.occluder)
    turned = 0.015 * max(abs(nuisance.yaw) - 20, 0)
    return float(blurred + noisy + dark + hidden + turned + 0.6 * (nuisance.light["kind"] == "side"))


def _soften(nuisance):
    """Remove faults, the camera's first, until the photograph shows enough of the face."""
    camera = nuisance.camera
    remedies = (
        lambda: camera.update(motion=0.0),
        lambda: camera.update(exposure=max(camera["exposure"], 0.95)),
        lambda: camera.update(resolution=max(camera["resolution"], 0.8)),
        lambda: camera.update(blur=min(camera["blur"], 0.5)),
        lambda: setattr(nuisance, "occluder", {}),
        lambda: setattr(nuisance, "cover", {}),
        lambda: nuisance.glasses.update(tint=min(nuisance.glasses.get("tint", 0), 0.1)) if nuisance.glasses else None,
        lambda: camera.update(resolution=1.0, noise=min(camera["noise"], 0.01)),
    )
    for remedy in remedies:
        if severity(nuisance) <= MAX_SEVERITY:
            return
        remedy()
