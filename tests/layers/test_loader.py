"""Mini-batches from worker processes: the same as without, and no worker or memory left behind."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ROOT, run_train, weights, write_config
from tripletloss.base.errors import InputError
from tripletloss.base.process import caffe_log
from tripletloss.config import REQUIRED, SCHEMA
from tripletloss.data.loader import Loader
from tripletloss.layers import DataLayer


def settings(project, **changes):
    found = {key: SCHEMA[key.upper()].default for key in DataLayer.keys}
    found.update(train_list=str(project / "list.txt"), imagepath=str(project / "images"), batches="identities",
                 batch_size=12, images_per_identity=3, image_size=12, seed=3, mirror=True, crop_jitter=0.2,
                 light_jitter=0.3)  # fmt: skip
    found.update(changes)
    assert REQUIRED not in found.values()
    return found


def workers_of(pid):
    """Process numbers of a process's data workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            command = path.joinpath("cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == pid and "tripletloss.data.loader" in command:
            found.append(int(path.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_make_the_batches_that_are_made_without_them(project, workers):
    alone, helped = Loader(settings(project, workers=0)), Loader(settings(project, workers=workers))
    for _ in range(12):
        (pixels, labels, _), (theirs, their_labels, waited) = alone.next(), helped.next()
        np.testing.assert_array_equal(pixels, theirs)
        np.testing.assert_array_equal(labels, their_labels)
        assert waited >= 0
    pids = [worker.pid for worker in helped.workers]
    assert len(pids) == workers and set(pids) <= set(workers_of(os.getpid()))
    del helped
    assert gone(pids)


def test_a_share_of_a_batch_is_made_by_workers_too(project):
    whole = Loader(settings(project, workers=0)).next()[0]
    parts = [Loader(settings(project, workers=1, ranks=2, rank=rank)).next()[0].copy() for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_no_worker_is_started_before_the_first_batch(project):
    loader = Loader(settings(project, workers=2))
    assert loader.workers == [] and loader.shape == (12, 3, 12, 12)


def test_a_broken_image_is_named_when_its_turn_comes(project):
    loader = Loader(settings(project, workers=2))
    loader.next()
    pids = [worker.pid for worker in loader.workers]
    for path in (project / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="is not an image that can be decoded"):
        for _ in range(20):
            loader.next()
    assert gone(pids)


def test_a_worker_that_dies_is_an_error_and_no_hang(project):
    loader = Loader(settings(project, workers=2))
    loader.next()
    pids = [worker.pid for worker in loader.workers]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(InputError, match=r"a data worker was killed by signal 9"):
        for _ in range(20):
            loader.next()
    assert gone(pids)


def take(loader, batches=20):
    for _ in range(batches):
        loader.next()


def test_an_exception_that_nobody_foresaw_is_told_by_its_last_line_and_the_logs_path(project, tmp_path):
    log = tmp_path / "caffe.log"
    with caffe_log(str(log)), pytest.raises(InputError) as refusal:
        take(Loader(settings(project, workers=2, pixel_means=["a", "b", "c"])))
    last = "ValueError: could not convert string to float: 'a'"
    assert str(refusal.value) == f"a data worker failed with {last}: the traceback is in {log}"
    assert "Traceback (most recent call last)" in log.read_text() and last in log.read_text()


def test_the_last_line_is_told_also_where_the_worker_has_gone_before_it_is_asked_again(project, tmp_path):
    with caffe_log(str(tmp_path / "caffe.log")):
        loader = Loader(settings(project, workers=1))
        loader.next()
        [worker] = loader.workers
        loader._tell(worker, "not a number")
        worker.wait()
        with pytest.raises(InputError, match="a data worker failed with ValueError: invalid literal for int"):
            loader._tell(worker, "1000")


def test_a_worker_that_cannot_even_start_points_to_the_log(project, tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = tmp_path / "caffe.log"
    with caffe_log(str(log)), pytest.raises(InputError) as refusal:
        take(Loader(settings(project, workers=2)))
    assert str(refusal.value) == f"a data worker exited with status 1: the traceback is in {log}"
    assert "ImportError: libGL.so.1" in log.read_text()


def test_a_worker_tells_of_each_broken_image_once_and_not_with_every_batch(project):
    for number in range(3):
        (project / "images" / f"person2@{number}.jpg").write_text("broken")
    loader, told = Loader(settings(project, workers=1, broken_images="skip", broken_list=str(project / "broken.txt"))), []
    loader._list_broken = lambda broken: told.append(broken)
    take(loader, 30)
    assert len(told) == 30 and sorted(int(number) for broken in told for number in broken) == [8, 9, 10]


def test_training_is_the_same_with_any_number_of_workers_and_says_the_wait(project):
    logs = {}
    for workers in (0, 1, 2):
        write_config(project, RUN_FOLDER=f"run{workers}", WORKERS=workers, CROP_JITTER=0.1, FEATURE_CACHE="")
        result = run_train(project)
        assert result.returncode == 0, result.stderr
        assert "data=" in result.stderr
        rows = list(csv.DictReader((project / f"run{workers}" / "triplet_log.csv").open()))
        logs[workers] = [row["loss"] for row in rows]
        assert all(float(row["data_seconds"]) >= 0 for row in rows)
    assert logs[0] == logs[1] == logs[2]
    net = project / "run0" / "triplet_train.prototxt"
    found = [weights(project / f"run{workers}" / "triplet_iter_4.caffemodel", net) for workers in (0, 1, 2)]
    for name in found[0]:
        for blobs in zip(*(one[name] for one in found), strict=True):
            assert all(np.array_equal(blobs[0], blob) for blob in blobs), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_ends(project, number):
    write_config(project, MAX_ITERS=100000, SNAPSHOT_ITERS=100000, STAGES=["softmax"], WORKERS=2)
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", str(project / "config.py")],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while len(pids := workers_of(process.pid)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    shared = set()  # its own: other runs have theirs at the same time
    for pid in (process.pid, *pids):
        with open(f"/proc/{pid}/maps") as file:
            shared.update(line.split()[5] for line in file if " /dev/shm/" in line)
    process.send_signal(number)
    process.wait(30)
    assert gone(pids)
    assert not [path for path in shared if os.path.exists(path)]
