"""The layers inside real Caffe nets: gradients, loss weights, names and settings of the 2015 toolkit."""

import re

import caffe
import numpy as np
import pytest

from tests.helpers import ROOT
from tripletloss import layers
from tripletloss.base.errors import InputError
from tripletloss.core.distances import squared_distances
from tripletloss.data.images import Preprocessing, read_image, to_blob
from tripletloss.data.lists import read_list
from tripletloss.layers.settings import PROCESS_KEYS

ROWS, SIZE = 12, 4
LABELS = np.repeat([0, 1, 2], 4)


def make_net(tmp_path, text):
    path = tmp_path / "net.prototxt"
    path.write_text("force_backward: true\n" + text)
    return caffe.Net(str(path), caffe.TRAIN)


def inputs(*shapes):
    tops = " ".join(f'top: "{name}"' for name, _ in shapes)
    dims = " ".join("shape { " + " ".join(f"dim: {d}" for d in shape) + " }" for _, shape in shapes)
    return f'layer {{ name: "in" type: "Input" {tops} input_param {{ {dims} }} }}\n'


def python(name, layer, bottoms, tops, param_str="", module="tripletloss.layers", more=""):
    return (
        f'layer {{ name: "{name}" type: "Python" '
        + " ".join(f'bottom: "{b}"' for b in bottoms) + " " + " ".join(f'top: "{t}"' for t in tops)
        + f' python_param {{ module: "{module}" layer: "{layer}" param_str: "{param_str}" }} {more} }}\n'
    )  # fmt: skip


def chain(selection="semi-hard", margin=0.4, weight=1.0, tops=("a", "p", "n"), labels=True, old_names=False):
    select, loss = ("tripletselectlayer", "tripletlosslayer") if old_names else ("tripletloss.layers",) * 2
    shapes = [("x", (ROWS, SIZE)), ("labels", (ROWS,))] if labels else [("x", (ROWS, SIZE))]
    own = f"{{selection: {selection}, margin: {margin}}}" if not old_names else ""
    return (
        inputs(*shapes)
        + python("select", "TripletSelectLayer", [n for n, _ in shapes], tops, own, select)
        + python("loss", "TripletLayer" if old_names else "TripletLossLayer", ["a", "p", "n"], ["loss"],
                 f"'margin': {margin}", loss, f"loss_weight: {weight}")
    )  # fmt: skip


def run(net, x, labels=None):
    net.blobs["x"].data[...] = x
    if labels is not None:
        net.blobs["labels"].data[...] = labels
    net.forward()
    net.backward()
    return float(net.blobs["loss"].data), net.blobs["x"].diff.copy()


def picked(net):
    """Which rows of its bottom the selection took, in order; nothing for a net without a selection."""
    rows = net.blobs["norm2" if "norm2" in net.blobs else "x"].data
    return [tuple(map(tuple, (net.blobs[t].data[:, None] == rows).all(axis=2))) for t in "apn" if t in net.blobs]


