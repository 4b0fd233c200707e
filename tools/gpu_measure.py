"""What tools/gpu_check.py measures in processes of their own: python tools/gpu_measure.py WHAT [--device cpu] ..."""

import argparse
import ctypes
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARM_UP, TIMED, BY_LAYER = 5, 20, 5  # iterations that are not timed, that are timed, and that are timed layer by layer


def net_and_size(device):
    """The folder of the net that is measured on a device, and the size of its images in pixels."""
    return (ROOT, 64) if device == "cpu" else (ROOT / "models" / "vgg_face", 224)


def start_caffe(device):
    """Import Caffe without its log, set its mode, and return it."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    import caffe

    if device == "gpu":
        caffe.set_device(0)
        caffe.set_mode_gpu()
    return caffe


def runtime():
    """The CUDA runtime that Caffe has loaded, for synchronising and asking for memory; None on the CPU."""
    with open("/proc/self/maps") as file:
        path = re.search(r"\S+/libcudart\.so\S*", file.read())
    return ctypes.CDLL(path[0]) if path else None


def memory_used():
    """Megabytes of the GPU's memory in use by any process; 0 on the CPU."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda = runtime()
    if cuda is None or cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
        return 0
    return (total.value - free.value) / 2**20


def write_config(folder, net, **changes):
    """Write a config for a net's folder and this project's sample, with changes, and return its path."""
    from tripletloss.config import copy_text

    paths = {"RUN_FOLDER": folder / "run", "FEATURE_CACHE": folder / "features", "IMAGEPATH": ROOT / "data" / "images",
             "TRAIN_LIST": ROOT / "data" / "train.txt", "HELD_OUT_LIST": ROOT / "data" / "held_out.txt",
             "NET": net / "train.prototxt", "SOLVER": ROOT / "solver.prototxt", "DEPLOY": net / "deploy.prototxt",
             "WEIGHTS": ""}
    settings = {**{name: str(path) for name, path in paths.items()}, **changes}
    path = folder / "config.py"
    path.write_text(copy_text(str(net / "config.py"), str(path), settings))
    return path


def plan_solver(folder, net, device, stage, batch):
    """Plan a stage in which all layers learn, as train.py does, and return a function that makes its solver.

    Caffe must not have run in this process, as child processes build the net.
    """
    import caffe

    from tripletloss import config
    from tripletloss.training.plan import make_plan

    settings = config.load(str(write_config(folder, net, STAGES=[stage], FREEZE="", BATCH_SIZE=batch, WORKERS=4,
                                            HELD_OUT_LIST="", DEPLOY="")))  # fmt: skip
    (folder / "run").mkdir()
    planned = make_plan(settings, stage, 0 if device == "gpu" else None)
    return lambda: caffe.get_solver(f"{planned.prefix}_solver.prototxt")


def measure_caffe(device, net, stage, batch):
    """Time training iterations, then each layer; print JSON."""
    from tripletloss.net.settings import DATA_SECONDS

    with tempfile.TemporaryDirectory() as folder:
        build = plan_solver(Path(folder), net, device, stage, batch)
        caffe = start_caffe(device)
        cuda, before = runtime() if device == "gpu" else None, memory_used()
        solver = build()
        seconds, waited = [], 0.0
        for number in range(WARM_UP + TIMED):
            start = time.perf_counter()
            solver.step(1)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start)
                waited += float(solver.net.blobs[DATA_SECONDS].data)
        used = memory_used() - before
        by_layer, copies = time_layers(solver.net, cuda)
        seeded = []
        for seed in range(TIMED):
            start = time.perf_counter()
            caffe.set_random_seed(seed)
            solver.step(1)
            seeded.append(time.perf_counter() - start)
    total = sum(by_layer.values())
    python = sum(value for name, value in by_layer.items() if name in python_layers(solver.net))
    print(json.dumps({
        "seconds": statistics.median(seconds), "waited": waited / sum(seconds), "memory": used,
        "python": python / total, "copies": copies / total, "seeded": statistics.median(seeded),
    }))  # fmt: skip


def python_layers(net):
    """The names of a net's Python layers."""
    return {name for name, layer in zip(net._layer_names, net.layers, strict=True) if layer.type == "Python"}


def time_layers(net, cuda):
    """The seconds that each layer takes, forward and backward, and those for copying Python layers' tops to the GPU.

    This synchronises with the GPU after each layer. A top is copied by the first layer that uses it, so the copy takes
    the time by which that layer's first pass is longer than a second one.
    """
    def timed(step, i):
        start = time.perf_counter()
        step(i, i)
        if cuda:
            cuda.cudaDeviceSynchronize()
        return time.perf_counter() - start

    names, python = list(net._layer_names), python_layers(net)
    spent, copies = dict.fromkeys(names, 0.0), 0.0
    for _ in range(BY_LAYER):
        on_the_cpu = set()  # blobs that no layer has used on the GPU since a Python layer made them
        for i, name in enumerate(names):
            spent[name] += (took := timed(net._forward, i))
            if name in python:
                on_the_cpu.update(net.top_names[name])
            elif on_the_cpu.intersection(net.bottom_names[name]):
                on_the_cpu.difference_update(net.bottom_names[name])
                copies += max(took - timed(net._forward, i), 0.0)
        for i in reversed(range(len(names))):
            spent[names[i]] += timed(net._backward, i)
    return spent, copies


