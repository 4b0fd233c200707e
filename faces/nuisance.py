"""What differs between the photographs of one person: every draw that belongs to a single image."""

from dataclasses import dataclass

import numpy as np

from faces.identity import HAIR_COLOURS, choose, draw_frame, linear, plain

MOODS = {
    "neutral": 0.21, "smile": 0.18, "broad smile": 0.26, "laugh": 0.07, "talk": 0.15, "stern": 0.08, "sad": 0.03,
    "raised": 0.02,
}  # fmt: skip
# Expression targets of a mood at full strength, without the side.
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
# What faces do besides, whatever the mood: the chance and the most of it.
STRAY_UNITS = {
    "browInnerUp": (0.2, 0.5), "browDown": (0.2, 0.5), "browOuterUp": (0.1, 0.4), "eyeSquint": (0.3, 0.5),
    "jawOpen": (0.1, 0.15), "mouthRollLower": (0.08, 0.5), "mouthPucker": (0.06, 0.4),
}  # fmt: skip

# A photograph may lose this much in all; see severity for what counts how much.
MAX_SEVERITY = 1.5


@dataclass
class Nuisance:
    """One photograph of a person. Angles are in degrees, colours linear RGB, lengths decimetres, shares in 0..1."""

    seed: int  # for patterns and noise of this image
    yaw: float
    pitch: float
    roll: float  # that is left after alignment
    scale: float  # that is left after alignment
    shift: tuple  # of the picture's side, right and down, that is left after alignment
    distance: float  # of the camera, decimetres
    mood: str
    expression: dict  # expression target: weight
    gaze: tuple  # radians to the person's left and up, relative to the head
    hair: dict
    cover: dict  # a hat or headscarf, or empty
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


def draw_nuisance(person, image):
    """Draw image number `image` of Identity `person`: always the same one."""
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
        light=_light(rng),
        backdrop=_backdrop(rng),
        clothes=_clothes(rng),
        occluder=_occluder(rng),
        camera=_camera(rng),
    )
    _soften(nuisance)
    return nuisance


def summarize(nuisance):
    """What a manifest says of a photograph, a dict; seed, person and image number give all the rest again."""
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
    """Style, colour and how it lies today; hair.grow reads it."""
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
    """Nothing, mostly."""
    if rng.random() > 0.05:
        return {}
    man = person.masculinity > 0.5
    kind = choose(rng, {"cap": 0.5, "beanie": 0.25, "headscarf": 0.08 if man else 0.4, "headband": 0.15})
    return {"kind": kind, "colour": plain(_cloth_colour(rng)), "height": float(rng.uniform(-0.06, 0.1))}


def _glasses(rng, person):
    """One of the person's own frames, now and then other ones or sunglasses."""
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
    """The person's beard, trimmed or grown; without it a shaven shadow on men."""
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


def _colour_cast(rng, spread):
    """The tint of a light, from bluish to warm, as factors on RGB."""
    warmth = rng.normal(0.02, spread)
    green = rng.normal(0, spread * 0.25)
    return plain((1 + warmth, 1 + green, 1 - 1.1 * warmth))


def _light(rng):
    """A key light, a fill, the sky and the ground, sometimes a light from behind; strengths are relative."""
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


def _cloth_colour(rng):
    """The colour of some clothing, linear RGB."""
    if rng.random() < 0.5:
        return linear(np.clip(rng.choice([22, 40, 60, 120, 220]) * (1 + rng.normal(0, 0.08, 3)), 8, 245))
    return linear(np.clip(rng.uniform(20, 230) + rng.normal(0, 45, 3), 8, 240))


def _backdrop(rng):
    """What is behind the person; backdrop.paint_backdrop reads it."""
    kind = choose(rng, {"blur": 0.34, "plain": 0.2, "verticals": 0.16, "bokeh": 0.08, "foliage": 0.08, "people": 0.14})
    level = rng.choice([30, 65, 110, 170, 225], p=[0.22, 0.25, 0.23, 0.19, 0.11])
    base = level * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 1, 3) * (6 if rng.random() < 0.65 else 28)
    return {"kind": kind, "colour": plain(linear(np.clip(base, 4, 250))), "blur": float(rng.uniform(0.01, 0.06))}


def _clothes(rng):
    """A jacket over a shirt and perhaps a tie, or one garment."""
    suit = rng.random() < 0.45
    shirt = linear(np.clip(rng.choice([235, 215, 190]) + rng.normal(0, 10, 3), 0, 250)) if suit else _cloth_colour(rng)
    return {
        "shirt": plain(shirt),
        "jacket": plain(linear(np.clip(rng.choice([20, 35, 60, 100]) + rng.normal(0, 7, 3), 5, 250)))
        if suit
        else plain(shirt),
        "tie": plain(_cloth_colour(rng)) if suit and rng.random() < 0.7 else plain(shirt),
        "neckline": float(rng.uniform(5.75, 6.0)),
    }


def _occluder(rng):
    """Nothing, mostly."""
    if rng.random() > 0.08:
        return {}
    kind = choose(rng, {"microphone": 0.4, "hand": 0.25, "foreground": 0.35})
    return {
        "kind": kind,
        "size": float(rng.uniform(0.6, 1)),
        "side": float(rng.choice([-1, 1])),
        "level": float(rng.uniform(0, 1)),
    }


def _camera(rng):
    """Exposure to JPEG, in the order in which camera.photograph applies it."""
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


def severity(nuisance):
    """How much of the face the photograph loses, by blur, darkness, pose and things in the way; 1 is plenty."""
    camera = nuisance.camera
    blurred = 0.5 * camera["blur"] + 0.15 * camera["motion"] + 1.2 * (1 - camera["resolution"])
    noisy, dark = 15 * max(camera["noise"] - 0.01, 0), 1.5 * max(-np.log(camera["exposure"]), 0)
    hidden = 0.6 * (nuisance.glasses.get("tint", 0) > 0.5) + 0.3 * bool(nuisance.cover) + 0.5 * bool(nuisance.occluder)
    turned = 0.015 * max(abs(nuisance.yaw) - 20, 0)
    return float(blurred + noisy + dark + hidden + turned + 0.6 * (nuisance.light["kind"] == "side"))


def _soften(nuisance):
    """Take faults back, the camera's first, until the photograph shows somebody."""
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
