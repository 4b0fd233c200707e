"""Contact sheets: rows of images with a caption."""

from typing import NamedTuple

import cv2
import numpy as np

from tripletloss.base.files import write_whole

SIDE, GAP, CAPTION = 72, 8, 18  # pixels
WHITE, INK = 255, (40, 40, 40)
FONT = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1  # its scale and thickness
MOST_PIXELS = 65_500  # a side of a JPEG, libjpeg's limit


class Row(NamedTuple):
    """One row of a sheet."""

    caption: str
    groups: list  # of lists of images, which read() turns into pixels, with a gap between them


def draw(path, read, rows, side=SIDE):
    """Write a sheet of images as a JPEG.

    read: image number -> (H, W, 3) uint8, as in the rows' groups. side: of an image on the sheet, pixels. The sheet
    ends where a JPEG must. Raises OSError, and InputError as read does.
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
