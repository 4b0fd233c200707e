"""Pixels: read an image, augment it, and make the blob that a net takes."""

import cv2
import numpy as np

from tripletloss.errors import InputError


def read_image(path):
    """Decode an image file to (H, W, 3) uint8, BGR. A grey image gives three equal channels.

    Raises InputError if the file cannot be read, is no image that OpenCV knows, or is cut off.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(
            f"the image {path} cannot be read ({error.strerror}): restore it or take it off the list"
        ) from None
    # Older OpenCV decodes a cut-off JPEG to a picture that is grey from there on, so its end is looked for here.
    # Inside compressed data neither marker occurs; a thumbnail stands before the last start of scan.
    cut_off = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data and not cut_off else None
    except cv2.error:
        image = None
    if image is None:
        what = "is cut off" if cut_off else "is empty" if not data else "is no image that can be decoded, or is cut off"
        raise InputError(f"the image {path} {what}: restore it or take it off the list")
    return image


def augment(image, mirror, crop_jitter, rng):
    """Shift an image at random, and mirror every second one.

    image: (H, W, 3); mirror: bool; crop_jitter: the largest shift, as a share of the image's side, each way; what
    the shift uncovers repeats the border. rng: numpy Generator. Returns an array like image.
    """
    height, width = image.shape[:2]
    down, right = np.rint(rng.uniform(-crop_jitter, crop_jitter, 2) * (height, width)).astype(int)
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    if rng.random() < 0.5 and mirror:
        columns = columns[::-1]
    return image[rows[:, None], columns]


def to_blob(image, size, means):
    """Scale an image to the net's input: (3, size, size) float32, BGR minus means.

    image: (H, W, 3) uint8, stretched to a square; means: three numbers, B, G, R, of 0..255.
    """
    height, width = image.shape[:2]
    shrinks = height * width > size * size
    if (height, width) != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image.transpose(2, 0, 1).astype(np.float32) - np.asarray(means, np.float32)[:, None, None]


def load_batch(images, batch, size, means, mirror, crop_jitter, rng_of):
    """The blob of a mini-batch, (N, 3, size, size) float32.

    images: ImageList; batch: sampling.Batch; rng_of: draw -> numpy Generator for its augmentation. Rows with the
    same image and draw are decoded once and equal.
    """
    blob = np.empty((len(batch.images), 3, size, size), np.float32)
    made = {}
    for row, key in enumerate(zip(batch.images.tolist(), batch.draws.tolist(), strict=True)):
        if key in made:
            blob[row] = blob[made[key]]
            continue
        number, draw = key
        image = augment(read_image(images.path(number)), mirror, crop_jitter, rng_of(draw))
        blob[row] = to_blob(image, size, means)
        made[key] = row
    return blob
