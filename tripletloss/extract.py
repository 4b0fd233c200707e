"""Images to embeddings, through a deploy net."""

import numpy as np

from tripletloss.images import read_image, to_blob


def extract(net, blob, images, size, means, batch_size=32):
    """The named blob's rows for all images of a list, in its order.

    net: a caffe.Net in TEST phase whose first input takes (N, 3, size, size); images: ImageList; means: B, G, R.
    Returns (M, D) float32. Raises InputError for an image that cannot be decoded.
    """
    rows = []
    data = net.inputs[0]
    for start in range(0, len(images.names), batch_size):
        numbers = range(start, min(start + batch_size, len(images.names)))
        net.blobs[data].reshape(len(numbers), 3, size, size)
        net.reshape()
        for row, number in enumerate(numbers):
            net.blobs[data].data[row] = to_blob(read_image(images.path(number)), size, means)
        net.forward()
        rows.append(net.blobs[blob].data.reshape(len(numbers), -1).copy())
    return np.concatenate(rows)
