"""Prototxts and weights: stage rules, freezing, shapes; and the nets that come with the project."""

import faulthandler

import caffe
import numpy as np
import pytest
import yaml
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from tests.helpers import ROOT, TINY_NET
from tripletloss import config
from tripletloss.base.errors import InputError
from tripletloss.base.process import try_in_child
from tripletloss.formats import caffemodel
from tripletloss.layers.settings import parse_param_str
from tripletloss.net.definition import build, for_stage, read_net, write_prototxt
from tripletloss.net.deploy import open_deploy
from tripletloss.net.freezing import freeze, settle_frozen
from tripletloss.net.roles import margin_of
from tripletloss.net.settings import SELECT_STATISTICS, fill_settings, size_classifier
from tripletloss.net.weights import load_weights, match_weights, rename_classifier, shapes_of
from tripletloss.net.wiring import check_wiring, python_layer

RULES = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 } } }
layer { name: "s" type: "Power" bottom: "x" top: "s" include { stage: "softmax" } }
layer { name: "t" type: "Power" bottom: "x" top: "t" include { stage: "triplet" } }
layer { name: "not_s" type: "Power" bottom: "x" top: "not_s" include { not_stage: "softmax" } }
layer { name: "train_t" type: "Power" bottom: "x" top: "train_t" include { phase: TRAIN stage: "triplet" } }
layer { name: "either" type: "Power" bottom: "x" top: "either" include { stage: "softmax" } include { phase: TEST } }
layer { name: "both" type: "Power" bottom: "x" top: "both" include { stage: "softmax" stage: "triplet" } }
layer { name: "no_test" type: "Power" bottom: "x" top: "no_test" exclude { phase: TEST } }
layer { name: "no_t" type: "Power" bottom: "x" top: "no_t" exclude { stage: "triplet" } exclude { min_level: 1 } }
layer { name: "level" type: "Power" bottom: "x" top: "level" include { min_level: 1 } }
"""


def parse(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@pytest.mark.parametrize("stage", ["softmax", "triplet"])
def test_stage_rules_choose_what_caffe_itself_chooses(tmp_path, phase, stage):
    (tmp_path / "net.prototxt").write_text(RULES)
    ours = [layer.name for layer in for_stage(parse(RULES), phase, stage).layer]
    theirs = caffe.Net(str(tmp_path / "net.prototxt"), phase, stages=[stage])
    assert ours == [name for name in theirs._layer_names if "_split" not in name]


def test_freezing_stops_every_parameter_up_to_the_blob():
    net = for_stage(parse(TINY_NET), caffe.TRAIN, "triplet")
    counts = {"conv1": 2, "bn1": 3, "fc7": 2, "fc9_1": 2}
    before = net.SerializeToString()
    assert settle_frozen(net, counts, list(counts)) == (net, [])
    settled, frozen = settle_frozen(freeze(net, "fc7", counts, "net"), counts, list(counts))
    assert frozen == ["conv1", "bn1", "fc7"] and net.SerializeToString() == before
    layers = {layer.name: layer for layer in settled.layer}
    assert [[p.lr_mult for p in layers[name].param] for name in counts] == [[0, 0], [0, 0, 0], [0, 0], []]
    assert layers["bn1"].batch_norm_param.use_global_stats
    assert layers["drop7"].type == "Power"


def test_freezing_an_unknown_blob_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"FREEZE names the blob 'fc77', .* did you mean 'fc7'"):
        freeze(parse(TINY_NET), "fc77", {}, "net")


def test_a_net_that_an_earlier_version_wrote_into_a_runs_folder_can_be_trained_again(project):
    net = for_stage(parse(TINY_NET), caffe.TRAIN, "triplet")
    settings = config.load(str(project / "config.py")).stage("triplet")
    expected, _ = fill_settings(net, settings, "net")
    for layer in net.layer:
        if layer.type == "Python" and layer.python_param.layer in ("DataLayer", "TripletSelectLayer"):
            layer.python_param.param_str = "{first_iteration: 0, seed: 1}"
    assert fill_settings(net, settings, "net") == (expected, [])


def test_settings_fill_what_the_prototxt_leaves_out(project):
    net = for_stage(parse(TINY_NET), caffe.TRAIN, "triplet")
    net.layer[-1].python_param.param_str = "'margin': 0.7"
    settings = config.load(str(project / "config.py")).stage("triplet")
    net, decided = fill_settings(net, settings, "net")
    assert decided == [("MARGIN", 0.7, "tripletloss")]
    assert margins(net) == {"triplet_select": 0.7, "tripletloss": 0.7}
    assert list(net.layer[-2].top[3:]) == list(SELECT_STATISTICS)
    filled = parse_param_str(net.layer[0].python_param.param_str, python_layer(net.layer[0], "").keys, "")
    assert filled["batch_size"] == 12 and filled["train_list"] == str(project / "list.txt")


def margins(net):
    """Layer's name -> its margin, in a net whose settings are filled in."""
    found = {layer.name: yaml.safe_load(layer.python_param.param_str) for layer in net.layer if layer.type == "Python"}
    return {name: params["margin"] for name, params in found.items() if params and "margin" in params}