def differences(net, x, labels=None, step=1e-3):
    """dL/dx by central differences of Caffe's own forward passes; NaN where the selection jumps in between."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            net.blobs["x"].data[...] = moved
            if labels is not None:
                net.blobs["labels"].data[...] = labels
            sides.append((float(net.forward()["loss"]), picked(net)))
        (up, taken), (down, also_taken) = sides
        gradient[index] = (up - down) / (2 * step) if taken == also_taken else np.nan
    return gradient


def spread(seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, SIZE)).astype(np.float32) * 0.5


@pytest.mark.parametrize("selection", ["semi-hard", "batch-hard", "batch-all"])
@pytest.mark.parametrize("seed", [0, 1])
def test_select_and_loss_have_the_gradient_of_finite_differences_in_two_iterations(tmp_path, selection, seed):
    net = make_net(tmp_path, chain(selection))
    for iteration in (0, 1):
        x = spread(10 * seed + iteration)
        loss, diff = run(net, x, LABELS)
        assert loss > 0 and np.abs(diff).max() > 0
        expected = differences(net, x, LABELS)
        smooth = np.isfinite(expected)
        assert smooth.mean() > 0.7
        np.testing.assert_allclose(diff[smooth], expected[smooth], atol=2e-3)
        run(net, x, LABELS)


def test_gradients_do_not_leak_from_iteration_to_iteration(tmp_path):
    net = make_net(tmp_path, chain("batch-hard"))
    first = run(net, spread(), LABELS)[1]
    for _ in range(3):
        np.testing.assert_array_equal(run(net, spread(), LABELS)[1], first)
    # A far-off cluster per identity leaves nothing active: the gradient must be written as zeros.
    easy = np.repeat(np.eye(3, SIZE, dtype=np.float32) * 100, 4, axis=0)
    loss, diff = run(net, easy, LABELS)
    assert loss == 0 and not diff.any()


def test_distance_weighted_selection_draws_anew_each_iteration_and_the_same_in_each_run(tmp_path):
    x = spread() / np.linalg.norm(spread(), axis=1, keepdims=True)
    runs = []
    for _ in range(2):
        net = make_net(tmp_path, chain("distance-weighted", margin=4))
        runs.append([run(net, x, LABELS)[1] for _ in range(3)])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[0][1]) and np.abs(runs[0][0]).max() > 0
    with pytest.raises(InputError, match=r"embeddings of length one, but one has 2: put Norm2Layer last.*norm2$"):
        run(net, 2 * x, LABELS)


@pytest.mark.parametrize("selection", ["semi-hard", "batch-hard", "batch-all"])
def test_the_loss_of_a_whole_batch_is_that_of_selection_and_loss(tmp_path, selection):
    both = make_net(tmp_path, chain(selection, weight=0.5, tops=("a", "p", "n", "share", "d_ap", "d_an")))
    text = inputs(("x", (ROWS, SIZE)), ("labels", (ROWS,))) + python(
        "loss", "BatchTripletLossLayer", ["x", "labels"], ["loss", "share", "d_ap", "d_an"],
        f"{{selection: {selection}, margin: 0.4}}", more="loss_weight: 0.5 loss_weight: 0 loss_weight: 0 loss_weight: 0",
    )  # fmt: skip
    (tmp_path / "one").mkdir()
    one = make_net(tmp_path / "one", text)
    for seed in (0, 1):
        (loss, diff), (mine, gradient) = run(both, spread(seed), LABELS), run(one, spread(seed), LABELS)
        assert loss > 0 and mine == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(gradient, diff, atol=1e-6)
        for name in ("share", "d_ap", "d_an"):
            assert float(one.blobs[name].data) == pytest.approx(float(both.blobs[name].data), rel=1e-5)
    loss, diff = run(one, spread(), np.arange(ROWS))
    assert loss == 0 and not diff.any()


def test_a_mini_batch_that_rank_paired_cannot_divide_is_refused(tmp_path):
    net = make_net(tmp_path, chain("rank-paired", labels=False).replace(f"dim: {ROWS}", f"dim: {ROWS + 1}"))
    with pytest.raises(InputError) as refusal:
        net.forward()
    assert str(refusal.value) == "TripletSelectLayer: rank-paired needs a mini-batch of three equal parts, not of 13 rows"


def test_rank_paired_chain_learns_from_learning_triplets_only(tmp_path):
    net = make_net(tmp_path, chain("rank-paired", margin=50, labels=False))
    x = spread()
    x[:4] = x[0]
    x[8:] += 2  # every negative is farther than every positive: all learn
    loss, diff = run(net, x)
    assert loss > 0
    np.testing.assert_allclose(diff, differences(net, x, step=1e-2), atol=2e-2)
    x[8:] = x[0] + 0.01  # now none does; the loss still counts them
    loss, diff = run(net, x)
    assert loss > 20 and not diff.any()


@pytest.mark.parametrize("weight", [0.5, 3])
def test_loss_weight_scales_loss_and_gradient(tmp_path, weight):
    one = run(make_net(tmp_path, chain("batch-all")), spread(), LABELS)[1]
    other = run(make_net(tmp_path, chain("batch-all", weight=weight)), spread(), LABELS)[1]
    np.testing.assert_allclose(other, weight * one, rtol=1e-5, atol=1e-7)


def test_a_batch_without_triplets_costs_nothing_and_the_next_one_learns(tmp_path):
    net = make_net(tmp_path, chain("semi-hard"))
    loss, diff = run(net, spread(), np.arange(ROWS))
    assert loss == 0 and not diff.any() and net.blobs["a"].data.shape == (0, SIZE)
    loss, diff = run(net, spread(), LABELS)
    assert loss > 0 and diff.any()


def test_statistics_tops_tell_the_active_share_and_mean_distances(tmp_path):
    tops = ("a", "p", "n", "active_share", "d_ap", "d_an")
    net = make_net(tmp_path, chain("batch-hard", tops=tops))
    run(net, spread(), LABELS)
    a, p, n = (net.blobs[name].data for name in "apn")
    d_ap, d_an = ((a - p) ** 2).sum(axis=1), ((a - n) ** 2).sum(axis=1)
    got = [float(net.blobs[name].data) for name in tops[3:]]
    np.testing.assert_allclose(got, [np.mean(d_ap + 0.4 > d_an), d_ap.mean(), d_an.mean()], rtol=1e-5)


@pytest.mark.parametrize("layer", ["TripletLossLayer", "BatchTripletLossLayer", "SoftmaxWithLoss"])
def test_losses_and_statistics_have_the_shape_of_caffes_own_losses(tmp_path, layer):
    """A loss is one number: float(net.blobs["loss"].data) works, and the net's loss is the sum of such numbers."""
    more = "loss_weight: 0.5" + " loss_weight: 0" * 3
    text = {
        "TripletLossLayer": chain("batch-all", weight=0.5, tops=("a", "p", "n", "share", "d_ap", "d_an")),
        "BatchTripletLossLayer": inputs(("x", (ROWS, SIZE)), ("labels", (ROWS,)))
        + python("loss", layer, ["x", "labels"], ["loss", "share", "d_ap", "d_an"], "{selection: batch-all}", more=more),
        "SoftmaxWithLoss": inputs(("x", (ROWS, SIZE)), ("labels", (ROWS,)))
        + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "labels" top: "loss" loss_weight: 0.5 }',
    }[layer]
    net = make_net(tmp_path, text)
    for _ in range(3):  # reshaped before each pass, the top keeps the weight in its diff
        loss, diff = run(net, spread(), LABELS)
        assert loss > 0 and np.abs(diff).max() > 0
        assert net.blobs["loss"].diff == 0.5
    for name in {"loss", "share", "d_ap", "d_an"} & set(net.blobs):
        assert net.blobs[name].data.shape == ()


