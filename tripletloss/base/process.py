"""Living with Caffe as a process: its log, and the checks that end the process when they fail."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile

from tripletloss.base.errors import InputError

LEAST_SECONDS = 20  # of processor time, for a file that is read in a child,
SLOWEST_DISK = 10_000_000  # and another one for so many bytes


@contextlib.contextmanager
def caffe_log(path):
    """Send what C++ writes to standard error into a file, appending; Python's sys.stderr stays where it was."""
    with open(path, "ab") as file, os.fdopen(os.dup(2), "w", buffering=1) as terminal:
        before, sys.stderr = sys.stderr, terminal
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)
            sys.stderr = before


def try_in_child(function, what, limited=False, seconds=0):
    """Run function() in a forked child and return what it returns (it must pickle).

    limited: to as much more memory as the machine has, which a small file can ask many times; CUDA needs it unlimited.
    seconds: of processor time that it may take; 0: any.

    Caffe ends the process when one of its checks fails, so what may fail is tried where that does no harm. The child
    begins on the CPU: it cannot use a GPU that its parent uses, only one that no process before it has used.
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


def read_hdf5(function, path):
    """try_in_child for what reads an HDF5 file: on a damaged one, HDF5 may go round in circles or end the process."""
    seconds = LEAST_SECONDS + os.path.getsize(path) // SLOWEST_DISK
    return try_in_child(function, f"{path} is damaged", limited=True, seconds=seconds)


def _child(function, sender, log, limited, seconds):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limited:
        with open("/proc/self/statm") as file:  # what the parent has mapped counts, too
            memory = os.sysconf("SC_PAGE_SIZE") * (int(file.read().split()[0]) + os.sysconf("SC_PHYS_PAGES"))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.dup2(log, 2)
    if "caffe" in sys.modules:  # who has no Caffe reads files in a child, too
        sys.modules["caffe"].set_mode_cpu()
    try:
        answer = (function(),)
    except InputError as error:
        answer = error
    sender.send(answer)


def _last_words(lines, exitcode):
    """The failed check and the layer it failed in, out of Caffe's log."""
    if exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "reading it takes too long; fetch or make it again"
    layer = ""
    for line in lines:
        creating = re.search(r"\] Creating Layer (.*)", line)
        if creating:
            layer = f" in layer {creating.group(1)!r}"
        if line.endswith("Network initialization done."):
            layer = ""  # what fails from here on is not about the layer that was created last
        fatal = re.match(r"F\d+ .*?\] (.*)", line)
        if fatal:
            return f"Caffe stops{layer}: {fatal.group(1).strip()}"
    python_error = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), "")
    return python_error or f"Caffe stops{layer} with exit code {exitcode}"
