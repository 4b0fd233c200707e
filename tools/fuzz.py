"""Feed damaged files of one kind to the code that reads them, which must raise nothing but InputError.

    .venv/bin/pip install -e .[fuzz]
    .venv/bin/python tools/fuzz.py KIND [-runs=10000]

KIND: list, param_str, config, prototxt, caffemodel, solverstate, weights_h5, embeddings_h5, image. Inputs are mutated
good files, guided by the lines of this package that they reach (atheris, libFuzzer). The first input with any other
result ends the run, and is kept as crash-*.
"""

import os
import sys
import tempfile
import warnings

import atheris

with atheris.instrument_imports(include=["tripletloss"]):
    from tripletloss import config, layers
    from tripletloss.base.errors import InputError
    from tripletloss.data import images, lists
    from tripletloss.formats import caffemodel, embeddings
    from tripletloss.layers.settings import parse_param_str
    from tripletloss.net.definition import open_net
    from tripletloss.net.roles import embeddings_of
    from tripletloss.net.settings import fill_settings, size_classifier
    from tripletloss.net.weights import load_weights, match_weights, shapes_of, weights_as_hdf5
    from tripletloss.training import snapshots

import caffe
import cv2
import h5py
import numpy as np

from tripletloss.base import process
from tripletloss.base.process import caffe_log, try_in_child

NET = """
layer { name: "data" type: "Python" top: "data" top: "labels"
  python_param { module: "tripletloss.layers" layer: "DataLayer" param_str: "{batch_size: 4}" } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "labels" top: "loss" include { stage: "softmax" } }
"""
SMALL = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "fc" top: "loss" }
"""
LIST = "ann@1.jpg 0\nann@2.jpg 0\nbob/3.jpg 1\n\n"


class Kinds:
    """For each kind, a good file and the code that reads it, all in one folder."""

    def __init__(self, folder):
        """Make a solver of a small net in the folder, for its snapshot."""
        self.folder, self.path = folder, os.path.join(folder, "input")
        net = os.path.join(folder, "net.prototxt")
        with open(net, "w") as file:
            file.write(SMALL)
        solver = os.path.join(folder, "solver.prototxt")
        prefix = os.path.join(folder, "small")
        with open(solver, "w") as file:
            file.write(f'net: "{net}" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 9 ')
            file.write(f'snapshot_prefix: "{snapshots.caffe_prefix(prefix)}"')
        with caffe_log(os.devnull):
            self.solver = caffe.get_solver(solver)
            self.solver.step(1)
            self.snapshot = snapshots.write(self.solver, prefix, "")

    def seed(self, kind):
        """The content of a good file of a kind."""
        if kind == "list":
            return LIST.encode()
        if kind == "param_str":
            return b"{train_list: a.txt, imagepath: images, batches: shuffled, batch_size: 64, pixel_means: [1, 2, 3]}"
        if kind == "config":
            with open("config.py", "rb") as file:
                return file.read()
        if kind == "prototxt":
            return NET.encode()
        if kind in ("caffemodel", "solverstate"):
            with open(self.snapshot.weights if kind == "caffemodel" else self.snapshot.state, "rb") as file:
                return file.read()
        if kind == "weights_h5":
            with open(self.snapshot.weights, "rb") as file:
                return weights_as_hdf5(file.read())
        if kind == "embeddings_h5":
            with h5py.File(self.path, "w") as file:
                file["embeddings"], file["labels"] = np.eye(3, dtype=np.float32), np.arange(3)
                file.create_dataset("names", data=["a", "b", "c"], dtype=h5py.string_dtype())
                about = {name: "x" for name in ("list", "folder", "feature", "weights", "weights_sha256")}
                file.attrs.update(**about, mirrored=False)
            with open(self.path, "rb") as file:
                return file.read()
        rng = np.random.default_rng(0)
        return cv2.imencode(".jpg", rng.integers(0, 255, (12, 12, 3), np.uint8))[1].tobytes()

    def read(self, kind, content):
        """Read a file of a kind with this content. Raises InputError."""
        if kind == "param_str":
            parse_param_str(content.decode("latin-1"), layers.DataLayer.keys, "fuzz")
            return
        if kind == "image":
            images.decode(content, "fuzz")
            return
        with open(self.path, "wb") as file:
            file.write(content)
        if kind == "list":
            lists.read_list(self.path, self.folder, must_exist=False)
        elif kind == "config":
            config.load(self.path)
        elif kind == "prototxt":
            net = open_net(self.path, caffe.TRAIN, "softmax", [])
            net, _ = fill_settings(net, SETTINGS, self.path)
            embeddings_of(net)
            size_classifier(net, 3)
        elif kind in ("caffemodel", "weights_h5"):
            match_weights(shapes_of(self.solver.net), caffemodel.weight_shapes(self.path), self.path, "net")
            try_in_child(lambda: load_weights(self.solver.net, self.path), "net")  # as train.py does
        elif kind == "solverstate":
            snapshots.restore(self.solver, self.snapshot._replace(state=self.path))
        else:
            embeddings.load(self.path)


SETTINGS = {
    **{name: setting.default for name, setting in config.SCHEMA.items()},
    "BATCHES": "shuffled", "TRAIN_LIST": "/nowhere/list.txt", "IMAGEPATH": "/nowhere", "RUN_FOLDER": "/nowhere/run",
    "IDENTITIES": 3, "FEATURES": "", "NET": "",
}  # fmt: skip


def main():
    """Fuzz the kind that the command line names."""
    kind, arguments = sys.argv[1], sys.argv[2:] or ["-runs=10000"]
    warnings.simplefilter("ignore")
    process.LEAST_SECONDS = 1  # HDF5 never finishes reading many damaged files
    with tempfile.TemporaryDirectory() as folder:
        kinds = Kinds(folder)
        corpus = os.path.join(folder, "corpus")
        os.mkdir(corpus)
        seed = kinds.seed(kind)
        with open(os.path.join(corpus, "seed"), "wb") as file:
            file.write(seed)
        counts = {"refused": 0, "read": 0}

        def one(content):
            try:
                kinds.read(kind, content)
                counts["read"] += 1
            except InputError:
                counts["refused"] += 1

        # libFuzzer ends the process itself, so the counts are printed on the way.
        def counted(content):
            one(content)
            total = sum(counts.values())
            if total % 1_000 == 0:
                print(f"{kind}: {total} inputs, {counts['read']} read, {counts['refused']} refused", flush=True)

        atheris.Setup([sys.argv[0], *arguments, f"-max_len={max(4096, 2 * len(seed))}", corpus], counted)
        with caffe_log(os.devnull):
            atheris.Fuzz()


if __name__ == "__main__":
    main()
