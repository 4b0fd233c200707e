"""A run is never lost: after any kill it resumes to the same bits, snapshots are whole, and a folder has one run."""

import csv
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import caffe
import numpy as np
import pytest
from caffe.proto import caffe_pb2

from tests.helpers import ROOT, TINY_NET, make_project, run_train, write_config
from tripletloss import layers
from tripletloss.base.errors import InputError
from tripletloss.training import snapshots

KILLS = int(os.environ.get("KILLS", "12"))  # KILLS=100 takes some minutes
ENDS = {"softmax": 140, "triplet": 240}
# Dropout, momentum, augmentation and workers, snapshots at other iterations than the end, features cached and mined.
SETTINGS = {
    "MIRROR": True, "CROP_JITTER": 0.2, "LIGHT_JITTER": 0.3, "GREY_SHARE": 0.3, "WORKERS": 2, "SNAPSHOT_ITERS": 17,
    "MAX_ITERS": ENDS, "FEATURE_CACHE": "cache", "MINE_ITERS": 10, "KEEP_SNAPSHOTS": 2,
    "SELECTION": "distance-weighted",
}  # fmt: skip


def normalise_last(project):
    """Distance-weighted selection wants embeddings of length one."""
    text = (project / "net.prototxt").read_text()
    norm = """layer {
  name: "embedding" type: "Python" bottom: "fc9_1" top: "embedding"
  python_param { module: "tripletloss.layers" layer: "Norm2Layer" } include { stage: "triplet" }
}
layer {
  name: "triplet_select" type: "Python" bottom: "embedding\""""
    old = 'layer {\n  name: "triplet_select" type: "Python" bottom: "fc9_1"'
    assert old in text
    (project / "net.prototxt").write_text(text.replace(old, norm))


def command(project, *arguments):
    return [sys.executable, str(ROOT / "train.py"), "--config", str(project / "config.py"), *arguments]


