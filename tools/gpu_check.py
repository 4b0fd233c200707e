"""All checks and timings that need a GPU, as one table: python tools/gpu_check.py [ROW ...].

    .venv/bin/python tools/gpu_check.py                      # every row
    .venv/bin/python tools/gpu_check.py speed --torch python3
    .venv/bin/python tools/gpu_check.py --rehearse           # on the CPU, with the small net: tries the script itself

Rows are measured by processes of their own, one after the other, as Caffe ends the process where a check fails: a row
that fails says why, and the others go on. The exit status is 0 if all passed. Without a GPU it says so and ends.
"""

import argparse
import csv
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCHES = [30, 60]  # images
WARM_UP, TIMED, BY_LAYER = 5, 20, 5  # iterations that are not timed, are timed, are timed layer by layer
ROUNDS = 2  # Caffe and PyTorch are timed in turns, each so many times
COMPARED = 50  # iterations, of which CPU and GPU must give the same losses; a rehearsal takes 5
TOLERANCE = 1e-3  # of losses, relative


# ------------------------------------------------------------------------------ what a process measures


def start_caffe(device):
    """Import Caffe, without its log, and set its mode; returns it."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    import caffe

    if device == "gpu":
        caffe.set_device(0)
        caffe.set_mode_gpu()
    return caffe


def runtime():
    """The CUDA runtime that Caffe has loaded, to wait for the GPU and ask for its memory; None on the CPU."""
    with open("/proc/self/maps") as file:
        path = re.search(r"\S+/libcudart\.so\S*", file.read())
    return ctypes.CDLL(path[0]) if path else None


def memory_used():
    """Megabytes of the GPU's memory that are in use, by whichever process; 0 on the CPU."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda = runtime()
    if cuda is None or cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
        return 0
    return (total.value - free.value) / 2**20


def write_config(folder, net, **changes):
    """Write a config of this project's sample for a net's folder, with changes; returns its path."""
    text = (net / "config.py").read_text()
    paths = {"RUN_FOLDER": folder / "run", "FEATURE_CACHE": folder / "features", "IMAGEPATH": ROOT / "data" / "images",
             "TRAIN_LIST": ROOT / "data" / "train.txt", "HELD_OUT_LIST": ROOT / "data" / "held_out.txt",
             "NET": net / "train.prototxt", "SOLVER": ROOT / "solver.prototxt", "DEPLOY": net / "deploy.prototxt",
             "WEIGHTS": ""}
    settings = {**{name: str(path) for name, path in paths.items()}, **changes}
    path = folder / "config.py"
    path.write_text(text + "\n" + "".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return path


def plan_solver(folder, net, device, stage, batch):
    """Plan a stage, all layers learning, as train.py does; returns what makes its solver.

    Nothing of Caffe may have run in this process, as child processes build the net.
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
    """Time training iterations, then each layer. Prints JSON."""
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
    """Names of a net's Python layers."""
    return {name for name, layer in zip(net._layer_names, net.layers, strict=True) if layer.type == "Python"}


def time_layers(net, cuda):
    """Seconds of each layer, forward and backward, and those for copying Python layers' tops to the GPU.

    The GPU is waited for after each layer. A copy is made by the layer that first uses the top: it is what that
    layer's first pass takes longer than a second one.
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
    """A prototxt's layers up to fc9, as what PyTorch needs to know of them."""
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
    """Time PyTorch's training iterations of the layers that standard input lists, on one batch in memory."""
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
    """Caffe's own Python tests, as `make caffe-test`, in GPU mode."""
    start_caffe(device)
    sys.path.insert(0, str(ROOT / "tools"))
    import build_caffe

    exec(build_caffe.RUN_TESTS, {})


def run_layer_tests(device):
    """The layers' tests, gradients among them, with Caffe in GPU mode."""
    start_caffe(device)
    import pytest

    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "layers" / "test_layers.py")]))


def run_nccl(device, net, batch):
    """Ten iterations with NCCL and one rank, and without: the same losses are wanted. Prints JSON."""
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


# ------------------------------------------------------------------------------ the rows


class Failed(Exception):
    """Why a row has no result."""


