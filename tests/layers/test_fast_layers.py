"""The fast CPU layers against Caffe's own layers, plain sums and finite differences."""

import itertools
import os
import subprocess
import sys

import caffe
import numpy as np
import pytest

from tests.helpers import ROOT
from tripletloss import config
from tripletloss.evaluation.embed import open_net

pytestmark = pytest.mark.skipif(not hasattr(caffe, "has_onednn"), reason="this Caffe was built without oneDNN")


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that makes a net of a text; fast=False makes it of Caffe's own layers. Blobs and weights are random."""
    def make(text, fast=True, force="true"):
        monkeypatch.setenv("CAFFE_ONEDNN", str(int(fast)))
        path = tmp_path / "net.prototxt"
        path.write_text(f"force_backward: {force}\n{text}")
        net = caffe.Net(str(path), caffe.TRAIN)
        fill(net, 0)
        return net
    return make


def fill(net, seed):
    """Fill inputs and weights with random numbers; BatchNorm gets a variance and a weight that are positive."""
    rng = np.random.default_rng(seed)
    for name in net.inputs:
        net.blobs[name].data[...] = rng.normal(size=net.blobs[name].data.shape)
    for name, blobs in net.params.items():
        for i, blob in enumerate(blobs):
            blob.data[...] = rng.normal(size=blob.data.shape)
            if net.layer_dict[name].type == "BatchNorm" and i:
                blob.data[...] = np.abs(blob.data) + 0.5


def run(net, seed=1, backward=1):
    """Forward, and backward from random gradients; copies of all outputs, gradients and weights."""
    rng = np.random.default_rng((seed, 1))  # not the numbers of fill
    net.forward()
    diffs = {name: rng.normal(size=net.blobs[name].data.shape) for name in net.outputs}
    for _ in range(backward):
        net.backward(**diffs)
    found = {f"{name} data": net.blobs[name].data.copy() for name in net.blobs}
    found |= {f"{name} diff": net.blobs[name].diff.copy() for name in net.inputs}
    for name, blobs in net.params.items():
        for i, blob in enumerate(blobs):
            found[f"{name} {i} data"], found[f"{name} {i} diff"] = blob.data.copy(), blob.diff.copy()
    return found


def far(found, wanted, scale=None):
    """The largest difference, relative to the largest number that is wanted, or to a scale."""
    return np.abs(found - wanted).max(initial=0) / max(scale or np.abs(wanted).max(initial=0), 1e-30)


def assert_agree(found, wanted, tolerance=1e-5):
    for name in wanted:
        assert found[name].shape == wanted[name].shape
        assert far(found[name], wanted[name]) <= tolerance, name


def inputs(*shapes):
    tops = " ".join(f'top: "x{i}"' for i in range(len(shapes)))
    dims = " ".join("shape { " + " ".join(f"dim: {d}" for d in shape) + " }" for shape in shapes)
    return f'layer {{ name: "in" type: "Input" {tops} input_param {{ {dims} }} }}\n'


def layer(kind, bottoms, top, parameters="", name="layer"):
    """One layer. bottoms: names, with spaces between them."""
    named = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {named} top: "{top}" {parameters} }}\n'


def convolution(shape, out, kernel, more="", bottom="x0", top="y", name="conv"):
    sizes = "kernel_h: {} kernel_w: {}".format(*kernel) if isinstance(kernel, tuple) else f"kernel_size: {kernel}"
    start = inputs(shape) if bottom == "x0" else ""
    return start + layer("Convolution", bottom, top, f"convolution_param {{ num_output: {out} {sizes} {more} }}", name)


def random_convolution(rng):
    """The text of a convolution whose every parameter is drawn; Winograd's is among them."""
    if rng.random() < 0.3:
        channels, out = rng.choice([16, 24, 32, 48], 2)
        return convolution((rng.integers(4, 9), channels, *rng.integers(9, 18, 2)), out, 3, "pad: 1")
    group = int(rng.choice([1, 1, 1, 2, 3]))
    channels, out = group * rng.choice([1, 3, 5, 8, 16, 17, 32], 2)
    if rng.random() < 0.1:
        group = out = channels
    kernel = tuple(rng.choice([1, 2, 3, 5], 2)) if rng.random() < 0.3 else int(rng.choice([1, 3, 3, 5, 7]))
    dilation = int(rng.choice([1, 1, 1, 2, 3]))
    size = rng.integers(dilation * (np.max(kernel) - 1) + 1, 24, 2)
    more = (f"stride: {rng.choice([1, 1, 2, 3])} pad: {rng.integers(0, 3)} dilation: {dilation} group: {group} "
            f"bias_term: {str(rng.random() < 0.6).lower()}")
    return convolution((rng.integers(1, 6), channels, *size), out, kernel, more)


