"""How commands end: Ctrl-C at any moment, an output that cannot be written, letters that a terminal lacks."""

import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.helpers import PHOTOS, ROOT

WEIGHTS = str(ROOT / "models" / "face997" / "face997.caffemodel")
COMMANDS = {
    "cluster": [WEIGHTS, "--images", "people", "--out", "out"],
    "dataset": ["people", "--out", "."],
    "detect": ["people", "--out", "out"],
    "evaluate": [WEIGHTS, "--images", "people"],
    "export": [WEIGHTS, "--out", "out.onnx"],
    "faces": ["--out", "out"],
    "train.py": ["--check"],
    "extract": [WEIGHTS, "--images", "people", "--out", "out.h5"],
    "suspects": [WEIGHTS, "--images", "people", "--out", "out"],
    "verify": ["model.onnx", "people/0/0.jpg", "people/1/0.jpg"],
}


def start(folder, name, *arguments):
    """A command in a folder, as a terminal starts it: Ctrl-C is not ignored."""
    how = {"train.py": [str(ROOT / "train.py")], "faces": ["-m", "faces"]}.get(name, ["-m", f"tripletloss.{name}"])
    config = [] if name in ("dataset", "detect", "verify", "faces") else ["--config", str(ROOT / "config.py")]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments), *config], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Two people with 2,000 images each: work for some seconds."""
    folder = tmp_path_factory.mktemp("crowd")
    for person in range(2):
        (folder / "people" / str(person)).mkdir(parents=True)
        for number in range(2000):
            os.link(PHOTOS / f"face{2033 + person}@00.jpg", folder / "people" / str(person) / f"{number}.jpg")
    return folder


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def ended_by_ctrl_c(process, name):
    """Send Ctrl-C; the exit status is 130, and the last line on the terminal, the only one besides the bar, says so."""
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    lines = [line for line in errors.splitlines() if line.strip() and "it/s" not in line and "%|" not in line]
    name = name if name in ("train.py", "faces") else f"tripletloss.{name}"
    assert len(lines) == 1 and lines[0].startswith(f"{name}: stopped") and not out, errors


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_a_command_loads_its_modules_ends_it_in_one_line(crowd, name):
    process = start(crowd, name, *COMMANDS[name])

    def loads_numpy():
        with open(f"/proc/{process.pid}/maps") as file:
            return "_multiarray_umath" in file.read()

    wait_for(loads_numpy, process)
    ended_by_ctrl_c(process, name)


@pytest.mark.parametrize("name", ["dataset", "detect", "extract"])
def test_ctrl_c_while_a_command_works_ends_it_in_one_line(crowd, name):
    before = set(crowd.iterdir())
    process = start(crowd, name, *COMMANDS[name])
    shown = ""
    while "%|" not in shown.replace(" 0%|", ""):  # the bar has moved
        letter = process.stderr.read(1)
        assert letter, process.wait()
        shown += letter
    ended_by_ctrl_c(process, name)
    left = {path.name for path in set(crowd.iterdir()) - before}
    assert left == ({"out.part", "out.part.log"} if name == "detect" else set())  # by which it is resumed


def test_ctrl_c_is_not_lost_in_what_a_library_calls_back(tmp_path):
    """C's qsort calls Python, whose exceptions it cannot pass on."""
    (tmp_path / "script.py").write_text("""
import ctypes, os, signal, sys, time
from tripletloss.base import command
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
def compare(one, other):
    os.kill(os.getpid(), signal.SIGINT)
    return 0
def work():
    ctypes.CDLL(None).qsort((ctypes.c_int * 9)(), 9, 4, compare)
    time.sleep(5)
    print("went on")
sys.exit(command.run("here", work))
""")
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "here: stopped\n")


@pytest.mark.parametrize(("command", "name", "status", "advice"), [
    (["-m", "tripletloss.verify", "ONE.jpg", "OTHER.jpg"], "tripletloss.verify", 2, "run make onnx, and use .venv-onnx/bin/python"),
    (["-m", "tripletloss.cluster"], "tripletloss.cluster", 1, "run make caffe, and use .venv/bin/python"),
    (["train.py"], "train.py", 1, "run make caffe, and use .venv/bin/python"),
    (["-m", "tripletloss"], "tripletloss", 1, "run make caffe, and use .venv/bin/python"),
    (["-m", "faces"], "faces", 1, "run make caffe, and use .venv/bin/python"),
])  # fmt: skip
def test_another_python_than_the_projects_is_told_in_one_line_which_to_use(command, name, status, advice):
    without_packages = [sys.executable, "-S"]
    done = subprocess.run([*without_packages, *command], cwd=ROOT, capture_output=True, text=True)
    lacks = done.stderr.split(" has no ")[-1].split(":")[0]
    assert lacks in ("numpy", "tabulate", "cv2") and done.stdout == ""
    assert done.stderr == f"{name}: {sys.executable} has no {lacks}: {advice}\n"
    assert done.returncode == status


def test_what_fails_while_verify_is_imported_is_no_answer(tmp_path):
    (tmp_path / "numpy.py").write_text("1 / 0")
    done = subprocess.run(
        [sys.executable, "-m", "tripletloss.verify", "ONE.jpg", "OTHER.jpg"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "ZeroDivisionError" in done.stderr


def test_a_program_that_imports_the_project_gets_its_own_exceptions():
    done = subprocess.run([sys.executable, "-S", "-c", "import tripletloss.config"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "ModuleNotFoundError: No module named 'numpy'" in done.stderr


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    for person in "ab":
        (tmp_path / person).mkdir()
        cv2.imwrite(str(tmp_path / person / "1.jpg"), np.zeros((9, 9, 3), np.uint8))
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tripletloss.dataset", str(tmp_path), "--out", str(tmp_path)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "tripletloss.dataset: the output cannot be read or written (No space left on device)"
    )
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_who_reads_the_output_may_go_away(tmp_path):
    for person in "ab":
        (tmp_path / person).mkdir()
        for number in range(3):
            (tmp_path / person / f"{number}.jpg").write_bytes(b"")
        cv2.imwrite(str(tmp_path / person / "9.jpg"), np.zeros((9, 9, 3), np.uint8))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tripletloss.dataset", str(tmp_path), "--out", str(tmp_path)]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert result.returncode == 1 and "Error" not in result.stderr


def test_names_are_printed_on_a_terminal_that_lacks_their_letters(tmp_path):
    for person in ("Zoë", "Žižek"):
        (tmp_path / person).mkdir()
        cv2.imwrite(str(tmp_path / person / "1.jpg"), np.zeros((9, 9, 3), np.uint8))
        (tmp_path / person / "2.jpg").write_bytes(b"")
    command = [sys.executable, "-m", "tripletloss.dataset", str(tmp_path), "--out", str(tmp_path), "--held-out", "0"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0 and "\\u017di\\u017eek" in result.stdout, result.stderr
