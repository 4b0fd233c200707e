"""Does memory stay constant in long runs, and do large lists load?

    .venv/bin/python tools/endurance.py list          # 1,000,000 images of 100,000 identities
    .venv/bin/python tools/endurance.py run [HOURS]   # the iterations of that many hours at 2 per second (default: 24)

The run is `train.py` itself, on a tiny net that takes a millisecond, with a snapshot every 1,000 iterations. Its memory
and open files are read from /proc while it trains.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NET = """
layer { name: "data" type: "Python" top: "data" top: "labels"
  python_param { module: "tripletloss.layers" layer: "DataLayer" } }
layer { name: "fc7" type: "InnerProduct" bottom: "data" top: "fc7"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "fc9" type: "InnerProduct" bottom: "fc7" top: "fc9"
  inner_product_param { weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc9" bottom: "labels" top: "loss" }
"""


def measure_list():
    """Write and read a list of a million images; print seconds and memory."""
    from tripletloss.core.sampling import make_batches
    from tripletloss.data.lists import read_list

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "list.txt")
        with open(path, "w") as file:
            file.writelines(f"person{label:06d}@{n}.jpg {label}\n" for label in range(100_000) for n in range(10))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        images = read_list(path, folder, must_exist=False)
        read = time.perf_counter() - start
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        people = images.labels.max() + 1
        print(f"{len(images.names):,} images of {people:,} identities: {read:.1f} s, {memory:.0f} MB")
        for kind in ("shuffled", "identities"):
            start = time.perf_counter()
            batches = make_batches(kind, images.labels, 120, 6, 0)
            batches.batch(0)
            first = time.perf_counter() - start
            start = time.perf_counter()
            for number in range(1, 101):
                batches.batch(number)
            print(f"{kind}: first mini-batch {first:.2f} s, others {10 * (time.perf_counter() - start):.2f} ms")


def write_project(folder, iterations):
    """Write eight images of two identities, the net, and a config."""
    os.mkdir(os.path.join(folder, "images"))
    rng = np.random.default_rng(0)
    with open(os.path.join(folder, "list.txt"), "w") as file:
        for number in range(8):
            name = f"person{number // 4}@{number}.png"
            cv2.imwrite(os.path.join(folder, "images", name), rng.integers(0, 255, (8, 8, 3), np.uint8))
            file.write(f"{name} {number // 4}\n")
    for name, text in (("net.prototxt", NET), ("solver.prototxt", 'lr_policy: "fixed" momentum: 0.9')):
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)
    with open(os.path.join(folder, "config.py"), "w") as file:
        file.write(
            f"NET = 'net.prototxt'\nSOLVER = 'solver.prototxt'\nIMAGEPATH = 'images'\nTRAIN_LIST = 'list.txt'\n"
            f"RUN_FOLDER = 'run'\nSTAGES = ['softmax']\nIMAGE_SIZE = 8\nBATCH_SIZE = 4\nLEARNING_RATE = 1e-6\n"
            f"MAX_ITERS = {iterations}\nSNAPSHOT_ITERS = 1000\nKEEP_SNAPSHOTS = 3\nWORKERS = 1\nDEVICE = 'cpu'\n"
        )


def of_process(number):
    """The megabytes and open files of a process and its children."""
    children = subprocess.run(["pgrep", "-P", str(number)], capture_output=True, text=True).stdout.split()
    megabytes = files = 0
    for one in [str(number), *children]:
        try:
            with open(f"/proc/{one}/status") as file:
                megabytes += int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024
            files += len(os.listdir(f"/proc/{one}/fd"))
        except (OSError, StopIteration):
            continue
    return megabytes, files


def measure_run(hours):
    """Train, and print memory and open files ten times on the way."""
    iterations = int(hours * 3600 * 2)
    with tempfile.TemporaryDirectory() as folder:
        write_project(folder, iterations)
        command = [sys.executable, os.path.join(ROOT, "train.py"), "--config", os.path.join(folder, "config.py")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        log, looks, start = os.path.join(folder, "run", "softmax_log.csv"), [], time.time()
        while process.poll() is None:
            time.sleep(0.5)
            try:
                with open(log, "rb") as file:
                    file.seek(max(os.path.getsize(log) - 200, 0))
                    done = int(file.read().splitlines()[-2].split(b",")[0])
            except (OSError, IndexError, ValueError):
                continue
            if done >= (len(looks) + 1) * iterations / 11:
                looks.append((done, *of_process(process.pid)))
                print("iteration {}: {:.0f} MB, {} open files".format(*looks[-1]), flush=True)
        if process.returncode:
            sys.exit(process.stderr.read().decode())
        print(f"{iterations} iterations in {time.time() - start:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["list"]:
        measure_list()
    else:
        measure_run(float(sys.argv[2]) if len(sys.argv) > 2 else 24)