@pytest.mark.parametrize("seed", range(8))
def test_convolution_of_any_shape_is_caffes(build, seed):
    rng = np.random.default_rng(seed)
    same_bits = []
    for _ in range(25):
        text = random_convolution(rng)
        found, wanted = (run(build(text, fast)) for fast in (True, False))
        # A sum over all images that cancels out is as exact as its terms, not as its result.
        terms = np.abs(np.random.default_rng((1, 1)).normal(size=wanted["y data"].shape)).sum((0, 2, 3)).max()
        bias, own_bias = found.pop("conv 1 diff", np.zeros(1)), wanted.pop("conv 1 diff", np.zeros(1))
        assert far(bias, own_bias, terms) <= 1e-6, text
        for name in wanted:
            assert far(found[name], wanted[name]) <= 1e-5, (name, text)
        same_bits.append(np.array_equal(found["y data"], wanted["y data"]))
    assert not all(same_bits)  # oneDNN was at work


@pytest.mark.parametrize(("shape", "own"), [((1, 64, 4, 7), True), ((1, 64, 4, 8), False), ((2, 64, 4, 4), False)])
def test_weights_are_not_reordered_for_few_outputs(build, shape, own):
    text = convolution(shape, 48, 3, "pad: 1")
    found, wanted = (run(build(text, fast)) for fast in (True, False))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted) is own