def run(command, timeout, **options):
    """Run a program; returns what it wrote. Raises Failed with its last words."""
    try:
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=timeout, cwd=ROOT, **options)
    except subprocess.TimeoutExpired:
        raise Failed(f"no result in {timeout} s") from None
    except OSError as error:
        raise Failed(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it said nothing"]
        named = [line for line in lines if re.match(r"F\d{4,8} |FAIL: |ERROR: |FAILED ", line)]
        raise Failed("; ".join(named) or lines[-1])
    return done.stdout


def measured(args, what, *more, python=sys.executable, tf32="0", text=""):
    """Run one of the functions above in a process of its own; returns its JSON."""
    said = run([python, __file__, "--measure", what, "--device", args.device, *more], 900, input=text,
               env={**os.environ, "NVIDIA_TF32_OVERRIDE": tf32})
    return json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))


def train(args, folder, net, *more, **changes):
    """Run train.py with a config of changes; returns the rows of the softmax stage's log, and all that was printed."""
    path = write_config(folder, net, **changes)
    said = run([sys.executable, ROOT / "train.py", "--config", path, *more], 900)
    with open(folder / "run" / "softmax_log.csv") as file:
        return list(csv.DictReader(file)), said


def greatest_difference(one, other):
    """The largest relative difference of two lists of losses."""
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, other, strict=True))


def row_device(args):
    """What was measured: GPU, driver, the CUDA that Caffe loads."""
    if args.device == "cpu":
        yield "device", "CPU: a rehearsal, which measures nothing"
        return
    yield "GPU, driver, memory", run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                                      "--format=csv,noheader"], 60).splitlines()[0]
    yield "CUDA runtime", run([sys.executable, "-c", f"""
import ctypes, sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import gpu_check
gpu_check.start_caffe("gpu"); version = ctypes.c_int(); gpu_check.runtime().cudaRuntimeGetVersion(ctypes.byref(version))
print(version.value)"""], 120).splitlines()[-1]


def row_pycaffe(args):
    """pycaffe's own tests."""
    said = run([sys.executable, __file__, "--measure", "pycaffe-tests", "--device", args.device], 600)
    yield "pycaffe's tests", re.search(r"Ran (\d+ tests)", said)[1] + " passed"


def row_gradients(args):
    """The layers' tests."""
    said = run([sys.executable, __file__, "--measure", "layer-tests", "--device", args.device], 600)
    yield "tests of the layers, gradients among them", said.splitlines()[-1]


def row_stages(args):
    """Both stages, end to end, with snapshots, cached features and held-out scores."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        _, said = train(args, Path(folder), ROOT, DEVICE=args.device, MAX_ITERS=20, SNAPSHOT_ITERS=10)
        yield "both stages, 20 iterations each", f"passed in {time.perf_counter() - start:.0f} s"
        for line in said.splitlines():
            if line.startswith(("device", "held out")):
                yield "", line


def row_losses(args):
    """The same losses on CPU and GPU: the sample's net, which has no dropout, from the same seed."""
    losses, count = [], COMPARED if args.device == "gpu" else 5
    for device in ("cpu", args.device):
        with tempfile.TemporaryDirectory() as folder:
            log, _ = train(args, Path(folder), ROOT, "--stage", "softmax", DEVICE=device, MAX_ITERS=count,
                           SNAPSHOT_ITERS=count, HELD_OUT_LIST="", DEPLOY="")
            losses.append([float(line["loss"]) for line in log])
    found = greatest_difference(*losses)
    yield (f"largest difference of {count} losses, CPU to {args.device.upper()}",
           f"{found:.1e}, {'within' if found <= TOLERANCE else 'MORE THAN'} {TOLERANCE:g}")
    if found > TOLERANCE:
        raise Failed("CPU and GPU do not train alike")


