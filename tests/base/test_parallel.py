"""mpirun -np N python train.py: what it computes, and how it ends."""

import csv
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import caffe
import numpy as np
import pytest

from tests.helpers import PHOTOS, ROOT, plain_net, replace, run_train, weights, write_config
from tripletloss.base.errors import InputError
from tripletloss.base.parallel import OneProcess
from tripletloss.core.sampling import make_batches
from tripletloss.data.images import Preprocessing
from tripletloss.data.lists import read_list
from tripletloss.evaluation.embed import extract, extract_all
from tripletloss.formats.embeddings import load

# That of `pip install .[mpi]`, which stands beside Python.
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
MISSING = " and ".join(
    name for name, found in (("mpirun", MPIRUN), ("mpi4py", importlib.util.find_spec("mpi4py"))) if not found
)
needs_mpi = pytest.mark.skipif(bool(MISSING), reason=f"there is no {MISSING}")
LABELS = np.repeat(np.arange(9), [1, 2, 4, 9, 13, 3, 3, 5, 8])

# A layer that only passes its bottom on, and in the process of rank 1 does something in its 3rd iteration.
MISCHIEF = """
import os
import caffe
from tripletloss.base.errors import InputError

class Mischief(caffe.Layer):
    def setup(self, bottom, top):
        self.iteration = 0
        self.blobs.add_blob(1)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data
        self.iteration += 1
        if self.iteration == 3 and os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
            {deed}

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff
"""


def start(folder, *arguments, processes=2, program=(str(ROOT / "train.py"), "--allow-module", "mischief")):
    """mpirun a program, train.py, in a session of its own, one thread a process."""
    command = [MPIRUN, "--oversubscribe", "-np", str(processes), sys.executable, *program]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLOG_", "OMPI_COMM"))}
    environment.update(
        OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1", PYTHONPATH=str(folder)
    )
    return subprocess.Popen(
        [*command, "--config", str(folder / "config.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment, start_new_session=True,
    )  # fmt: skip


def finish(process, timeout=60):
    """(status, stdout, stderr) of a run, and nothing is left of it if it hangs."""
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.terminate()
    return process.returncode, out, errors


def mpi_train(folder, *arguments, processes=2, **how):
    return finish(start(folder, *arguments, processes=processes, **how))


def wait_for_iterations(process, folder):
    log = folder / "run" / "softmax_log.csv"
    deadline = time.time() + 60
    while not (log.exists() and log.stat().st_size > 1000) and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)


@needs_mpi
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_the_mini_batch_train_as_the_whole(project, processes):
    (project / "net.prototxt").write_text(plain_net())
    (project / "solver.prototxt").write_text('momentum: 0.9 weight_decay: 0.001 lr_policy: "fixed"\n')
    settings = {"MAX_ITERS": 20, "SNAPSHOT_ITERS": 1, "MIRROR": True, "CROP_JITTER": 0.2, "STAGES": ["softmax"],
                "LEARNING_RATE": 3e-5, "KEEP_SNAPSHOTS": 0}  # fmt: skip
    write_config(project, RUN_FOLDER="whole", **settings)
    assert run_train(project).returncode == 0
    write_config(project, RUN_FOLDER="shares", **settings)
    status, _, errors = mpi_train(project, processes=processes)
    assert status == 0, errors
    first, whole, shares = (
        weights(project / path, project / "whole" / "softmax_train.prototxt")
        for path in ("whole/softmax_iter_1.caffemodel", "whole/softmax_iter_20.caffemodel",
                     "shares/softmax_iter_20.caffemodel")
    )  # fmt: skip
    for name in whole:
        for a, b, before in zip(whole[name], shares[name], first[name], strict=True):
            scale = np.abs(a).max()
            assert np.abs(a - b).max() < 1e-5 * scale, name
            assert np.abs(a - before).max() > 1e-3 * scale, name  # so that equal is not equally untrained
    for column in ("loss", "accuracy"):
        a, b = ([float(row[column]) for row in csv.DictReader((project / folder / "softmax_log.csv").open())]
                for folder in ("whole", "shares"))  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-4)


