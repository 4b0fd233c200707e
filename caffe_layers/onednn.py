"""The settings of this Caffe's threads. pycaffe imports this first: libgomp and OpenBLAS read them when they load."""

import os

# A thread that waits spins for some microseconds, which is longer than the next layer takes to come, and then sleeps.
# Threads that sleep at once are woken too late: with two threads, small mini-batches take twice as long. Threads that
# spin on take several times as long beside a busy program.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # likewise, as a power of 2
# Caffe's threads are libgomp's and OpenBLAS's. Whichever limit is given holds for both.
for _given, _other in (("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")):
    if _given in os.environ:
        os.environ.setdefault(_other, os.environ[_given])


def has_onednn() -> bool:
    """Return whether nets made now get the layers of oneDNN: CAFFE_ONEDNN=0 in the environment stands for Caffe's own.

    A layer whose `engine` is CAFFE in the prototxt is Caffe's own in any case.
    """
    return os.environ.get("CAFFE_ONEDNN") != "0"
