"""The nets and configurations of docs/two_stages.md compare what the page says that they compare."""

import caffe
import pytest

from tests.helpers import ROOT
from tripletloss import config
from tripletloss.net.definition import for_stage, read_net

CLAIM = ROOT / "models" / "claim_2015"
# All that decides how a triplet stage on cached features learns. Of the augmentations, these apply MIRROR only.
LEARNING = {"BATCHES", "BATCH_SIZE", "IMAGES_PER_IDENTITY", "SELECTION", "MARGIN", "MINE_ITERS", "MAX_ITERS", "LEARNING_RATE",
            "WEIGHT_DECAY", "FREEZE", "BATCHNORM", "MIRROR", "CROP", "IMAGE_SIZE", "PIXEL_MEANS", "SOLVER", "SEED"}  # fmt: skip


def layers_up_to(path, stage, name):
    """The layers of a net's stage, as text, from the first to the one with this name."""
    layers = for_stage(read_net(str(path)), caffe.TEST, stage).layer
    last = [layer.name for layer in layers].index(name)
    return [str(layer) for layer in layers[: last + 1]]


def changed(first, second):
    first, second = (config.load(str(path)).stage("triplet") for path in (first, second))
    return {name for name in config.SCHEMA if name in first and first[name] != second[name]}


@pytest.mark.parametrize(("net", "stage"), [("train.prototxt", "softmax"), ("train.prototxt", "triplet"), ("deploy.prototxt", "")])
def test_the_nets_of_2015_have_the_projects_trunk(net, stage):
    trunk = layers_up_to(CLAIM / net, stage, "bn7")
    assert trunk == layers_up_to(ROOT / net, stage, "bn7") and len(trunk) > 30


def test_the_classifier_is_an_inner_product_and_the_projection_is_not_normalised_again():
    softmax = {layer.name: layer for layer in for_stage(read_net(str(CLAIM / "train.prototxt")), caffe.TRAIN, "softmax").layer}
    triplet = {layer.name: layer for layer in for_stage(read_net(str(CLAIM / "train.prototxt")), caffe.TRAIN, "triplet").layer}
    assert softmax["fc9"].type == "InnerProduct" and list(softmax["fc9"].bottom) == ["fc7"]
    assert list(triplet["fc9_1"].bottom) == ["norm2"] and triplet["triplet_select"].bottom[0] == "fc9_1"
    assert "residual" not in triplet and "embedding" not in triplet


def test_ours_has_the_projects_own_triplet_settings():
    assert not changed(CLAIM / "ours.py", ROOT / "config.py") & LEARNING


@pytest.mark.parametrize("way", ["ours", "original"])
def test_people_that_stage_one_has_not_seen_are_the_only_difference(way):
    assert changed(CLAIM / f"{way}.py", CLAIM / f"{way}_others.py") == {"RUN_FOLDER", "IMAGEPATH", "TRAIN_LIST", "TRAIN_LISTS"}


def test_both_ways_start_from_the_same_weights_and_images():
    assert not changed(CLAIM / "ours.py", CLAIM / "original.py") & {"WEIGHTS", "FREEZE", "TRAIN_LIST", "IMAGEPATH", "MIRROR", "SEED"}