def gathering_project(project, one_layer):
    """The project with a net that is the same whole and divided, embeddings of length one, and all of it learning."""
    net = plain_net()
    net = net.replace('bottom: "fc9_1" bottom: "labels"', 'bottom: "embedding" bottom: "labels"')
    net += """layer {
  name: "embedding" type: "Python" bottom: "fc9_1" top: "embedding"
  python_param { module: "tripletloss.layers" layer: "Norm2Layer" } include { stage: "triplet" }
}
"""
    parts = net.split("layer {\n  name: ")
    # Layers stand in the order in which they run.
    embedding, order = parts.pop(), {part.split('"')[1]: number for number, part in enumerate(parts) if '"' in part}
    parts.insert(order["triplet_select"], embedding)
    if one_layer:
        selecting = order["triplet_select"] + 1
        parts[selecting : selecting + 2] = [
            '"loss" type: "Python" bottom: "embedding" bottom: "labels" top: "loss" loss_weight: 1\n'
            '  python_param { module: "tripletloss.layers" layer: "BatchTripletLossLayer" } include { stage: "triplet" }\n}\n'
        ]
    (project / "net.prototxt").write_text("layer {\n  name: ".join(parts))
    (project / "solver.prototxt").write_text('momentum: 0.9 weight_decay: 0.001 lr_policy: "fixed"\n')


GATHERED = {
    "STAGES": ["triplet"], "FREEZE": "", "FEATURE_CACHE": "", "MAX_ITERS": 20, "SNAPSHOT_ITERS": 20,
    "LEARNING_RATE": 0.01, "MARGIN": 0.5, "BATCH_SIZE": 18,
}  # fmt: skip


def differences(project, one, other, number=20):
    """The largest difference between two runs' weights, of each layer, as a share of its largest weight."""
    net = project / one / "triplet_train.prototxt"
    a, b = (weights(project / run / f"triplet_iter_{number}.caffemodel", net) for run in (one, other))
    return {name: max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(a[name], b[name], strict=True)) for name in a}


@needs_mpi
@pytest.mark.parametrize(
    ("processes", "selection", "one_layer"),
    [(2, "semi-hard", False), (3, "batch-hard", True), (2, "distance-weighted", True), (3, "batch-all", False)],
)
def test_negatives_from_everyone_train_as_one_process_with_the_whole_mini_batch(project, processes, selection, one_layer):
    gathering_project(project, one_layer)
    settings = {**GATHERED, "SELECTION": selection}
    write_config(project, RUN_FOLDER="fresh", **{**settings, "LEARNING_RATE": 1e-9, "MAX_ITERS": 1})
    assert run_train(project).returncode == 0
    settings["WEIGHTS"] = "fresh/triplet_iter_1.caffemodel"
    write_config(project, RUN_FOLDER="whole", **settings)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    for folder, gather in (("gathered", True), ("apart", False)):
        write_config(project, RUN_FOLDER=folder, GATHER=gather, **settings)
        status, out, errors = mpi_train(project, processes=processes)
        assert status == 0, errors
        assert ("triplets among the images of all" in out) == gather
    # Rounding differs with the processor's matrix products: 1e-5 on some, 2e-5 on others, after 20 iterations.
    assert max(differences(project, "whole", "gathered").values()) < 1e-4
    assert max(differences(project, "whole", "apart").values()) > 1e-3  # what a share selects alone is something else
    logs = [list(csv.DictReader((project / run / "triplet_log.csv").open())) for run in ("whole", "gathered")]
    for column in ("loss", "active_share", "d_ap", "d_an"):
        a, b = ([float(row[column]) for row in log] for log in logs)
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


@needs_mpi
@pytest.mark.parametrize(("processes", "selection", "one_layer"), [(2, "semi-hard", True), (3, "batch-all", False)])
def test_shares_in_passes_train_as_one_process_with_the_whole_mini_batch(project, processes, selection, one_layer):
    gathering_project(project, one_layer)
    settings = {**GATHERED, "SELECTION": selection, "CROP_JITTER": 0.1}
    write_config(project, RUN_FOLDER="whole", **settings)
    assert run_train(project).returncode == 0
    write_config(project, RUN_FOLDER="passes", PASS_IMAGES=3, **settings)
    status, out, errors = mpi_train(project, processes=processes)
    assert status == 0 and "in passes of 3" in out, errors
    assert max(differences(project, "whole", "passes").values()) < 1e-4


