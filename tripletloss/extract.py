"""Images to embeddings, through a deploy net."""

import numpy as np

from tripletloss.images import read_image, to_blob


def extract(net, blob, images, crop, size, means, mirrored=False, batch_size=32):
    """The named blob's rows for all images of a list, in its order.

    net: a caffe.Net in TEST phase whose first input takes (N, 3, size, size); images: ImageList; crop: as in
    config.py; means: B, G, R; mirrored: give the mean of the rows of an image and of its mirror image.
    Returns (M, D) float32. Raises InputError for an image that cannot be decoded.
    """
    rows = []
    data = net.inputs[0]
    for start in range(0, len(images.names), batch_size):
        numbers = range(start, min(start + batch_size, len(images.names)))
        net.blobs[data].reshape(len(numbers), 3, size, size)
        net.reshape()
        for row, number in enumerate(numbers):
            net.blobs[data].data[row] = to_blob(read_image(images.path(number)), crop, size, means)
        net.forward()
        found = net.blobs[blob].data.reshape(len(numbers), -1).copy()
        if mirrored:
            net.blobs[data].data[...] = net.blobs[data].data[..., ::-1].copy()
            net.forward()
            found = (found + net.blobs[blob].data.reshape(len(numbers), -1)) / 2
        rows.append(found)
    return np.concatenate(rows)
