"""From light to a compressed picture: exposure, colour, lens, sensor and JPEG of a press photograph."""

from typing import Any

import cv2
import numpy as np

LUMINANCE = np.float32([0.2126, 0.7152, 0.0722])  # of linear RGB; near enough for developed RGB too
GAMMA = 2.2
# The linear luminance to which the camera's meter adjusts skin, and how fully it does so.
METERED, METERING = 0.18, 0.65


def expose(picture: np.ndarray, skin_luminance: float, camera: dict[str, Any]) -> np.ndarray:
    """Scale linear RGB (H, W, 3) by the exposure and white balance, and compress what is too bright."""
    gain = (METERED / max(skin_luminance, 1e-3)) ** METERING * camera["exposure"]
    picture = picture * (gain * np.float32(camera["white_balance"]))
    knee = 0.7  # luminance below it is unchanged, and above it compressed towards 1
    over = np.maximum(picture - knee, 0)
    return np.minimum(picture, knee) + (1 - knee) * over / (over + 1 - knee)


def develop(picture: np.ndarray, camera: dict[str, Any]) -> np.ndarray:
    """Convert linear RGB (size, size, 3) to 8-bit BGR of the same size, with everything that a camera adds."""
    size = picture.shape[0]
    pixel = size / 112  # lengths are given for pictures of 112 pixels
    rng = np.random.default_rng(camera["noise_seed"])
    picture = np.clip(picture, 0, 1).astype(np.float32) ** np.float32(1 / GAMMA)
    if camera["resolution"] < 1:
        small = max(24, round(size * camera["resolution"]))
        picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)
    if camera["blur"] > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), camera["blur"] * pixel)
    if camera["motion"]:
        picture = cv2.filter2D(picture, -1, _streak(camera["motion"] * pixel, camera["motion_angle"]))
    if camera["sharpen"]:
        picture = picture + camera["sharpen"] * (picture - cv2.GaussianBlur(picture, (0, 0), 1.0 * pixel))
    if camera["vignette"]:
        x = np.linspace(-1, 1, size, dtype=np.float32)
        picture = picture * (1 - camera["vignette"] * (x[:, None] ** 2 + x**2) / 2)[..., None]
    middle = np.float32(0.42)
    picture = middle + camera["contrast"] * (picture - middle)
    luma = np.einsum("ijk,k->ij", picture, LUMINANCE)
    saturation = 0 if camera["grey"] else camera["saturation"]
    picture = luma[..., None] + saturation * (picture - luma[..., None])
    grain = rng.normal(0, camera["noise"], (size, size, 3)).astype(np.float32)
    if camera["grey"]:
        grain[:] = grain[..., :1]
    picture = np.clip(picture + grain, 0, 1)
    picture = np.ascontiguousarray((picture[..., ::-1] * 255 + 0.5).astype(np.uint8))
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, camera["jpeg"]])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def _streak(length, angle):
    """The kernel of a camera that moved `length` pixels in the direction of `angle` degrees."""
    half = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    end = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * length / 2
    start, stop = ((half + sign * end) * 16 for sign in (-1, 1))
    cv2.line(
        kernel,
        tuple(start.round().astype(int).tolist()),
        tuple(stop.round().astype(int).tolist()),
        1,
        1,
        cv2.LINE_AA,
        4,
    )
    return kernel / kernel.sum()
