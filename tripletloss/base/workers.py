"""Worker programs that do jobs at the same time, one each. They are separate, as a process has one Caffe."""

import concurrent.futures
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tripletloss.base.errors import InputError


class Workers:
    """Programs `python -m MODULE`, whose main function is serve(). Use it in a with statement.

    They end with the block, and when this process ends, as their input ends then.
    """

    def __init__(self, module: str, count: int, log: str) -> None:
        """count: of programs, with a thread each; log: a file that gets what they write to standard error."""
        self.programs: list[Any] = []  # of subprocess.Popen, with pipes
        self.free: queue.SimpleQueue = queue.SimpleQueue()
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with open(log, "ab") as errors:
            for _ in range(count):
                program = subprocess.Popen(
                    [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    env=environment, start_new_session=True,  # signals to the process group are this process's
                )  # fmt: skip
                self.programs.append(program)
                self.free.put(program)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for program in self.programs:
            program.kill()
            program.wait()
            program.stdout.close()

    def answers(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """What the programs answer to jobs, in the order of the jobs. Raises InputError if one of them dies."""
        pool = concurrent.futures.ThreadPoolExecutor(len(self.programs))
        try:
            yield from pool.map(self._ask, jobs)
        except BaseException:
            self.__exit__()  # so that the threads, which wait for the programs, end
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, job):
        program = self.free.get()
        try:
            pickle.dump(job, program.stdin)
            program.stdin.flush()
            return pickle.load(program.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            status = program.wait()
            cause = f"was killed by signal {-status}, perhaps for lack of memory" if status < 0 else "failed"
            raise InputError(f"a worker program {cause}: its last words are in {self.log}") from None
        finally:
            self.free.put(program)


def serve(function: Callable[[Any], Any]) -> None:
    """Be a worker program: answer each job on standard input with function(job), until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints goes to the log
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            pickle.dump(function(job), answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # the process that asked has gone
