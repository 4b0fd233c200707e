"""What is behind the person, and what comes between the person and the camera."""

from typing import Any

import cv2
import numpy as np

from faces.identity import SKIN_TONES, linear
from faces.noise import smooth_noise

COARSE = 56  # backgrounds are out of focus: they are painted at this size and scaled up


def paint_backdrop(backdrop: dict[str, Any], rng: np.random.Generator, size: int) -> np.ndarray:
    """A background, (size, size, 3) float32 linear RGB. backdrop: Nuisance.backdrop."""
    base = np.float32(backdrop["colour"])
    shape = (COARSE, COARSE)
    picture = np.empty(shape + (3,), np.float32)
    light = np.exp(0.35 * smooth_noise(rng, shape, 30) + 0.12 * smooth_noise(rng, shape, 9))
    picture[:] = base * light[..., None]
    other = base * np.float32(np.exp(rng.normal(0, 0.9, 3) * 0.4 + rng.normal(0, 0.9)))
    kind = backdrop["kind"]
    if kind == "blur":
        for _ in range(rng.integers(2, 7)):
            _box(picture, rng, base * np.float32(np.exp(rng.normal(0, 0.7) + rng.normal(0, 0.3, 3))), 1)
    elif kind == "verticals":
        for _ in range(rng.integers(3, 10)):
            left, width = rng.uniform(-5, COARSE), rng.uniform(1, 12)
            tone = base * np.float32(np.exp(rng.normal(0, 0.6) + rng.normal(0, 0.15, 3)))
            picture[:, max(int(left), 0) : max(int(left + width), 0)] = tone
    elif kind == "bokeh":
        for _ in range(rng.integers(4, 16)):
            disc = np.zeros(shape, np.float32)
            cv2.circle(disc, tuple(int(v) for v in rng.integers(0, COARSE, 2)), int(rng.integers(2, 7)), 1, -1)
            glow = np.float32(np.exp(rng.normal(-0.6, 0.6)) * (1 + rng.normal(0, 0.25, 3)))
            picture += disc[..., None] * np.clip(glow, 0, 2) * 0.7
    elif kind == "foliage":
        leaves = smooth_noise(rng, shape, 5) + smooth_noise(rng, shape, 12)
        green = linear(np.array([90, 120, 60]) * np.exp(rng.normal(0, 0.35)) * (1 + rng.normal(0, 0.1, 3))).astype(
            np.float32
        )
        picture = green * np.exp(0.6 * leaves)[..., None]
    elif kind == "people":
        for _ in range(rng.integers(1, 4)):
            _stranger(picture, rng)
    if rng.random() < 0.3:
        height = int(rng.uniform(0.3, 0.8) * COARSE)
        picture[height:] = 0.6 * picture[height:] + 0.4 * np.clip(other, 0, 1)
    picture = cv2.GaussianBlur(picture, (0, 0), max(backdrop["blur"] * COARSE, 0.6))
    return np.clip(cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC), 0.002, 1.3)


def _box(picture, rng, colour, strength):
    """Paint a leaning rectangle over part of the picture."""
    centre, size = rng.uniform(0, COARSE, 2), rng.uniform(4, 0.6 * COARSE, 2)
    corners = cv2.boxPoints((tuple(map(float, centre)), tuple(map(float, size)), float(rng.normal(0, 8))))
    mask = np.zeros(picture.shape[:2], np.float32)
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], strength)
    picture += mask[..., None] * (colour - picture)


def _stranger(picture, rng):
    """A blurred head and shoulders beside the person."""
    x, y, radius = (
        rng.choice([-0.02, 0.1, 0.9, 1.02]) * COARSE,
        rng.uniform(0.1, 0.7) * COARSE,
        rng.uniform(0.12, 0.25) * COARSE,
    )
    skin = linear(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.3, 0.9)
    cloth, hair = (linear(np.clip(rng.uniform(10, 120) + rng.normal(0, 20, 3), 5, 250)) for _ in range(2))
    for (dx, dy), (across, up), colour in (
        ((0, 2.2), (2.2, 1.3), cloth), ((0, -0.25), (0.95, 1.1), hair * 0.5), ((0, 0.15), (0.75, 1), skin),
    ):  # fmt: skip
        centre, axes = (int(x + dx * radius), int(y + dy * radius)), (int(across * radius), int(up * radius))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, tuple(float(v) for v in colour), -1)


def put_in_front(
    picture: np.ndarray, occluder: dict[str, Any], rng: np.random.Generator, person_skin: tuple[float, ...]
) -> np.ndarray:
    """Return the picture (H, W, 3), linear RGB, with a microphone, a hand or something out of focus drawn over it."""
    side = picture.shape[0]
    mask = np.zeros((side, side), np.float32)
    size, sign, level = occluder["size"], occluder["side"], occluder["level"]

    def at(x, y):
        return int((0.5 + sign * x) * side), int(y * side)

    kind = occluder["kind"]
    if kind == "microphone":
        colour, blur = np.float32([0.012, 0.012, 0.014]) * rng.uniform(0.6, 4), 0.012
        head = at(0.08 + 0.25 * level, 0.93 - 0.05 * level)
        radius = int(0.075 * size * side)
        cv2.line(mask, head, at(0.3 + 0.4 * level, 1.3), 1, int(1.1 * radius))
        cv2.ellipse(mask, head, (radius, int(1.25 * radius)), sign * 25, 0, 360, 1, -1)
    elif kind == "hand":
        colour, blur = np.float32(person_skin) * rng.uniform(0.5, 0.9), 0.008
        wide = int(0.055 * size * side)
        for finger in range(4):
            reach = (0.0, 0.05, 0.04, -0.02)[finger]
            tip = at(0.2 + 0.1 * level - reach, 0.74 + 0.2 * (1 - level) + 0.062 * finger)
            cv2.line(mask, tip, at(0.55, 0.85 + 0.2 * (1 - level) + 0.075 * finger), 1 - 0.12 * (finger % 2), wide)
    else:
        colour, blur = linear(np.clip(rng.uniform(10, 130) + rng.normal(0, 25, 3), 5, 250)), 0.045
        if rng.random() < 0.5:
            cv2.ellipse(
                mask, at(0.5 + 0.1 * level, 0.85), (int(0.25 * size * side), int(0.5 * size * side)), 0, 0, 360, 1, -1
            )
        else:
            cv2.rectangle(mask, (0, int((0.98 - 0.13 * size) * side)), (side, side), 1, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), blur * side)[..., None]
    shade = np.exp(0.2 * smooth_noise(rng, (side, side), side / 5))[..., None]
    return picture + np.clip(mask, 0, 1) * (np.float32(colour) * shade - picture)