@needs_mpi
def test_a_run_goes_on_with_other_numbers_of_processes(project):
    gathering_project(project, one_layer=True)
    settings = {**GATHERED, "SELECTION": "batch-hard", "SNAPSHOT_ITERS": 5}
    write_config(project, RUN_FOLDER="whole", **settings)
    assert run_train(project).returncode == 0
    for end, processes in ((5, 2), (10, 1), (20, 3)):
        write_config(project, RUN_FOLDER="changing", **{**settings, "MAX_ITERS": end})
        status, out, errors = mpi_train(project, "--resume", processes=processes)
        assert status == 0, errors
    assert "resumes    from iteration 10" in out
    assert "processes  3 instead of 1 from now on" in out
    assert max(differences(project, "whole", "changing").values()) < 1e-4


@needs_mpi
def test_features_and_embeddings_are_divided_and_the_same(project):
    write_config(project, FEATURE_CACHE="cache1", BROKEN_IMAGES="skip")
    (project / "images" / "person2@1.jpg").write_text("broken")
    more = [(f"person{label}@{n}.jpg", label) for n in range(30) for label in range(6)]  # several batches
    for name, label in more[24:]:
        copied = project / "images" / f"person{label}@{int(name[8:-4]) % 4}.jpg"
        (project / "images" / name).write_bytes(copied.read_bytes())
    (project / "list.txt").write_text("".join(f"{name} {label}\n" for name, label in more))
    settings = {"STAGES": ["triplet"], "BROKEN_IMAGES": "skip", "MAX_ITERS": 200, "SNAPSHOT_ITERS": 200,
                "WEIGHTS": "start/softmax_iter_4.caffemodel", "IMAGES_PER_IDENTITY": 3, "BATCH_SIZE": 18}  # fmt: skip
    write_config(project, RUN_FOLDER="start", STAGES=["softmax"], BROKEN_IMAGES="skip")
    assert run_train(project).returncode == 0
    for processes in (1, 2, 3):
        write_config(project, RUN_FOLDER=f"run{processes}", FEATURE_CACHE=f"cache{processes}", **settings)
        status, out, errors = mpi_train(project, processes=processes)
        assert status == 0 and re.search(r"features   \S+ of 180 images x 2 views, 180 computed now", out), (out, errors)
    [one], [two], [three] = (list((project / f"cache{n}").glob("*/features.npy")) for n in (1, 2, 3))
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()
    one, three = ((project / f"run{n}" / "triplet_broken.txt").read_text() for n in (1, 3))
    assert one == three and len(one.splitlines()) == 8


@needs_mpi
def test_extract_and_evaluate_divide_their_images(project, tmp_path):
    arguments = [str(ROOT / "models" / "face997" / "face997.caffemodel"), "--list", f"{PHOTOS}.txt",
                 "--images", str(PHOTOS)]  # fmt: skip
    shutil.copy(ROOT / "config.py", project / "config.py")
    for name in ("deploy.prototxt", "train.prototxt", "solver.prototxt"):
        shutil.copy(ROOT / name, project / name)
    said = {}
    for processes in (1, 3):
        out = project / f"{processes}.h5"
        status, _, errors = mpi_train(
            project, *arguments, "--out", str(out), processes=processes, program=("-m", "tripletloss.extract")
        )
        assert status == 0, errors
        status, said[processes], errors = mpi_train(
            project, *arguments, processes=processes, program=("-m", "tripletloss.evaluate")
        )
        assert status == 0, errors
    a, b = (load(str(project / f"{processes}.h5")) for processes in (1, 3))
    assert a.images.names == b.images.names
    np.testing.assert_array_equal(a.rows, b.rows)
    assert said[1] == said[3] and said[1].count("AUC") == 1


class Second(OneProcess):
    """The second of three processes, as far as dividing goes; the others are not there."""

    rank, size = 1, 3


def test_a_process_embeds_its_own_batches_only():
    net = caffe.Net(str(ROOT / "deploy.prototxt"), str(ROOT / "models" / "face997" / "face997.caffemodel"), caffe.TEST)
    images = read_list(f"{PHOTOS}.txt", str(PHOTOS))
    many = images._replace(names=images.names[:130], labels=images.labels[:130])
    whole = [rows for _, rows in extract(net, ["norm2"], many, Preprocessing(0, 64, [0, 0, 0]))]
    own = list(extract(net, ["norm2"], many, Preprocessing(0, 64, [0, 0, 0]), team=Second()))
    assert len(whole) == 5 and len(own) == 2  # batches of 32: numbers 0 to 4, of which it has 1 and 4
    for (_, rows), expected in zip(own, (whole[1], whole[4]), strict=True):
        np.testing.assert_array_equal(rows[0], expected[0])