def row_speed(args):
    """Caffe against PyTorch, in turns, in the softmax stage; the triplet stage's Python layers."""
    layers = json.dumps(layers_of(args.net))
    for tf32 in ("0", "1") if args.device == "gpu" else ("0",):
        for batch in args.batches:
            ours, theirs, problem = [], [], None
            for _ in range(ROUNDS):
                ours.append(measured(args, "caffe", "--stage", "softmax", "--batch", str(batch), tf32=tf32))
                try:
                    theirs.append(measured(args, "torch", "--batch", str(batch), python=args.torch, tf32=tf32,
                                           text=layers))
                except Failed as error:
                    problem = error
            net = args.net.name if args.device == "gpu" else "small net"
            name = f"{net}, batch {batch}, TF32 {'on' if tf32 == '1' else 'off'}"
            seconds = statistics.median(one["seconds"] for one in ours)
            yield f"{name}: Caffe", f"{1e3 * seconds:.1f} ms an iteration, {ours[-1]['memory']:.0f} MB"
            yield from shares(ours)
            seeded = statistics.median(one["seeded"] for one in ours)
            yield "  set_random_seed before each", f"{1e3 * seeded:.1f} ms an iteration, {seeded / seconds:.3f} of that"
            if theirs:
                other = statistics.median(one["seconds"] for one in theirs)
                yield (f"{name}: PyTorch {theirs[0]['torch']}",
                       f"{1e3 * other:.1f} ms an iteration, {theirs[-1]['memory']:.0f} MB; "
                       f"Caffe takes {seconds / other:.2f} of that")
            else:
                yield f"{name}: PyTorch", f"not measured: {problem}"
    for batch in args.batches:
        ours = measured(args, "caffe", "--stage", "triplet", "--batch", str(batch))
        yield f"triplet stage, all learning, batch {batch}, TF32 off", f"{1e3 * ours['seconds']:.1f} ms an iteration"
        yield from shares([ours])


def shares(measurements):
    """Lines of what an iteration spends outside of Caffe's own layers: the largest of several measurements."""
    kinds = {"waiting for data": "waited", "Python layers": "python", "copies of what they made": "copies"}
    for what, key in kinds.items():
        yield f"  {what}", f"{max(one[key] for one in measurements):.1%} (aim: under 5%)"


def row_nccl(args):
    """One rank of NCCL."""
    found = measured(args, "nccl", "--batch", str(args.batches[0]))
    without, with_it = found["seconds"]
    yield "NCCL, one rank", f"losses differ by {found['difference']:.1e}; {with_it / without:.2f} of the time without"
    if found["difference"] > TOLERANCE:
        raise Failed("training with NCCL differs from training without")


ROWS = {"device": row_device, "pycaffe": row_pycaffe, "gradients": row_gradients, "stages": row_stages,
        "losses": row_losses, "nccl": row_nccl, "speed": row_speed}


def has_gpu():
    """Tell whether Caffe computes on a GPU here; else say why not."""
    from tripletloss.base.errors import InputError
    from tripletloss.training.device import choose_device

    try:
        choose_device("gpu")
    except InputError as error:
        print(f"gpu_check.py: nothing is checked: {error}", file=sys.stderr)
        return False
    return True


def main():
    """Print the table, row by row. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which ({', '.join(ROWS)}); default: all")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="the Python that has PyTorch")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with the small net")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="gpu", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rehearse:
        args.device = "cpu"
    args.net, size = (ROOT, 64) if args.device == "cpu" else (ROOT / "models" / "vgg_face", 224)
    args.batches = BATCHES[:1] if args.device == "cpu" else BATCHES
    if args.measure:
        {"caffe": lambda: measure_caffe(args.device, args.net, args.stage, args.batch),
         "torch": lambda: measure_torch(args.device, args.batch, size),
         "nccl": lambda: run_nccl(args.device, args.net, args.batch),
         "pycaffe-tests": lambda: run_pycaffe_tests(args.device),
         "layer-tests": lambda: run_layer_tests(args.device)}[args.measure]()  # fmt: skip
        return 0
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]}: choose of {', '.join(ROWS)}")
    if args.device == "gpu" and not has_gpu():
        return 2
    failed = False
    for name in args.rows or [row for row in ROWS if args.device == "gpu" or row != "nccl"]:
        try:
            for what, value in ROWS[name](args):
                print(f"{what:60}  {value}", flush=True)
        except Failed as error:
            failed = True
            print(f"{name:60}  FAILED: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
