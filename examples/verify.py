"""Two pictures of faces: the same person or not? verify.py MODEL.onnx ONE.jpg OTHER.jpg [THRESHOLD].

Needs onnxruntime, OpenCV and NumPy only. MODEL is made by `make onnx`, or by tripletloss.export with --pixels bgr; the
pictures are of faces that were cut out, as in data/images. For a camera's photos see tripletloss.verify.
"""

import sys

import cv2
import numpy as np
import onnxruntime


def load(path, threshold=()):
    """The model, what it tells about its numbers, and the threshold: a given one, or the model's."""
    try:
        session = onnxruntime.InferenceSession(path)
        about = session.get_modelmeta().custom_metadata_map
        return session, about, float([*threshold, about.get("threshold")][0])
    except Exception as error:  # onnxruntime has one class for each reason
        sys.exit(f"{path} cannot be used, or tells no threshold and none was given: {error}")


def read_face(path, crop, size):
    """The picture as the model takes it: (size, size, 3) uint8, B, G, R, of its central square."""
    image = cv2.imread(path)
    if image is None:
        sys.exit(f"{path} is not there or no picture")
    height, width = image.shape[:2]
    if crop:
        top, left = max(height - crop, 0) // 2, max(width - crop, 0) // 2
        image = image[top : top + crop, left : left + crop]
    shrinks = image.shape[0] * image.shape[1] > size * size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def main():
    """Compare the squared distance of two embeddings with the threshold that the model tells."""
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    session, about, threshold = load(sys.argv[1], sys.argv[4:])
    faces = [read_face(path, int(about["crop"]), int(about["image_size"])) for path in sys.argv[2:4]]
    one, other = session.run(None, {"pixels": np.stack(faces)})[0]
    distance = np.sum((one - other) ** 2)
    answer = "the same person" if distance <= threshold else "not the same person"
    print(f"{answer}: squared distance {distance:.3f}, threshold {threshold:.3f}")


if __name__ == "__main__":
    main()