def layers_of(net):
    """A prototxt's layers up to fc9, with what PyTorch needs to know about them."""
    from tripletloss.net.definition import read_net

    found = []
    for layer in read_net(str(net / "train.prototxt")).layer:
        if layer.type == "Convolution":
            p = layer.convolution_param
            found.append(["conv", p.num_output, p.kernel_size[0], p.stride[0] if p.stride else 1,
                          p.pad[0] if p.pad else 0])
        elif layer.type == "Pooling":
            found.append(["pool", layer.pooling_param.kernel_size, layer.pooling_param.stride])
        elif layer.type == "InnerProduct" and layer.name != "fc9_1":
            found.append(["fc", layer.inner_product_param.num_output])
        elif layer.type in ("ReLU", "Dropout"):
            found.append([layer.type])
    return found


def measure_torch(device, batch, size):
    """Time PyTorch's training iterations with the layers that standard input lists, on one batch in memory."""
    import torch
    from torch import nn

    tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    made, flat = [], False
    for kind, *numbers in json.load(sys.stdin):
        if kind == "fc" and not flat:
            made.append(nn.Flatten())
            flat = True
        made.append({
            "conv": lambda n: nn.LazyConv2d(n[0], n[1], n[2], n[3]), "pool": lambda n: nn.MaxPool2d(*n),
            "fc": lambda n: nn.LazyLinear(n[0]), "ReLU": lambda n: nn.ReLU(inplace=True),
            "Dropout": lambda n: nn.Dropout(inplace=True),
        }[kind](numbers))  # fmt: skip
    where = "cuda" if device == "gpu" else "cpu"
    net = nn.Sequential(*made).to(where)
    images, labels = torch.randn(batch, 3, size, size, device=where), torch.arange(batch, device=where)
    net(images)
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)
    seconds = []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the GPU
        seconds.append(time.perf_counter() - start)
    used = torch.cuda.max_memory_reserved() / 2**20 if device == "gpu" else 0
    print(json.dumps({"seconds": statistics.median(seconds[WARM_UP:]), "memory": used, "torch": torch.__version__}))


def run_pycaffe_tests(device):
    """Run Caffe's own Python tests, as `make caffe-test` does, in GPU mode."""
    start_caffe(device)
    sys.path.insert(0, str(ROOT / "tools"))
    import build_caffe

    exec(build_caffe.RUN_TESTS, {})


def run_layer_tests(device):
    """Run the tests of the layers, including their gradients, with Caffe in GPU mode."""
    start_caffe(device)
    import pytest

    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "layers" / "test_layers.py")]))


def run_nccl(device, net, batch):
    """Train ten iterations with NCCL and one rank, and without, for the same losses; print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        build = plan_solver(Path(folder), net, device, "softmax", batch)
        caffe = start_caffe(device)
        from tripletloss.base.parallel import nccl_of

        if not caffe.has_nccl():
            sys.exit("this Caffe was built without NCCL: set USE_NCCL := 1 in Makefile.config")
        losses, seconds = [], []
        for with_nccl in (False, True):
            solver = build()
            if with_nccl:
                nccl = nccl_of(solver, caffe.NCCL.new_uid(), 0, 1)
                solver.add_callback(nccl)
            start, values = time.perf_counter(), []
            for number in range(10):
                caffe.set_random_seed(number)
                solver.step(1)
                values.append(float(solver.net.blobs["loss"].data))
            losses.append(values)
            seconds.append((time.perf_counter() - start) / 10)
    print(json.dumps({"difference": greatest_difference(*losses), "seconds": seconds}))


def greatest_difference(one, other):
    """The largest relative difference between two lists of losses."""
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, other, strict=True))


def main():
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["caffe", "torch", "nccl", "pycaffe-tests", "layer-tests"])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu")
    parser.add_argument("--stage", choices=["softmax", "triplet"])
    parser.add_argument("--batch", type=int, help="images")
    args = parser.parse_args()
    net, size = net_and_size(args.device)
    {"caffe": lambda: measure_caffe(args.device, net, args.stage, args.batch),
     "torch": lambda: measure_torch(args.device, args.batch, size),
     "nccl": lambda: run_nccl(args.device, net, args.batch),
     "pycaffe-tests": lambda: run_pycaffe_tests(args.device),
     "layer-tests": lambda: run_layer_tests(args.device)}[args.what]()  # fmt: skip


if __name__ == "__main__":
    main()
