"""The settings of this Caffe's threads. pycaffe imports this first: libgomp reads them when it is loaded."""

import os

# A thread that waits sleeps. Threads that spin are no faster alone, and several times slower beside a busy program.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Caffe's threads are libgomp's and OpenBLAS's. Whichever limit is given holds for both.
for _given, _other in (("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")):
    if _given in os.environ:
        os.environ.setdefault(_other, os.environ[_given])


def has_onednn() -> bool:
    """Return whether nets made now get the layers of oneDNN: CAFFE_ONEDNN=0 in the environment stands for Caffe's own.

    A layer whose `engine` is CAFFE in the prototxt is Caffe's own in any case.
    """
    return os.environ.get("CAFFE_ONEDNN") != "0"