class Listening(OneProcess):
    """One process that keeps what it sends to the first."""

    def __init__(self):
        self.sent = []

    def gather(self, value):
        self.sent.append(value)
        return super().gather(value)


def test_a_process_tells_of_each_broken_image_once_and_not_with_every_batch(project):
    net = caffe.Net(str(ROOT / "deploy.prototxt"), str(ROOT / "models" / "face997" / "face997.caffemodel"), caffe.TEST)
    images = read_list(str(project / "list.txt"), str(project / "images"))
    many = images._replace(names=images.names * 6, labels=np.tile(images.labels, 6))  # 144 images, 5 batches of 32
    (project / "images" / "person2@1.jpg").write_text("broken")
    places = [n for n, name in enumerate(many.names) if name == "person2@1.jpg"]
    team, broken = Listening(), {}
    extract_all(net, ["norm2"], many, Preprocessing(0, 64, [0, 0, 0]), broken=broken, team=team)
    assert {int(number) for number in broken} == set(places)
    told = [number for _, skipped in team.sent for number in skipped]
    assert len(team.sent) == 5 and sorted(map(int, told)) == places


@needs_mpi
@pytest.mark.parametrize("program", ["extract", "evaluate"])
def test_commands_of_several_processes_end_in_one_sentence(project, program):
    more = ["--out", str(project / "x.h5")] if program == "extract" else []
    status, _, errors = mpi_train(project, "nowhere.caffemodel", *more, program=("-m", f"tripletloss.{program}"))
    assert status == 1 and errors.count(f"tripletloss.{program}: ") == 1 and "Traceback" not in errors, errors


@needs_mpi
@pytest.mark.parametrize(("deed", "word"), [("raise InputError('oddity')", "oddity"), ("os.kill(os.getpid(), 9)", "signal 9")])
def test_a_process_that_fails_while_the_others_gather_ends_all(project, deed, word):
    gathering_project(project, one_layer=False)
    with_mischief(project, deed, below="conv1")
    write_config(project, **GATHERED)
    began = time.time()
    status, _, errors = mpi_train(project)
    assert status != 0 and word in errors and time.time() - began < 30


@needs_mpi
def test_check_runs_once_for_all_processes(project):
    gathering_project(project, one_layer=False)
    write_config(project, **{**GATHERED, "BROKEN_IMAGES": "skip"})
    (project / "images" / "person2@1.jpg").write_text("broken")
    status, out, errors = mpi_train(project, "--check")
    assert status == 0, errors
    for line in ("device ", "stage      triplet", "sizes ", "time ", "advice     images that cannot be read"):
        assert out.count(line) == 1, out
    assert "processes  2, each with 9 images of a mini-batch; triplets among the images of all" in out
    assert errors.count("looking at images: 100%") == 1 and not (project / "run").exists()


@needs_mpi
def test_check_finds_what_several_processes_cannot_divide(project):
    write_config(project, BATCH_SIZE=13)
    ends_in_one_sentence(mpi_train(project, "--check", "--stage", "softmax"), "BATCH_SIZE 13 does not divide among 2 processes")


@needs_mpi
def test_both_stages_end_to_end_and_again_with_the_same_weights(project):
    for folder in ("one", "two"):
        write_config(project, RUN_FOLDER=folder)
        status, out, errors = mpi_train(project)
        assert status == 0, errors
    assert out.count("stage      softmax") == out.count("stage      triplet") == 1
    assert out.count("processes  2, each with 6 images of a mini-batch") == 2
    assert re.search(r"active_share=.*images/s=\d+, comm=\d+%", errors)
    kinds = ("caffe.log", "caffe_1.log", "curves.png", "embeddings.csv", "iter_2.caffemodel", "iter_2.json", "iter_2.solverstate",
             "iter_4.caffemodel", "iter_4.json", "iter_4.solverstate", "log.csv", "plan.txt", "settings.json", "solver.prototxt",
             "train.prototxt")  # fmt: skip
    stages = [f"{stage}_{kind}" for stage in ("softmax", "triplet") for kind in kinds]
    files = ["commands.json", "report.html", *stages, "triplet_uncut.prototxt"]  # uncut: the projection is narrow
    found = sorted(path.name for path in (project / "one").iterdir())
    assert [name for name in found if not name.startswith(".") and not name.endswith("_tensorboard")] == files
    for stage in ("softmax", "triplet"):
        name = f"{stage}_iter_4.caffemodel"
        assert (project / "one" / name).read_bytes() == (project / "two" / name).read_bytes()
        rows = list(csv.DictReader((project / "one" / f"{stage}_log.csv").open()))
        assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4]
    # A resolved net of two processes is trained by one as it stands.
    write_config(project, RUN_FOLDER="alone", NET="one/softmax_train.prototxt", STAGES=["softmax"])
    assert run_train(project).returncode == 0
    assert "rank: 0, ranks: 1" in (project / "alone" / "softmax_train.prototxt").read_text()


