"""Draw a contact sheet of a list file, a row an identity: python tools/contact_sheet.py LIST IMAGEPATH OUT.jpg."""

import sys

import cv2
import numpy as np

from tripletloss.data.images import read_image
from tripletloss.data.lists import read_list

ROWS, COLUMNS, SIZE = 8, 10, 72


def main():
    """Draw the first images of the first identities."""
    source, folder, out = sys.argv[1:]
    images = read_list(source, folder)
    sheet = np.zeros((ROWS * SIZE, COLUMNS * SIZE, 3), np.uint8)
    for row, label in enumerate(np.unique(images.labels)[:ROWS]):
        for column, number in enumerate(np.flatnonzero(images.labels == label)[:COLUMNS]):
            tile = cv2.resize(read_image(images.path(number)), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            sheet[row * SIZE : row * SIZE + SIZE, column * SIZE : column * SIZE + SIZE] = tile
    if not cv2.imwrite(out, sheet, [cv2.IMWRITE_JPEG_QUALITY, 85]):
        sys.exit(f"contact_sheet.py: cannot write {out}")


if __name__ == "__main__":
    main()
