"""Contact sheets: rows of images with a caption."""

from typing import NamedTuple

import cv2
import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.data.images import read_image

SIDE, GAP, CAPTION = 72, 8, 18  # pixels
WHITE, INK = 255, (40, 40, 40)


class Row(NamedTuple):
    """One row of a sheet."""

    caption: str
    groups: list  # of lists of image numbers, with a gap between them


def draw(path, images, rows, side=SIDE):
    """Write a sheet of an ImageList's images as a JPEG or PNG. side: of an image on it, pixels. Raises InputError."""
    cells = [[len(group) for group in row.groups] for row in rows]
    width = max(sum(row) * side + (len(row) - 1) * GAP for row in cells)
    height = sum(side + (CAPTION if row.caption else 0) + 2 for row in rows)
    sheet = np.full((height, width, 3), WHITE, np.uint8)
    y = 0
    for row in rows:
        if row.caption:
            cv2.putText(sheet, row.caption, (2, y + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
            y += CAPTION
        x = 0
        for group in row.groups:
            for number in group:
                image = read_image(images.path(int(number)))
                sheet[y : y + side, x : x + side] = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
                x += side
            x += GAP
        y += side + 2
    if not cv2.imwrite(path, sheet, [cv2.IMWRITE_JPEG_QUALITY, 88]):
        raise InputError(f"{path} cannot be written: choose another --out")
