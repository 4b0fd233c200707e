"""dlib's face network in Caffe: equal to dlib, with right gradients, trained and cut by its own files."""

import caffe
import numpy as np
import pytest

from tests.helpers import ROOT, run_train
from tripletloss import config
from tripletloss.formats import caffemodel, dlib_resnet
from tripletloss.net.definition import for_stage, read_net

FOLDER = ROOT / "models" / "dlib_resnet"
STORED = np.load(ROOT / "tests" / "models" / "dlib_descriptors.npz")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("dlib") / "dlib_resnet.caffemodel"
    path.write_bytes(dlib_resnet.weights())
    return path


@pytest.fixture(scope="module")
def net(weights):
    return caffe.Net(str(FOLDER / "deploy.prototxt"), caffe.TEST, weights=str(weights))


def run(net, faces):
    """Blobs of the net for faces (N, 150, 150, 3) uint8, B, G, R."""
    net.blobs["data"].reshape(len(faces), 3, 150, 150)
    net.blobs["data"].data[...] = (faces - np.array(dlib_resnet.PIXEL_MEANS)).transpose(0, 3, 1, 2)
    net.forward()
    return {name: net.blobs[name].data.copy() for name in ("descriptor", "norm2", "embedding")}


def test_descriptors_of_rendered_faces_are_those_that_dlib_gave(net):
    found = run(net, STORED["faces"])
    assert np.abs(found["descriptor"] - STORED["descriptors"]).max() < 1e-5
    unit = STORED["descriptors"] / np.linalg.norm(STORED["descriptors"], axis=1, keepdims=True)
    assert np.abs(found["norm2"] - unit).max() < 1e-5 and np.abs(found["embedding"] - unit).max() < 1e-5


