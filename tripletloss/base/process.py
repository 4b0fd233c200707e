"""Caffe's log, and child processes for what may end the process, as Caffe's failed checks do."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tripletloss.base.errors import InputError

Answer = TypeVar("Answer")

# Processor time for reading a file in a child: LEAST_SECONDS, and another second for every SLOWEST_DISK bytes.
LEAST_SECONDS = 20
SLOWEST_DISK = 10_000_000


@contextlib.contextmanager
def caffe_log(path: str) -> Iterator[None]:
    """Append what C++ writes to standard error to a file; Python's sys.stderr stays where it was."""
    with open(path, "ab") as file, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        before, sys.stderr = sys.stderr, terminal
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)
            sys.stderr = before


def try_in_child(function: Callable[[], Answer], what: str, limited: bool = False, seconds: int = 0) -> Answer:
    """Run function() in a forked child and return what it returns, which must be picklable.

    limited: limit its additional memory to what the machine has, as a small file can ask for many times that; CUDA
    must have no limit. seconds: of processor time that it may take; 0 for no limit.

    Caffe ends the process when one of its checks fails, so whatever may fail is tried where that does no harm. The
    child starts on the CPU: it cannot use a GPU that its parent uses.
    Raises InputError: the child's own, or one that begins with `what` and quotes Caffe's failed check.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryFile() as log:
        child = context.Process(target=_child, args=(function, sender, log.fileno(), limited, seconds))
        child.start()
        sender.close()
        try:
            answer = receiver.recv()
        except EOFError:
            answer = None
        child.join()
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    if isinstance(answer, InputError):
        raise answer
    if answer is None:
        raise InputError(f"{what}: {_last_words(lines, child.exitcode)}")
    return answer[0]


def read_hdf5(function: Callable[[], Answer], path: str) -> Answer:
    """try_in_child for a function that reads an HDF5 file: on a damaged one, HDF5 may loop forever or crash."""
    seconds = LEAST_SECONDS + os.path.getsize(path) // SLOWEST_DISK
    return try_in_child(function, f"{path} is damaged", limited=True, seconds=seconds)


def _child(function, sender, log, limited, seconds):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limited:
        with open("/proc/self/statm") as file:  # the memory that the parent has mapped counts, too
            memory = os.sysconf("SC_PAGE_SIZE") * (int(file.read().split()[0]) + os.sysconf("SC_PHYS_PAGES"))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.dup2(log, 2)
    if "caffe" in sys.modules:  # without Caffe, files are read in a child, too
        sys.modules["caffe"].set_mode_cpu()
    try:
        answer: Any = (function(),)
    except InputError as error:
        answer = error
    sender.send(answer)


def _last_words(lines, exitcode):
    """The failed check and the layer that it failed in, from Caffe's log."""
    if exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "reading it took too long. Fetch it or make it again"
    layer = ""
    for line in lines:
        creating = re.search(r"\] Creating Layer (.*)", line)
        if creating:
            layer = f" in layer {creating.group(1)!r}"
        if line.endswith("Network initialization done."):
            layer = ""  # later failures are not about the layer that was created last
        fatal = re.match(r"F\d+ .*?\] (.*)", line)
        if fatal:
            return f"Caffe stopped{layer}: {fatal.group(1).strip()}"
    python_error = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), "")
    return python_error or f"Caffe stopped{layer} with exit code {exitcode}"
