"""All checks and timings that need a GPU, in one table: python tools/gpu_check.py [ROW ...].

    .venv/bin/python tools/gpu_check.py                      # every row
    .venv/bin/python tools/gpu_check.py speed --torch python3
    .venv/bin/python tools/gpu_check.py --rehearse           # on the CPU, with the small net, to try the script itself

Each row is measured in processes of its own (tools/gpu_measure.py), because Caffe ends the process when a check fails.
A row that fails says why, and the others still run. The exit status is 0 if all rows passed. Without a GPU, this says
so and stops.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_measure import greatest_difference, layers_of, net_and_size, write_config

ROOT = Path(__file__).resolve().parent.parent
MEASURE = ROOT / "tools" / "gpu_measure.py"
BATCHES = [30, 60]  # images
ROUNDS = 2  # how many times Caffe and PyTorch are each timed, in turns
COMPARED = 50  # iterations in which CPU and GPU must have the same losses; 5 in a rehearsal
TOLERANCE = 1e-3  # for losses, relative


class Failed(Exception):
    """A row has no result; the message says why."""


def run(command, timeout, **options):
    """Run a program, and return its output. Raises Failed with its last message."""
    try:
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=timeout, cwd=ROOT, **options)
    except subprocess.TimeoutExpired:
        raise Failed(f"no result within {timeout} s") from None
    except OSError as error:
        raise Failed(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it printed nothing"]
        named = [line for line in lines if re.match(r"F\d{4,8} |FAIL: |ERROR: |FAILED ", line)]
        raise Failed("; ".join(named) or lines[-1])
    return done.stdout


def measured(args, what, *more, python=sys.executable, tf32="0", text=""):
    """Run one of gpu_measure's measurements, and return its JSON."""
    said = run([python, MEASURE, what, "--device", args.device, *more], 900, input=text,
               env={**os.environ, "NVIDIA_TF32_OVERRIDE": tf32})
    return json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))


def train(args, folder, net, *more, **changes):
    """Run train.py with changed settings; return the rows of the softmax stage's log, and all that was printed."""
    path = write_config(folder, net, **changes)
    said = run([sys.executable, ROOT / "train.py", "--config", path, *more], 900)
    with open(folder / "run" / "softmax_log.csv") as file:
        return list(csv.DictReader(file)), said


def row_device(args):
    """GPU, driver, and the CUDA that Caffe loads."""
    if args.device == "cpu":
        yield "device", "CPU: a rehearsal, whose figures mean nothing"
        return
    yield "GPU, driver, memory", run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                                      "--format=csv,noheader"], 60).splitlines()[0]
    yield "CUDA runtime", run([sys.executable, "-c", f"""
import ctypes, sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import gpu_measure
gpu_measure.start_caffe("gpu"); version = ctypes.c_int()
gpu_measure.runtime().cudaRuntimeGetVersion(ctypes.byref(version))
print(version.value)"""], 120).splitlines()[-1]


def row_pycaffe(args):
    """pycaffe's own tests."""
    said = run([sys.executable, MEASURE, "pycaffe-tests", "--device", args.device], 600)
    yield "pycaffe's tests", re.search(r"Ran (\d+ tests)", said)[1] + " passed"


def row_gradients(args):
    """The layers' tests."""
    said = run([sys.executable, MEASURE, "layer-tests", "--device", args.device], 600)
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
    """Whether CPU and GPU have the same losses, for the sample's net, which has no dropout, and the same seed."""
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
        raise Failed("training differs between CPU and GPU")


def row_speed(args):
    """Caffe compared with PyTorch, in turns, in the softmax stage; the Python layers of the triplet stage."""
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
            yield f"{name}: Caffe", f"{1e3 * seconds:.1f} ms per iteration, {ours[-1]['memory']:.0f} MB"
            yield from shares(ours)
            seeded = statistics.median(one["seeded"] for one in ours)
            yield "  set_random_seed before each", f"{1e3 * seeded:.1f} ms per iteration, {seeded / seconds:.3f} of it"
            if theirs:
                other = statistics.median(one["seconds"] for one in theirs)
                yield (f"{name}: PyTorch {theirs[0]['torch']}",
                       f"{1e3 * other:.1f} ms per iteration, {theirs[-1]['memory']:.0f} MB; "
                       f"Caffe takes {seconds / other:.2f} of that")
            else:
                yield f"{name}: PyTorch", f"not measured: {problem}"
    for batch in args.batches:
        ours = measured(args, "caffe", "--stage", "triplet", "--batch", str(batch))
        yield f"triplet stage, all learning, batch {batch}, TF32 off", f"{1e3 * ours['seconds']:.1f} ms per iteration"
        yield from shares([ours])


def shares(measurements):
    """Lines with the time that an iteration spends outside of Caffe's own layers: the largest of the measurements."""
    kinds = {"waiting for data": "waited", "Python layers": "python", "copies of what they made": "copies"}
    for what, key in kinds.items():
        yield f"  {what}", f"{max(one[key] for one in measurements):.1%} (aim: under 5%)"


def row_nccl(args):
    """NCCL with one rank."""
    found = measured(args, "nccl", "--batch", str(args.batches[0]))
    without, with_it = found["seconds"]
    yield "NCCL, one rank", f"losses differ by {found['difference']:.1e}; {with_it / without:.2f} of the time without"
    if found["difference"] > TOLERANCE:
        raise Failed("training with NCCL differs from training without")


ROWS = {"device": row_device, "pycaffe": row_pycaffe, "gradients": row_gradients, "stages": row_stages,
        "losses": row_losses, "nccl": row_nccl, "speed": row_speed}


def has_gpu():
    """Return whether Caffe can use a GPU here; if not, print why."""
    from tripletloss.base.errors import InputError
    from tripletloss.training.device import choose_device

    try:
        choose_device("gpu")
    except InputError as error:
        print(f"gpu_check.py: nothing is checked: {error}", file=sys.stderr)
        return False
    return True


def main():
    """Print the table, row by row; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows ({', '.join(ROWS)}); default: all")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with the small net")
    args = parser.parse_args()
    args.device = "cpu" if args.rehearse else "gpu"
    args.net, _ = net_and_size(args.device)
    args.batches = BATCHES[:1] if args.device == "cpu" else BATCHES
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]}: choose from {', '.join(ROWS)}")
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
