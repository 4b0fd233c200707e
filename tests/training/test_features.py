"""Frozen features, computed once: the same training as with the whole net, and a cache that is never wrong."""

import shutil
import signal
import subprocess
import sys
import time

import caffe
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from tests.helpers import ITERATIONS, ROOT, TINY_NET, losses, run_train, triplet, weights, write_config
from tripletloss.formats import caffemodel
from tripletloss.net.definition import for_stage
from tripletloss.net.freezing import find_cut, freeze


@pytest.mark.parametrize("selection", [{}, {"BATCHES": "anchor", "SELECTION": "rank-paired"}])
def test_training_on_features_has_the_losses_of_the_whole_net(softmax, selection):
    _, whole = triplet(softmax, "whole", FEATURE_CACHE="", MIRROR=False, **selection)
    said, cached = triplet(softmax, "cached", MIRROR=False, **selection)
    assert "features   norm2 of 24 images x 1 views, 24 computed now" in said and "saves" in said
    np.testing.assert_allclose(losses(cached), losses(whole), atol=1e-5)
    assert max(losses(whole)) > 0
    mine, theirs = (weights(run / "triplet_iter_30.caffemodel", whole / "triplet_train.prototxt") for run in (cached, whole))
    assert set(mine) == set(theirs)
    for name in mine:
        for a, b in zip(mine[name], theirs[name], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    assert "FeatureLayer" in (cached / "triplet_train.prototxt").read_text()
    assert "DataLayer" in (cached / "triplet_uncut.prototxt").read_text()


def test_mirror_images_are_a_second_view_and_both_are_shown(softmax):
    said, cached = triplet(softmax, "cached", MIRROR=True, CROP_JITTER=0.1)
    assert "x 2 views" in said and "; without CROP_JITTER" in said
    [path] = (softmax / "cache").glob("*/features.npy")
    features = np.load(path)
    assert features.shape == (2, 24, 16) and not np.allclose(features[0], features[1])
    np.testing.assert_allclose(np.linalg.norm(features, axis=2), 1, rtol=1e-5)
    net = caffe.Net(str(cached / "triplet_train.prototxt"), caffe.TRAIN)
    views = np.zeros(2, int)
    for _ in range(10):
        net.forward()
        d = np.abs(net.blobs["norm2"].data[:, None, None] - features[None]).max(axis=3)  # (N, 2, 24)
        assert (d.min(axis=(1, 2)) < 1e-6).all()
        views += np.bincount(d.min(axis=2).argmin(axis=1), minlength=2)
    assert views.min() > 0.3 * views.sum()


def test_a_cache_is_used_again_and_never_for_other_images_weights_or_sizes(softmax):
    assert "24 computed now" in triplet(softmax, "a", MIRROR=False)[0]
    assert " 0 computed now" in triplet(softmax, "b", MIRROR=False, MARGIN=0.4)[0]
    assert "24 computed now" in triplet(softmax, "c", MIRROR=False, IMAGE_SIZE=12, CROP=15)[0]
    shutil.copy(softmax / "images" / "person1@0.jpg", softmax / "images" / "person0@0.jpg")
    assert "24 computed now" in triplet(softmax, "d", MIRROR=False)[0]
    data = (softmax / "run" / "triplet_iter_4.caffemodel").read_bytes()
    net = caffe_pb2.NetParameter.FromString(data)
    next(layer for layer in net.layer if layer.name == "conv1").blobs[0].data[0] += 1
    (softmax / "run" / "triplet_iter_4.caffemodel").write_bytes(net.SerializeToString())
    assert "24 computed now" in triplet(softmax, "e", MIRROR=False)[0]


@pytest.mark.parametrize("harm", ["cut off", "gone", "empty", "note"])
def test_a_damaged_cache_is_computed_again(softmax, harm):
    _, first = triplet(softmax, "a", MIRROR=False)
    [path] = (softmax / "cache").glob("*/features.npy")
    if harm == "cut off":
        path.write_bytes(path.read_bytes()[:-8])
    elif harm == "gone":
        path.unlink()
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        (path.parent / "done").write_text("a lot")
    said, again = triplet(softmax, "b", MIRROR=False)
    assert "24 computed now" in said and losses(again) == losses(first)


def test_half_precision_takes_half_the_room_and_trains_alike(softmax):
    _, single = triplet(softmax, "a", MIRROR=False)
    _, half = triplet(softmax, "b", MIRROR=False, FEATURE_TYPE="float16")
    kinds = {str(np.load(path).dtype) for path in (softmax / "cache").glob("*/features.npy")}
    assert kinds == {"float32", "float16"}
    np.testing.assert_allclose(losses(half)[:3], losses(single)[:3], atol=1e-3)
    assert abs(np.mean(losses(half)) - np.mean(losses(single))) < 2e-3  # a triplet more or less here and there


def noted(project):
    """How many images are whole in the cache, by its note."""
    notes = list((project / "cache").glob("*/done"))
    return int(notes[0].read_text().split()[0]) if notes else 0


def test_an_interrupted_cache_goes_on(softmax):
    names = (softmax / "list.txt").read_text().splitlines()
    many = []
    for copy in range(200):  # enough for the computation to be met in the middle
        for line in names:
            name, label = line.split()
            many.append(f"copy{copy}/{name.replace('@', '-')} {label}")
        shutil.copytree(softmax / "images", softmax / "images" / f"copy{copy}", ignore=shutil.ignore_patterns("copy*"))
        for path in (softmax / "images" / f"copy{copy}").iterdir():
            path.rename(path.with_name(path.name.replace("@", "-")))
    (softmax / "list.txt").write_text("\n".join(many) + "\n")
    settings = {"STAGES": ["triplet"], "WEIGHTS": "run/softmax_iter_4.caffemodel", "FEATURE_CACHE": "cache",
                "MIRROR": False, "MAX_ITERS": {"triplet": 500}, "SNAPSHOT_ITERS": 1000}  # fmt: skip
    write_config(softmax, RUN_FOLDER="killed", **settings)
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", str(softmax / "config.py")],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while not noted(softmax) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = noted(softmax)
    write_config(softmax, RUN_FOLDER="on", **settings)
    result = run_train(softmax)
    assert result.returncode == 0, result.stderr
    assert 0 < done < 4800 and f"{4800 - done} computed now" in result.stdout
    [path] = (softmax / "cache").glob("*/features.npy")
    features = np.load(path)[0].reshape(200, 24, -1)
    np.testing.assert_allclose(features, np.broadcast_to(features[:1], features.shape), atol=1e-6)  # every copy alike


def test_a_net_with_the_loss_of_a_whole_batch_trains_alike(softmax):
    text = (softmax / "net.prototxt").read_text()
    _, two = triplet(softmax, "two", MIRROR=False)
    start = text.index('layer {\n  name: "triplet_select"')
    (softmax / "net.prototxt").write_text(text[:start] + """layer {
  name: "tripletloss" type: "Python" bottom: "fc9_1" bottom: "labels" top: "loss" loss_weight: 1
  python_param { module: "tripletloss.layers" layer: "BatchTripletLossLayer" } include { stage: "triplet" }
}""")
    _, one = triplet(softmax, "one", MIRROR=False)
    np.testing.assert_allclose(losses(one), losses(two), atol=1e-5)
    header = (one / "triplet_log.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "active_share", "d_ap", "d_an"} < set(header)


def parse(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


def test_where_a_net_is_cut():
    net = for_stage(parse(TINY_NET), caffe.TRAIN, "triplet")
    counts = {"conv1": 2, "bn1": 3, "fc7": 2, "fc9_1": 2}
    assert find_cut(net, counts) is None  # all learns
    cut = find_cut(freeze(net, "fc7", counts, "net"), counts)
    assert (cut.blob, cut.data, cut.labels) == ("norm2", "data", "labels")
    assert [layer.name for layer in cut.frozen] == ["conv1", "bn1", "relu1", "fc7", "drop7", "norm2"]
    assert [layer.name for layer in cut.rest] == ["fc9_1", "triplet_select", "tripletloss"]
    lower = for_stage(parse(TINY_NET), caffe.TRAIN, "triplet")
    assert find_cut(freeze(lower, "bn1", counts, "net"), counts).blob == "bn1"


def test_a_net_that_learns_from_two_frozen_blobs_is_not_cut():
    net = for_stage(parse(TINY_NET.replace('bottom: "norm2" top: "fc9_1"', 'bottom: "norm2" bottom: "fc7" top: "fc9_1"')),
                         caffe.TRAIN, "triplet")  # fmt: skip
    counts = {"conv1": 2, "bn1": 3, "fc7": 2, "fc9_1": 2}
    assert find_cut(freeze(net, "fc7", counts, "net"), counts) is None


def test_a_few_iterations_are_not_worth_a_cache(softmax):
    write_config(softmax, STAGES=["triplet"], WEIGHTS="run/triplet_iter_4.caffemodel", RUN_FOLDER="few",
                 FEATURE_CACHE="cache", MAX_ITERS=2)  # fmt: skip
    result = run_train(softmax)
    assert result.returncode == 0 and "features " not in result.stdout and not (softmax / "cache").exists()


def test_no_room_for_the_cache_is_told(softmax):
    (softmax / "cache").write_text("a file in the way")
    write_config(softmax, STAGES=["triplet"], WEIGHTS="run/softmax_iter_4.caffemodel", RUN_FOLDER="a", MAX_ITERS=30,
                 FEATURE_CACHE="cache")  # fmt: skip
    result = run_train(softmax)
    assert result.returncode == 1 and "the features cannot be written to" in result.stderr and "Traceback" not in result.stderr


def test_a_net_is_not_cut_where_its_snapshots_could_not_be_completed(softmax):
    (softmax / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed" snapshot_format: HDF5\n')
    said, folder = triplet(softmax, "mixed")
    assert "features " not in said
    assert "conv1" in caffemodel.weight_shapes(str(folder / "triplet_iter_30.caffemodel.h5"))


def test_hdf5_weights_are_whole_too(softmax):
    (softmax / "solver.prototxt").write_text('momentum: 0.9 lr_policy: "fixed" snapshot_format: HDF5\n')
    write_config(softmax, RUN_FOLDER="h5", STAGES=["softmax"])
    assert run_train(softmax).returncode == 0
    write_config(softmax, RUN_FOLDER="h5", STAGES=["triplet"], MAX_ITERS=30, SNAPSHOT_ITERS=30, FEATURE_CACHE="cache")
    result = run_train(softmax)
    assert result.returncode == 0 and "24 images x 2 views" in result.stdout, result.stderr
    assert set(caffemodel.weight_shapes(str(softmax / "h5" / "triplet_iter_30.caffemodel.h5"))) == {"conv1", "bn1", "fc7", "fc9", "fc9_1"}




def test_a_cache_that_is_begun_anew_does_not_count_as_whole(softmax):
    """Killed after the file was made, and before the first rows: the note of the file before must not hold."""
    triplet(softmax, "first")
    [cache] = (softmax / "cache").iterdir()
    (cache / "features.npy").unlink()
    program = (
        "import numpy as np, os\nmade = np.lib.format.open_memmap\n"
        "def open_memmap(*a, **k):\n    made(*a, **k)\n    os.kill(os.getpid(), 9)\n"
        "np.lib.format.open_memmap = open_memmap\n"
        "import sys, runpy\nsys.argv = ['train.py', '--config', 'config.py']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nrunpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    write_config(softmax, STAGES=["triplet"], WEIGHTS="run/triplet_iter_4.caffemodel", RUN_FOLDER="killed",
                 MAX_ITERS=ITERATIONS, SNAPSHOT_ITERS=30, FEATURE_CACHE="cache")  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", program], cwd=softmax, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    said, again = triplet(softmax, "again")
    assert "24 computed now" in said and losses(again) == losses(softmax / "first")