def with_margins(selecting, loss):
    """TINY_NET's triplet stage, whose last two layers have these margins of their own, if any."""
    net = for_stage(parse(TINY_NET), caffe.TRAIN, "triplet")
    for layer, margin in zip(net.layer[-2:], (selecting, loss), strict=True):
        layer.python_param.param_str = f"{{margin: {margin}}}" if margin else ""
    return net


@pytest.mark.parametrize(
    ("selecting", "loss", "both"), [(None, None, 0.2), (None, 0.7, 0.7), (0.7, None, 0.7), (0.7, 0.7, 0.7)]
)
def test_triplets_are_selected_with_the_margin_of_their_loss(project, selecting, loss, both):
    net = with_margins(selecting, loss)
    settings = config.load(str(project / "config.py")).stage("triplet")
    net, decided = fill_settings(net, settings, "net")
    assert margins(net) == {"triplet_select": both, "tripletloss": both}
    assert [name for _, _, name in decided] == [
        name for name, given in (("triplet_select", selecting), ("tripletloss", loss)) if given
    ]
    assert margin_of(net) == both


def test_two_margins_of_one_loss_are_refused_and_two_losses_may_have_two(project):
    settings = config.load(str(project / "config.py")).stage("triplet")
    with pytest.raises(InputError, match=r"'triplet_select' has the margin 0\.3 and layer 'tripletloss' has the margin 0\.7"):
        fill_settings(with_margins(0.3, 0.7), settings, "net")
    net = with_margins(None, 0.7)
    for layer in list(net.layer[-2:]):
        other = net.layer.add()
        other.CopyFrom(layer)
        other.name = f"other_{layer.name}"
        for names in (other.bottom, other.top):
            names[:] = [f"other_{name}" if name in ("anchor", "positive", "negative", "loss") else name for name in names]
    net.layer[-1].python_param.param_str = ""
    net.layer[-2].python_param.param_str = "{margin: 0.4}"
    net, _ = fill_settings(net, settings, "net")
    assert margins(net) == {
        "triplet_select": 0.7, "tripletloss": 0.7, "other_triplet_select": 0.4, "other_tripletloss": 0.4,
    }  # fmt: skip


@pytest.mark.parametrize(("written", "outputs"), [("", 9), ("num_output: 6", 6)])
def test_the_classifier_gets_one_output_per_identity_unless_the_prototxt_says_how_many(written, outputs):
    net = for_stage(parse(TINY_NET.replace("num_output: 6", written)), caffe.TRAIN, "softmax")
    net = size_classifier(net, 9)
    sizes = {layer.name: layer.inner_product_param.num_output for layer in net.layer if layer.type == "InnerProduct"}
    assert sizes == {"fc7": 16, "fc9": outputs}


def test_a_classifier_of_other_identities_than_the_weights_is_renamed_and_nothing_else():
    net = for_stage(parse(TINY_NET), caffe.TRAIN, "softmax")
    here = {"fc7": [(16, 200), (16,)], "fc9": [(6, 16), (6,)]}
    net, renamed = rename_classifier(net, here, {"fc7": [(17, 200), (17,)], "fc9": [(9, 16), (9,)]})
    assert renamed == {"fc9": "fc9_6"}
    assert "fc9_6" in [layer.name for layer in net.layer] and "fc9" not in [layer.name for layer in net.layer]
    for same in ({"fc7": here["fc7"]}, here, {"fc9": [(9, 17), (9,)]}):  # absent, equal, another feature: not renamed
        net = for_stage(parse(TINY_NET), caffe.TRAIN, "softmax")
        assert rename_classifier(net, here, same) == (net, {})


