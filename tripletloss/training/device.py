"""Which device a process learns on: the DEVICE setting, and the GPUs that work."""

import os
import tempfile

import caffe

from tripletloss.base.errors import InputError
from tripletloss.base.parallel import OneProcess
from tripletloss.base.process import caffe_log, try_in_child

# A matrix product and a kernel of Caffe's own.
GPU_TRIAL = """
layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 1 } } }
layer { name: "y" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
"""


def choose_device(wanted: str | int, local_rank: int = 0) -> tuple[int | None, str]:
    """The number of the GPU for a DEVICE setting, or None for the CPU, and a line that says which.

    local_rank: of several processes on a machine, each takes the next GPU. A child process computes something on it,
    as Caffe ends the process if there is no GPU, if the driver is missing or too old, or if Caffe was compiled for
    other GPUs. Raises InputError if a GPU is asked for and cannot be used.
    """
    if wanted == "cpu":
        return None, f"device     {_cpu()}"
    gpu = local_rank + (wanted if isinstance(wanted, int) else 0)
    try:
        try_in_child(lambda: _try_gpu(gpu), "no GPU" if wanted == "auto" else f"DEVICE asks for GPU {gpu}")
    except InputError as error:
        if wanted == "auto":
            return None, f"device     {_cpu()} ({error})"
        raise InputError(f"{error}: set DEVICE to 'cpu' or 'auto', or build Caffe for the GPU") from None
    return gpu, f"device     GPU {gpu}"


def _cpu():
    """The CPU, and whose layers Caffe has for it; a Caffe that was built elsewhere has no has_onednn."""
    fast = hasattr(caffe, "has_onednn") and caffe.has_onednn()
    return "CPU, with oneDNN" if fast else "CPU, with Caffe's own layers"


def _try_gpu(gpu):
    use_device(gpu)
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(GPU_TRIAL)
        file.flush()
        net = caffe.Net(file.name, caffe.TEST)
    net.forward()
    return float(net.blobs["y"].data[0, 0])  # what went wrong on the GPU shows when a result is fetched


def choose_devices(wanted: str | int, team: OneProcess) -> tuple[int | None, str]:
    """choose_device() for each process of a team: either each has a GPU of its own, or all learn on the CPU."""
    with team.together():
        gpu, sentence = choose_device(wanted, team.local_rank)
    gpus = team.gather(gpu)
    without = team.first(lambda: gpus.count(None))
    if 0 < without < team.size:
        return None, f"device     {_cpu()} ({without} of {team.size} processes have no GPU of their own)"
    return gpu, sentence


def use_device(gpu: int | None) -> None:
    """Set Caffe's device in this process: the number of a GPU, or None for the CPU."""
    if gpu is None:
        with caffe_log(os.devnull):  # a Caffe built for GPUs looks for one all the same, and complains if there is none
            caffe.set_mode_cpu()
    else:
        caffe.set_device(gpu)
        caffe.set_mode_gpu()
