"""Files from a stranger: they run no code, reach no file outside of the folders named, and end in a sentence at worst."""

import os
import sys

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import TINY_CONFIG, TINY_NET, run_train, write_config
from tests.test_train import refused, replace
from tripletloss import config, layers
from tripletloss.base import process
from tripletloss.base.errors import InputError
from tripletloss.data import images
from tripletloss.dataset import read_list
from tripletloss.evaluate import read_pairs
from tripletloss.extract import load
from tripletloss.formats import caffemodel
from tripletloss.layers.settings import parse_param_str
from tripletloss.net import nets

MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mutated(good):
    """Damaged copies of a file: bytes replaced, left out, doubled, and the end cut off."""
    def damage(edits, end):
        content = bytearray(good)
        for place, value, kind in edits:
            at = place % max(len(content), 1)
            if kind == 0 and content:
                content[at] = value
            elif kind == 1:
                del content[at : at + 1 + value % 8]
            else:
                content[at:at] = content[at : at + 1 + value]
        return bytes(content[: len(content) * end // 100])

    edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 2)), min_size=1, max_size=12)
    return st.builds(damage, edits, st.integers(1, 100))


def only_input_errors(function, *arguments):
    try:
        function(*arguments)
    except InputError as error:
        assert "\n" not in str(error) or str(error).count("\n") < 5


@MANY
@given(content=mutated(b"ann@1.jpg 0\nann@2.jpg 0\nbob/3.jpg 1\n\n") | st.binary(max_size=200))
def test_lists(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    only_input_errors(read_list, str(tmp_path / "list.txt"), str(tmp_path), False)


@MANY
@given(text=mutated(b"{train_list: a, batches: shuffled, batch_size: 64, pixel_means: [1, 2, 3]}").map(lambda b: b.decode("latin-1")) | st.text(max_size=80))
def test_param_strs(text):
    only_input_errors(parse_param_str, text, layers.DataLayer.keys, "here")


GOOD_CONFIG = "\n".join(f"{name} = {value!r}" for name, value in TINY_CONFIG.items()).encode()


@MANY
@given(content=mutated(GOOD_CONFIG) | st.binary(max_size=200))
def test_configs(tmp_path, content):
    (tmp_path / "config.py").write_bytes(content)
    only_input_errors(config.load, str(tmp_path / "config.py"))


@MANY
@given(content=mutated(TINY_NET.encode()))
def test_prototxts(tmp_path, content):
    path = str(tmp_path / "net.prototxt")
    (tmp_path / "net.prototxt").write_bytes(content)

    def read():
        net = nets.for_stage(nets.read_net(path), nets.caffe.TRAIN, "softmax")
        nets.check_wiring(net, path)
        nets.check_files(net, path, [])

    only_input_errors(read)


def weights():
    net = nets.caffe_pb2.NetParameter(name="net")
    blob = net.layer.add(name="fc", type="InnerProduct").blobs.add()
    blob.shape.dim.extend([3, 4])
    blob.data.extend(range(12))
    return net.SerializeToString()


@MANY
@given(content=mutated(weights()))
def test_weights(tmp_path, content):
    path = tmp_path / "w.caffemodel"
    path.write_bytes(content)
    only_input_errors(caffemodel.weight_shapes, str(path))


@MANY
@given(content=mutated(nets.weights_as_hdf5(weights())))
def test_weights_in_hdf5(tmp_path, content):
    path = tmp_path / "w.caffemodel.h5"
    path.write_bytes(content)
    only_input_errors(caffemodel.weight_shapes, str(path))


def embeddings(path):
    with h5py.File(path, "w") as file:
        file["embeddings"], file["labels"] = np.eye(3, dtype=np.float32), np.arange(3)
        file.create_dataset("names", data=["a", "b", "c"], dtype=h5py.string_dtype())
        file.attrs.update(list="x", folder="x", feature="x", weights="x", weights_sha256="x", mirrored=False)
    return path.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_embeddings(tmp_path, data):
    path = tmp_path / "e.h5"
    path.write_bytes(data.draw(mutated(embeddings(path))))
    only_input_errors(load, str(path))


def test_embeddings_that_hdf5_never_comes_to_the_end_of(tmp_path, monkeypatch):
    """An object of the heap of strings whose size, rounded up and its header added, is 2^64, which is 0."""
    monkeypatch.setattr(process, "LEAST_SECONDS", 1)
    path = tmp_path / "e.h5"
    content = bytearray(embeddings(path))
    heap = content.index(b"GCOL")
    content[heap + 24 : heap + 32] = (2**64 - 16).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"e\.h5 is damaged: reading it takes too long"):
        load(str(path))