def test_weights_of_both_formats_tell_their_shapes(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
    )
    net = caffe.Net(str(path), caffe.TEST)
    net.params["ip"][0].data[...] = 7
    net.save(str(tmp_path / "w.caffemodel"))
    net.save_hdf5(str(tmp_path / "w.caffemodel.h5"))
    for name in ("w.caffemodel", "w.caffemodel.h5"):
        assert caffemodel.weight_shapes(str(tmp_path / name)) == {"ip": [(2, 3), (2,)]}
        again = caffe.Net(str(path), caffe.TEST)
        load_weights(again, str(tmp_path / name))
        assert (again.params["ip"][0].data == 7).all()


def test_weights_of_old_caffemodels_with_four_dimensions_match():
    assert match_weights({"fc": [(2, 3), (2,)]}, {"fc": [(1, 1, 2, 3), (1, 1, 1, 2)]}, "w", "n") == (["fc"], [])


def test_weights_that_do_not_fit_name_layer_and_shapes():
    with pytest.raises(InputError, match="layer 'fc' is 2x4 in the weights and 2x3 in the net: rename"):
        match_weights({"fc": [(2, 3)]}, {"fc": [(2, 4)]}, "w", "n")
    with pytest.raises(InputError, match="layer 'fc' is 2x4 and 2 in the weights and without parameters in the net: rename"):
        match_weights({"ip": [(3,)], "fc": []}, {"ip": [(3,)], "fc": [(2, 4), (2,)]}, "w", "n")
    with pytest.raises(InputError, match="no layer of w has the name"):
        match_weights({"fc": [(2, 3)]}, {"other": [(2, 4)]}, "w", "n")


def test_what_caffe_refuses_once_a_net_is_built_is_not_blamed_on_its_last_layer(tmp_path):
    source = (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
        'layer { name: "last" type: "ReLU" bottom: "y" top: "y" }'
    )
    (tmp_path / "one.prototxt").write_text(source)
    (tmp_path / "other.prototxt").write_text(source.replace("num_output: 2", "num_output: 4"))
    weights = str(tmp_path / "w.caffemodel")
    caffe.Net(str(tmp_path / "one.prototxt"), caffe.TEST).save(weights)

    def load():
        faulthandler.disable()  # pytest's would print how Caffe ends the child
        caffe.Net(str(tmp_path / "other.prototxt"), caffe.TEST).copy_from(weights)

    with pytest.raises(InputError, match=r"^w: Caffe stopped: Cannot copy param 0 weights from layer 'ip'"):
        try_in_child(load, "w")


def test_layers_without_parameters_are_neither_loaded_nor_fresh():
    net = caffe.Net(str(ROOT / "deploy.prototxt"), caffe.TEST)
    shapes = shapes_of(net)
    assert shapes["fc7"] == [(256, 4096)] and shapes["relu1"] == []
    assert {name for name in shapes if shapes[name]} == set(net.params)
    assert match_weights(shapes, {"fc7": [(256, 4096)]}, "w", "n") == (
        ["fc7"], [name for name in net.params if name != "fc7"]
    )  # fmt: skip


def own_projection(net):
    """The edit that train.prototxt's comment describes: the projection's layer without the sum."""
    layers = {layer.name: layer for layer in net.layer}
    net.layer.remove(layers["residual"])
    for name in {"embedding", "embedding_sumsq"} & set(layers):
        layers[name].bottom[0] = "fc9_1"
    layers["fc9_1"].inner_product_param.num_output = 20


def vgg_order(net):
    """The same for VGG-Face's order."""
    own_projection(net)
    for layer in [layer for layer in net.layer if layer.name.startswith("embedding")]:
        net.layer.remove(layer)


def facenet_order(net):
    """The same for FaceNet's order."""
    own_projection(net)
    for layer in [layer for layer in net.layer if layer.name.startswith("norm2")]:
        net.layer.remove(layer)
    next(layer for layer in net.layer if layer.name == "fc9_1").bottom[0] = "fc7"


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ORDERS = {  # the edit -> what the last blob is, from fc7 and the projection's weights
    None: lambda fc7, w: unit(unit(fc7) + unit(fc7) @ w.T),
    own_projection: lambda fc7, w: unit(unit(fc7) @ w.T),
    vgg_order: lambda fc7, w: unit(fc7) @ w.T,
    facenet_order: lambda fc7, w: unit(fc7 @ w.T),
}


