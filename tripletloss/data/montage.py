"""Contact sheets: rows of images with a caption."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from tripletloss.base.files import write_whole

SIDE, GAP, CAPTION = 72, 8, 18  # pixels: an image's side, between two groups, a caption's height
WHITE, INK = 255, (40, 40, 40)
FONT = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1  # with its scale and thickness
MOST_PIXELS = 65_500  # per side of a JPEG, libjpeg's limit


class Row(NamedTuple):
    """One row of a sheet."""

    caption: str
    groups: Sequence[Sequence | np.ndarray]  # of images, as draw()'s `read` takes them, with a gap between two groups


def draw(path: str, read: Callable[[Any], np.ndarray], rows: Sequence[Row], side: int = SIDE) -> None:
    """Write a sheet of images as a JPEG.

    read: turns an element of a row's groups into pixels, (H, W, 3) uint8; side: an image's side on the sheet, in
    pixels. Rows that do not fit into a JPEG are left out. Raises OSError, and what `read` raises.
    """
    rows = rows[: (MOST_PIXELS - 1) // (side + CAPTION + 2)]
    cells = [[len(group) for group in row.groups] for row in rows]
    captions = [cv2.getTextSize(row.caption, *FONT)[0][0] + 4 for row in rows]
    width = max(*captions, *(sum(row) * side + (len(row) - 1) * GAP for row in cells))
    height = sum(side + (CAPTION if row.caption else 0) + 2 for row in rows)
    sheet = np.full((height, width, 3), WHITE, np.uint8)
    y = 0
    for row in rows:
        if row.caption:
            cv2.putText(sheet, row.caption, (2, y + 13), FONT[0], FONT[1], INK, FONT[2], cv2.LINE_AA)
            y += CAPTION
        x = 0
        for group in row.groups:
            for number in group:
                image = cv2.resize(read(number), (side, side), interpolation=cv2.INTER_AREA)
                sheet[y : y + side, x : x + side] = image
                x += side
            x += GAP
        y += side + 2
    _, content = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
    write_whole(path, content.tobytes())
