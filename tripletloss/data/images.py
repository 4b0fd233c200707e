"""Pixels: read an image, augment it, and make the blob that a net takes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.data.headers import size_of

if TYPE_CHECKING:
    from tripletloss.core.batches import Batch
    from tripletloss.data.lists import ImageList

MOST_PIXELS = 2**27  # of an image, which then takes 400 MB
COARSEST = 0.25  # the lowest resolution of coarse images, as a share of the side
JPEG_START = b"\xff\xd8"
# A marker that begins a segment, or ends the picture; not the stuffed bytes and restart markers of compressed data.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
BGR_TO_LUMA = np.array([0.114, 0.587, 0.299], np.float32)  # ITU-R BT.601


def read_image(path: str) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8, BGR. A grey image gives three equal channels.

    Raises InputError if the file cannot be read, is not an image of a known format, is cut off, or has more than
    MOST_PIXELS pixels.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The content of an image file. Raises InputError if it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}): replace it, or leave it out") from None


def decode(data: bytes, path: str) -> np.ndarray:
    """read_image from the file's content; path: for error messages."""
    size = size_of(data)
    if size and size[0] * size[1] > MOST_PIXELS:
        raise InputError(
            f"the image {path} has {size[0]} x {size[1]} pixels, but at most {MOST_PIXELS} are read: make it "
            "smaller, or leave it out"
        )
    # Older releases of OpenCV decode a truncated JPEG and leave the rest grey, so check that its end is there.
    cut_off = data.startswith(JPEG_START) and not _has_jpeg_end(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if size and not cut_off else None
    except cv2.error:
        image = None
    if image is None:
        what = "is not an image that can be decoded, or is cut off" if data else "is empty"
        what = "is cut off" if cut_off else what
        raise InputError(f"the image {path} {what}: replace it, or leave it out")
    return image


def _has_jpeg_end(data):
    """Whether a JPEG has its own end marker, whatever comes after it (ITU-T T.81, annex B).

    The file is read segment by segment, as a decoder does, because a thumbnail inside a segment has an end marker, too,
    and so may the video or the depth map that a phone appends.
    """
    place = len(JPEG_START)
    while marker := JPEG_MARKER.search(data, place):
        if marker[1] in b"\xd8\xd9":
            return marker[1] == b"\xd9"  # otherwise, another picture begins before this one has ended
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")  # of the segment, with these two bytes
        place = marker.end() + max(length, 2)
    return False


def read_or_next(images: "ImageList", number: int, broken: dict[str, str] | None) -> np.ndarray:
    """read_image of an image in a list or, if it is broken, of the next one of its identity that is not.

    broken: a dict to which the broken images that are met are added, number as text -> message; None: raise InputError
    for a broken image instead. Raises InputError if all images of the identity are broken.
    """
    if broken is None:
        return read_image(images.path(number))
    mine = np.flatnonzero(images.labels == images.labels[number])
    for other in np.roll(mine, -int(np.searchsorted(mine, number))):
        try:
            return read_image(images.path(int(other)))
        except InputError as error:
            broken[str(other)] = str(error)
    raise InputError(f"{images.path(number)} and all others of its identity are broken: take the identity off the list")


class Preprocessing(NamedTuple):
    """How an image becomes the input of a net, without augmentation."""

    crop: int  # side of the central square, in pixels; 0: the whole image
    size: int  # side of the net's input, in pixels
    means: Sequence[float]  # B, G, R: subtracted from each pixel

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing of a stage's settings."""
        return cls(settings["CROP"], settings["IMAGE_SIZE"], settings["PIXEL_MEANS"])


class Augmentation(NamedTuple):
    """How much training images are varied at random; config.py explains each field."""

    mirror: bool = False
    crop_jitter: float = 0.0  # as a share of the box's side
    zoom_jitter: float = 0.0
    light_jitter: float = 0.0
    grey_share: float = 0.0
    rotation_jitter: float = 0.0  # degrees
    colour_jitter: float = 0.0
    coarse_share: float = 0.0


def central_box(image: np.ndarray, crop: int) -> np.ndarray:
    """The middle of an image (H, W, 3), at most crop x crop pixels; the whole image if crop is 0."""
    height, width = image.shape[:2]
    if not crop:
        return image
    top, left = max(height - crop, 0) // 2, max(width - crop, 0) // 2
    return image[top : top + crop, left : left + crop]


def random_box(image: np.ndarray, crop: int, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Like central_box, but rotated, shifted and zoomed at random, and mirrored half of the time.

    image: (H, W, 3). Where the box extends beyond the image, the image's border is repeated.
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
    """The pixels, from 0 to length - 1, along one side of a random box."""
    zoomed = max(round(side * zoom), 1)
    first = round((length - zoomed) / 2 + shift * side)
    return np.clip(np.arange(first, first + zoomed), 0, length - 1)


def random_light(pixels: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Vary contrast, brightness, the channels and the resolution at random, and sometimes make the image grey.

    pixels: (3, S, S) float32 from 0 to 255, B, G, R. Returns an array of the same kind.
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
    """Pixels (3, S, S), shrunk to `share` of the side and enlarged again."""
    size = pixels.shape[1]
    small = cv2.resize(pixels.transpose(1, 2, 0), (max(round(size * share), 1),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)


def to_pixels(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch an image to a square: (H, W, 3) uint8 to (3, size, size) float32 from 0 to 255, B, G, R."""
    height, width = image.shape[:2]
    shrinks = height * width > size * size
    if (height, width) != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image.transpose(2, 0, 1).astype(np.float32)


def to_blob(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """An image as the input of a net, (3, size, size) float32, B, G, R: its central box, minus the means."""
    return to_pixels(central_box(image, preprocessing.crop), preprocessing.size) - _means(preprocessing)


def _means(preprocessing):
    """The means as (3, 1, 1) float32."""
    return np.asarray(preprocessing.means, np.float32)[:, None, None]


def load_batch(
    images: "ImageList", batch: "Batch", preprocessing: Preprocessing, augmentation: Augmentation,
    rng_of: Callable[[int], np.random.Generator], broken: dict[str, str] | None = None,
) -> np.ndarray:  # fmt: skip
    """The blob of a training mini-batch, (N, 3, size, size) float32.

    rng_of: draw -> random numbers for its augmentation; broken: as in read_or_next. Rows with the same image and draw
    are decoded once, and equal.
    """
    size = preprocessing.size
    blob = np.empty((len(batch.images), 3, size, size), np.float32)
    made: dict[tuple[int, int], int] = {}
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
