"""ONNX: every layer against Caffe itself, in onnxruntime and in OpenCV; the shipped model; what cannot be exported."""

import json
import os
import re
import subprocess
import sys

import caffe
import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import descriptor_pb2

from tests.helpers import PHOTOS, ROOT
from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.core.alignment import TEMPLATES
from tripletloss.data.folders import list_folder
from tripletloss.data.images import read_image, to_pixels
from tripletloss.data.lists import read_list
from tripletloss.deploy.onnx_export import build
from tripletloss.deploy.onnx_model import Model
from tripletloss.deploy.onnx_threshold import MEASURED, different_from, read_threshold, threshold_of
from tripletloss.evaluation.embed import embed, open_net
from tripletloss.formats import caffemodel

WEIGHTS, UNSEEN = (ROOT / "models" / "face997" / name for name in ("face997.caffemodel", "unseen.py"))
HEAD = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: SIZE dim: SIZE } } }\n'
needs_opencv_5 = pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="it is about OpenCV 5")


def by_onnxruntime(model, batch):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(batch)})[0]


def by_opencv(model, batch):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    net.setInput(np.ascontiguousarray(batch))
    return net.forward()


def by_caffe(net, batch, feature):
    net.blobs["data"].reshape(*batch.shape)
    net.reshape()
    net.blobs["data"].data[...] = batch
    net.forward()
    return net.blobs[feature].data.reshape(len(batch), -1).copy()


def settings_of(deploy, feature, size):
    return {"DEPLOY": str(deploy), "FEATURE": feature, "IMAGE_SIZE": size, "PIXEL_MEANS": [102.9801, 115.9465, 122.7717]}


def made(folder, text, size=9, seed=0):
    """A net in Caffe, all of whose parameters are drawn anew, and the paths of its prototxt and weights."""
    # A file of weights must hold some, and not all nets here have parameters.
    aside = layer("InnerProduct", "inner_product_param { num_output: 1 }", top="aside")
    (folder / "net.prototxt").write_text('name: "test"\n' + HEAD.replace("SIZE", str(size)) + text + aside)
    net = caffe.Net(str(folder / "net.prototxt"), caffe.TEST)
    rng = np.random.default_rng(seed)
    for name, blobs in net.params.items():
        for number, blob in enumerate(blobs):
            blob.data[...] = rng.uniform(0.5, 1.5, blob.data.shape) if "bn" in name else rng.normal(0, 0.4, blob.data.shape)
            if "bn" in name and number == 0:
                blob.data[...] = rng.normal(0, 1, blob.data.shape)
    net.save(str(folder / "net.caffemodel"))
    return net, folder / "net.prototxt", folder / "net.caffemodel"


def assert_equal_to_caffe(folder, text, size=9, images=3):
    net, deploy, weights = made(folder, text, size)
    batch = np.random.default_rng(1).normal(0, 1, (images, 3, size, size)).astype(np.float32)
    expected = by_caffe(net, batch, "out")
    model = build(str(weights), settings_of(deploy, "out", size))
    scale = max(1, np.abs(expected).max())
    assert expected.shape == by_onnxruntime(model, batch).shape
    assert np.abs(by_onnxruntime(model, batch) - expected).max() < 1e-5 * scale
    if int(cv2.__version__.split(".")[0]) >= 5:
        assert np.abs(by_opencv(model, batch) - expected).max() < 1e-5 * scale


def layer(kind, settings="", bottom="data", top="out", name=None):
    bottoms = " ".join(f'bottom: "{one}"' for one in bottom.split())
    return f'layer {{ name: "{name or top}" type: "{kind}" {bottoms} top: "{top}" {settings} }}\n'


