"""Pixels: read an image, augment it, and make the blob that a net takes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.data.headers import size_of

MOST_PIXELS = 2**27  # of an image; as many take 400 MB
COARSEST = 0.25  # share of the side that the fewest pixels of coarse images are
JPEG_START = b"\xff\xd8"
# A marker that begins a segment, or ends the picture; not the stuffed bytes and restart markers of compressed data.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
BGR_TO_LUMA = np.array([0.114, 0.587, 0.299], np.float32)  # ITU-R BT.601


def read_image(path):
    """Decode an image file to (H, W, 3) uint8, BGR. A grey image gives three equal channels.

    Raises InputError if the file cannot be read, is no image of a known format, is cut off, or has more than
    MOST_PIXELS pixels.
    """
    return decode(read_bytes(path), path)


def read_bytes(path):
    """The content of an image file; raises InputError if it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}): replace it, or leave it out") from None


def decode(data, path):
    """read_image from the file's content; path: what an error names."""
    size = size_of(data)
    if size and size[0] * size[1] > MOST_PIXELS:
        raise InputError(
            f"the image {path} has {size[0]} x {size[1]} pixels, and {MOST_PIXELS} are the most that are read: "
            "make it smaller, or leave it out"
        )
    # Older OpenCV decodes a cut-off JPEG to a picture that is grey from there on, so its end is looked for here.
    cut_off = data.startswith(JPEG_START) and not _has_jpeg_end(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if size and not cut_off else None
    except cv2.error:
        image = None
    if image is None:
        what = "is cut off" if cut_off else "is empty" if not data else "is no image that can be decoded, or is cut off"
        raise InputError(f"the image {path} {what}: replace it, or leave it out")
    return image


def _has_jpeg_end(data):
    """Whether a JPEG's own end marker is there, whatever lies behind it (ITU-T T.81, annex B).

    The file is read segment by segment, as a decoder does: a thumbnail inside a segment has an end marker, too, and so
    may have the video or the depth map that a phone appends.
    """
    place = len(JPEG_START)
    while marker := JPEG_MARKER.search(data, place):
        if marker[1] in b"\xd8\xd9":
            return marker[1] == b"\xd9"  # another picture begins where this one has not ended
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")  # of the segment, with these two bytes
        place = marker.end() + max(length, 2)
    return False


def read_or_next(images, number, broken):
    """read_image of an image of a list, or, if it is broken, of the next one of its identity that is not.

    images: ImageList; broken: None to raise InputError for a broken image, or a dict, number as text -> sentence, that
    gets those met. Raises InputError where all images of the identity are broken.
    """
    if broken is None:
        return read_image(images.path(number))
    mine = np.flatnonzero(images.labels == images.labels[number])
    for other in np.roll(mine, -int(np.searchsorted(mine, number))):
        try:
            return read_image(images.path(other))
        except InputError as error:
            broken[str(other)] = str(error)
    raise InputError(f"{images.path(number)} and all other images of its identity are broken: take it off the list")


class Preprocessing(NamedTuple):
    """How an image becomes what a net takes, without chance."""

    crop: int  # pixels, side of the central square; 0: the whole image
    size: int  # pixels, side of what the net takes
    means: Sequence[float]  # B, G, R, subtracted from each pixel

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Preprocessing":
        """That of a stage's settings."""
        return cls(settings["CROP"], settings["IMAGE_SIZE"], settings["PIXEL_MEANS"])


class Augmentation(NamedTuple):
    """How much the images of training vary at random; config.py explains each."""

    mirror: bool = False
    crop_jitter: float = 0.0  # shares of the box's side
    zoom_jitter: float = 0.0
    light_jitter: float = 0.0
    grey_share: float = 0.0
    rotation_jitter: float = 0.0  # degrees
    colour_jitter: float = 0.0
    coarse_share: float = 0.0


def central_box(image, crop):
    """The middle of an image, (crop, crop, 3), or as much of it as there is; all of it if crop is 0."""
    height, width = image.shape[:2]
    if not crop:
        return image
    top, left = max(height - crop, 0) // 2, max(width - crop, 0) // 2
    return image[top : top + crop, left : left + crop]


def random_box(image, crop, augmentation, rng):
    """Like central_box, but turned, shifted and zoomed at random, and mirrored every second time.

    image: (H, W, 3). What of the box lies outside the image repeats its border. rng: numpy Generator.
    """
    height, width = image.shape[:2]
    a = augmentation
    down, right = rng.uniform(-a.crop_jitter, a.crop_jitter, 2)
    zoom = np.exp(rng.uniform(-a.zoom_jitter, a.zoom_jitter))
    mirrored = rng.random() < 0.5 and a.mirror
    rows = _box_side(height, min(crop or height, height), down, zoom)
    columns = _box_side(width, min(crop or width, width), right, zoom)
    if a.rotation_jitter:
        middle = (float(columns[0] + columns[-1]) / 2, float(rows[0] + rows[-1]) / 2)
        turn = cv2.getRotationMatrix2D(middle, rng.uniform(-a.rotation_jitter, a.rotation_jitter), 1)
        image = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return image[rows[:, None], columns[::-1] if mirrored else columns]


def _box_side(length, side, shift, zoom):
    """The pixels 0..length - 1 along one side of a random box."""
    zoomed = max(round(side * zoom), 1)
    first = round((length - zoomed) / 2 + shift * side)
    return np.clip(np.arange(first, first + zoomed), 0, length - 1)


def random_light(pixels, augmentation, rng):
    """Pixels changed at random: contrast and brightness, each channel, grey instead of colour, fewer pixels.

    pixels: (3, S, S) float32 of 0..255, B, G, R. Returns an array like it, of 0..255.
    """
    a = augmentation
    contrast, brightness = 1 + rng.uniform(-a.light_jitter, a.light_jitter, 2)
    if rng.random() < a.grey_share:
        pixels = np.broadcast_to(np.tensordot(BGR_TO_LUMA, pixels, 1), pixels.shape)
    if a.light_jitter:
        middle = pixels.mean()
        pixels = np.clip((pixels - middle) * np.float32(contrast) + middle * np.float32(brightness), 0, 255)
    if a.colour_jitter:
        channels = 1 + rng.uniform(-a.colour_jitter, a.colour_jitter, 3)
        pixels = np.clip(pixels * channels.astype(np.float32)[:, None, None], 0, 255)
    if a.coarse_share and rng.random() < a.coarse_share:
        pixels = _coarse(pixels, rng.uniform(COARSEST, 1))
    return pixels


def _coarse(pixels, share):
    """Pixels (3, S, S) as they are after a picture of `share` of the side was enlarged."""
    size = pixels.shape[1]
    small = cv2.resize(pixels.transpose(1, 2, 0), (max(round(size * share), 1),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)


def to_pixels(image, size):
    """Stretch an image to a square: (H, W, 3) uint8 to (3, size, size) float32 of 0..255, B, G, R."""
    height, width = image.shape[:2]
    shrinks = height * width > size * size
    if (height, width) != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image.transpose(2, 0, 1).astype(np.float32)


def to_blob(image, preprocessing):
    """What a net takes of an image: (3, size, size) float32, B, G, R, of the central box, minus the means."""
    return to_pixels(central_box(image, preprocessing.crop), preprocessing.size) - _means(preprocessing)


def _means(preprocessing):
    """The means (3, 1, 1) as float32."""
    return np.asarray(preprocessing.means, np.float32)[:, None, None]


def load_batch(images, batch, preprocessing, augmentation, rng_of, broken=None):
    """The blob of a training mini-batch, (N, 3, size, size) float32.

    images: ImageList; batch: batches.Batch; rng_of: draw -> numpy Generator for its augmentation; broken: as in
    read_or_next. Rows with the same image and draw are decoded once and equal.
    """
    size = preprocessing.size
    blob = np.empty((len(batch.images), 3, size, size), np.float32)
    made = {}
    for row, key in enumerate(zip(batch.images.tolist(), batch.draws.tolist(), strict=True)):
        if key in made:
            blob[row] = blob[made[key]]
            continue
        number, draw = key
        rng = rng_of(draw)
        box = random_box(read_or_next(images, number, broken), preprocessing.crop, augmentation, rng)
        blob[row] = random_light(to_pixels(box, size), augmentation, rng)
        made[key] = row
    return blob - _means(preprocessing)