def final_weights(run):
    return [(run / f"{stage}_iter_{number}.caffemodel").read_bytes() for stage, number in ENDS.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose run from beginning to end is in the folder whole; config.py names the folder run."""
    project = make_project(tmp_path_factory.mktemp("whole"))
    normalise_last(project)
    write_config(project, RUN_FOLDER="whole", **{**SETTINGS, "FEATURE_CACHE": "cache_whole"})
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    write_config(project, **SETTINGS)
    return project


@pytest.fixture
def whole(trained, tmp_path):
    """A copy of that project."""
    return shutil.copytree(trained, tmp_path / "copy")


def log_of(run, stage):
    rows = list(csv.DictReader((run / f"{stage}_log.csv").open()))
    return [(row["iteration"], row["loss"], row["learning_rate"]) for row in rows]


def logs_of(run):
    """When each stage's log was last written: as its training begins, and with every snapshot."""
    return {path.name: path.stat().st_mtime_ns for path in run.glob("*_log.csv")}


def wait_for_writes(process, run, count, seconds):
    """Wait until a run's logs were written so often, or for so many seconds, or for its end. Returns the writes seen."""
    seen, written, deadline = logs_of(run), 0, time.monotonic() + seconds
    while written < count and time.monotonic() < deadline and process.poll() is None:
        now = logs_of(run)
        written, seen = written + (now != seen), now
        time.sleep(0.002)
    return written


def test_runs_killed_at_random_moments_end_with_the_same_bits(whole):
    """Most kills wait for training, some writes of the log and a moment more; the others come as the run starts."""
    rng, run, killed = random.Random(0), whole / "run", []  # for each kill, the stage that trained; None: none did yet
    while len(killed) < KILLS:
        for folder in (run, whole / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        running = True
        while running:
            before = logs_of(run)
            process = subprocess.Popen(command(whole, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if len(killed) >= KILLS:
                process.wait(120)
            elif len(killed) % 4 == 3:
                time.sleep(rng.uniform(0.1, 0.8))
            else:
                wait_for_writes(process, run, rng.randint(1, 4), 60)
                time.sleep(rng.uniform(0, 0.3))
            running = process.poll() is None
            if running:
                process.kill()
                trained = [name.split("_")[0] for name, written in logs_of(run).items() if written != before.get(name)]
                killed.append(max(trained, default=None))  # in the order of the alphabet, too, triplet is the last
            _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert final_weights(run) == final_weights(whole / "whole")
        assert not list(run.glob("*.part"))
        for stage in ("softmax", "triplet"):
            assert log_of(run, stage) == log_of(whole / "whole", stage)
    assert len(killed) >= KILLS and killed.count(None) <= KILLS / 3, killed
    assert min(killed.count("softmax"), killed.count("triplet")) >= KILLS // 6, killed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_says_how_to_go_on_and_ends_with_the_same_bits(whole, number):
    heed = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}  # the tests may run under nohup
    process = subprocess.Popen(command(whole), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **heed)
    log = whole / "run" / "softmax_log.csv"
    deadline = time.time() + 60
    while not log.exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "resume with --resume" in errors
    stopped = snapshots.last_whole(str(whole / "run" / "softmax"))
    assert stopped is not None and stopped.iteration < ENDS["softmax"]
    result = run_train(whole, "--resume")
    assert result.returncode == 0 and f"resumes    from iteration {stopped.iteration}" in result.stdout
    assert final_weights(whole / "run") == final_weights(whole / "whole")


def test_a_terminal_that_is_closed_stops_a_run_after_a_snapshot(project):
    """It sends SIGHUP, and nothing can be written to it any more."""
    write_config(project, STAGES=["softmax"], MAX_ITERS=10**6, SNAPSHOT_ITERS=10**6)
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.execv(sys.executable, command(project))
    said, log = b"", project / "run" / "softmax_log.csv"
    while not log.exists():
        said += os.read(terminal, 10_000)
    assert b"iteration" in said or b"%|" in said, said
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert snapshots.last_whole(str(project / "run" / "softmax")).iteration > 0


def test_nohup_keeps_a_run_going(project):
    write_config(project, STAGES=["softmax"], MAX_ITERS=300, SNAPSHOT_ITERS=300)
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = subprocess.Popen(command(project), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **ignore)
    while not (project / "run" / "softmax_log.csv").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert snapshots.last_whole(str(project / "run" / "softmax")).iteration == 300


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a softmax stage of 20 iterations."""
    project = make_project(tmp_path_factory.mktemp("ended"))
    write_config(project, STAGES=["softmax"], MAX_ITERS=20, SNAPSHOT_ITERS=5)
    result = run_train(project)
    assert result.returncode == 0, result.stderr
    return project / "run"


@pytest.fixture
def finished(project, ended):
    """A copy of that folder, in a project whose config.py made it."""
    write_config(project, STAGES=["softmax"], MAX_ITERS=20, SNAPSHOT_ITERS=5)
    return shutil.copytree(ended, project / "run")


def cut_weights(run):
    path = run / "softmax_iter_20.caffemodel"
    path.write_bytes(path.read_bytes()[:-100])


def flip_state(run):
    path = run / "softmax_iter_20.solverstate"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [cut_weights, flip_state, lambda run: (run / "softmax_iter_20.caffemodel").unlink()])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(project, finished, harm):
    run = finished
    before = (run / "softmax_iter_20.caffemodel").read_bytes()
    harm(run)
    result = run_train(project, "--resume")
    assert result.returncode == 0, result.stderr
    assert "snapshot   iteration 20 is skipped: softmax_iter_20." in result.stdout
    assert "resumes    from iteration 15" in result.stdout
    assert (run / "softmax_iter_20.caffemodel").read_bytes() == before


def test_weights_without_their_description_are_no_snapshot(project, finished):
    run = finished
    (run / "softmax_iter_20.json").unlink()
    (run / "softmax_iter_15.json").write_text("{")
    assert snapshots.last_whole(str(run / "softmax")).iteration == 10


def test_only_the_last_snapshots_and_the_best_are_kept(project):
    write_config(project, STAGES=["softmax"], MAX_ITERS=20, SNAPSHOT_ITERS=5, KEEP_SNAPSHOTS=2)
    assert run_train(project).returncode == 0
    run = project / "run"
    assert [one.iteration for one in snapshots.described(str(run / "softmax"))] == [15, 20]
    assert sorted(path.name for path in run.glob("*.caffemodel")) == ["softmax_iter_15.caffemodel", "softmax_iter_20.caffemodel"]
    prefix = str(run / "softmax")
    first, second = snapshots.described(prefix)
    snapshots.note_score(prefix, first, 0.9)
    snapshots.note_score(prefix, second, 0.8)
    snapshots.prune(prefix, 1, 20)
    assert [one.iteration for one in snapshots.described(prefix)] == [15, 20]
    snapshots.note_score(prefix, first, 0.7)
    snapshots.prune(prefix, 1, 20)
    assert [one.iteration for one in snapshots.described(prefix)] == [20]


def test_training_longer_goes_on_from_the_end(project, finished):
    write_config(project, STAGES=["softmax"], MAX_ITERS=30, SNAPSHOT_ITERS=5)
    result = run_train(project, "--resume")
    assert "resumes    from iteration 20" in result.stdout
    rows = list(csv.DictReader((project / "run" / "softmax_log.csv").open()))
    assert [int(row["iteration"]) for row in rows] == list(range(1, 31))
    write_config(project, RUN_FOLDER="once", STAGES=["softmax"], MAX_ITERS=30, SNAPSHOT_ITERS=5)
    result = run_train(project)
    assert re.search(r"^time       about \d+ s for the remaining 10 iterations$", result.stdout, re.M)
    once, twice = ((project / folder / "softmax_iter_30.caffemodel").read_bytes() for folder in ("once", "run"))
    assert once == twice


def test_layers_that_share_parameters_go_on_to_the_same_bits(project):
    net = (project / "net.prototxt").read_text()
    layers, below = "", "fc7"
    for name in ("twin1", "twin2"):
        layers += (
            f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{below}" top: "{name}" param {{ name: "w" }} '
            f'param {{ name: "b" }} inner_product_param {{ num_output: 16 weight_filler {{ type: "xavier" }} }} }}\n'
        )
        below = name
    net = net.replace('layer {\n  name: "fc9" type: "InnerProduct" bottom: "fc7"', f'{layers}layer {{\n  name: "fc9" type: "InnerProduct" bottom: "twin2"')
    assert "twin2" in net
    (project / "net.prototxt").write_text(net)
    for folder, ends in (("once", [10]), ("twice", [5, 10])):
        for end in ends:
            write_config(project, RUN_FOLDER=folder, STAGES=["softmax"], MAX_ITERS=end, SNAPSHOT_ITERS=5)
            result = run_train(project, "--resume")
            assert result.returncode == 0, result.stderr
    assert "resumes    from iteration 5" in result.stdout
    once, twice = ((project / folder / "softmax_iter_10.caffemodel").read_bytes() for folder in ("once", "twice"))
    assert once == twice


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"LEARNING_RATE": 0.02}, "LEARNING_RATE changed from 0.01 to 0.02"),
        ({"SEED": 7}, "SEED changed from 1 to 7"),
        ({"NET": "other.prototxt"}, "content of NET changed"),
        ({"TRAIN_LIST": "other.txt"}, "content of TRAIN_LIST changed"),
    ],
)
def test_a_run_does_not_go_on_with_other_inputs(project, finished, change, name):
    (project / "other.prototxt").write_text((project / "net.prototxt").read_text() + "\n# another\n")
    (project / "other.txt").write_text("\n".join((project / "list.txt").read_text().splitlines()[::-1]))
    write_config(project, STAGES=["softmax"], MAX_ITERS=30, SNAPSHOT_ITERS=5, **change)
    before = {path: path.read_bytes() for path in (project / "run").glob("softmax_*") if path.is_file()}
    result = run_train(project, "--resume")
    assert result.returncode == 1 and name in result.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in (project / "run").glob("softmax_*") if path.is_file()} == before
    assert snapshots.last_whole(str(project / "run" / "softmax")).iteration == 20


def forget(run, *names):
    """Make the record of a run that of one from before some settings were there."""
    path = run / "softmax_settings.json"
    about = json.loads(path.read_text())
    for name in names:
        del about["inputs"][name], about[name]
    path.write_text(json.dumps(about))


def test_a_run_from_before_a_setting_was_there_goes_on_with_its_default(project, finished):
    forget(finished, "ROTATION_JITTER", "PIXEL_MEANS", "BATCHES")
    settings = {"STAGES": ["softmax"], "MAX_ITERS": 25, "SNAPSHOT_ITERS": 5}
    write_config(project, **settings, ROTATION_JITTER=10)
    result = run_train(project, "--resume")
    assert result.returncode == 1 and "ROTATION_JITTER changed from 0.0 to 10 since" in result.stderr
    write_config(project, **settings)
    result = run_train(project, "--resume")
    assert result.returncode == 0 and "resumes    from iteration 20" in result.stdout, result.stderr


def test_a_setting_that_may_change_now_did_not_have_to_stay_before(project, finished):
    path = finished / "softmax_settings.json"
    about = json.loads(path.read_text())
    about["inputs"]["WORKERS"] = 7
    path.write_text(json.dumps(about))
    write_config(project, STAGES=["softmax"], MAX_ITERS=25, SNAPSHOT_ITERS=5)
    result = run_train(project, "--resume")
    assert result.returncode == 0 and "resumes    from iteration 20" in result.stdout, result.stderr


HALF_WRITTEN = [f"{stage}_{name}{token}.part" for token in ("", ".0a1b2c3d") for stage in ENDS for name in (
    "iter_7.caffemodel", "iter_7.caffemodel.h5", "iter_7.solverstate", "iter_7.json", "iter_7_mined.npz",
    "mined.npz", "settings.json", "log.csv", "embeddings.csv", "held_out.csv", "curves.png",
)]  # fmt: skip


def test_only_half_written_files_of_the_runs_own_names_are_removed(project):
    run = project / "run"
    run.mkdir()
    others = ["holiday-video.mp4.part", "softmax_notes.txt.part", "softmax_iter_best.json.part", "log.csv.part",
              "my_softmax_log.csv.part", "triplet_iter_7.caffemodel.part.part", "softmax_log.csv.mine.part"]  # fmt: skip
    for name in (*HALF_WRITTEN, *others):
        (run / name).write_text(name)
    snapshots.clear(str(run))
    assert sorted(path.name for path in run.iterdir()) == sorted(others)
    write_config(project, STAGES=["softmax"])
    assert run_train(project).returncode == 0
    assert {name: (run / name).read_text() for name in others} == {name: name for name in others}


def test_a_run_that_made_nothing_yet_begins_with_resume(project):
    write_config(project, STAGES=["softmax"])
    assert run_train(project, "--resume").returncode == 0
    assert (project / "run" / "softmax_iter_4.caffemodel").exists()


def test_two_runs_in_one_folder_are_refused(project):
    write_config(project, STAGES=["softmax"], MAX_ITERS=10**6, SNAPSHOT_ITERS=10**6)
    first = subprocess.Popen(command(project), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while not (project / "run" / "softmax_log.csv").exists() and time.time() < deadline:
            time.sleep(0.05)
        for arguments in ((), ("--resume",)):
            result = run_train(project, *arguments)
            assert result.returncode == 1 and "another run is at work in" in result.stderr
    finally:
        first.kill()
        first.wait()


def test_a_second_interrupt_leaves_at_once_and_no_half_file(project):
    write_config(project, STAGES=["softmax"], MAX_ITERS=10**6, SNAPSHOT_ITERS=1, KEEP_SNAPSHOTS=1)
    process = subprocess.Popen(command(project), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not list((project / "run").glob("softmax_iter_*.json")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert not list((project / "run").glob("*.part"))
    assert snapshots.last_whole(str(project / "run" / "softmax")) is not None


def in_small_disk(project, size, *arguments):
    """train.py with the run's folder on a disk of so many kilobytes, which outlives it in a copy; or a skip."""
    script = (
        f'mount -t tmpfs -o size={size}k none run && cp -r kept/. run && "$@"; status=$?; '
        "rm -rf kept; cp -r run kept; exit $status"
    )
    probe = subprocess.run(["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True)
    if probe.returncode:
        pytest.skip("no disk can be mounted here")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "-", *command(project, *arguments)],
        cwd=project, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_earlier_snapshots(project):
    (project / "run").mkdir()
    (project / "kept").mkdir()
    write_config(project, STAGES=["softmax"], MAX_ITERS=40, SNAPSHOT_ITERS=5, KEEP_SNAPSHOTS=0)
    result = in_small_disk(project, 240)
    assert result.returncode == 1, result.stderr
    sentence = result.stderr.splitlines()[-1]
    assert "(No space left on device): make room, then resume with --resume" in sentence
    kept = project / "kept"
    assert not list(kept.glob("*.part"))
    last = snapshots.last_whole(str(kept / "softmax"))
    assert last is not None and not list(kept.glob(f"softmax_iter_{last.iteration + 5}*"))
    result = in_small_disk(project, 5000, "--resume")
    assert result.returncode == 0, result.stderr
    write_config(project, RUN_FOLDER="roomy", STAGES=["softmax"], MAX_ITERS=40)
    assert run_train(project).returncode == 0
    ends = [(folder / "softmax_iter_40.caffemodel").read_bytes() for folder in (kept, project / "roomy")]
    assert ends[0] == ends[1]


def test_a_snapshot_without_room_leaves_nothing_of_itself(project):
    write_config(project, STAGES=["softmax"], MAX_ITERS=20, SNAPSHOT_ITERS=20)
    assert run_train(project).returncode == 0
    run = project / "run"
    prefix = str(run / "softmax")
    solver = caffe.get_solver(str(run / "softmax_solver.prototxt"))
    snapshots.restore(solver, snapshots.last_whole(prefix))
    solver.step(1)
    for name in ("softmax_iter_21.solverstate", "softmax_iter_21.json"):
        (run / name).mkdir()  # so that no file can have the name
        with pytest.raises(InputError, match=r"the snapshot of iteration 21 cannot be written.*Is a directory"):
            snapshots.write(solver, prefix, "")
        (run / name).rmdir()
        assert not list(run.glob("softmax_iter_21*"))
    assert snapshots.write(solver, prefix, "").iteration == 21
    assert snapshots.last_whole(prefix).iteration == 21


@pytest.mark.parametrize("harm", ["history", "iter", "learned_net", "shape"])
def test_a_state_that_is_not_of_the_net_is_refused_before_caffe_ends_the_process(project, finished, harm):
    run = finished
    prefix = str(run / "softmax")
    snapshot = snapshots.last_whole(prefix)
    state = caffe_pb2.SolverState.FromString(open(snapshot.state, "rb").read())
    if harm == "history":
        del state.history[-1]
    elif harm == "iter":
        state.iter += 1
    elif harm == "learned_net":
        state.learned_net = "/etc/passwd"
    else:
        state.history[0].shape.dim[0] += 1
    open(snapshot.state, "wb").write(state.SerializeToString())
    with pytest.raises(InputError, match="belongs to another net"):
        snapshots.restore(caffe.get_solver(str(run / "softmax_solver.prototxt")), snapshot)


def test_an_explosion_is_told_with_iteration_layer_and_images_before_it_is_kept(project):
    write_config(project, STAGES=["softmax"], MAX_ITERS=50, SNAPSHOT_ITERS=50, LEARNING_RATE=1e30)
    result = run_train(project)
    sentence = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "lower LEARNING_RATE" in sentence and "stopped at iteration" in sentence
    assert "person" in sentence and not list((project / "run").glob("softmax_iter_*"))
    assert "snapshot" not in sentence and "WEIGHTS" not in sentence
    names = [line.split()[0] for line in (project / "run" / "softmax_stopped_batch.txt").read_text().splitlines()]
    assert names and set(names) <= {line.split()[0] for line in (project / "list.txt").read_text().splitlines()}


def test_an_explosion_after_a_snapshot_names_the_snapshot(project):
    (project / "solver.prototxt").write_text('lr_policy: "step" stepsize: 2 gamma: 1e30\n')
    write_config(project, STAGES=["softmax"], MAX_ITERS=50, SNAPSHOT_ITERS=2)
    result = run_train(project)
    sentence, last = result.stderr.splitlines()[-1], project / "run" / "softmax_iter_2.caffemodel"
    assert result.returncode == 1 and f"start another run, with WEIGHTS = '{last}' to continue from the last snapshot" in sentence
    assert snapshots.last_whole(str(project / "run" / "softmax")).weights == str(last)


def test_weights_that_are_not_finite_are_never_snapshotted(project):
    """A layer that no loss looks at explodes: the loss stays fine, the snapshot does not come."""
    text = (project / "net.prototxt").read_text()
    bad = """layer { name: "lonely" type: "InnerProduct" bottom: "fc7" top: "lonely" include { stage: "softmax" }
  inner_product_param { num_output: 2 weight_filler { type: "constant" value: 3e8 } } }
layer { name: "quiet" type: "Silence" bottom: "lonely" include { stage: "softmax" } }
"""
    (project / "net.prototxt").write_text(text + bad)
    write_config(project, STAGES=["softmax"])
    result = run_train(project)
    assert result.returncode == 1
    assert "a weight of layer 'lonely' has grown to 3e+08" in result.stderr.splitlines()[-1]
    assert not list((project / "run").glob("softmax_iter_*"))


def test_momentum_of_another_stage_is_not_taken(project):
    """After the softmax stage, the triplet stage learns as one that is given nothing but its weights."""
    write_config(project, FREEZE="")  # all layers have momentum in both stages
    assert run_train(project).returncode == 0
    write_config(project, FREEZE="", RUN_FOLDER="alone", STAGES=["triplet"], WEIGHTS="run/softmax_iter_4.caffemodel")
    assert run_train(project).returncode == 0
    for name in ("triplet_iter_4.caffemodel", "triplet_iter_4.solverstate"):
        states = [(project / folder / name).read_bytes() for folder in ("run", "alone")]
        assert states[0] == states[1]
    state = caffe_pb2.SolverState.FromString(states[0])
    assert state.iter == 4 and not state.HasField("learned_net") and all(np.any(blob.data) for blob in state.history[:2])


def test_a_snapshot_describes_its_weights_its_state_and_what_was_mined(whole):
    end = ENDS["triplet"]
    about = json.loads((whole / "whole" / f"triplet_iter_{end}.json").read_text())
    assert set(about["files"]) == {f"triplet_iter_{end}.caffemodel", f"triplet_iter_{end}.solverstate", f"triplet_iter_{end}_mined.npz"}


def test_an_explosion_of_the_triplet_stage_names_iteration_and_images(whole):
    write_config(whole, **{**SETTINGS, "STAGES": ["triplet"], "WEIGHTS": {"triplet": f"whole/softmax_iter_{ENDS['softmax']}.caffemodel"},
                           "LEARNING_RATE": 1e38, "SELECTION": "batch-hard", "MARGIN": 2.0, "MINE_ITERS": 0})  # fmt: skip
    result = run_train(whole)
    sentence = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "the triplet stage stopped at iteration" in sentence, result.stderr
    assert "person" in sentence and "lower LEARNING_RATE" in sentence
    assert (whole / "run" / "triplet_stopped_batch.txt").exists() and not list((whole / "run").glob("triplet_iter_*"))


def test_a_stop_in_the_last_iteration_does_not_begin_the_next_stage(project):
    """The signal comes when the stage's last snapshot is written and its curves are not yet drawn."""
    write_config(project, MAX_ITERS={"softmax": 1, "triplet": 2}, SNAPSHOT_ITERS=10)
    run = project / "run"
    for _ in range(5):  # until a snapshot is seen soon enough
        process = subprocess.Popen(command(project), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not (run / "softmax_iter_1.json").exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        if not (run / "softmax_curves.png").exists():
            break
        process.kill()
        process.communicate()
        shutil.rmtree(run)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped after iteration 1" in errors and "resume with --resume" in errors
    assert "stage      softmax" in out and "stage      triplet" not in out and not list(run.glob("triplet_*"))
    kept = (run / "softmax_iter_1.caffemodel").read_bytes()
    result = run_train(project, "--resume")
    assert result.returncode == 0 and "stage      triplet" in result.stdout
    assert (run / "softmax_iter_1.caffemodel").read_bytes() == kept and (run / "triplet_iter_2.caffemodel").exists()


def test_the_softmax_stage_does_not_grow_under_a_triplet_stage(whole):
    shutil.copytree(whole / "whole", whole / "run")
    write_config(whole, **{**SETTINGS, "MAX_ITERS": {**ENDS, "softmax": ENDS["softmax"] + 5}})
    result = run_train(whole, "--resume")
    assert result.returncode == 1 and "MAX_ITERS of the softmax stage grew from" in result.stderr.splitlines()[-1]


def test_weights_that_are_not_described_are_not_overwritten(project, finished):
    run = finished
    for path in run.glob("*.json"):
        path.unlink()
    result = run_train(project)
    assert result.returncode == 1 and "already has snapshots of a softmax stage" in result.stderr


# A net of one's own, and a training loop of one's own: this package's layers in pycaffe, without train.py.
OWN_DATA = (
    "{{train_list: {0}/list.txt, imagepath: {0}/images, batches: identities, batch_size: 12, images_per_identity: 3, "
    "image_size: 12, mirror: true, crop_jitter: 0.2, light_jitter: 0.3, workers: {1}, seed: 3}}"
)
OWN_EMBEDDING = """
layer {
  name: "embedding" type: "Python" bottom: "fc9_1" top: "embedding"
  python_param { module: "tripletloss.layers" layer: "Norm2Layer" }
}
layer {
  name: "loss" type: "Python" bottom: "embedding" bottom: "labels" top: "loss" loss_weight: 1
  python_param {
    module: "tripletloss.layers" layer: "BatchTripletLossLayer" param_str: "{selection: distance-weighted, margin: 1}"
  }
}
"""


def own_solver(folder, workers, passes):
    text = TINY_NET[: TINY_NET.index('layer {\n  name: "fc9" type')]
    text += 'layer { name: "fc9_1" type: "InnerProduct" bottom: "fc7" top: "fc9_1" inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }'
    text = text.replace('layer: "DataLayer"', f'layer: "DataLayer" param_str: "{OWN_DATA.format(folder, workers)}"')
    (folder / "own.prototxt").write_text(text + OWN_EMBEDDING)
    (folder / "own_solver.prototxt").write_text(
        f'net: "{folder}/own.prototxt" base_lr: 0.05 momentum: 0.9 lr_policy: "step" stepsize: 7 gamma: 0.5 '
        f'random_seed: 5 iter_size: {passes} snapshot_prefix: "{folder}/own" snapshot: 5\n'
    )
    return caffe.SGDSolver(str(folder / "own_solver.prototxt"))


def own_loop(solver, until):
    while solver.iter < until:
        caffe.set_random_seed(1000 + solver.iter)
        solver.step(1)
    return [blob.data.copy() for blobs in solver.net.params.values() for blob in blobs]


@pytest.mark.parametrize(("workers", "passes"), [(0, 1), (2, 3)])
def test_a_training_loop_of_ones_own_goes_on_to_the_same_bits(project, workers, passes):
    """solver.restore brings weights and momentum; the layers are told where they were, and dropout's draws are made."""
    expected = own_loop(own_solver(project, workers, passes), 10)
    solver = own_solver(project, workers, passes)
    solver.restore(str(project / "own_iter_5.solverstate"))
    layers.start_at(solver.net, solver.iter * passes)
    found = own_loop(solver, 10)
    assert all(map(np.array_equal, found, expected))
    # In a solver that has run already, too; and without that, it is another run.
    for told in (True, False):
        solver.restore(str(project / "own_iter_5.solverstate"))
        if told:
            layers.start_at(solver.net, solver.iter * passes)
        assert all(map(np.array_equal, own_loop(solver, 10), expected)) == told