CONV = layer("Convolution", "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }", top="conv")
LAYERS = {
    "convolution": layer("Convolution", "convolution_param { num_output: 5 kernel_size: 3 stride: 2 }"),
    "convolution, no bias": layer("Convolution", "convolution_param { num_output: 5 kernel_size: 3 bias_term: false }"),
    "convolution, oblong": layer(
        "Convolution", "convolution_param { num_output: 2 kernel_h: 3 kernel_w: 1 stride_h: 2 stride_w: 3 pad_h: 2 pad_w: 0 }"
    ),
    "convolution, groups and dilation": layer(
        "Convolution", "convolution_param { num_output: 6 group: 3 kernel_size: 2 dilation: 3 pad: 1 }"
    ),
    "batch norm and scale": CONV
    + layer("BatchNorm", "batch_norm_param { eps: 0.001 }", "conv", "conv", "bn")
    + layer("Scale", "scale_param { bias_term: true }", "conv", "conv", "scale")
    + layer("ReLU", "", "conv", "out"),
    "scale without bias, of the last axes": layer("Scale", "scale_param { axis: -2 num_axes: -1 }"),
    "leaky relu": layer("ReLU", "relu_param { negative_slope: 0.1 }"),
    "prelu": layer("PReLU"),
    "prelu, one slope": layer("PReLU", "prelu_param { channel_shared: true }"),
    "prelu of numbers": layer("InnerProduct", "inner_product_param { num_output: 5 }", top="ip") + layer("PReLU", "", "ip"),
    "inner product": layer("InnerProduct", "inner_product_param { num_output: 5 }"),
    "inner product, transposed": layer("InnerProduct", "inner_product_param { num_output: 5 transpose: true bias_term: false }"),
    "inner product of numbers, then batch norm": layer("InnerProduct", "inner_product_param { num_output: 5 }", top="ip")
    + layer("BatchNorm", "", "ip", "out", "bn"),
    "lrn": CONV + layer("LRN", "lrn_param { local_size: 3 alpha: 0.7 beta: 0.6 k: 1.5 }", "conv"),
    "eltwise sum": CONV + layer("Power", "", "conv", "same") + layer("Eltwise", "", "conv same"),
    "eltwise sum with coefficients": CONV
    + layer("ReLU", "", "conv", "positive")
    + layer("Eltwise", "eltwise_param { coeff: 0.5 coeff: -2 coeff: 1 }", "conv positive conv"),
    "eltwise product": CONV + layer("Power", "power_param { shift: 1 }", "conv", "more") + layer("Eltwise", "eltwise_param { operation: PROD }", "conv more"),
    "eltwise maximum": CONV + layer("Power", "power_param { scale: -1 }", "conv", "less") + layer("Eltwise", "eltwise_param { operation: MAX }", "conv less"),
    "concat": CONV + layer("Concat", "", "data conv"),
    "concat along rows": CONV + layer("ReLU", "", "conv", "positive") + layer("Concat", "concat_param { axis: -2 }", "conv positive"),
    "flatten": layer("Flatten"),
    "dropout": CONV + layer("Dropout", "", "conv"),
    "power": layer("Power", "power_param { scale: 0.3 shift: 4 power: 1.7 }"),
    "reduction, sum": layer("Reduction", "reduction_param { axis: 1 coeff: 0.5 }"),
    "reduction, mean of rows": layer("Reduction", "reduction_param { axis: 2 operation: MEAN }"),
    "reduction, absolute": layer("Reduction", "reduction_param { axis: 1 operation: ASUM }"),
    "length one": layer("InnerProduct", "inner_product_param { num_output: 5 }", top="ip")
    + layer("Reduction", "reduction_param { operation: SUMSQ axis: 1 }", "ip", "sumsq")
    + layer("Power", "power_param { power: -0.5 shift: 1e-10 }", "sumsq", "inverse")
    + layer("Scale", "scale_param { axis: 0 }", "ip inverse"),
    "pictures scaled image by image": CONV
    + layer("Reduction", "reduction_param { operation: SUMSQ axis: 2 }", "conv", "sumsq")
    + layer("Scale", "scale_param { axis: 0 }", "conv sumsq"),
    "global maximum": layer("Pooling", "pooling_param { global_pooling: true }"),
    "global average": layer("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_caffes(tmp_path, name):
    assert_equal_to_caffe(tmp_path, LAYERS[name])


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("rounding", ["", "round_mode: FLOOR"])
def test_pooling_has_caffes_windows_and_divisors(tmp_path, method, rounding):
    """All small kernels, strides, paddings and sizes, oblong ones too; where Caffe pools an empty window, none is made."""
    compared = 0
    for size in (7, 8):
        for kernel in (1, 2, 3, 4):
            for stride in (1, 2, 3):
                for pad in range(kernel):
                    settings = f"pool: {method} {rounding} kernel_size: {kernel} stride_h: {stride} stride_w: {4 - stride} pad: {pad}"
                    text = CONV + layer("Pooling", f"pooling_param {{ {settings} }}", "conv")
                    try:
                        assert_equal_to_caffe(tmp_path, text, size, images=1)
                        compared += 1
                    except InputError as error:
                        assert "is a pooling with a window outside of its input" in str(error) and kernel < max(stride, 4 - stride)
    assert compared > 40


def test_the_messages_are_those_of_caffes_own_description():
    """Each field written down has Caffe's number, type, default, and way of repeating."""
    for name in caffemodel.MESSAGES:
        ours, theirs = caffemodel._classes()[name].DESCRIPTOR, getattr(caffe_pb2, name).DESCRIPTOR
        labels = []
        for descriptor in (ours, theirs):
            written = descriptor_pb2.DescriptorProto()
            descriptor.CopyToProto(written)
            labels.append({field.name: field.label for field in written.field})
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            same = ("number", "type", "default_value")
            assert [getattr(field, one) for one in same] == [getattr(other, one) for one in same], (name, field.name)
            assert labels[0][field.name] == labels[1][field.name]
            if field.message_type:
                assert field.message_type.name == other.message_type.name
            if field.enum_type:
                values = [{value.name: value.number for value in one.enum_type.values} for one in (field, other)]
                assert values[0] == values[1]
        # What is left out of a message that can occur makes a net an unknown one, so these have all.
        if name.endswith("Parameter") and name not in ("NetParameter", "V1LayerParameter", "LayerParameter"):
            assert {field.name for field in theirs.fields} == {field.name for field in ours.fields}


def test_weights_are_read_as_caffe_has_them(tmp_path):
    net, _, weights = made(tmp_path, LAYERS["batch norm and scale"])
    net.save_hdf5(str(tmp_path / "net.caffemodel.h5"))
    for path in (weights, tmp_path / "net.caffemodel.h5"):
        found = caffemodel.read_weights(str(path))
        assert set(found) == set(net.params)
        for name, blobs in net.params.items():
            for mine, blob in zip(found[name], blobs, strict=True):
                assert mine.dtype == np.float32 and np.array_equal(mine, blob.data)


# ---------------------------------------------------------------------------------------------- the shipped model


@pytest.fixture(scope="module")
def settings():
    return config.load(str(UNSEEN)).stage("triplet")


@pytest.fixture(scope="module")
def thousand(settings):
    """1,000 pictures (N, 64, 64, 3) uint8, the sample's and their mirror images, and Caffe's embeddings of them."""
    images = list_folder(str(ROOT / "data" / "images"))
    pixels = np.stack([to_pixels(read_image(images.path(number)), 64) for number in range(500)])
    pixels = np.concatenate([pixels, pixels[..., ::-1]])
    means = np.array(settings["PIXEL_MEANS"], np.float32)[:, None, None]
    net = open_net(str(WEIGHTS), settings, ["embedding"])
    rows = [by_caffe(net, pixels[start : start + 50] - means, "embedding") for start in range(0, 1000, 50)]
    return pixels.transpose(0, 2, 3, 1).astype(np.uint8), np.concatenate(rows)


def assert_equal(found, expected):
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5
    assert (found * expected).sum(1).min() > 0.99999


def test_the_shipped_model_is_caffes_in_onnxruntime(settings, thousand):
    pixels, expected = thousand
    model = build(str(WEIGHTS), settings)
    batch = pixels.transpose(0, 3, 1, 2) - np.array(settings["PIXEL_MEANS"], np.float32)[:, None, None]
    assert_equal(by_onnxruntime(model, batch.astype(np.float32)), expected)


@needs_opencv_5
def test_the_shipped_model_is_caffes_in_opencv(settings, thousand):
    pixels, expected = thousand
    model = build(str(WEIGHTS), settings)
    batch = (pixels.transpose(0, 3, 1, 2) - np.array(settings["PIXEL_MEANS"], np.float32)[:, None, None]).astype(np.float32)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    rows = []
    for start, end in ((0, 1), (1, 100), (100, 600), (600, 1000)):  # any number of images at a time
        net.setInput(batch[start:end])
        rows.append(net.forward().copy())
    assert_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("pixels", ["bgr", "rgb"])
def test_the_model_takes_pixels_as_pictures_have_them(settings, thousand, pixels):
    given, expected = thousand
    given = given[:60] if pixels == "bgr" else given[:60, :, :, ::-1]
    model = build(str(WEIGHTS), settings, pixels)
    assert_equal(by_onnxruntime(model, given), expected[:60])
    if int(cv2.__version__.split(".")[0]) >= 5:
        assert_equal(by_opencv(model, given), expected[:60])


@pytest.mark.parametrize("pixels", ["", "bgr", "rgb"])
def test_a_mirrored_model_gives_the_mean_of_an_images_and_its_mirror_images(settings, thousand, pixels):
    given = thousand[0][:7]
    batch = given if pixels else (given.transpose(0, 3, 1, 2) - np.array(settings["PIXEL_MEANS"], np.float32)[:, None, None])
    single, both = (build(str(WEIGHTS), settings, pixels, mirrored) for mirrored in (False, True))
    batch = batch.astype(np.uint8 if pixels else np.float32)
    backwards = batch[:, :, ::-1] if pixels else batch[..., ::-1]
    expected = (by_onnxruntime(single, batch) + by_onnxruntime(single, backwards)) / 2
    assert np.abs(by_onnxruntime(both, batch) - expected).max() < 1e-6
    assert np.abs(by_onnxruntime(both, batch[:1]) - expected[:1]).max() < 1e-6
    if int(cv2.__version__.split(".")[0]) >= 5:
        assert np.abs(by_opencv(both, batch) - expected).max() < 1e-5


def test_the_full_sized_nets_layers_at_a_small_size(tmp_path):
    """VGG_FACE_16's prototxt with fewer channels and pixels; the whole one is 580 MB."""
    text = (ROOT / "models" / "vgg_face" / "deploy.prototxt").read_text()
    text = text.replace("dim: 224", "dim: 32").replace("num_output: 4096", "num_output: 64")
    text = re.sub(r"num_output: (64|128|256|512) k", lambda found: f"num_output: {int(found[1]) // 16} k", text)
    (tmp_path / "deploy.prototxt").write_text(text)
    caffe.set_random_seed(1)
    net = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    for blob in net.params["fc9_1"]:
        blob.data[...] = np.random.default_rng(0).normal(0, 1, blob.data.shape)
    net.save(str(tmp_path / "w.caffemodel"))
    batch = np.random.default_rng(1).normal(0, 50, (4, 3, 32, 32)).astype(np.float32)
    model = build(str(tmp_path / "w.caffemodel"), settings_of(tmp_path / "deploy.prototxt", "embedding", 32))
    expected = by_caffe(net, batch, "embedding")
    assert np.ptp(expected, axis=0).max() > 1e-3
    assert_equal(by_onnxruntime(model, batch), expected)
    if int(cv2.__version__.split(".")[0]) >= 5:
        assert_equal(by_opencv(model, batch), expected)


# ---------------------------------------------------------------------------------------------- the command


def run(*arguments, **options):
    """The command where no Caffe can be imported."""
    code = "import runpy, sys; sys.modules['caffe'] = None; runpy.run_module('tripletloss.export', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def test_the_command_needs_no_caffe_and_tells_what_it_made(tmp_path, settings, thousand):
    result = run(WEIGHTS, "--config", UNSEEN, "--out", tmp_path / "model.onnx", "--pixels", "bgr", "--licence", "MIT")
    assert result.returncode == 0, result.stderr
    model = onnx.load(str(tmp_path / "model.onnx"))
    about = {one.key: one.value for one in model.metadata_props}
    assert about["weights_sha256"] in (ROOT / "models" / "face997" / "README.md").read_text()
    assert about["licence"] == "MIT" and about["feature"] == "embedding" and about["image_size"] == "64"
    assert about["alignment"] == "face997" and json.loads(about["points"]) == TEMPLATES["face997"].tolist()
    assert about["threshold_pairs"] == "858 same and 11232 different of unseen.txt"
    assert all(f"{name}: {value}" in result.stdout for name, value in about.items())
    # One in a thousand pairs of two identities is that near: measured again, with Caffe's embeddings.
    images = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    rows = embed(str(WEIGHTS), settings, "embedding", images, mirrored=False).rows
    near = ((rows[:, None] - rows[None]) ** 2).sum(2) <= float(about["threshold"]) + 1e-5
    same = images.labels[:, None] == images.labels[None]
    assert near[~same].sum() / 2 == 11 and near[np.triu(same, 1)].mean() == pytest.approx(float(about["threshold_tar"]), abs=1e-3)


def with_held_out(folder, lines):
    """The project's config.py with these lines as its held-out list."""
    (folder / "few.txt").write_text("\n".join(lines) + "\n")
    places = {"DEPLOY": ROOT / "deploy.prototxt", "IMAGEPATH": PHOTOS, "HELD_OUT_LIST": folder / "few.txt"}
    text = (ROOT / "config.py").read_text()
    for name, path in places.items():
        text, count = re.subn(rf"^{name} = '[^']*'", f"{name} = {str(path)!r}", text, flags=re.MULTILINE)
        assert count == 1
    (folder / "config.py").write_text(text)
    return folder / "config.py"


def test_the_threshold_is_that_of_the_lowest_far_which_the_pairs_resolve(tmp_path, settings):
    """Of 6 identities x 4 images: 240 different pairs resolve FAR 0.1, as 24 are accepted, and no lower one."""
    lines = UNSEEN.with_suffix(".txt").read_text().splitlines()
    lines = [line for start in range(0, 72, 12) for line in lines[start : start + 4]]
    result = run(WEIGHTS, "--out", tmp_path / "model.onnx", "--config", with_held_out(tmp_path, lines))
    assert result.returncode == 0, result.stderr
    model = Model(str(tmp_path / "model.onnx"))
    assert model.about["threshold_far"] == "0.1" and model.about["threshold_pairs"] == "36 same and 240 different of few.txt"
    said = rf"^threshold {float(model.about['threshold']):.3f}: FAR 0.1 and TAR 1.000 on 36 same and 240"
    assert re.search(said, result.stdout, re.MULTILINE)
    images = read_list(str(tmp_path / "few.txt"), settings["IMAGEPATH"])
    faces = [to_pixels(read_image(images.path(number)), 64).transpose(1, 2, 0) for number in range(24)]
    rows = model.embed(np.stack(faces).astype(np.uint8))
    near = ((rows[:, None] - rows[None]) ** 2).sum(2) <= float(model.about["threshold"]) + 1e-5
    same = images.labels[:, None] == images.labels[None]
    assert near[~same].sum() / 2 == 24
    photos = [images.path(number) for number in (0, 1)]
    verify = subprocess.run([sys.executable, "-m", "tripletloss.verify", tmp_path / "model.onnx", *photos], capture_output=True, text=True)
    assert "(FAR 0.1, TAR 1.000; on 36 same and 240 different of few.txt)" in verify.stdout, verify.stderr


def test_the_image_is_named_that_a_model_makes_nan_of(tmp_path, settings):
    """The square root of pixels minus 100: dark ones have none."""
    root = "power_param { power: 0.5 shift: -100 }"
    (tmp_path / "net.prototxt").write_text(HEAD.replace("SIZE", "9") + layer("Power", root))
    for name, grey in {"a@0.png": 200, "a@1.png": 120, "b@0.png": 50, "b@1.png": 40}.items():
        cv2.imwrite(str(tmp_path / name), np.full((9, 9, 3), grey, np.uint8))
    (tmp_path / "list.txt").write_text("a@0.png 0\na@1.png 0\nb@0.png 1\nb@1.png 1\n")
    some = {**settings_of(tmp_path / "net.prototxt", "out", 9), "PIXEL_MEANS": [0.0, 0.0, 0.0], "CROP": 0, "ALIGNMENT": "face997"}
    some.update(HELD_OUT_LIST=str(tmp_path / "list.txt"), IMAGEPATH=str(tmp_path))
    model = build(str(WEIGHTS), some, "bgr")
    onnx.helper.set_model_props(model, {"image_size": "9", "crop": "0", "pixel_means": "[0, 0, 0]", "channels": "bgr"})
    with pytest.raises(InputError, match=r"m.onnx gives NaN or infinity for \S*b@0.png: export other weights"):
        threshold_of(Model(model.SerializeToString(), "m.onnx"), some)


def test_too_few_pairs_for_any_far_give_no_threshold(tmp_path):
    lines = UNSEEN.with_suffix(".txt").read_text().splitlines()
    config_file = with_held_out(tmp_path, [*lines[:4], *lines[12:16]])
    result = run(WEIGHTS, "--out", tmp_path / "model.onnx", "--config", config_file)
    assert result.returncode == 0, result.stderr
    pairs = "12 same and 16 different of few.txt, too few for FAR 0.1"
    model = Model(str(tmp_path / "model.onnx"))
    assert model.about["threshold_pairs"] == pairs and "threshold" not in model.about
    names = [PHOTOS / line.split()[0] for line in (tmp_path / "few.txt").read_text().splitlines()]
    rows = model.embed(np.stack([to_pixels(read_image(name), 64).transpose(1, 2, 0) for name in names]).astype(np.uint8))
    distances = ((rows[:, None] - rows[None]) ** 2).sum(2)[np.triu_indices(8, 1)]
    same = np.array([i // 4 == j // 4 for i, j in zip(*np.triu_indices(8, 1), strict=True)])
    wrong = [((distances[~same] <= t).mean(), (distances[same] > t).mean()) for t in np.sort(distances)]
    first = next(t for t, (accepted, rejected) in zip(np.sort(distances), wrong, strict=True) if accepted >= rejected)
    assert float(model.about["threshold_equal_errors"]) == pytest.approx(first, rel=1e-4)
    advice = f"give verify one with --threshold, such as {first:.3f}, where errors of both kinds are equal, or export with a"
    assert f"no threshold was measured (pairs: {pairs}): {advice}" in result.stdout
    face = PHOTOS / "face2033@00.jpg"
    verify = subprocess.run([sys.executable, "-m", "tripletloss.verify", tmp_path / "model.onnx", face, face], capture_output=True, text=True)
    assert verify.returncode == 2 and f"has no threshold (pairs that it was measured on: {pairs}): {advice}" in verify.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            layer("Crop", "crop_param { axis: 2 }", top="one") + CONV + layer("Tile", "", "conv", "two") + layer("Concat", "", "one two"),
            r"types that cannot be exported: Crop \(one\), Tile \(two\)\. Known are BatchNorm",
        ),
        (layer("ReLU", "relu_param { slope: 3 }"), "line 3.*has no field named \"slope\""),
        (layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"), "layer 'out' is a pooling that is stochastic"),
        (layer("LRN", "lrn_param { norm_region: WITHIN_CHANNEL }"), "layer 'out' normalises within channels"),
        (layer("BatchNorm", "batch_norm_param { use_global_stats: false }"), "by the statistics of the mini-batch"),
        (layer("Concat", "concat_param { axis: 0 }", "data data"), "works along axis 0, which is the axis of the images"),
        (layer("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"), "multiplies only part"),
        (layer("ReLU", 'include { phase: TRAIN }'), "is for some phases only"),
        (layer("Eltwise", "", "data other"), "takes the bottom 'other', which no layer above makes"),
        (layer("ReLU", "", "data data"), "has 2 bottoms, which ReLU cannot have"),
        (layer("ReLU", top="other"), "has no blob 'out': --feature must be one of data, other"),
        (layer("Convolution", "convolution_param { num_output: 5 kernel_size: 3 }"), "parameters of none in the weights, but of 5x3x3x3 and 5"),
        (layer("Convolution", "convolution_param { num_output: 5 kernel_size: 3 stride: 0 }"), "whose kernel, stride, dilation, outputs or groups are 0"),
        (layer("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 }"), "whose channels cannot be divided into 2 groups"),
        (layer("Convolution", "convolution_param { num_output: 4 kernel_size: 12 }"), "whose kernel is larger than its input"),
        (layer("Eltwise", "eltwise_param { coeff: 1 }", "data data"), "not one coefficient per bottom"),
        (CONV + layer("Power", "", "data", "conv", "again") + layer("ReLU", "", "conv"), "layer 'again' has the top 'conv', as a layer above"),
        (layer("ReLU") + 'layer { name: "none" type: "ReLU" bottom: "data" }', "layer 'none' has 0 tops: ReLU has one"),
        ("layers { type: RELU }", "the syntax before 2014"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(tmp_path, text, sentence):
    (tmp_path / "net.prototxt").write_text(HEAD.replace("SIZE", "9") + "# a line\n" + text)
    with pytest.raises(InputError, match=sentence):
        build(str(WEIGHTS), settings_of(tmp_path / "net.prototxt", "out", 9))


def test_layers_above_the_feature_are_left_out(tmp_path):
    """Whatever they are: here a loss, and a kind that is not known."""
    net, deploy, weights = made(tmp_path, CONV + layer("ReLU", "", "conv", "out"))
    deploy.write_text(deploy.read_text() + layer("Tile", "", "out", "more"))
    batch = np.random.default_rng(1).normal(0, 1, (2, 3, 9, 9)).astype(np.float32)
    model = build(str(weights), settings_of(deploy, "out", 9))
    assert np.abs(by_onnxruntime(model, batch) - by_caffe(net, batch, "out")).max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.caffemodel", "--out", "x.onnx"], "the weights none.caffemodel do not exist"),
        (["README.md", "--out", "x.onnx"], "README.md is not a caffemodel, or is cut off"),
        ([WEIGHTS, "--out", "none/x.onnx"], "none/x.onnx cannot be written"),
        ([WEIGHTS, "--out", "x.onnx", "--config", "none.py"], "the config file none.py cannot be read"),
        ([WEIGHTS, "--out", "x.onnx", "--crop", "-1"], "CROP is -1"),
        ([WEIGHTS, "--out", "x.onnx", "--feature", "fc8"], "has no blob 'fc8'"),
    ],
)
def test_what_is_wrong_with_the_command_is_told(arguments, sentence):
    result = run(*arguments)
    assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not os.path.exists(ROOT / "x.onnx")


# --- thresholds that were measured before


ABOUT = {"weights_sha256": "ab12", "feature": "embedding", "mirrored": "yes", "alignment": "dlib_resnet", "image_size": "150"}
NUMBERS = dict(zip(MEASURED, ["0.14", "0.001", "0.96", "0.22", "0.001", "0.92", "5 same and 7 different"], strict=True))


def test_thresholds_are_those_of_the_file(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({**ABOUT, **NUMBERS}))
    assert read_threshold(str(tmp_path / "t.json"), {**ABOUT, "weights": "w"}) == NUMBERS


@pytest.mark.parametrize("change, sentence", [
    ({"weights_sha256": "cd34"}, "is about a model with the weights_sha256 cd34, not ab12: measure this one with"),
    ({"mirrored": "no"}, "is about a model with the mirrored no, not yes"),
    ({"threshold": "near"}, "is not a file of tools/measure_threshold.py"),
    ({"threshold_frr": "nan"}, "is not a file of tools/measure_threshold.py"),
    ({"threshold_pairs": 3}, "is not a file of tools/measure_threshold.py"),
])  # fmt: skip
def test_thresholds_of_another_model_are_refused(tmp_path, change, sentence):
    (tmp_path / "t.json").write_text(json.dumps({**ABOUT, **NUMBERS, **change}))
    with pytest.raises(InputError, match=sentence):
        read_threshold(str(tmp_path / "t.json"), ABOUT)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "{" * 5000, "[" * 60000])
def test_a_file_without_thresholds_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=r"t\.json is not a file of tools/measure_threshold\.py: check --threshold"):
        read_threshold(str(tmp_path / "t.json"), ABOUT)
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        read_threshold(str(tmp_path / "none.json"), ABOUT)


