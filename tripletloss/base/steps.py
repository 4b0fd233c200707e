"""The iterations of one solver: alone, or with the gradients averaged over several processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tripletloss.base.errors import InputError

if TYPE_CHECKING:
    from tripletloss.base.parallel import Processes


class OthersError(Exception):
    """Another process failed in this iteration."""


class Steps:
    """The iterations of one solver.

    After step(): `values` are the scalars of the iteration (means over the processes), `waiting` is the time spent on
    communication in seconds, and `stop` is the number of the signal that asks to stop, or None.
    """

    def __init__(
        self, solver: Any, scalars: list[str], caught: list[int], compute: Callable[[], None] | None = None
    ) -> None:
        """scalars: names of blobs with a single number; caught: a list to which received signals are appended;
        compute: computes an iteration's gradients instead of the solver, or None.
        """
        self.solver, self.scalars, self.caught, self.compute = solver, scalars, caught, compute
        self.values: list[float] = []
        self.waiting = 0.0
        self.stop: int | None = None

    def step(self) -> None:
        """Run one iteration. Raises InputError as the layers do."""
        self._advance()
        self.values = self._own_values()
        self.agree_to_stop()

    def agree_to_stop(self) -> None:
        """Check for signals once more, and set `stop`."""
        self.stop = self.caught[0] if self.caught else None

    def close(self) -> None:
        """Release the net after the last step."""

    def _advance(self):
        if self.compute is None:
            self.solver.step(1)  # which calls _gradients_ready() if it is a callback
        else:
            self.compute()
            self._gradients_ready()
            self.solver.apply_update()

    def _gradients_ready(self):
        """Called before the update. One process has nothing to do."""

    def _own_values(self):
        return [float(self.solver.net.blobs[name].data) for name in self.scalars]


class SharedSteps(Steps):
    """Iterations in which every process computes its share of the mini-batch.

    The processes exchange one message per iteration, which is summed over them: the gradients of all blobs that learn,
    unless NCCL carries them; the values of blobs that Caffe changes by itself (BatchNorm's running statistics); the
    scalars; and which signals were received. It is sent when the gradients are ready, before the update. A number that
    says whether any process has failed is sent before it, and before each message of a layer, so that no process waits
    for one that has failed.

    The update uses the mean of the processes' gradients. A softmax loss is a mean over rows, so with equal shares this
    is the gradient of the whole mini-batch. The same holds for a triplet loss whose layers gather the embeddings
    (GATHER). Otherwise, triplets are selected within each share, the loss is a mean over the triplets of one process,
    and all shares have equal weight, however many triplets they have. BatchNorm uses the statistics of each share.
    """

    def __init__(
        self, processes: "Processes", solver: Any, learning: list, averaged: list, scalars: list[str],
        caught: list[int], nccl: Any = None, compute: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """learning: blobs whose gradients are sent; averaged: blobs whose values are averaged; nccl: averages the rest.

        See Steps for the other arguments. nccl and compute exclude each other, as NCCL is called by the solver.
        """
        super().__init__(solver, scalars, caught, compute)
        self.processes, self.nccl = processes, nccl
        self.learning, self.averaged = learning, averaged
        self.shared = sum(blob.count for blob in [*learning, *averaged])
        # Gradients of `learning`, values of `averaged`, then the scalars, then one number per signal.
        self.message = np.zeros(self.shared + len(scalars) + len(processes.signals), np.float32)
        # Caffe never releases its callbacks, so close() releases what this one refers to.
        solver.add_callback(lambda: None, self._gradients_ready)
        if nccl:
            solver.add_callback(nccl)

    def step(self) -> None:
        """Run one iteration of the whole mini-batch. If a layer of any process raises InputError, all processes do."""
        self.processes.waited, error, failed = 0.0, None, False
        try:
            self._advance()
        except OthersError:
            failed = True
        except InputError as problem:
            error, failed = problem, True
            self.processes.agree(fails=True)  # the others are waiting for this process, in a layer or before the update
        if failed:
            self.processes.raise_first(error)
        self.waiting = self.processes.waited
        asked = self.message[self.shared + len(self.scalars) :]
        self.stop = self.processes.signals[int(np.flatnonzero(asked)[0])] if asked.any() else None

    def agree_to_stop(self) -> None:
        """See Steps. All processes must call it."""
        everyones = self.processes.comm.allgather(self.caught)
        self.stop = min((numbers[0] for numbers in everyones if numbers), default=None)

    def close(self) -> None:
        """See Steps."""
        self.solver, self.learning, self.averaged, self.nccl, self.compute = None, [], [], None, None
        self.message = np.zeros(0, np.float32)

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
        """Yield pairs: a part of the message, and the array that it carries."""
        start = 0
        for blobs, arrays in ((self.learning, "diff"), (self.averaged, "data")):
            for blob in blobs:
                yield self.message[start : start + blob.count], getattr(blob, arrays)
                start += blob.count
