"""Files from a stranger: they run no code, reach no file outside of the folders named, and end in a sentence at worst."""

import contextlib
import os
import struct
import sys
import time
import zlib

import caffe
import cv2
import h5py
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import TINY_CONFIG, TINY_NET, empty_png, refused, replace, run_train, write_config
from tripletloss import config, layers
from tripletloss.base import process
from tripletloss.base.errors import InputError
from tripletloss.data import images
from tripletloss.data.headers import size_of
from tripletloss.data.lists import read_list
from tripletloss.data.pairs import read_pairs
from tripletloss.deploy.onnx_export import read_deploy
from tripletloss.formats import caffemodel
from tripletloss.formats.embeddings import load
from tripletloss.layers.settings import parse_param_str
from tripletloss.net.definition import open_net, read_net
from tripletloss.net.weights import weights_as_hdf5

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
        open_net(path, caffe.TRAIN, "softmax", [])
        open_net(path, caffe.TEST)

    only_input_errors(read)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("layer { name: 'a' }\n" + "layer {" * 20_000, "line 2: 51 brackets are open here"),
        ("x: " + "[" * 20_000, "line 1: 51 brackets are open here"),
        ('layer { name: "x" type: "ReLU" }\n' * 1_000_000, "has more than 10000 layers"),
        ("layer { x { " + "dim: 1 " * 1_000_000 + "} }", "or 200000 values"),
    ],
)
@pytest.mark.parametrize("read", [read_net, lambda path: read_deploy(path, "x")])
def test_a_prototxt_that_is_too_deep_or_too_long_is_refused_at_once(tmp_path, text, sentence, read):
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(InputError, match=sentence):
        read(str(path))
    assert time.perf_counter() - start < 10  # it was 80 s; now it is less than one


def test_braces_in_comments_and_texts_are_no_levels(tmp_path):
    (tmp_path / "net.prototxt").write_text("# " + "{" * 99 + '\nlayer { name: "' + "{" * 99 + "\\\"{\" type: '" + "[" * 99 + "' }")
    [layer] = read_net(str(tmp_path / "net.prototxt")).layer
    assert layer.name == "{" * 99 + '"{' and layer.type == "[" * 99


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_list(path, "."), config.load, lambda path: read_pairs(path, "."), read_net,
        caffemodel.weight_shapes, images.read_image,
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/dev/zero", "pipe", "large"])
def test_what_never_ends_or_is_too_large_is_not_read(tmp_path, read, path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match=r"cannot be read.*\((it is not a regular file|it has 1099511627776 bytes)"):
        read(str(tmp_path / path))


def weights():
    net = caffe_pb2.NetParameter(name="net")
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
@given(content=mutated(weights_as_hdf5(weights())))
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
    with pytest.raises(InputError, match=r"e\.h5 is damaged: reading it took too long"):
        load(str(path))


GOOD_IMAGES = [cv2.imencode(kind, np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))[1].tobytes()
               for kind in (".jpg", ".png", ".bmp", ".webp", ".tiff")]  # fmt: skip