GOOD_IMAGES = [cv2.imencode(kind, np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))[1].tobytes()
               for kind in (".jpg", ".png", ".bmp", ".webp", ".tiff")]  # fmt: skip


@MANY
@given(content=st.one_of([mutated(good) for good in GOOD_IMAGES]))
def test_images(content):
    only_input_errors(images.decode, content, "here")


def test_a_small_image_that_asks_for_gigabytes_is_refused():
    header = b"P6\n60000 60000\n255\n" + b"x" * 100
    with pytest.raises(InputError, match="is no image that can be decoded"):
        images.decode(header, "here")


@pytest.mark.parametrize("name", ["../images/person0@0.jpg", "/etc/hostname", "  /etc/hostname", "a/../../person0@0.jpg"])
def test_a_list_names_no_image_outside_of_its_folder(project, name):
    replace(project / "list.txt", "person0@0.jpg 0", f"{name} 0")
    with pytest.raises(InputError, match=r"line 1: .* is outside of the image folder"):
        read_list(str(project / "list.txt"), str(project / "images"))


def test_pairs_name_no_image_outside_of_their_folder(tmp_path):
    (tmp_path / "pairs.txt").write_text("1\n../a 1 2\nb 1 c 1\n")
    with pytest.raises(InputError, match=r"line 2: '\.\./a' is outside"):
        read_pairs(str(tmp_path / "pairs.txt"), str(tmp_path))


@pytest.mark.parametrize("module", ["os", "this"])
def test_a_prototxt_runs_no_other_module(project, module):
    replace(project / "net.prototxt", 'module: "tripletloss.layers" layer: "Norm2Layer"', f'module: "{module}" layer: "x"')
    sys.modules.pop("this", None)
    refused(run_train(project, "--check", "--stage", "triplet"), f"would run the Python module '{module}'")
    assert "this" not in sys.modules


LAYERS = {
    "reads": 'layer {{ name: "x" type: "HDF5Data" top: "x" top: "y" hdf5_data_param {{ source: "{0}" batch_size: 1 }} }}',
    "means": 'layer {{ name: "x" type: "Data" top: "x" transform_param {{ mean_file: "{0}" }} }}',
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.txt"])
def test_a_layer_reads_no_file_outside_of_the_folders(project, kind, path):
    where = path if os.path.isabs(path) else str(project / path)
    (project / "net.prototxt").write_text(LAYERS[kind].format(where) + (project / "net.prototxt").read_text())
    refused(run_train(project, "--stage", "softmax"), "which is outside of the prototxt's folder and IMAGEPATH")


def test_a_layer_writes_no_file(project):
    layer = 'layer { name: "x" type: "HDF5Output" bottom: "data" bottom: "labels" hdf5_output_param { file_name: "x.h5" } }'
    text = (project / "net.prototxt").read_text()
    (project / "net.prototxt").write_text(text + layer)
    refused(run_train(project, "--stage", "softmax"), "layer 'x' writes a file")


@pytest.mark.parametrize("param", ["train_list: /etc/passwd", "imagepath: /etc"])
def test_a_data_layer_names_no_folder_of_its_own_outside(project, param):
    replace(project / "net.prototxt", 'layer: "DataLayer"', f'layer: "DataLayer" param_str: "{{{param}}}"')
    refused(run_train(project, "--stage", "softmax"), "which is outside of the folders that config.py names")


def test_a_net_that_asks_for_more_memory_than_there_is_ends_in_a_sentence(project):
    replace(project / "net.prototxt", "inner_product_param { num_output: 16", "inner_product_param { num_output: 2000000000")
    refused(run_train(project, "--stage", "softmax"), "net.prototxt: ")


def test_a_config_is_not_run(project):
    write_config(project)
    with open(project / "config.py", "a") as file:
        file.write(f"SEED = open({str(project / 'made')!r}, 'w')\n")
    refused(run_train(project), "SEED must be a plain value")
    assert not (project / "made").exists()
