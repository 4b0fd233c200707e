"""How every command ends: its exit status, and one line for what a person did or has to do."""

import gc
import io
import os
import signal
import sys

from tripletloss.base.errors import InputError

# How launchers tell a process how many there are and which it is: Open MPI, MPICH and its kin, MVAPICH, srun.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


def run(name, function, stopped="stopped", failure=1):
    """Call function() as the body of a command and return the command's exit status.

    name: of the command, with which its messages begin. function: returns a status, or None for 0. stopped: what to
    say after Ctrl-C, unless the KeyboardInterrupt has a message of its own. failure: the status for bad input, which
    is an InputError, a file that cannot be read or written, or a name that is not UTF-8. Ctrl-C gives 130.
    """
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a file's name
    status, sentence = failure, ""
    try:
        for word in sys.argv:
            word.encode()  # what is not UTF-8 could not be written into any file, when all the work is done
        status = function() or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        sentence = str(error)
    except KeyboardInterrupt as error:
        status, sentence = 130, str(error) or stopped
    except BrokenPipeError:
        pass  # whoever reads the output has had enough, as `head` does
    except OSError as error:
        sentence = f"{error.filename or 'the output'} cannot be read or written ({error.strerror or error})"
    except UnicodeEncodeError as error:
        sentence = f"{error.object!r} is not UTF-8 text: rename the file or folder"
    gc.collect()  # the exception's frames hold progress bars, which end their line when they go
    if sentence:
        complain(name, sentence)
    try:
        sys.stdout.flush()
    except OSError:  # nowhere with it then, or Python tries again as it ends
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
    return status


def complain(name, sentence):
    """Say what ends a command, once, however many processes there are."""
    if launched()[0] == 0:
        print(f"{name}: {sentence}", file=sys.stderr, flush=True)


def launched():
    """(rank, size) as a launcher says it in the environment: (0, 1) without one."""
    for size, rank in LAUNCHERS:
        if os.environ.get(size, "").isdigit() and os.environ.get(rank, "").isdigit():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def answer_ctrl_c():
    """Where this process is one of the project's commands, end it at Ctrl-C with one line until run() is called.

    Importing Caffe and its like takes seconds, in which an exception would be a traceback, or swallowed by a package.
    """
    # While `python -m` looks for its module, sys.argv[0] is "-m".
    is_module = False
    if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv[:-1]:
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        is_module = module == "faces" or module.startswith("tripletloss.")
    package = os.path.dirname(os.path.abspath(sys.modules["tripletloss"].__file__))
    is_script = os.path.abspath(sys.argv[0]) == os.path.join(os.path.dirname(package), "train.py")
    if (is_module or is_script) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number, frame):
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec else os.path.basename(sys.argv[0])
    os.write(2, f"{name}: stopped\n".encode())
    os._exit(130)
