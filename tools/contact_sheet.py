"""Draw the first images of a list's first identities, one row per identity.

    python tools/contact_sheet.py LIST IMAGEPATH OUT.jpg
"""

import sys

import numpy as np

from tripletloss.data import montage
from tripletloss.data.images import read_image
from tripletloss.data.lists import read_list

ROWS, COLUMNS = 8, 10


def main():
    """Draw the sheet."""
    source, folder, out = sys.argv[1:]
    images = read_list(source, folder)
    labels = np.unique(images.labels)[:ROWS]
    rows = [montage.Row("", [np.flatnonzero(images.labels == label)[:COLUMNS]]) for label in labels]
    montage.draw(out, lambda number: read_image(images.path(number)), rows)


if __name__ == "__main__":
    main()