@pytest.mark.parametrize(("shape", "out", "kernel", "more"), [
    ((2, 3, 7, 6), 4, 3, "stride: 2 pad: 1"),
    ((3, 32, 16, 16), 16, 3, "pad: 1"),  # Winograd's, on AVX-512
    ((2, 6, 9, 8), 4, (2, 3), "group: 2 dilation: 2 pad: 2"),
])
def test_convolution_is_the_plain_sum(build, shape, out, kernel, more):
    net = build(convolution(shape, out, kernel, more))
    found = run(net)["y data"]
    weights, bias = (blob.data.astype(float) for blob in net.params["conv"])
    value = lambda name, default: int((more.split() + [default])[more.split().index(name) + 1]) if name in more.split() else default  # noqa: E731
    stride, pad, dilation, group = (value(f"{name}:", one) for name, one in (("stride", 1), ("pad", 0), ("dilation", 1), ("group", 1)))
    x = np.pad(net.blobs["x0"].data.astype(float), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    wanted = np.zeros(found.shape) + bias[:, None, None]
    per_group, fed = out // group, weights.shape[1]
    for o, (i, j) in itertools.product(range(out), np.ndindex(found.shape[2:])):
        first = o // per_group * fed
        window = x[:, first : first + fed, i * stride :, j * stride :][..., ::dilation, ::dilation]
        wanted[:, o, i, j] += (window[:, :, : weights.shape[2], : weights.shape[3]] * weights[o]).sum((1, 2, 3))
    assert far(found, wanted) <= 1e-5


@pytest.mark.parametrize("text", [
    convolution((2, 3, 9, 9), 5, 3, "stride: 2 pad: 1"),
    convolution((4, 16, 16, 16), 16, 3, "pad: 1"),
    inputs((4, 6, 8, 9)) + layer("BatchNorm", "x0", "y"),
    inputs((4, 6, 8, 9)) + layer("Scale", "x0", "y", "scale_param { bias_term: true }"),
    inputs((4, 6, 8, 9), (4, 6, 8, 9)) + layer("Eltwise", "x0 x1", "y", "eltwise_param { coeff: 0.5 coeff: -2 }"),
])
def test_gradients_are_those_of_finite_differences(build, text):
    net = build(text)
    rng = np.random.default_rng(5)
    net.forward()
    weight = rng.normal(size=net.blobs["y"].data.shape)
    net.backward(y=weight)
    learnt = [] if "BatchNorm" in text else [blob for blobs in net.params.values() for blob in blobs]
    for blob in [*learnt, *(net.blobs[name] for name in net.inputs)]:
        start, gradient, direction = blob.data.copy(), blob.diff.astype(float), rng.normal(size=blob.data.shape)
        losses = []
        for step in (1e-2, -1e-2):
            blob.data[...] = start + step * direction
            net.forward()
            losses.append((net.blobs["y"].data * weight).sum())
        blob.data[...] = start
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx((gradient * direction).sum(), rel=2e-3, abs=0.02)


RESIDUAL = (
    convolution((8, 16, 12, 12), 16, 3, "pad: 1 bias_term: false", top="a", name="conv1")
    + layer("BatchNorm", "a", "a", name="bn1") + layer("Scale", "a", "a", "scale_param { bias_term: true }", "scale1")
    + layer("ReLU", "a", "a", name="relu1") + layer("Pooling", "a", "b", "pooling_param { kernel_size: 2 stride: 2 }", "pool")
    + convolution(None, 16, 3, "pad: 1", "b", "c", "conv2") + layer("Eltwise", "b c", "d", name="sum")
    + convolution(None, 7, 3, "stride: 2", "d", "y", "conv3")
)  # fmt: skip


def test_a_net_of_layers_in_place_gives_caffes_numbers_in_several_iterations(build):
    own, fast = build(RESIDUAL, fast=False), build(RESIDUAL)
    for seed in range(3):
        fill(own, seed)
        fill(fast, seed)
        assert_agree(run(fast, seed), run(own, seed), 3e-5)  # over five layers


def test_gradients_of_several_mini_batches_add_up(build):
    once, twice, own = run(build(RESIDUAL)), run(build(RESIDUAL), backward=2), run(build(RESIDUAL, fast=False), backward=2)
    for name in ("conv1 0 diff", "conv2 0 diff", "conv2 1 diff", "scale1 0 diff", "scale1 1 diff"):
        assert far(twice[name], 2 * once[name]) <= 1e-6, name
    # Caffe's own Scale in place forgets its bottom at the first of two backward passes.
    assert_agree({"": twice["conv3 0 diff"]}, {"": own["conv3 0 diff"]})


def test_layers_that_share_weights_add_their_gradients(build):
    shared = 'param { name: "w" } param { name: "b" } convolution_param'
    text = convolution((6, 16, 12, 12), 16, 3, "pad: 1", top="a", name="conv1") + convolution(None, 16, 3, "pad: 1", "a", "y", "conv2")
    text = text.replace("convolution_param", shared)
    assert_agree(run(build(text)), run(build(text, fast=False)))


@pytest.mark.parametrize("rates", ["param { lr_mult: 0 } param { lr_mult: 1 }", "param { lr_mult: 1 } param { lr_mult: 0 }"])
def test_weights_that_do_not_learn_get_no_gradient(build, rates):
    text = convolution((2, 8, 9, 9), 8, 3).replace('name: "conv"', f'name: "conv" {rates}')
    found, wanted = (run(build(text, fast, force="false")) for fast in (True, False))
    assert_agree(found, wanted)
    assert not found["conv 0 diff" if rates.startswith("param { lr_mult: 0") else "conv 1 diff"].any()


def test_a_batch_that_changes_gives_what_a_new_net_gives(build):
    net = build(RESIDUAL)
    for shape in ((8, 16, 12, 12), (1, 16, 12, 12), (3, 16, 20, 8), (8, 16, 12, 12)):
        net.blobs["x0"].reshape(*shape)
        new = build(RESIDUAL.replace("dim: 8 dim: 16 dim: 12 dim: 12", " ".join(f"dim: {d}" for d in shape)))
        for blobs in net.params.values():
            for blob in blobs:
                blob.diff[...] = 0
        fill(net, 0)
        found, wanted = run(net), run(new)
        for name in wanted:
            assert np.array_equal(found[name], wanted[name]), name


def test_images_of_zeros_give_the_bias_and_no_gradient_of_weights(build):
    net = build(convolution((4, 16, 16, 16), 16, 3, "pad: 1"))
    net.blobs["x0"].data[...] = 0
    found = run(net)
    np.testing.assert_array_equal(found["y data"], np.broadcast_to(found["conv 1 data"][:, None, None], found["y data"].shape))
    assert not found["conv 0 diff"].any()


def test_several_nets_do_not_disturb_each_other_and_can_be_freed(build):
    texts = [RESIDUAL, convolution((2, 3, 40, 40), 64, 5), convolution((1, 32, 8, 8), 8, 1)]
    wanted = [run(build(text)) for text in texts]
    nets = [build(text) for text in texts]
    for order in ([2, 0, 1], [1, 2]):
        for i in order:
            for blobs in nets[i].params.values():
                for blob in blobs:
                    blob.diff[...] = 0
            fill(nets[i], 0)
            found = run(nets[i])
            for name in found:
                assert np.array_equal(found[name], wanted[i][name]), name
        nets[0] = None


def test_the_same_net_twice_gives_the_same_bits(build):
    first, second = run(build(RESIDUAL)), run(build(RESIDUAL))
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def test_what_onednn_does_not_cover_is_caffes_own_to_the_bit(build):
    for text in (
        inputs((2, 3, 5, 6, 7)) + layer("Convolution", "x0", "y", "convolution_param { num_output: 4 kernel_size: 3 }", "conv"),
        convolution((2, 16, 9, 9), 4, 3, "force_nd_im2col: true"),
        convolution((8, 16, 12, 12), 16, 3, "pad: 1 engine: CAFFE"),
    ):  # fmt: skip
        found, wanted = run(build(text)), run(build(text, fast=False))
        for name in wanted:
            assert np.array_equal(found[name], wanted[name]), (name, text)


IMAGES = inputs((3, 5, 13, 11))
LIGHT = {
    "relu": IMAGES + layer("ReLU", "x0", "y"),
    "leaky relu": IMAGES + layer("ReLU", "x0", "y", "relu_param { negative_slope: 0.1 }"),
    "split": IMAGES + "".join(layer("Power", "x0", f"y{i}", f"power_param {{ scale: {i} }}", f"power{i}") for i in range(4)),
    "sum": inputs(*[(3, 5, 13, 11)] * 2) + layer("Eltwise", "x0 x1", "y"),
    "three": inputs(*[(3, 5, 13, 11)] * 3) + layer("Eltwise", "x0 x1 x2", "y", "eltwise_param { coeff: 2 coeff: -1 coeff: 0.3 }"),
    "product": inputs(*[(3, 5, 13, 11)] * 2) + layer("Eltwise", "x0 x1", "y", "eltwise_param { operation: PROD }"),
    "batch norm": IMAGES + layer("BatchNorm", "x0", "y"),
    "batch norm of rows": inputs((9, 5)) + layer("BatchNorm", "x0", "y"),
    "batch norm, moving": IMAGES + layer("BatchNorm", "x0", "y", "batch_norm_param { use_global_stats: true }"),
    "batch norm of 4 x 4": inputs((70, 32, 4, 4)) + layer("BatchNorm", "x0", "y"),
    "scale": IMAGES + layer("Scale", "x0", "y"),
    "scale and bias": inputs((70, 32, 4, 4)) + layer("Scale", "x0", "y", "scale_param { bias_term: true }"),
    "scale of rows": inputs((9, 5)) + layer("Scale", "x0", "y", "scale_param { bias_term: true }"),
    "scale of two axes": IMAGES + layer("Scale", "x0", "y", "scale_param { axis: 1 num_axes: 2 bias_term: true }"),
    "scale by a blob": inputs((3, 5, 13, 11), (3,)) + layer("Scale", "x0 x1", "y", "scale_param { axis: 0 }"),
    "average": IMAGES + layer("Pooling", "x0", "y", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }"),
}  # fmt: skip
EXACT = ("relu", "leaky relu", "split", "sum", "product", "scale by a blob", "average")


@pytest.mark.parametrize("name", LIGHT)
def test_light_layers_give_caffes_numbers(build, name):
    own, fast = build(LIGHT[name], fast=False), build(LIGHT[name])
    for seed in (0, 1):
        fill(own, seed)
        fill(fast, seed)
        found, wanted = run(fast, seed), run(own, seed)
        assert_agree(found, wanted, 0 if name in EXACT else 1e-5)


@pytest.mark.parametrize("name", [name for name in LIGHT if LIGHT[name].count("bottom") == 1])
def test_layers_in_place_give_what_they_give_elsewhere(build, name):
    if name == "average":
        pytest.skip("Pooling is never in place")
    found, wanted = (build(text) for text in (LIGHT[name].replace('top: "y"', 'top: "x0"'), LIGHT[name]))
    found, wanted = run(found), run(wanted)
    assert np.array_equal(found["x0 data"], wanted["y data"])
    for part in wanted:
        if part.endswith("diff"):
            assert np.array_equal(found[part], wanted[part]), part


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_maxima_are_caffes_to_the_bit(build, kernel, stride, pad):
    if pad >= kernel or stride > kernel:
        pytest.skip("Caffe refuses such padding; with such strides, it writes to where no memory is its own")
    text = inputs((3, 4, 13, 18)) + layer("Pooling", "x0", "y", f"pooling_param {{ kernel_size: {kernel} stride: {stride} pad: {pad} }}")
    found = []
    for fast in (True, False):
        net = build(text, fast)
        net.blobs["x0"].data[...] = np.round(2 * net.blobs["x0"].data)  # with many equal values
        found.append(run(net))
    assert_agree(*found, tolerance=0)


def test_large_pooling_and_a_second_top_are_caffes(build):
    for parameters in ("global_pooling: true", "kernel_h: 5 kernel_w: 2 stride_h: 1 stride_w: 4 pad_h: 2 pad_w: 0"):
        text = inputs((3, 4, 13, 18)) + layer("Pooling", "x0", "y", f"pooling_param {{ {parameters} }}")
        for more in ("", 'top: "indices" '):
            here = text.replace('top: "y" ', f'top: "y" {more}')
            assert_agree(run(build(here)), run(build(here, fast=False)), 0)


def test_nan_and_infinity_pass_as_through_caffes_own(build):
    for name in ("relu", "leaky relu", "sum"):
        found = []
        for fast in (True, False):
            net = build(LIGHT[name], fast)
            net.blobs["x0"].data.flat[:4] = [np.nan, np.inf, -np.inf, -0.0]
            net.forward()
            found.append(net.blobs["y"].data.copy())
        np.testing.assert_array_equal(*found)


def test_the_shipped_weights_give_the_embeddings_of_caffes_own_layers(monkeypatch):
    settings = config.load(str(ROOT / "config.py")).stage("triplet")
    images = np.random.default_rng(0).normal(scale=60, size=(20, 3, 64, 64))
    found = []
    for fast in ("1", "0"):
        monkeypatch.setenv("CAFFE_ONEDNN", fast)
        net = open_net(str(ROOT / "models/face997/face997.caffemodel"), settings, ["embedding"])
        net.blobs["data"].reshape(*images.shape)
        net.blobs["data"].data[...] = images
        found.append(net.forward()["embedding"].copy())
    assert far(*found) <= 1e-5
    assert not np.array_equal(*found)


@pytest.mark.parametrize(("given", "told"), [({}, "4"), ({"OPENBLAS_THREAD_TIMEOUT": "20"}, "20")])
def test_openblas_is_told_to_let_its_threads_sleep_before_numpy_loads_it(given, told):
    code = """if True:
        import os, sys
        class Watch:
            def find_spec(self, name, *_):
                if name == "numpy":
                    print(os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
        sys.meta_path.insert(0, Watch())
        import tripletloss.evaluate"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"} | given
    output = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert output.stdout.split() == [told], output.stderr


@pytest.mark.parametrize(("given", "told"), [
    ({}, ["passive", "1000", "4"]),
    ({"GOMP_SPINCOUNT": "0", "OPENBLAS_THREAD_TIMEOUT": "20"}, ["passive", "0", "20"]),
    ({"OMP_WAIT_POLICY": "active"}, ["active", "None", "4"]),
])
def test_threads_of_caffe_alone_wait_as_told_or_spin_for_microseconds(given, told):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT")
    code = f"import os, caffe; print(*map(os.environ.get, {names}))"
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert output.stdout.split() == told, output.stderr


def test_a_forked_child_runs_nets_after_its_parent_did(tmp_path):
    """libgomp's threads are not in the child; without care, it waits for them forever."""
    (tmp_path / "net.prototxt").write_text(convolution((4, 32, 64, 64), 32, 3, "pad: 1"))  # worth threads
    code = """
import multiprocessing, caffe, numpy as np
def run():
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    net.blobs["x0"].data[...] = np.random.default_rng(0).normal(size=net.blobs["x0"].data.shape)
    for blobs in net.params.values():
        blobs[0].data[...] = 0.1
    net.forward(), net.backward()
    return float(np.abs(net.blobs["y"].data).sum())
first = run()
with multiprocessing.get_context("fork").Pool(2) as pool:
    values = [pool.apply_async(run).get(60), pool.apply_async(run).get(60), run()]
    print(*[first == value for value in values])
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "CAFFE_ONEDNN": "1", "GLOG_minloglevel": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True True True\n", done.stderr


@pytest.mark.parametrize("given", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_one_limit_holds_for_all_threads(given):
    code = "import caffe, threadpoolctl; print(*[pool['num_threads'] for pool in threadpoolctl.threadpool_info()])"
    env = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    done = subprocess.run([sys.executable, "-c", code], env=env | {given: "1"}, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


@pytest.mark.parametrize("images, threads", [(1, 1), (8, 2)])
def test_a_second_thread_is_woken_only_for_work_that_is_worth_it(tmp_path, images, threads):
    (tmp_path / "net.prototxt").write_text(convolution((images, 32, 16, 16), 32, 3, "pad: 1"))
    code = """
import os, caffe
net = caffe.Net("net.prototxt", caffe.TRAIN)
before = len(os.listdir("/proc/self/task"))
net.forward(), net.backward()
print(1 + len(os.listdir("/proc/self/task")) - before)
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "CAFFE_ONEDNN": "1", "GLOG_minloglevel": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{threads}\n"
