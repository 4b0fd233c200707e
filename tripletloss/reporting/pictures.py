"""Images as data URIs, small enough that hundreds of them fit into a page."""

import base64

import cv2
import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image

SIDE = 88  # pixels of the longer side of a thumbnail
QUALITY = 78  # of its JPEG


def data_uri(image: np.ndarray) -> str:
    """An image, (H, W, 3) uint8, BGR, as a data URI: a JPEG with at most SIDE pixels per side."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def of_net(blob: np.ndarray, means: np.ndarray) -> str:
    """What a net gets, (3, S, S) float32 minus the means (3,), as a data URI."""
    pixels = np.clip(blob + np.asarray(means, np.float32)[:, None, None], 0, 255)
    return data_uri(np.ascontiguousarray(pixels.transpose(1, 2, 0)).round().astype(np.uint8))


class Thumbnails:
    """Thumbnails of image files, each of which is read once."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}
        self.lost: list[str] = []  # sentences about images that could not be read

    def of(self, path: str) -> str:
        """The image as a data URI; '' if it cannot be read."""
        if path not in self.made:
            try:
                self.made[path] = data_uri(read_image(path))
            except InputError as error:
                self.made[path] = ""
                self.lost.append(str(error))
        return self.made[path]
