"""Mini-batches of pixels, made a few iterations ahead by worker processes, which do not import Caffe.

A mini-batch is made pass by pass (PASS_IMAGES), usually in one. Passes are counted on from one mini-batch to the next.
A pass is a function of (settings, its number), so it does not matter which worker makes it. Workers are separate
programs. They read numbers from standard input and write pixels into memory that they share with this process. The
memory has no name, and workers stop when their input ends, so nothing is left behind if this process is killed.
"""

import collections
import contextlib
import json
import mmap
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core import sampling, streams
from tripletloss.core.batches import Batch
from tripletloss.data import images
from tripletloss.data.lists import ImageList, read_list

AHEAD = 2  # how many more passes than workers are ready or being made, besides those of a whole mini-batch


class BatchMaker:
    """Makes any pass from a DataLayer's settings."""

    def __init__(self, settings: Mapping[str, Any], listed: ImageList) -> None:
        """Raises InputError as sampling.make_batches and count_passes do."""
        s = self.settings = settings
        self.images = listed
        self.batches = sampling.make_batches(
            s["batches"], listed.labels, s["batch_size"], s["images_per_identity"], s["seed"], s["rank"], s["ranks"]
        )
        self.passes = sampling.count_passes(s["batch_size"], s["ranks"], s["pass_images"])
        self.augmentation = images.Augmentation(*(s[key] for key in images.Augmentation._fields))
        self.preprocessing = images.Preprocessing(s["crop"], s["image_size"], s["pixel_means"])
        # Filled by images.read_or_next.
        self.broken: dict[str, str] | None = {} if s["broken_images"] == "skip" else None
        self.shape = s["batch_size"] // s["ranks"] // self.passes, 3, s["image_size"], s["image_size"]

    def pixels(self, number: int, most: int | None = None) -> np.ndarray:
        """The pixels, (N, 3, S, S) float32, of the first `most` rows or all. Raises InputError as load_batch does."""
        s = self.settings
        iteration, rows = sampling.rows_of_pass(self.batches, number, self.passes)
        rows = Batch(rows.images[:most], rows.draws[:most])

        def rng_of(draw):
            return streams.random_stream(s["seed"], streams.AUGMENTATION, iteration, draw)

        return images.load_batch(self.images, rows, self.preprocessing, self.augmentation, rng_of, self.broken)

    def numbers(self, number: int) -> np.ndarray:
        """The numbers of the images in the list, (N,) int."""
        return sampling.rows_of_pass(self.batches, number, self.passes)[1].images

    def labels(self, number: int) -> np.ndarray:
        """The labels, (N,) int."""
        return self.images.labels[self.numbers(number)]