@pytest.mark.parametrize(
    ("kind", "batch_size", "ranks"), [("shuffled", 18, 2), ("shuffled", 9, 3), ("identities", 24, 2), ("identities", 18, 3)]
)
def test_shares_make_up_the_mini_batch_and_have_triplets(kind, batch_size, ranks):
    whole = make_batches(kind, LABELS, batch_size, 3, 5)
    shares = [make_batches(kind, LABELS, batch_size, 3, 5, rank, ranks) for rank in range(ranks)]
    for iteration in range(20):
        parts = [share.batch(iteration) for share in shares]
        for field, row in enumerate(whole.batch(iteration)):
            np.testing.assert_array_equal(np.concatenate([part[field] for part in parts]), row)
        for part in parts:
            assert len(part.images) == batch_size // ranks
            if kind == "identities":
                counts = np.unique(LABELS[part.images], return_counts=True)[1]
                assert len(counts) >= 2 and (counts == 3).all()


@pytest.mark.parametrize(
    ("kind", "batch_size", "ranks", "sentence"),
    [
        ("shuffled", 13, 2, "BATCH_SIZE 13 does not divide among 2 processes: set it to a multiple of 2, for example 12"),
        ("shuffled", 2, 3, "to a multiple of 3, for example 3"),
        ("identities", 15, 2, "two identities or more each: set it to a multiple of 6, for example 12"),
        ("identities", 9, 3, "to a multiple of 9, for example 18"),
        ("anchor", 12, 2, "anchor batches cannot be divided among 2 processes"),
    ],
)
def test_mini_batches_that_do_not_divide_are_refused_with_what_does(kind, batch_size, ranks, sentence):
    make_batches(kind, LABELS, batch_size, 3, 0)  # one process takes it
    with pytest.raises(InputError, match=sentence):
        make_batches(kind, LABELS, batch_size, 3, 0, 0, ranks)


def ends_in_one_sentence(run, sentence, status=1):
    """All processes end with the status, and one sentence stands on standard error, once."""
    returncode, _, errors = run
    assert returncode == status, (returncode, errors)
    assert errors.count("train.py: ") == 1 and errors.count(sentence) == 1, errors
    assert "Traceback" not in errors and "MPI_ABORT" not in errors