def test_a_data_layers_seconds_are_one_number(project):
    text = data_layer(project).replace('top: "labels"', 'top: "labels" top: "seconds"')
    net = make_net(project, text)
    net.forward()
    assert net.blobs["seconds"].data.shape == () and 0 < float(net.blobs["seconds"].data) < 60


def test_embeddings_that_are_not_numbers_stop_with_a_sentence(tmp_path):
    net = make_net(tmp_path, chain())
    x = spread()
    x[3, 1] = np.nan
    with pytest.raises(InputError, match="row 3 of the embeddings"):
        run(net, x, LABELS)


def test_norm2_has_the_gradient_of_finite_differences_in_two_iterations(tmp_path):
    text = (
        inputs(("x", (5, SIZE, 2, 1)), ("t", (5, SIZE, 2, 1)))
        + python("norm2", "Norm2Layer", ["x"], ["norm2"], module="norm2layer")
        + 'layer { name: "l" type: "EuclideanLoss" bottom: "norm2" bottom: "t" top: "loss" }\n'
    )
    net = make_net(tmp_path, text)
    rng = np.random.default_rng(0)
    for _ in range(2):
        net.blobs["t"].data[...] = rng.normal(size=(5, SIZE, 2, 1))
        x = rng.normal(size=(5, SIZE, 2, 1)).astype(np.float32)
        _, diff = run(net, x)
        np.testing.assert_allclose(np.linalg.norm(net.blobs["norm2"].data.reshape(5, -1), axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(diff, differences(net, x, step=1e-2), atol=2e-3)


COSINE = (
    inputs(("x", (ROWS, SIZE)), ("labels", (ROWS,)))
    + python("fc9", "CosineLayer", ["x", "labels"], ["scores"], "{identities: 3, cosine_scale: 6, seed: 4}")
    + 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "scores" bottom: "labels" top: "loss" }\n'
)


def test_cosine_scores_are_those_of_a_plain_loop(tmp_path):
    net = make_net(tmp_path, COSINE)
    x = spread()
    run(net, x, LABELS)
    w = net.params["fc9"][0].data
    for i in range(ROWS):
        for j in range(3):
            cosine = x[i] @ w[j] / np.linalg.norm(x[i]) / np.linalg.norm(w[j])
            expected = 6 * (cosine - (0.15 if LABELS[i] == j else 0))
            assert net.blobs["scores"].data[i, j] == pytest.approx(expected, abs=1e-5)


def test_cosine_layer_has_the_gradients_of_finite_differences_in_two_iterations(tmp_path):
    net = make_net(tmp_path, COSINE)
    weights = net.params["fc9"][0]
    for iteration in (0, 1):
        x = spread(iteration)
        net.clear_param_diffs()
        _, diff = run(net, x, LABELS)
        np.testing.assert_allclose(diff, differences(net, x, LABELS, step=1e-2), rtol=5e-3, atol=2e-3)
        got, start = weights.diff.copy(), weights.data.copy()
        net.blobs["x"].data[...] = x
        for index in np.ndindex(got.shape):
            losses = []
            for step in (1e-2, -1e-2):
                weights.data[...] = start
                weights.data[index] += step
                losses.append(float(net.forward()["loss"]))
            assert got[index] == pytest.approx((losses[0] - losses[1]) / 2e-2, abs=2e-3)
        weights.data[...] = start
        run(net, x, LABELS)  # a second backward adds to the parameter's gradient, which Caffe clears
        np.testing.assert_allclose(weights.diff, 2 * got, rtol=1e-5)


def test_cosine_layer_refuses_a_label_without_a_class(tmp_path):
    net = make_net(tmp_path, COSINE)
    with pytest.raises(InputError, match="there is a label 3, but the classes are 0 to 2"):
        run(net, spread(), LABELS + 1)


def test_facenets_order_has_gradients_down_to_the_projection(tmp_path):
    text = (
        inputs(("x", (ROWS, SIZE)), ("labels", (ROWS,)))
        + 'layer { name: "fc9_1" type: "InnerProduct" bottom: "x" top: "fc9_1" inner_product_param { num_output: 3 '
        'weight_filler { type: "gaussian" std: 1 } } }\n'
        + python("norm2", "Norm2Layer", ["fc9_1"], ["norm2"])
        + chain("batch-hard").replace('bottom: "x"', 'bottom: "norm2"').split("\n", 1)[1]
    )
    caffe.set_random_seed(1)
    net = make_net(tmp_path, text)
    x = spread()
    _, diff = run(net, x, LABELS)
    assert np.abs(net.params["fc9_1"][0].diff).max() > 0
    expected = differences(net, x, LABELS)
    smooth = np.isfinite(expected)
    assert smooth.mean() > 0.7
    np.testing.assert_allclose(diff[smooth], expected[smooth], atol=2e-3)


def test_names_and_settings_of_the_2015_toolkit_work(tmp_path):
    net = make_net(tmp_path, chain("rank-paired", margin=0.2, labels=False, old_names=True))
    x = spread()
    loss, _ = run(net, x)
    d = squared_distances(x)
    positives, negatives = sorted(d[0, 4:8], reverse=True), sorted(d[0, 8:], reverse=True)
    picked = zip(net.blobs["p"].data, net.blobs["n"].data, strict=True)
    for (p, n), d_ap, d_an in zip(picked, positives, negatives, strict=True):
        np.testing.assert_allclose([((p - x[0]) ** 2).sum(), ((n - x[0]) ** 2).sum()], [d_ap, d_an], rtol=1e-4)
    assert loss > 0


def data_layer(project, module="tripletloss.layers", **settings):
    given = {"train_list": project / "list.txt", "imagepath": project / "images", "batches": "shuffled",
             "batch_size": 5, "image_size": 12, "mirror": "false", **settings}  # fmt: skip
    param_str = "{" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"
    return python("data", "DataLayer", [], ["data", "labels"], param_str, module)


@pytest.mark.parametrize("module", ["tripletloss.layers", "datalayer"])
def test_data_layer_shows_the_images_of_its_list(project, module):
    net = make_net(project, data_layer(project, module))
    listed = read_list(str(project / "list.txt"), str(project / "images"))
    means = [102.9801, 115.9465, 122.7717]
    known = [to_blob(read_image(listed.path(i)), Preprocessing(0, 12, means)) for i in range(24)]
    seen = []
    for _ in range(5):
        net.forward()
        assert net.blobs["data"].data.shape == (5, 3, 12, 12) and net.blobs["labels"].data.shape == (5,)
        for blob, label in zip(net.blobs["data"].data, net.blobs["labels"].data, strict=True):
            number = next(i for i in range(24) if np.array_equal(known[i], blob))
            assert listed.labels[number] == label
            seen.append(number)
    assert sorted(seen[:24]) == list(range(24))


def test_data_layer_makes_anchor_batches_whose_copies_are_equal(project):
    net = make_net(project, data_layer(project, batches="anchor", batch_size=9, mirror="true", crop_jitter=0.3))
    for _ in range(4):
        net.forward()
        data, labels = net.blobs["data"].data, net.blobs["labels"].data
        assert np.array_equal(data[0], data[1]) and np.array_equal(data[0], data[2])
        assert (labels[:6] == labels[0]).all() and (labels[6:] != labels[0]).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (python("l", "TripletLossLayer", ["x", "x", "x"], ["l"], "{margn: 0.2}"), "margn: did you mean margin"),
        (python("l", "TripletLossLayer", ["x", "x", "x"], ["l"], "{margin: big}"), "MARGIN is 'big'"),
        (python("l", "TripletLossLayer", ["x", "x", "x"], ["l"], "0.2"), "is not a YAML mapping"),
        (python("l", "TripletLossLayer", ["x", "x", "x"], ["l"], "!!python/object/apply:os.getcwd []"), "not a YAML"),
        (python("l", "TripletLossLayer", ["x", "x"], ["l"]), "takes anchors, positives and negatives"),
        (python("l", "TripletLossLayer", ["x", "x", "labels"], ["l"]), "differ in shape"),
        (python("l", "TripletSelectLayer", ["x"], ["a", "p", "n"], "{selection: semi-hard}"), "needs labels"),
        (python("l", "TripletSelectLayer", ["x", "labels"], ["a"]), "takes embeddings and labels"),
        (python("l", "TripletSelectLayer", ["labels", "x"], ["a", "p", "n"]), r"TripletSelectLayer: bottom 0 must be the embeddings, .* shape \(12,\): the order is `bottom: \"embeddings\" bottom: \"labels\"`"),
        (python("l", "TripletSelectLayer", ["x", "x"], ["a", "p", "n"]), r"bottom 1 must be one label for each of the 12 embeddings, but has the shape \(12, 4\)"),
        (python("l", "TripletSelectLayer", ["labels"], ["a", "p", "n"]), "bottom 0 must be the embeddings"),
        (python("l", "BatchTripletLossLayer", ["labels", "x"], ["l"]), "BatchTripletLossLayer: bottom 0 must be the embeddings"),
        (python("l", "CosineLayer", ["labels", "x"], ["l"], "{identities: 3}"), "CosineLayer: bottom 0 must be the features"),
        (python("l", "Norm2Layer", ["x", "x"], ["y"]), "takes one bottom and one top"),
        (python("l", "DataLayer", [], ["data", "l2"]), "param_str has no train_list"),
        (python("l", "DataLayer", [], ["data"]), "takes no bottom and two tops"),
    ],
)
def test_wrong_use_of_a_layer_is_told(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        make_net(tmp_path, inputs(("x", (ROWS, SIZE)), ("labels", (ROWS,))) + text)


def test_deploy_norm_equals_norm2_layer(tmp_path):
    """The native layers of deploy.prototxt compute what Norm2Layer does, rows of zeros included."""
    text = (ROOT / "deploy.prototxt").read_text()
    start = text.index('layer {\n  name: "norm2_sumsq"')
    native = text[start : text.index('layer {\n  name: "fc9_1"')]
    net = make_net(
        tmp_path,
        inputs(("fc7", (4, SIZE))) + native + python("ours", "Norm2Layer", ["fc7"], ["ours"]),
    )
    x = np.random.default_rng(0).normal(size=(4, SIZE)).astype(np.float32) * [[1e3], [1], [0], [1e-3]]
    net.blobs["fc7"].data[...] = x
    net.forward()
    np.testing.assert_allclose(net.blobs["norm2"].data, net.blobs["ours"].data, rtol=1e-5, atol=1e-7)


def test_the_documents_list_the_keys_of_every_layer():
    lines = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8").splitlines()
    written_by_train = {*PROCESS_KEYS, "mined", "broken_list"}
    for name in set(layers.__all__) - {"MODULE", "SelectingLayer", "start_at"}:
        [row] = [line for line in lines if line.startswith(f"| `{name}` |")]
        keys = re.findall(r"`(\w+)`", row)[1:]
        assert sorted(keys) == sorted(set(getattr(layers, name).keys) - written_by_train), name