class Loader:
    """Successive passes, made by workers or, with WORKERS = 0, in this process."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: a DataLayer's. Raises InputError for a bad list, or one from which the batches cannot be made."""
        self.workers: list[Any] = []  # of subprocess.Popen, with pipes
        self.process = os.getpid()
        must_exist = settings["broken_images"] == "stop"
        self.maker = BatchMaker(settings, read_list(settings["train_list"], settings["imagepath"], must_exist))
        self.broken: set[str] = set()  # numbers of the skipped images that are in the file
        self.shape, self.number = self.maker.shape, 0

    def start_at(self, iteration: int) -> None:
        """Continue with the mini-batch of this iteration, counted from 0."""
        self.close()
        self.number = iteration * self.maker.passes

    def _start(self, count):
        slots = count + AHEAD + self.maker.passes - 1  # the next mini-batch is made while this one is trained on
        size = int(np.prod(self.shape)) * 4
        memory = os.memfd_create("tripletloss")
        os.ftruncate(memory, slots * size)
        self.slots = np.frombuffer(mmap.mmap(memory, slots * size), np.float32).reshape(slots, *self.shape)
        command = [sys.executable, "-m", "tripletloss.data.loader", str(memory), str(slots)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        listed = self.maker.images
        first = json.dumps([self.maker.settings, listed.source, listed.folder, listed.names, listed.labels.tolist()])
        for _ in range(count):
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(memory,),
                env=environment,
                text=True,
                start_new_session=True,  # signals to the process group are handled by the training process
            )
            self.workers.append(worker)
        os.close(memory)
        for worker in self.workers:
            self._tell(worker, first)
        # Workers, in the order of the passes that they make.
        self.asked: collections.deque[Any] = collections.deque()
        for number in range(self.number, self.number + slots - 1):
            self._ask(number)

    def _ask(self, number):
        worker = self.workers[number % len(self.workers)]
        self._tell(worker, str(number))
        self.asked.append(worker)

    def _tell(self, worker, line):
        try:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
        except BrokenPipeError:
            self._fail(worker)

    def _fail(self, worker):
        status = worker.wait()
        said = [json.loads(line)[0] for line in worker.stdout]  # its own message, if it could still send one
        self.close()
        if said and said[-1]:
            raise InputError(said[-1])
        if status >= 0:
            raise InputError(f"a data worker exited with status {status}: {_where_logged()}")
        raise InputError(
            f"a data worker was killed by signal {-status}, perhaps for lack of memory: run again, or set WORKERS to 0"
        )

    def next(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The next pass's pixels, (N, 3, S, S) float32, its labels, (N,), and how long this waited, in seconds.

        The pixels are valid until the next call. Raises InputError for an image that cannot be decoded, and if a worker
        has died.
        """
        start, number = time.perf_counter(), self.number
        if self.maker.settings["workers"] and not self.workers:
            self._start(self.maker.settings["workers"])  # not earlier, as nets are also built only to be inspected
        self.number += 1
        if not self.workers:
            pixels = self.maker.pixels(number)
            self._list_broken(self.maker.broken or {})
        else:
            answer = self.asked[0].stdout.readline()
            worker = self.asked.popleft()
            if not answer:
                self._fail(worker)
            problem, broken = json.loads(answer)
            if problem:
                self.close()
                raise InputError(problem)
            self._list_broken(broken)
            pixels = self.slots[number % len(self.slots)]
            # This asks for the slot of the previous pass, which the caller no longer needs.
            self._ask(number + len(self.slots) - 1)
        waited = time.perf_counter() - start
        return pixels, self.maker.labels(number), waited

    def _list_broken(self, broken):
        """Add skipped images to the file that lists them, each once. Raises InputError if it cannot be written."""
        new = sorted(set(broken) - self.broken, key=int)
        path = self.maker.settings["broken_list"]
        if new and path:
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.writelines(f"{self.maker.images.names[int(number)]}\t{broken[number]}\n" for number in new)
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}): make room") from None
        self.broken.update(new)

    def close(self) -> None:
        """End the workers. In a fork of the process that started them, do nothing."""
        for worker in self.workers if os.getpid() == self.process else ():
            worker.kill()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
            worker.wait()
            worker.stdout.close()
        self.workers = []

    def __del__(self):
        self.close()


def _where_logged():
    """Where to find a worker's traceback, which goes to standard error."""
    log = os.readlink("/proc/self/fd/2")
    return f"the traceback is in {log}" if os.path.isfile(log) else "the traceback is above"


def work() -> None:
    """Run a worker: read settings and list from standard input, then iterations, until the input ends.

    Any exception but InputError ends it. The traceback goes to standard error, and its last line to the training
    process.
    """
    try:
        _work()
    except Exception as error:
        traceback.print_exc()
        last = traceback.format_exception_only(error)[-1].strip()
        print(json.dumps([f"a data worker failed with {last}: {_where_logged()}", {}]), flush=True)
        sys.exit(1)


def _work():
    memory, slots = map(int, sys.argv[1:3])
    settings, source, folder, names, labels = json.loads(sys.stdin.readline())
    maker = BatchMaker(settings, ImageList(source, folder, names, np.array(labels, np.int64)))
    shared = np.frombuffer(mmap.mmap(memory, 0), np.float32).reshape(slots, *maker.shape)
    sent: set[str] = set()  # numbers of broken images
    while line := sys.stdin.readline():
        number = int(line)
        try:
            shared[number % slots] = maker.pixels(number)
            answer = None
        except InputError as error:
            answer = str(error)
        new = {number: said for number, said in (maker.broken or {}).items() if number not in sent}
        sent.update(new)
        try:
            print(json.dumps([answer, new]), flush=True)
        except BrokenPipeError:
            os._exit(1)  # the training process has gone


if __name__ == "__main__":
    import cv2

    cv2.setNumThreads(1)
    work()