def test_there_is_no_second_threshold_that_does_not_exceed_the_first():
    distances, same = np.concatenate([np.arange(1000) / 1000, np.full(50, 2.0)]), np.arange(1050) < 1000
    assert different_from(distances, same, 0.5) == {"threshold_different": "0.989", "threshold_frr": "0.01", "threshold_trr": "1.0000"}
    assert different_from(distances, same, 0.99) == {}


def test_thresholds_of_all_pairs_of_a_folder_are_measured_and_taken(tmp_path):
    """On the shipped model's own pictures, against plain loops; and they go into the model that was measured."""
    (tmp_path / "faces").mkdir()
    names = [line.split()[0] for line in UNSEEN.with_suffix(".txt").read_text().splitlines()]
    for name in names:
        (tmp_path / "faces" / name).symlink_to(PHOTOS / name)
    arguments = [WEIGHTS, "--config", UNSEEN, "--pixels", "bgr"]
    assert run(*arguments, "--out", tmp_path / "model.onnx").returncode == 0
    tool = [sys.executable, ROOT / "tools" / "measure_threshold.py", tmp_path / "model.onnx", tmp_path / "faces", "13 people", tmp_path / "t.json"]
    measured = subprocess.run([str(word) for word in tool], capture_output=True, text=True, cwd=ROOT)
    assert measured.returncode == 0, measured.stderr
    found = json.loads((tmp_path / "t.json").read_text())
    assert not any(name.partition("@")[0] in (tmp_path / "t.json").read_text() for name in names)
    model = Model(str(tmp_path / "model.onnx"))
    rows = model.embed(np.stack([to_pixels(read_image(str(PHOTOS / n)), 64).transpose(1, 2, 0) for n in names]).astype(np.uint8))
    pairs = [(((rows[i] - rows[j]) ** 2).sum(), names[i].partition("@")[0] == names[j].partition("@")[0]) for i in range(len(names)) for j in range(i)]
    apart, together = sorted(d for d, same in pairs if not same), sorted(d for d, same in pairs if same)
    threshold = max(d for d, _ in pairs if d < apart[11])  # which accepts 11 of 11,232, and no more
    assert float(found["threshold"]) == pytest.approx(threshold, abs=1e-5)
    assert float(found["threshold_tar"]) == pytest.approx(np.mean([d <= threshold for d in together]), abs=2e-3)
    assert float(found["threshold_different"]) == pytest.approx(together[-1 - 85], abs=1e-5)  # of 858, 85 lie beyond it
    assert found["threshold_pairs"] == "858 same and 11232 different of 13 people"
    again = run(*arguments, "--out", tmp_path / "again.onnx", "--threshold", tmp_path / "t.json")
    assert again.returncode == 0 and Model(str(tmp_path / "again.onnx")).about["threshold"] == found["threshold"], again.stderr
    other = run(*arguments, "--out", tmp_path / "other.onnx", "--mirrored", "--threshold", tmp_path / "t.json")
    assert other.returncode == 1 and "about a model with the mirrored no, not yes" in other.stderr
