"""How good weights are, on images that they were not trained on: python -m tripletloss.evaluate WEIGHTS ..."""

import argparse
import os
import sys
from typing import NamedTuple

import caffe
import numpy as np

from tripletloss import config, nets
from tripletloss.dataset import ImageList, read_list
from tripletloss.errors import InputError
from tripletloss.extract import extract
from tripletloss.metrics import cross_validated_accuracy, pair_distances, verification, verification_intervals
from tripletloss.process import caffe_log, try_in_child


class Pairs(NamedTuple):
    """Pairs of images, in folds whose people differ."""

    images: ImageList
    first: np.ndarray  # (P,) int, numbers of images
    second: np.ndarray  # (P,) int
    same: np.ndarray  # (P,) bool
    folds: np.ndarray  # (P,) int


def read_pairs(source, folder):
    """Read a pairs file in the format of Labeled Faces in the Wild (README of its view 2).

    The first line holds the number of folds and that of pairs of each kind in a fold; then, fold by fold, come
    lines `name n m` of one person's images and lines `name n other m` of two people's. Image n of a person is
    folder/name/name_000n.jpg. Raises InputError, naming the line, for what does not fit and for missing images.
    """
    try:
        with open(source, encoding="utf-8") as file:
            lines = [line.split() for line in file.read().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the pairs file {source} cannot be read ({error}): check --pairs") from None
    if not lines or not 1 <= len(lines[0]) <= 2 or not all(word.isdigit() for word in lines[0]):
        raise InputError(f"{source}, line 1: it must hold the number of folds and of pairs a fold: `10 300`")
    folds = int(lines[0][0]) if len(lines[0]) == 2 else 1
    a_fold, rest = divmod(len(lines) - 1, max(folds, 1))
    if rest or not a_fold or int(lines[0][-1]) * 2 != a_fold:
        raise InputError(f"{source} has {len(lines) - 1} pairs, which are not {folds} folds of 2 x {lines[0][-1]}")
    numbers, first, second, same = {}, [], [], []
    for number, words in enumerate(lines[1:], 2):
        if len(words) not in (3, 4) or not (words[1] + words[-1]).isdigit():
            raise InputError(f"{source}, line {number}: it must be `name n m` or `name n other m`")
        ends = ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1]))
        for side, (name, image) in zip((first, second), ends, strict=True):
            path = os.path.join(name, f"{name}_{int(image):04d}.jpg")
            if not os.path.isfile(os.path.join(folder, path)):
                raise InputError(f"{source}, line {number}: there is no {os.path.join(folder, path)}: check --images")
            side.append(numbers.setdefault(path, len(numbers)))
        same.append(len(words) == 3)
    images = ImageList(source, folder, list(numbers), np.zeros(len(numbers), np.int64))
    return Pairs(images, np.array(first), np.array(second), np.array(same), np.arange(len(same)) // a_fold)


def embed(weights, settings, feature, images, mirrored):
    """Embeddings (M, D) of a list of images, with a stage's settings. Raises InputError for what does not fit."""
    deploy = settings["DEPLOY"]
    if not deploy:
        raise InputError("the config has no DEPLOY net to make embeddings with: name one")
    net_definition = nets.read_net(deploy)
    nets.check_wiring(net_definition, deploy)

    def shapes():
        net = caffe.Net(deploy, caffe.TEST)
        return {name: [tuple(blob.shape) for blob in blobs] for name, blobs in net.params.items()}, list(net.blobs)

    params, blobs = try_in_child(shapes, deploy)
    if feature not in blobs:
        raise InputError(f"{deploy} has no blob {feature!r}: --feature must be one of {', '.join(blobs)}")
    _, fresh = nets.match_weights(params, nets.weight_shapes(weights), weights, deploy)
    missing = sorted(set(fresh) & nets.made_by(net_definition, feature))
    if missing:
        raise InputError(f"{weights} lacks {', '.join(missing)}, which {feature!r} is made by: set another --feature")
    with caffe_log(os.devnull):
        caffe.set_mode_cpu()
        net = caffe.Net(deploy, caffe.TEST)
        nets.load_weights(net, weights)
        s = settings
        return extract(net, feature, images, s["CROP"], s["IMAGE_SIZE"], s["PIXEL_MEANS"], mirrored)


def on_pairs(pairs, embeddings):
    """Lines of a report, for pairs in folds."""
    distances = pair_distances(embeddings, pairs.first, pairs.second)
    found = cross_validated_accuracy(distances, pairs.same, pairs.folds)
    return [
        f"pairs      {pairs.images.source}: {pairs.same.sum()} same and {(~pairs.same).sum()} different, "
        f"{len(pairs.images.names)} images",
        f"accuracy   {100 * found.mean:.2f}% +- {100 * found.standard_error:.2f} (standard error of "
        f"{found.folds} folds, each with the threshold of the others)",
        f"AUC        {found.auc:.4f}",
    ]


def on_list(images, embeddings):
    """Lines of a report, for all pairs of a list."""
    found = verification(embeddings, images.labels)
    auc, tar = verification_intervals(embeddings, images.labels)
    return [
        f"list       {images.source}: {len(images.names)} images of {len(np.unique(images.labels))} identities, "
        f"{found.same} same and {found.different} different pairs",
        f"AUC        {found.auc:.4f} (95% interval {auc[0]:.4f} to {auc[1]:.4f})",
        f"TAR        {found.tar_at_far_1:.3f} at FAR 1% (95% interval {tar[0]:.3f} to {tar[1]:.3f})",
        "           intervals by resampling identities",
    ]


def main():
    """python -m tripletloss.evaluate. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tripletloss.evaluate",
        description="Measure weights on HELD_OUT_LIST, or on another list, or on pairs in LFW's format.",
    )
    parser.add_argument("weights", help="a .caffemodel of this project's")
    parser.add_argument("--config", default="config.py", help="names net, sizes and lists (default: config.py)")
    parser.add_argument("--feature", default="", help="blob to compare (default: FEATURE of the triplet stage)")
    parser.add_argument("--list", help="a list file (default: HELD_OUT_LIST)")
    parser.add_argument("--pairs", help="a pairs file in LFW's format, instead of a list")
    parser.add_argument("--images", help="folder of the images (default: IMAGEPATH)")
    parser.add_argument("--crop", type=int, help="side of the central square to take, in pixels (default: CROP)")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image's embedding")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config).stage("triplet")
        if arguments.crop is not None:
            settings["CROP"] = arguments.crop
        folder = arguments.images or settings["IMAGEPATH"]
        feature = arguments.feature or settings["FEATURE"]
        if arguments.pairs:
            pairs = read_pairs(arguments.pairs, folder)
            lines = on_pairs(pairs, embed(arguments.weights, settings, feature, pairs.images, arguments.mirrored))
        else:
            source = arguments.list or settings["HELD_OUT_LIST"]
            if not source:
                raise InputError("there is nothing to measure on: name a list with --list, or pairs with --pairs")
            images = read_list(source, folder)
            lines = on_list(images, embed(arguments.weights, settings, feature, images, arguments.mirrored))
    except InputError as error:
        print(f"tripletloss.evaluate: {error}", file=sys.stderr)
        return 1
    print(f"weights    {arguments.weights}, {feature}{', mirrored average' if arguments.mirrored else ''}")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