@needs_mpi
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"BATCH_SIZE": 13}, "BATCH_SIZE 13 does not divide among 2 processes"),
        ({"LEARNING_RATE": 1e30}, "lower LEARNING_RATE"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_sentence(project, changes, sentence):
    write_config(project, **changes)
    ends_in_one_sentence(mpi_train(project, "--stage", "softmax"), sentence)


@needs_mpi
def test_a_net_that_caffe_refuses_ends_in_one_sentence(project):
    replace(project / "net.prototxt", "kernel_size: 3", "kernel_size: 99")
    ends_in_one_sentence(mpi_train(project, "--stage", "softmax"), "Caffe stopped in layer 'conv1': Check failed")


@needs_mpi
def test_an_image_that_goes_away_while_one_process_wants_it_ends_all(project):
    write_config(project, MAX_ITERS=10**6, SNAPSHOT_ITERS=10**6)
    process = start(project, "--stage", "softmax")
    wait_for_iterations(process, project)
    began = time.time()
    (project / "images" / "person3@1.jpg").unlink()
    ends_in_one_sentence(finish(process), "person3@1.jpg cannot be read")
    assert time.time() - began < 30


def with_mischief(project, deed, below="bn1"):
    (project / "mischief.py").write_text(MISCHIEF.format(deed=deed))
    replace(project / "net.prototxt", 'layer { name: "relu1"', f"""layer {{
  name: "mischief" type: "Python" bottom: "{below}" top: "mischief" param {{ lr_mult: 0 }}
  python_param {{ module: "mischief" layer: "Mischief" }}
}}
layer {{ name: "relu1\"""")
    replace(project / "net.prototxt", f'type: "ReLU" bottom: "{below}" top: "{below}"', 'type: "ReLU" bottom: "mischief" top: "bn2"')
    replace(project / "net.prototxt", f'name: "fc7" type: "InnerProduct" bottom: "{below}"', 'name: "fc7" type: "InnerProduct" bottom: "bn2"')


@needs_mpi
def test_weights_that_differ_are_found_at_the_snapshot(project):
    with_mischief(project, "self.blobs[0].data[0] = 1")
    ends_in_one_sentence(mpi_train(project, "--stage", "softmax"), "after iteration 4, the weights of process 1 differ from the first's")
    assert not (project / "run" / "softmax_iter_4.caffemodel").exists()


@needs_mpi
@pytest.mark.parametrize(("deed", "word"), [("raise KeyError('oddity')", "oddity"), ("os.kill(os.getpid(), 9)", "signal 9")])
def test_a_process_that_fails_or_is_killed_takes_the_others_with_it(project, deed, word):
    with_mischief(project, deed)
    began = time.time()
    status, _, errors = mpi_train(project, "--stage", "softmax")
    assert status != 0 and word in errors and time.time() - began < 30


@needs_mpi
def test_what_caffe_says_as_it_ends_a_process_is_kept(project):
    with_mischief(project, "top[0].reshape(-1)")
    status, _, errors = mpi_train(project, "--stage", "softmax")
    assert status != 0 and "signal 6" in errors
    assert "Check failed" in (project / "run" / "softmax_caffe_1.log").read_text()


@needs_mpi
def test_a_file_that_cannot_be_written_is_one_sentence(project):
    (project / "run" / "softmax_caffe_1.log").mkdir(parents=True)
    status, _, errors = mpi_train(project, "--stage", "softmax")
    assert status == 1 and "Traceback" not in errors
    assert errors.count("train.py: process 1: ") == 1 and "softmax_caffe_1.log cannot be read or written" in errors


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_in_all_processes(project, number):
    """SIGUSR1 goes to mpirun, which passes it on; SIGTERM to one process only."""
    write_config(project, MAX_ITERS=10**6, SNAPSHOT_ITERS=10**6)
    process = start(project, "--stage", "softmax")
    wait_for_iterations(process, project)
    if number == signal.SIGTERM:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        os.kill(max(map(int, children.stdout.split())), number)
    else:
        process.send_signal(number)
    ends_in_one_sentence(finish(process), "train.py: stopped after iteration", 128 + number)
    snapshots = list((project / "run").glob("softmax_iter_*.caffemodel"))
    rows = list(csv.DictReader((project / "run" / "softmax_log.csv").open()))
    assert [path.name for path in snapshots] == [f"softmax_iter_{rows[-1]['iteration']}.caffemodel"]


@needs_mpi
def test_processes_go_on_and_mine_together_to_the_same_bits(project):
    settings = {"SNAPSHOT_ITERS": 5, "MINE_ITERS": 4, "FEATURE_CACHE": "cache", "SELECTION": "batch-hard"}
    write_config(project, RUN_FOLDER="once", MAX_ITERS={"softmax": 10, "triplet": 20}, **settings)
    status, out, errors = mpi_train(project)
    assert status == 0, errors
    assert "around hard negatives" in out
    for end, arguments in ((10, ()), (20, ("--resume",))):  # mined at 8, and then at 12
        write_config(project, RUN_FOLDER="twice", MAX_ITERS={"softmax": 10, "triplet": end}, **settings)
        status, out, errors = mpi_train(project, *arguments)
        assert status == 0, errors
    assert "resumes    from iteration 10" in out
    once, twice = ((project / folder / "triplet_iter_20.caffemodel").read_bytes() for folder in ("once", "twice"))
    assert once == twice


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_mpirun_without_mpi4py_says_once_what_to_install(project, monkeypatch, rank, said):
    (project / "mpi4py").mkdir()
    (project / "mpi4py" / "__init__.py").write_text("")
    for name, value in (("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", rank), ("PYTHONPATH", str(project))):
        monkeypatch.setenv(name, value)
    result = run_train(project)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert ("mpi4py cannot be loaded" in result.stderr and "pip install -e .[mpi]" in result.stderr) == said
    assert bool(result.stderr) == said


def test_without_mpirun_mpi_is_not_loaded():
    program = (
        "import sys; from tripletloss.base import parallel; team = parallel.join('train.py'); "
        "print(team.size, 'mpi4py' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "1 False\n"
