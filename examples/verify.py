"""Do two images of faces show the same person? verify.py MODEL.onnx ONE.jpg OTHER.jpg [THRESHOLD].

This needs only onnxruntime, OpenCV and NumPy. `make onnx`, or tripletloss.export with --pixels bgr, makes MODEL. The
faces must be cut by tripletloss.detect --for its model; for ordinary photos, see tripletloss.verify.
"""

import sys
from collections.abc import Sequence

import cv2
import numpy as np
import onnxruntime


def load(path: str, given: Sequence[str] = ()) -> tuple[onnxruntime.InferenceSession, dict[str, str], float, str]:
    """Return the model, its metadata, the threshold (the given one, or the model's), and where that comes from."""
    try:
        session = onnxruntime.InferenceSession(path)
        about = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime has many classes of exceptions
        sys.exit(f"{path} cannot be used: {error}")
    if about.get("channels") != "bgr" or session.get_inputs()[0].name != "pixels":
        sys.exit(f"{path} does not take images as OpenCV reads them: export it with --pixels bgr")
    if not given and "threshold" not in about:
        pairs = about.get("threshold_pairs", "not known")
        sys.exit(f"{path} has no threshold (pairs that it was measured on: {pairs}): give one as the last argument")
    origin = "given" if given else f"FAR {about['threshold_far']} on {about['threshold_pairs']}"
    try:
        return session, about, float(given[0] if given else about["threshold"]), origin
    except ValueError:
        sys.exit(f"the threshold {given[0]} is not a number: give one such as 1.2")


def read_face(path: str, crop: int, size: int) -> np.ndarray:
    """Return an image file as the model takes it, (size, size, 3) uint8, B, G, R: its central square, resized."""
    image = cv2.imread(path)
    if image is None:
        sys.exit(f"{path} does not exist or is not an image")
    height, width = image.shape[:2]
    if crop:
        top, left = max(height - crop, 0) // 2, max(width - crop, 0) // 2
        image = image[top : top + crop, left : left + crop]
    shrinks = image.shape[0] * image.shape[1] > size * size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def main() -> None:
    """Compare the squared distance of two embeddings with the threshold."""
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    session, about, threshold, origin = load(sys.argv[1], sys.argv[4:])
    faces = [read_face(path, int(about["crop"]), int(about["image_size"])) for path in sys.argv[2:4]]
    one, other = session.run(None, {"pixels": np.stack(faces)})[0]
    distance = np.sum((one - other) ** 2)
    answer = "the same person" if distance <= threshold else "not the same person"
    print(f"{answer}: squared distance {distance:.3f}, threshold {threshold:.3f} ({origin})")


if __name__ == "__main__":
    main()