@pytest.mark.parametrize("edit", ORDERS)
def test_embedding_of_the_deploy_net_equals_the_training_nets(tmp_path, edit):
    """Same weights, same images: what train.prototxt trains is what deploy.prototxt computes, in every order."""
    training, deploy = read_net(str(ROOT / "train.prototxt")), read_net(str(ROOT / "deploy.prototxt"))
    if edit:
        edit(training)
        edit(deploy)
    write_prototxt(deploy, str(tmp_path / "deploy.prototxt"))
    training = for_stage(training, caffe.TEST, "triplet")
    names = [layer.name for layer in training.layer]
    del training.layer[names.index("triplet_select") :]
    training.layer[0].CopyFrom(deploy.layer[0])
    write_prototxt(training, str(tmp_path / "training.prototxt"))
    ours = caffe.Net(str(tmp_path / "training.prototxt"), caffe.TEST)
    deployed = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    rng = np.random.default_rng(0)
    for name, blobs in ours.params.items():
        for blob in blobs:
            blob.data[...] = rng.normal(size=blob.data.shape) * 0.1 if name[:2] != "bn" else 1
    ours.save(str(tmp_path / "w.caffemodel"))
    deployed.copy_from(str(tmp_path / "w.caffemodel"))
    for net in (ours, deployed):
        net.blobs["data"].reshape(5, 3, 64, 64)
        net.blobs["data"].data[...] = np.random.default_rng(1).normal(size=(5, 3, 64, 64)) * 60
        net.forward()
    expected = ORDERS[edit](ours.blobs["fc7"].data, ours.params["fc9_1"][0].data)
    last = "fc9_1" if edit is vgg_order else "embedding"
    np.testing.assert_allclose(ours.blobs[last].data, expected, atol=1e-5)
    np.testing.assert_allclose(deployed.blobs[last].data, expected, atol=1e-5)


@pytest.mark.parametrize("stage", ["softmax", "triplet"])
def test_commenting_a_section_out_by_hand_leaves_the_other_stage(stage):
    """The way of 2015: no stage rules, one of the two marked sections gone."""
    text = (ROOT / "train.prototxt").read_text()
    head, softmax, triplet = (part for part in text.split("\n#== ") if not part.startswith("trunk"))
    trunk = next(part for part in text.split("\n#== ") if part.startswith("trunk"))
    section = softmax if stage == "softmax" else triplet
    by_hand = head + "\n#== " + trunk + "\n#== " + section.replace(f'include {{ stage: "{stage}" }}', "")
    ours = for_stage(parse(by_hand), caffe.TRAIN, "neither")
    assert list(ours.layer) == list(for_stage(parse(text), caffe.TRAIN, stage).layer)


INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }\n'
IP = 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }\n'
SECRET = "the first line of a file that is nobody's business"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (INPUT + IP + 'layer { name: "w" type: "HDF5Output" bottom: "data" bottom: "ip" hdf5_output_param { file_name: "FILE" } }', "layer 'w' writes a file"),
        ('layer { name: "r" type: "HDF5Data" top: "data" hdf5_data_param { source: "FILE" batch_size: 1 } }' + IP, "layer 'r' reads files"),
        ('layer { name: "r" type: "Data" top: "data" data_param { source: "FILE" batch_size: 1 } }' + IP, "layer 'r' reads files"),
        ('layer { name: "r" type: "ImageData" top: "data" top: "l" image_data_param { source: "FILE" } }' + IP, "layer 'r' "),
        ('layer { name: "r" type: "WindowData" top: "data" top: "l" window_data_param { source: "FILE" } }' + IP, "layer 'r' "),
        (INPUT + IP + 'layer { name: "r" type: "InfogainLoss" bottom: "ip" bottom: "ip" infogain_loss_param { source: "FILE" } }', "layer 'r' reads files"),
        (INPUT + 'layer { name: "r" type: "Python" top: "d" top: "l" python_param { module: "datalayer" layer: "DataLayer" '
         'param_str: "{train_list: FILE, imagepath: /, batches: shuffled}" } }' + IP, "layer 'r' reads files"),
        (INPUT + 'layer { name: "r" type: "Python" top: "d" top: "l" python_param { module: "tripletloss.layers" '
         'layer: "FeatureLayer" param_str: "{features: FILE, train_list: FILE, imagepath: /, batches: shuffled}" } }' + IP, "layer 'r' reads files"),
        (INPUT + 'layer { name: "p" type: "Python" bottom: "data" top: "p" python_param { module: "os" layer: "remove" } }', "would run the Python module 'os'"),
        (INPUT + 'layer { name: "p" type: "Python" bottom: "data" top: "p" python_param { module: "tripletloss.layers" layer: "MODULE" } }', "'MODULE' from the Python module 'tripletloss.layers', which fails: MODULE is not a caffe.Layer"),
        (INPUT + IP + IP, "layer 'ip' appears 2 times in this stage"),
        ('layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }' + IP, "must take one blob of images, N x 3 x S x S, through an Input layer, but it takes none"),
        (INPUT + INPUT.replace('"data"', '"more"') + IP, "but it takes data, more"),
        (INPUT.replace("dim: 8 dim: 8", "dim: 9 dim: 9") + IP, "with images of 8 x 8 pixels: Caffe stopped: Check failed"),
        (INPUT + IP, "has no blob 'embedding': --feature, or FEATURE in the config, must be one of data, ip"),
        (INPUT + IP + IP.replace('"ip"', '"other"'), "must be one of data, ip, other$"),  # not Caffe's data_data_0_split_0
        (INPUT + IP + 'layer { name: "sum" type: "Reduction" bottom: "ip" top: "embedding" }', "'embedding' has the shape () for 2 images: name one with one row per image"),
    ],
)  # fmt: skip
def test_a_deploy_net_that_is_none_is_refused_before_it_is_run(tmp_path, text, sentence):
    """What reads or writes files, other modules, more inputs than one: in a sentence that quotes no file."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "deploy.prototxt").write_text(text.replace("FILE", str(tmp_path / "secret.txt")) if '"FILE"' in text or " F," in text else text)
    with pytest.raises(InputError) as refusal:
        open_deploy(str(tmp_path / "deploy.prototxt"), 8, ["embedding"])
    assert sentence in f"{refusal.value}$" and SECRET not in str(refusal.value)
    assert (tmp_path / "secret.txt").read_text() == SECRET


def test_a_deploy_net_is_built_as_it_was_checked(tmp_path):
    """Not from the file again, which may be another by then, and by no other reading of its rules."""
    path, rules = tmp_path / "deploy.prototxt", ("phase: TRAIN", 'not_stage: ""')  # Caffe would include the second
    left_out = [IP.replace('"ip"', f'"ip{i}"').replace("} }", "} include { " + rule + " } }") for i, rule in enumerate(rules)]
    path.write_text(INPUT + IP + "".join(left_out))
    theirs = caffe.Net(str(path), caffe.TEST)
    assert list(theirs.params) == ["ip", "ip1"]
    deploy = open_deploy(str(path), 8, ["ip"])
    path.write_text("no net any more")
    assert deploy.shapes == {"data": [], "ip": [(4, 192), (4,)]}
    net = build(deploy.definition, caffe.TEST)
    assert list(net.blobs) == ["data", "ip"] and list(net.params) == ["ip"]


@pytest.mark.parametrize("stage", ["softmax", "triplet"])
def test_vgg_face_has_the_published_shapes(stage):
    folder = ROOT / "models" / "vgg_face"
    net = for_stage(read_net(str(folder / "train.prototxt")), caffe.TRAIN, stage)
    check_wiring(net, "vgg")
    convolutions = [layer.convolution_param.num_output for layer in net.layer if layer.type == "Convolution"]
    assert convolutions == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    outputs = {layer.name: layer.inner_product_param.num_output for layer in net.layer if layer.type == "InnerProduct"}
    head = {"fc9": 0} if stage == "softmax" else {"fc9_1": 256}
    assert outputs == {"fc6": 4096, "fc7": 4096, **head}
    trained = {layer.name for layer in net.layer}
    deployed = read_net(str(folder / "deploy.prototxt"))
    check_wiring(deployed, "vgg")
    assert not [layer.name for layer in deployed.layer if layer.type == "Python"]
    if stage == "triplet":
        assert {layer.name for layer in deployed.layer if layer.type in ("Convolution", "InnerProduct")} <= trained


def test_weights_as_large_as_vgg_faces_are_read(tmp_path):
    """Caffe ends the process at weights beyond its limit; VGG_FACE_16's are 553 MB."""
    text = (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 13900 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 10000 } }'
    )
    (tmp_path / "net.prototxt").write_text(text)
    path = tmp_path / "large.caffemodel"

    def save_and_read():
        caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST).save(str(path))
        load_weights(caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST), str(path))
        return path.stat().st_size

    try:
        assert try_in_child(save_and_read, "large weights") > 553_000_000
    finally:
        path.unlink(missing_ok=True)
