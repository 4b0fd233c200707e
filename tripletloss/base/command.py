"""How every command ends: with an exit status, and one line that says what went wrong and what to do."""

import _thread
import argparse
import contextlib
import gc
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tripletloss.base.errors import InputError

VERSION = "0.1.0"
VERIFY = "tripletloss.verify"
AGAIN_S = 0.05  # seconds
# The variables in which launchers give each process the number of processes and its rank: Open MPI, MPICH and
# relatives, MVAPICH, srun.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


class Parser(argparse.ArgumentParser):
    """The parser of a command's arguments, which all have --version."""

    def __init__(self, **arguments: Any) -> None:
        """The arguments are those of argparse.ArgumentParser."""
        super().__init__(**arguments)
        self.add_argument("--version", action="version", version=f"tripletloss {VERSION}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the argument that lets a command answer in JSON, by as_json()."""
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object, and nothing else")


def as_json(answer: Mapping[str, Any]) -> str:
    """A command's answer as a line of strict JSON: NaN and infinity are null. It may have numbers of NumPy's."""
    text = json.dumps(answer, default=lambda value: value.tolist())
    return json.dumps(json.loads(text, parse_constant=lambda _: None))


def run(name: str, function: Callable[[], int | None], stopped: str = "stopped", failure: int = 1) -> int:
    """Call function() as the body of a command and return the command's exit status.

    name: the command's name, with which its messages begin. function: returns a status, or None for 0. stopped: the
    message after Ctrl-C, unless the KeyboardInterrupt has its own. failure: the status for bad input, which is an
    InputError, a file that cannot be read or written, a package that is missing, or a name that is not UTF-8. Ctrl-C
    gives 130. Any other exception is a fault of the program: its traceback is printed, with `failure` as the status.
    """
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every character of a file's name
    status, sentence = failure, ""
    try:
        for word in sys.argv:
            word.encode()  # fail now rather than when the name is written to a file, after all the work
        with _keeping_ctrl_c():
            status = function() or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        sentence = str(error)
    except ModuleNotFoundError as error:
        sentence = missing(name, error)
    except KeyboardInterrupt as error:
        status, sentence = 130, str(error) or stopped
    except BrokenPipeError:
        pass  # the reader of the output has closed it, as `head` does
    except OSError as error:
        sentence = f"{error.filename or 'the output'} cannot be read or written ({error.strerror or error})"
    except UnicodeEncodeError as error:
        sentence = f"{error.object!r} is not UTF-8 text: rename the file or folder"
    except Exception:
        traceback.print_exc()
    gc.collect()  # the exception's frames hold progress bars, which end their line when they are destroyed
    if sentence:
        complain(name, sentence)
    try:
        sys.stdout.flush()
    except OSError:  # discard the rest, or Python would try again as it exits
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
    return status


@contextlib.contextmanager
def _keeping_ctrl_c() -> Iterator[None]:
    """Raise Ctrl-C's exception again, a moment later, where Python drops it: in what a C library calls back."""
    timers: list[threading.Timer] = []

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        timers.append(threading.Timer(AGAIN_S, _thread.interrupt_main))
        with contextlib.suppress(KeyboardInterrupt):  # another one, while this waits for the thread that has begun
            timers[-1].start()

    before, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def complain(name: str, sentence: str) -> None:
    """Print why a command ends, once, however many processes there are."""
    if launched()[0] == 0:
        print(f"{name}: {sentence}", file=sys.stderr, flush=True)


def launched() -> tuple[int, int]:
    """(rank, size) from a launcher's variables in the environment; (0, 1) without a launcher."""
    for size, rank in LAUNCHERS:
        if os.environ.get(size, "").isdigit() and os.environ.get(rank, "").isdigit():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def begin() -> None:
    """If this process is one of the project's commands: until run() is called, Ctrl-C ends it with one line.

    Importing Caffe and other large packages takes seconds. Meanwhile, a KeyboardInterrupt would print a traceback, or
    be swallowed by a package. A package that is missing is said in one line, too: another Python than .venv's has none.
    """
    # While `python -m` looks for its module, sys.argv[0] is "-m".
    is_module = False
    if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv[:-1]:
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        is_module = module in ("faces", "tripletloss") or module.startswith("tripletloss.")
    package = os.path.dirname(os.path.abspath(str(sys.modules["tripletloss"].__file__)))
    is_script = os.path.abspath(sys.argv[0]) == os.path.join(os.path.dirname(package), "train.py")
    if is_module or is_script:
        sys.excepthook = _end_without_package
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end_at_once)


def _name() -> str:
    """The name of this process's command."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        return spec.name.removesuffix(".__main__")
    at = sys.orig_argv.index("-m") + 1 if sys.argv[:1] == ["-m"] else None  # python -m still looks for the module
    return sys.orig_argv[at] if at else os.path.basename(sys.argv[0])


def _end_at_once(number, frame):
    os.write(2, f"{_name()}: stopped\n".encode())
    os._exit(130)


def _end_without_package(kind, error, trace):
    """A sys.excepthook. What goes wrong in `verify` must not have the status of an answer."""
    name = _name()
    if issubclass(kind, ModuleNotFoundError):
        complain(name, missing(name, error))
    else:
        sys.__excepthook__(kind, error, trace)
    os._exit(2 if name == VERIFY else 1)


def missing(name: str, error: ModuleNotFoundError) -> str:
    """The sentence about a package that a command needs and this Python lacks. name: the command's."""
    target, python = ("onnx", ".venv-onnx") if name == VERIFY else ("caffe", ".venv")
    return f"{sys.executable} has no {error.name}: run make {target}, and use {python}/bin/python"