def test_dlib_itself_gives_the_same_descriptors(net):
    """Of noise, of patterns, and of rendered faces."""
    dlib = pytest.importorskip("dlib", reason="dlib-bin is not installed: pip install -e '.[dlib]'")
    theirs = dlib.face_recognition_model_v1(str(dlib_resnet.fetch()))
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:150, 0:150]
    ramps = np.stack([rows, columns, 150 - rows], axis=2).astype(np.uint8)
    stripes = np.repeat((columns // 5 % 2 * 255)[..., None], 3, axis=2).astype(np.uint8)
    pictures = np.stack([*rng.integers(0, 256, (2, 150, 150, 3), np.uint8), ramps, stripes, *STORED["faces"]])
    expected = [theirs.compute_face_descriptor(np.ascontiguousarray(one[..., ::-1])) for one in pictures]
    assert np.abs(run(net, pictures)["descriptor"] - np.array(expected)).max() < 1e-5


def test_the_gradient_is_that_of_finite_differences(weights, tmp_path):
    """Of a weighted sum of the descriptor, by the weights of the first layer, the last one, and some in between."""
    text = (FOLDER / "deploy.prototxt").read_text().replace('name: "dlib_resnet_deploy"', "force_backward: true", 1)
    (tmp_path / "net.prototxt").write_text(text)
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST, weights=str(weights))
    rng = np.random.default_rng(0)
    direction = rng.normal(size=128)

    def value():
        return float(run(net, STORED["faces"][:1])["descriptor"].astype(np.float64)[0] @ direction)

    for layer in ("conv1", "res2_1_conv1", "res4_1_conv2", "res5_1_conv2", "descriptor"):
        value()
        net.blobs["descriptor"].diff[...] = direction
        for blobs in net.params.values():
            for blob in blobs:
                blob.diff[...] = 0
        net.backward(start="descriptor")
        gradient = net.params[layer][0].diff.copy()
        # Along the gradient itself, so that the change stands out from float32's rounding.
        kept = net.params[layer][0].data.copy()
        squared = float((gradient.astype(np.float64) ** 2).sum())
        step = 1e-3 / squared  # changes the sum by 2e-3: few ReLUs and maxima change sides
        values = []
        for sign in (1, -1):
            net.params[layer][0].data[...] = kept + sign * step * gradient
            values.append(value())
        net.params[layer][0].data[...] = kept
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(squared, rel=0.01), layer


@pytest.mark.parametrize("stage", ["", "softmax", "triplet"])
def test_the_weights_fit_the_nets(weights, stage):
    source = FOLDER / ("train.prototxt" if stage else "deploy.prototxt")
    net = for_stage(read_net(str(source)), caffe.TEST, stage)
    learning = {layer.name for layer in net.layer if layer.type in ("Convolution", "InnerProduct")}
    assert learning == set(caffemodel.weight_shapes(str(weights))) - ({"fc9_1"} if stage == "softmax" else set())


def test_the_trunk_is_the_same_in_both_nets():
    trunks = [(FOLDER / name).read_text().partition("#== trunk")[2].partition("\n")[2].partition("\n#== ")[0] for name in ("train.prototxt", "deploy.prototxt")]
    assert len(trunks[0]) > 10_000 and trunks[0] == trunks[1]


def test_its_config_adapts_the_projection_of_the_fetched_weights():
    loaded = config.load(str(FOLDER / "config.py"))
    assert loaded["STAGES"] == ["triplet"] and loaded["IMAGE_SIZE"] == 150
    assert loaded["WEIGHTS"] == str(FOLDER / "dlib_resnet.caffemodel")
    assert loaded.stage("triplet")["FREEZE"] == "descriptor" and loaded["PIXEL_MEANS"] == list(dlib_resnet.PIXEL_MEANS)


def test_the_configuration_for_the_whole_net_freezes_nothing_and_starts_from_the_fetched_weights():
    loaded = config.load(str(FOLDER / "whole_net.py"))
    assert loaded["STAGES"] == ["triplet"] and loaded["IMAGE_SIZE"] == 150 and loaded["ALIGNMENT"] == "dlib_resnet"
    assert loaded["WEIGHTS"] == str(FOLDER / "dlib_resnet.caffemodel")
    assert loaded.stage("triplet")["FREEZE"] == loaded.stage("triplet")["FEATURE_CACHE"] == ""


def test_both_stages_train_from_the_fetched_weights(weights, tmp_path):
    """The whole net, then the projection on its frozen descriptors; a step of each on a few faces of the sample."""
    names = [f"face{person}@{number:02d}.jpg" for person in range(2100, 2103) for number in range(2)]
    (tmp_path / "list.txt").write_text("".join(f"{name} {number // 2}\n" for number, name in enumerate(names)))
    changes = {
        "RUN_FOLDER": str(tmp_path / "run"), "FEATURE_CACHE": str(tmp_path / "cache"), "HELD_OUT_LIST": "",
        "TRAIN_LIST": str(tmp_path / "list.txt"), "WEIGHTS": {"softmax": str(weights), "triplet": ""},
        "BATCH_SIZE": {"softmax": 3, "triplet": 6}, "IMAGES_PER_IDENTITY": 2, "MAX_ITERS": {"softmax": 1, "triplet": 5},
        "STAGES": ["softmax", "triplet"], "WORKERS": 0,
    }  # fmt: skip
    (tmp_path / "config.py").write_text(config.copy_text(str(FOLDER / "config.py"), str(tmp_path / "config.py"), changes))
    result = run_train(tmp_path)
    assert result.returncode == 0, result.stderr
    before, softmax, triplet = (caffemodel.read_weights(str(path)) for path in (
        weights, tmp_path / "run" / "softmax_iter_1.caffemodel", tmp_path / "run" / "triplet_iter_5.caffemodel"
    ))  # fmt: skip
    for layer in ("conv1", "res1_1_conv1"):  # conv1's gradients are large, see train.prototxt
        change = np.linalg.norm(softmax[layer][0] - before[layer][0]) / np.linalg.norm(before[layer][0])
        assert 0 < change < 0.01, layer
    assert np.array_equal(triplet["conv1"][0], softmax["conv1"][0]) and triplet["fc9_1"][0].any()
    assert " of 6 images x 2 views, 6 computed now" in result.stdout
