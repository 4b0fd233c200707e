"""How long a thread that waits should spin before it sleeps: .venv/bin/python benchmarks/spinning.py.

The shipped net runs forward and backward with two threads and different values of GOMP_SPINCOUNT, alone and beside
programs that keep a core busy each. Two other rows are one thread, and Caffe's own layers. All of them take turns.
"""

import statistics
import subprocess
import sys

from cpu import Worker
from tabulate import tabulate
from tqdm import tqdm

ROUNDS = 3
WAYS = {
    "one thread": (1, {}),
    **{count: (2, {"GOMP_SPINCOUNT": count}) for count in ("0", "300", "1000", "3000", "10000", "300000")},
    "Caffe's own layers": (2, {"CAFFE_ONEDNN": "0"}),
}
CASES = [(4, 0), (8, 0), (16, 0), (64, 0), (64, 1), (64, 2), (64, 10)]  # images, busy programs


def measure(images, busy, bar):
    """Milliseconds of an iteration by way, medians of the rounds."""
    workers = {
        way: Worker(sys.executable, {"caffe": ["shipped", images]}, threads, **environment)
        for way, (threads, environment) in WAYS.items()
    }
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    times = {way: [] for way in workers}
    for _ in range(ROUNDS):
        for way, worker in workers.items():
            times[way].append(worker.ask("turn")[1])
            bar.update()
    for other in others:
        other.kill()
    for worker in workers.values():
        worker.end()
    return [f"{1000 * statistics.median(mine):.3g}" for mine in times.values()]


def main():
    """Print the table."""
    with tqdm(total=len(CASES) * ROUNDS * len(WAYS), unit="turn") as bar:
        columns = [measure(*case, bar) for case in CASES]
    heads = ["GOMP_SPINCOUNT", *(f"{images} images" + f", beside {busy}" * bool(busy) for images, busy in CASES)]
    rows = [[way, *cells] for way, *cells in zip(WAYS, *columns, strict=True)]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
