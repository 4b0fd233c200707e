"""The shipped model, its pictures, the sample and the default config: what a fresh clone has is what its texts say."""

import re

import caffe
import cv2
import numpy as np
import pytest

from faces.dataset import render_dataset
from tests.helpers import PHOTOS, ROOT
from tripletloss import config
from tripletloss.core import clustering
from tripletloss.core.pairs import pair_distances, pairs_of
from tripletloss.data.images import Preprocessing
from tripletloss.data.lists import read_list, shared_identities
from tripletloss.evaluation import suspects
from tripletloss.evaluation.compare import compare
from tripletloss.evaluation.embed import embed, extract_all, open_net
from tripletloss.evaluation.report import measure_list
from tripletloss.formats import caffemodel
from tripletloss.net.definition import for_stage, read_net

MODEL = ROOT / "models" / "face997"
WEIGHTS = MODEL / "face997.caffemodel"


@pytest.fixture(scope="module")
def settings():
    return config.load(str(ROOT / "config.py")).stage("triplet")


def embed_held_out(config_file):
    """The shipped model's embeddings of a config's held-out identities."""
    settings = config.load(str(config_file)).stage("triplet")
    images = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    return embed(str(WEIGHTS), settings, "embedding", images, mirrored=False)


@pytest.fixture(scope="module")
def unseen():
    return embed_held_out(MODEL / "unseen.py")


def test_the_weights_fit_the_nets_and_are_small():
    assert WEIGHTS.stat().st_size < 20e6
    found = caffemodel.weight_shapes(str(WEIGHTS))
    for path, stage in ((ROOT / "deploy.prototxt", ""), (ROOT / "train.prototxt", "triplet")):
        net = for_stage(read_net(str(path)), caffe.TEST, stage)
        kinds = ("Convolution", "BatchNorm", "Scale", "InnerProduct")
        learning = {layer.name for layer in net.layer if layer.type in kinds and len(layer.bottom) == 1}
        assert learning == set(found)


@pytest.mark.parametrize(("start", "config_file"), [("| `unseen/`", MODEL / "unseen.py"), ("| the sample", ROOT / "config.py")])
def test_the_card_tells_what_the_weights_do(start, config_file):
    """The model card's lines about images that a clone has, of identities that the model was not trained on."""
    line = next(line for line in (MODEL / "README.md").read_text().splitlines() if line.startswith(start))
    told = [float(re.match(r"[\d.]+", cell.strip())[0]) for cell in line.split("|")[4:7]]
    found_rows = embed_held_out(config_file)
    found = measure_list(found_rows.images.labels, found_rows.rows)
    assert [found[name]["value"] for name in ("AUC", "TAR@FAR=0.01", "rank-1")] == pytest.approx(told, abs=0.002)


def test_the_config_of_the_card_is_one_that_loads():
    assert config.load(str(MODEL / "config.py"))["STAGES"] == ["softmax", "triplet"]


def test_the_default_config_finetunes_the_shipped_weights():
    loaded = config.load(str(ROOT / "config.py"))
    assert loaded.stage("softmax")["WEIGHTS"] == str(WEIGHTS)


def test_no_identity_of_the_sample_is_held_out_and_trained_on_or_was_the_models(settings):
    softmax = config.load(str(ROOT / "config.py")).stage("softmax")
    train = [read_list(stage["TRAIN_LIST"], stage["IMAGEPATH"]) for stage in (softmax, settings)]
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    assert shared_identities(train[0], held_out) == shared_identities(train[1], held_out) == []
    names = train[0].names + train[1].names + held_out.names
    numbers = [int(name[4:8]) for name in names]
    assert sorted(set(numbers)) == list(range(2100, 2400)) and len(set(held_out.labels)) == 60
    assert sorted(names) == sorted(path.name for path in (ROOT / "data" / "images").iterdir())
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*") if path.is_file()) < 2.5e6


def test_no_picture_of_the_model_shows_somebody_of_the_sample_or_somebody_it_was_trained_on():
    images = read_list(f"{PHOTOS}.txt", str(PHOTOS))
    assert sorted({int(name[4:8]) for name in images.names}) == list(range(2033, 2046))


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        (PHOTOS, {"first": 2033, "size": 112}),
        (ROOT / "data" / "images", {"first": 2100, "size": 40, "camera": "ceiling"}),
    ],
)
def test_the_pictures_are_the_renderers(tmp_path, folder, options):
    """Up to rounding: the last bit of a sine differs between processors."""
    render_dataset(tmp_path / "faces", identities=1, images=2, seed=0, workers=1, **options)
    for path in (tmp_path / "faces" / "images").iterdir():
        mine, shipped = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (path, folder / path.name))
        assert mine.shape == shipped.shape
        assert np.abs(mine.astype(float) - shipped).mean() < 0.2


def test_planted_wrong_labels_are_found_among_pictures(unseen):
    """5% of the labels of 13 unseen identities, changed: most of them stand at the top."""
    images, rows = unseen.images, unseen.rows
    rng = np.random.default_rng(0)
    wrong = rng.permutation(len(rows))[: round(0.05 * len(rows))]
    labels = np.unique(images.labels, return_inverse=True)[1]
    labels[wrong] = (labels[wrong] + rng.integers(1, 13, len(wrong))) % 13
    top = suspects.rank(suspects.suspicion(rows, labels))[: len(wrong)]
    assert len(set(top) & set(wrong)) >= 0.6 * len(wrong)


def test_clusters_of_unseen_identities_are_mostly_theirs(unseen):
    pairs = pairs_of(unseen.images.labels)
    distances = pair_distances(unseen.rows, pairs.first, pairs.second)
    clusters = clustering.cluster(unseen.rows, clustering.threshold_of_best_f(distances, pairs.same))
    assert clustering.clustering(clusters, unseen.images.labels).b_cubed[2] > 0.6


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_residual_of_zeros_compares_as_equal_to_the_softmax_feature(mirrored):
    settings = config.load(str(MODEL / "unseen.py")).stage("triplet")
    settings["TRAIN_LIST"] = settings["HELD_OUT_LIST"]  # on which PCA is fitted
    images = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    net = open_net(str(WEIGHTS), settings, ["norm2", "embedding"])
    net.params["fc9_1"][0].data[...] = 0
    found = compare(net, settings, "norm2", images, pairs_of(images.labels), mirrored)
    np.testing.assert_allclose(found.distances[-1], found.distances[0], atol=1e-6)
    [rows] = extract_all(net, ["norm2"], images, Preprocessing.of(settings), mirrored)
    first, second, _ = pairs_of(images.labels)
    np.testing.assert_allclose(found.distances[0], ((rows[first] - rows[second]) ** 2).sum(1), atol=1e-6)
