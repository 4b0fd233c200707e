"""The shipped model, the sample and the default config: what a fresh clone has is what its texts say."""

import re

import caffe
import cv2
import numpy as np
import pytest

from faces.dataset import render_dataset
from tests.helpers import ROOT
from tripletloss import config
from tripletloss.core import clustering
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.data.lists import read_list, shared_identities
from tripletloss.evaluation import suspects
from tripletloss.evaluation.embed import embed
from tripletloss.evaluation.report import measure_list
from tripletloss.formats import caffemodel
from tripletloss.net.definition import for_stage, read_net

MODEL = ROOT / "models" / "face997"
WEIGHTS = MODEL / "face997.caffemodel"


@pytest.fixture(scope="module")
def settings():
    return config.load(str(ROOT / "config.py")).stage("triplet")


@pytest.fixture(scope="module")
def held_out(settings):
    """Embeddings of the sample's held-out identities."""
    images = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    return embed(str(WEIGHTS), settings, "embedding", images, mirrored=False)


def test_the_weights_fit_the_nets_and_are_small():
    assert WEIGHTS.stat().st_size < 20e6
    found = caffemodel.weight_shapes(str(WEIGHTS))
    for path, stage in ((ROOT / "deploy.prototxt", ""), (ROOT / "train.prototxt", "triplet")):
        net = for_stage(read_net(str(path)), caffe.TEST, stage)
        kinds = ("Convolution", "BatchNorm", "Scale", "InnerProduct")
        learning = {layer.name for layer in net.layer if layer.type in kinds and len(layer.bottom) == 1}
        assert learning == set(found)


def test_the_card_tells_what_the_weights_do_on_the_sample(held_out):
    """The model card's line about the sample's held-out identities, of which nothing was trained on."""
    line = next(line for line in (MODEL / "README.md").read_text().splitlines() if line.startswith("| the sample"))
    told = [float(re.match(r"[\d.]+", cell.strip())[0]) for cell in line.split("|")[4:7]]
    found = measure_list(held_out.images.labels, held_out.rows)
    assert [found[name]["value"] for name in ("AUC", "TAR@FAR=0.01", "rank-1")] == pytest.approx(told, abs=0.002)


def test_the_config_of_the_card_is_one_that_loads():
    assert config.load(str(MODEL / "config.py"))["STAGES"] == ["softmax", "triplet"]


def test_the_default_config_finetunes_the_shipped_weights():
    loaded = config.load(str(ROOT / "config.py"))
    assert loaded.stage("softmax")["WEIGHTS"] == str(WEIGHTS)


def test_no_identity_of_the_sample_is_held_out_and_trained_on_or_was_the_models(settings):
    train = read_list(settings["TRAIN_LIST"], settings["IMAGEPATH"])
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    assert shared_identities(train, held_out) == []
    numbers = [int(name[4:8]) for name in train.names + held_out.names]
    assert min(numbers) >= 997 and len(set(numbers)) == 46
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*") if path.is_file()) < 2e6


def test_the_samples_pictures_are_the_renderers(tmp_path):
    """Up to rounding: the last bit of a sine differs between processors."""
    render_dataset(tmp_path / "faces", identities=1, images=2, size=112, seed=0, workers=1, first=2000)
    for path in (tmp_path / "faces" / "images").iterdir():
        mine, shipped = (cv2.imread(str(p)).astype(float) for p in (path, ROOT / "data" / "images" / path.name))
        assert np.abs(mine - shipped).mean() < 0.2


def test_planted_wrong_labels_are_found_among_real_pictures(settings):
    """2% of the sample's labels, changed: most of them stand at the top."""
    images = read_list(settings["TRAIN_LIST"], settings["IMAGEPATH"])
    rows = embed(str(WEIGHTS), settings, "embedding", images, mirrored=False).rows
    rng = np.random.default_rng(0)
    wrong = rng.permutation(len(rows))[: round(0.02 * len(rows))]
    labels = images.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 33, len(wrong))) % 33
    top = suspects.rank(suspects.suspicion(rows, labels))[: len(wrong)]
    assert len(set(top) & set(wrong)) >= 0.6 * len(wrong)


def test_clusters_of_the_held_out_identities_are_mostly_theirs(held_out):
    pairs = pairs_of(held_out.images.labels)
    distances = pair_distances(held_out.rows, pairs.first, pairs.second)
    clusters = clustering.cluster(held_out.rows, clustering.threshold_of_best_f(distances, pairs.same))
    assert clustering.clustering(clusters, held_out.images.labels).b_cubed[2] > 0.6
