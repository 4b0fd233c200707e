"""Caffe built for GPUs, on a machine without one. What needs a GPU is in tools/gpu_check.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_train, write_config
from tripletloss import config


def in_child(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mapped_libraries():
    """Names of the libraries that `import caffe` loads."""
    return in_child("import caffe; print(open('/proc/self/maps').read())")


@pytest.fixture(scope="module")
def gpu_build():
    libraries = mapped_libraries()
    if "libcudart.so" not in libraries:
        pytest.skip("this Caffe is built for the CPU: make caffe GPU=1 builds it for GPUs")
    return libraries


no_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")


def test_imports_without_the_driver_s_library(gpu_build):
    if "libcuda.so" in gpu_build:
        pytest.skip("this machine has NVIDIA's driver library")
    assert "libcublas.so" in gpu_build and "libcurand.so" in gpu_build


@no_gpu
def test_auto_falls_back_to_the_cpu_in_one_line(project):
    write_config(project, DEVICE="auto")
    result = run_train(project, "--stage", "softmax")
    assert result.returncode == 0, result.stderr
    assert re.search(r"\ndevice     CPU, with [^\n(]* \(no GPU: Caffe stopped: ", result.stdout)
    assert "ublas" not in result.stdout + result.stderr  # which Caffe looks for, in vain
    assert "InitGoogleLogging" not in result.stderr


@no_gpu
def test_a_gpu_that_is_asked_for_and_missing_is_one_sentence(project, gpu_build):
    write_config(project, DEVICE=1)
    result = run_train(project, "--stage", "softmax")
    assert result.returncode == 1
    assert re.fullmatch(r"train\.py: DEVICE asks for GPU 1: Caffe stopped: .* set DEVICE to 'cpu' or .*\n", result.stderr)
    assert not (project / "run" / "softmax_iter_4.caffemodel").exists()


@no_gpu
def test_gpu_check_says_that_it_checks_nothing():
    done = subprocess.run([sys.executable, ROOT / "tools" / "gpu_check.py"], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r"gpu_check\.py: nothing is checked: DEVICE asks for GPU 0: .*\n", done.stderr)


def test_ids_of_nccl_are_whole(gpu_build):
    code = "import caffe; print(*[len(caffe.NCCL.new_uid()) for _ in range(20)] if caffe.has_nccl() else [])"
    lengths = in_child(code).split()
    if not lengths:
        pytest.skip("this Caffe is built without NCCL: USE_NCCL := 1 in Makefile.config")
    assert set(lengths) == {"128"}


@pytest.mark.parametrize("net", [ROOT, ROOT / "models" / "vgg_face"])
def test_the_config_that_gpu_check_measures_with_can_be_loaded(tmp_path, monkeypatch, net):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu_measure

    settings = config.load(str(gpu_measure.write_config(tmp_path, net, MAX_ITERS=7, STAGES=["softmax"])))
    assert settings.stage("softmax")["MAX_ITERS"] == 7 and settings["STAGES"] == ["softmax"]
    assert settings["NET"] == str(net / "train.prototxt") and settings["RUN_FOLDER"] == str(tmp_path / "run")