@MANY
@given(content=st.one_of([mutated(good) for good in GOOD_IMAGES]))
def test_images(content):
    only_input_errors(images.decode, content, "here")


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".pgm"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (300, 7), (129, 64)])
def test_the_size_in_the_header_is_that_of_the_picture(kind, shape):
    picture = np.random.default_rng(0).integers(0, 255, shape if kind == ".pgm" else (*shape, 3), np.uint8)
    content = cv2.imencode(kind, picture)[1].tobytes()
    assert size_of(content) == shape[::-1]
    assert images.decode(content, "here").shape[:2] == shape
    if kind == ".webp":
        assert size_of(cv2.imencode(kind, picture, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()) == shape[::-1]  # lossless
    if kind == ".jpg":
        assert size_of(cv2.imencode(kind, picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()) == shape[::-1]


@MANY
@given(content=st.one_of([mutated(good) for good in GOOD_IMAGES]))
def test_opencv_decodes_no_more_pixels_than_the_header_says(content):
    size = size_of(content)
    with contextlib.suppress(cv2.error):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert not size or picture is None or picture.shape[0] * picture.shape[1] <= size[0] * size[1]


def empty_tiff(side, first_width):
    """A black picture that has two tags for its width: OpenCV's decoder goes by the first, others by the last."""
    pixels = zlib.compress(bytes(side * side), 9)
    tags = [
        (256, first_width), (256, 10), (257, side), (258, 8), (259, 8), (262, 1), (273, 146), (277, 1), (278, side),
        (279, len(pixels)), (284, 1),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def test_a_header_with_two_sizes_counts_as_the_larger():
    assert cv2.imdecode(np.frombuffer(empty_tiff(64, 64), np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
    assert size_of(empty_tiff(64, 64)) == (64, 64)
    with pytest.raises(InputError, match="has 20000 x 20000 pixels"):
        images.decode(empty_tiff(20000, 20000), "here")


PATCHES = {  # format -> for each of width and height, where the header has it and how
    ".png": [(16, ">I"), (20, ">I")], ".bmp": [(18, "<i"), (22, "<i")], ".jpg": [(-2, ">H"), (-4, ">H")],
}  # fmt: skip


@pytest.mark.parametrize("kind", PATCHES)
def test_an_image_whose_header_claims_too_many_pixels_is_not_decoded(kind):
    content = bytearray(cv2.imencode(kind, np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    for at, form in PATCHES[kind]:
        at = content.index(b"\xff\xc0") + 9 + at if at < 0 else at
        content[at : at + struct.calcsize(form)] = struct.pack(form, 30000)
    with pytest.raises(InputError, match="has 30000 x 30000 pixels, but at most 134217728 are read"):
        images.decode(bytes(content), "here")


@pytest.mark.parametrize(
    "header",
    [
        b"P6\n60000 60000\n255\n", b"P5 # 9 9\n60000\n#\n60000 255\n",
        b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + (59999).to_bytes(3, "little") * 2,
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2) + b"".join(struct.pack("<HHQQ", tag, 4, 1, 60000) for tag in (256, 257)),
        b"MM\0*" + struct.pack(">IH", 8, 2) + b"".join(struct.pack(">HHII", tag, 4, 1, 60000) for tag in (256, 257)),
    ],
)  # fmt: skip
def test_every_format_has_the_limit(header):
    with pytest.raises(InputError, match="has 60000 x 60000 pixels"):
        images.decode(header + b"x" * 100, "here")


@pytest.mark.parametrize("content", [b"#?RADIANCE\n", b"\x76\x2f\x31\x01", b"GIF89a\xff\xff\xff\xff", b"\x59\xa6\x6a\x95"])
def test_formats_whose_headers_are_not_read_are_not_decoded(content):
    with pytest.raises(InputError, match="is not an image that can be decoded"):
        images.decode(content + b"x" * 100, "here")


def test_a_data_worker_refuses_a_picture_of_gigabytes(project):
    (project / "images" / "person0@0.jpg").write_bytes(empty_png(30000))
    write_config(project, WORKERS=2)
    refused(run_train(project, "--stage", "softmax"), "person0@0.jpg has 30000 x 30000 pixels")




@pytest.mark.parametrize("name", ["../images/person0@0.jpg", "/etc/hostname", "  /etc/hostname", "a/../../person0@0.jpg"])
def test_a_list_names_no_image_outside_of_its_folder(project, name):
    replace(project / "list.txt", "person0@0.jpg 0", f"{name} 0")
    with pytest.raises(InputError, match=r"line 1: .* is outside the image folder"):
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
    refused(run_train(project, "--stage", "softmax"), "which is outside the prototxt's folder and IMAGEPATH")


def test_a_layer_writes_no_file(project):
    layer = 'layer { name: "x" type: "HDF5Output" bottom: "data" bottom: "labels" hdf5_output_param { file_name: "x.h5" } }'
    text = (project / "net.prototxt").read_text()
    (project / "net.prototxt").write_text(text + layer)
    refused(run_train(project, "--stage", "softmax"), "layer 'x' writes a file")


@pytest.mark.parametrize("param", ["train_list: /etc/passwd", "imagepath: /etc"])
def test_a_data_layer_names_no_folder_of_its_own_outside(project, param):
    replace(project / "net.prototxt", 'layer: "DataLayer"', f'layer: "DataLayer" param_str: "{{{param}}}"')
    refused(run_train(project, "--stage", "softmax"), "which is outside the folders that config.py names")


def test_a_net_that_asks_for_more_memory_than_there_is_ends_in_a_sentence(project):
    replace(project / "net.prototxt", "inner_product_param { num_output: 16", "inner_product_param { num_output: 2000000000")
    refused(run_train(project, "--stage", "softmax"), "net.prototxt: ")


def test_a_config_is_not_run(project):
    write_config(project)
    with open(project / "config.py", "a") as file:
        file.write(f"SEED = open({str(project / 'made')!r}, 'w')\n")
    refused(run_train(project), "SEED must be a plain value")
    assert not (project / "made").exists()
