"""Who is who in a folder of faces? cluster.py MODEL.onnx FOLDER [THRESHOLD].

This needs only onnxruntime, OpenCV and NumPy. It takes the same model and images as verify.py in this folder.
"""

import sys
from pathlib import Path

import numpy as np
from verify import load, read_face


def group(rows: np.ndarray, threshold: float) -> list[list[int]]:
    """Group rows (N, D) by average linkage up to a squared distance. Returns lists of row numbers, largest first."""
    groups = [[number] for number in range(len(rows))]
    squares = (rows**2).sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T  # (N, N); between groups, the mean over their pairs
    np.fill_diagonal(distances, np.inf)
    while len(rows) > 1:
        a, b = np.unravel_index(np.argmin(distances), distances.shape)
        if distances[a, b] > threshold:
            break
        share = len(groups[a]) / (len(groups[a]) + len(groups[b]))
        joined = share * distances[a] + (1 - share) * distances[b]
        joined[a] = np.inf
        distances[a], distances[:, a] = joined, joined
        distances[b], distances[:, b] = np.inf, np.inf
        groups[a] += groups[b]
        groups[b] = []
    return sorted(filter(None, groups), key=len, reverse=True)


def main() -> None:
    """Print one line per person: how many images, and which."""
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    session, about, threshold, origin = load(sys.argv[1], sys.argv[3:])
    paths = sorted(path for path in Path(sys.argv[2]).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        sys.exit(f"there is no .jpg or .png in {sys.argv[2]}")
    faces = np.stack([read_face(str(path), int(about["crop"]), int(about["image_size"])) for path in paths])
    blocks = np.array_split(faces, range(32, len(faces), 32))
    rows = np.concatenate([session.run(None, {"pixels": block})[0] for block in blocks])
    print(f"groups up to the squared distance {threshold:.3f} ({origin})", file=sys.stderr)
    for number, members in enumerate(group(rows, threshold)):
        print(f"{number}: {len(members)} images: {' '.join(paths[member].name for member in sorted(members))}")


if __name__ == "__main__":
    main()
