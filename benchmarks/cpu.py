"""Time a net on the CPU with oneDNN, with Caffe's own layers and in PyTorch: .venv/bin/python benchmarks/cpu.py.

--torch PYTHON names an interpreter that has PyTorch; without it, only the two Caffes are compared. Each way is a
process of its own, and they take turns. All of them compute the same net: the trunk of a prototxt, a classifier of 997
identities and the softmax loss, on random images that are in memory.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETS = {"shipped": (ROOT / "train.prototxt", 64), "VGG_FACE_16": (ROOT / "models/vgg_face/train.prototxt", 224)}
CASES = [("shipped", 1), ("shipped", 64), ("shipped", 128), ("VGG_FACE_16", 8)]
IDENTITIES = 997
TURN_S = 0.6  # a turn has at least one iteration, and goes on until this time is over


def definition(name, batch):
    """Return the prototxt's trunk as a NetParameter, with inputs and a loss."""
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    path, size = NETS[name]
    net = text_format.Parse(path.read_text(), caffe_pb2.NetParameter())
    trunk = [layer for layer in net.layer if layer.type != "Python" and not layer.include]
    parts = f"""
        layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: {batch} dim: 3 dim: {size}
          dim: {size} }} }} }}
        layer {{ name: "labels" type: "Input" top: "labels" input_param {{ shape {{ dim: {batch} }} }} }}
        layer {{ name: "fc9" type: "InnerProduct" bottom: "{trunk[-1].top[0]}" top: "fc9"
          inner_product_param {{ num_output: {IDENTITIES} weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc9" bottom: "labels" top: "loss" }}"""
    data, labels, *head = text_format.Parse(parts, caffe_pb2.NetParameter()).layer
    return caffe_pb2.NetParameter(layer=[data, labels, *trunk, *head])


class CaffeNet:
    """A net in Caffe, whose layers CAFFE_ONEDNN chooses."""

    def __init__(self, name, batch):
        os.environ["GLOG_minloglevel"] = "2"
        import caffe
        import numpy as np
        from google.protobuf import text_format

        caffe.set_random_seed(1)
        with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
            file.write(text_format.MessageToString(definition(name, batch)))
            file.flush()
            self.net = caffe.Net(file.name, caffe.TRAIN)
        rng = np.random.default_rng(0)
        self.net.blobs["data"].data[...] = rng.normal(scale=60, size=self.net.blobs["data"].data.shape)
        self.net.blobs["labels"].data[...] = rng.integers(0, IDENTITIES, batch)
        self.forward, self.backward = self.net.forward, self.net.backward

    def layers(self):
        """Run one iteration, and return the seconds of each type of layer."""
        spent, net = collections.Counter(), self.net
        numbers = range(len(net.layers))
        for step, order in ((net._forward, numbers), (net._backward, reversed(numbers))):
            for i in order:
                start = time.perf_counter()
                step(i, i)
                spent[net.layers[i].type] += time.perf_counter() - start
        return spent


class TorchNet:
    """The same net in PyTorch, from a list of Caffe's layers; PyTorch's BatchNorm has Caffe's Scale in it."""

    def __init__(self, layers, batch, size):
        import torch
        from torch import nn

        made = {
            "Convolution": lambda p: nn.LazyConv2d(p["num_output"], p["kernel_size"], p["stride"], p["pad"],
                                                   bias=p["bias_term"]),
            "InnerProduct": lambda p: nn.Sequential(nn.Flatten(), nn.LazyLinear(p["num_output"], bias=p["bias_term"])),
            "Pooling": lambda p: nn.MaxPool2d(p["kernel_size"], p["stride"], ceil_mode=True),
            "BatchNorm": lambda p: nn.LazyBatchNorm1d(affine=False) if p["flat"] else nn.LazyBatchNorm2d(),
            "ReLU": lambda p: nn.ReLU(inplace=True), "Dropout": lambda p: nn.Dropout(),
        }  # fmt: skip
        self.torch, self.steps = torch, []
        for kind, bottoms, top, parameters in layers:
            module = made[kind](parameters) if kind in made else None
            self.steps.append((kind, module, bottoms, top))
        torch.manual_seed(0)
        self.images, self.labels = torch.randn(batch, 3, size, size) * 60, torch.randint(IDENTITIES, (batch,))
        self.forward()
        self.weights = [weight for _, module, *_ in self.steps if module for weight in module.parameters()]

    def forward(self):
        """Run the net, whose loss backward takes."""
        blobs = {"data": self.images}
        for kind, module, bottoms, top in self.steps:
            if module:
                blobs[top] = module(blobs[bottoms[0]])
            elif kind == "Eltwise":
                blobs[top] = blobs[bottoms[0]] + blobs[bottoms[1]]
        self.loss = self.torch.nn.functional.cross_entropy(blobs["fc9"], self.labels)

    def backward(self):
        """Compute all gradients; as in Caffe, they are not set to zero in between."""
        self.loss.backward()


def layers_for_torch(name, batch):
    """Return what TorchNet takes: (type, bottoms, top, parameters) of each layer."""
    found, flat = [], set()
    for layer in definition(name, batch).layer:
        parameters = {}
        if layer.type == "Convolution":
            p = layer.convolution_param
            parameters = {"num_output": p.num_output, "kernel_size": p.kernel_size[0], "bias_term": p.bias_term,
                          "stride": p.stride[0] if p.stride else 1, "pad": p.pad[0] if p.pad else 0}  # fmt: skip
        elif layer.type == "InnerProduct":
            p = layer.inner_product_param
            parameters = {"num_output": p.num_output, "bias_term": p.bias_term}
            flat.add(layer.top[0])
        elif layer.type == "Pooling":
            parameters = {"kernel_size": layer.pooling_param.kernel_size, "stride": layer.pooling_param.stride}
        elif layer.type == "BatchNorm":
            parameters = {"flat": layer.bottom[0] in flat}
        if layer.bottom and layer.type not in ("Scale", "SoftmaxWithLoss"):
            found.append([layer.type, list(layer.bottom), layer.top[0], parameters])
    return found


def work(order):
    """Be a worker: make the net, and at each line of standard input take a turn, and print its times as JSON."""
    net = TorchNet(*order["torch"]) if "torch" in order else CaffeNet(*order["caffe"])
    net.forward()
    net.backward()
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "layers\n":
            print(json.dumps(net.layers()), flush=True)
            continue
        forward, both, start = [], [], time.perf_counter()
        while not both or time.perf_counter() - start < TURN_S:
            began = time.perf_counter()
            net.forward()
            forward.append(time.perf_counter() - began)
            net.backward()
            both.append(time.perf_counter() - began)
        print(json.dumps([statistics.median(forward), statistics.median(both)]), flush=True)


class Worker:
    """A process that has the net, and runs it when it is asked."""

    def __init__(self, python, order, threads, **environment):
        limits = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([python, __file__, "--worker", json.dumps(order)], text=True, cwd=ROOT,
                                        env=os.environ | limits | environment, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)  # fmt: skip
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{python} could not make the net: see above")

    def ask(self, what):
        """Let it take a turn, or an iteration layer by layer; return what it measured."""
        print(what, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def spread(numbers, form):
    """The median and the range of some numbers."""
    return f"{statistics.median(numbers):{form}} ({min(numbers):{form}} to {max(numbers):{form}})"


def measure(name, batch, threads, torch, rounds, bar):
    """Let all ways take turns; return the rows of the table, and the layers' seconds by way."""
    caffe = {"caffe": [name, batch]}
    workers = {
        "own": Worker(sys.executable, caffe, threads, CAFFE_ONEDNN="0"),
        "oneDNN": Worker(sys.executable, caffe, threads, CAFFE_ONEDNN="1"),
    }
    torch = batch > 1 and torch  # PyTorch refuses the statistics of one image
    if torch:
        order = {"torch": [layers_for_torch(name, batch), batch, NETS[name][1]]}
        workers["PyTorch"] = Worker(torch, order, threads)
    times, layers = {way: [] for way in workers}, {way: [] for way in ("own", "oneDNN")}
    for _ in range(rounds):
        for way, worker in workers.items():
            times[way].append(worker.ask("turn"))
        for way in layers:
            layers[way].append(workers[way].ask("layers"))
        bar.update()
    for worker in workers.values():
        worker.end()
    rows = []
    for part, what in enumerate(("forward", "forward + backward")):
        own, fast = ([turn[part] for turn in times[way]] for way in ("own", "oneDNN"))
        row = [f"{name}, {batch}", threads, what, spread([1e3 * t for t in own], ".1f"),
               spread([1e3 * t for t in fast], ".1f"),
               spread([a / b for a, b in zip(own, fast, strict=True)], ".2f")]  # fmt: skip
        if torch:
            row.append(spread([turn[part] / b for turn, b in zip(times["PyTorch"], fast, strict=True)], ".2f"))
        rows.append(row)
    return rows, layers


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way (default: 7)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker))
        return
    from tabulate import tabulate
    from tqdm import tqdm

    heads = ["net, images", "threads", "", "Caffe's own, ms", "oneDNN, ms", "times Caffe's own", "times PyTorch"]
    with tqdm(total=2 * len(CASES) * args.rounds, desc="rounds", mininterval=0.5) as bar:
        for name, batch in CASES:
            rows, tables = [], []
            for threads in (1, 2):
                found, layers = measure(name, batch, threads, args.torch, args.rounds, bar)
                rows += found
                tables.append((f"{name}, {batch} images, {threads} threads: ms of an iteration by layers", layers))
            bar.write("\n" + tabulate(rows, heads[: len(rows[0])], disable_numparse=True))
            for title, layers in tables:
                bar.write(f"\n{title}\n\n{by_layers(layers, tabulate)}")
            sys.stdout.flush()


def by_layers(layers, tabulate):
    """A table of the time that each type of layer takes, without those that take almost none."""
    own, fast = ({kind: 1e3 * statistics.median(one[kind] for one in layers[way]) for kind in layers[way][0]}
                 for way in ("own", "oneDNN"))  # fmt: skip
    whole = sum(fast.values())
    rows = [[kind, f"{own[kind]:.2f}", f"{ms:.2f}", f"{ms / whole:.1%}"]
            for kind, ms in sorted(fast.items(), key=lambda item: -item[1]) if ms > 0.002 * whole]  # fmt: skip
    return tabulate(rows, ["layers", "Caffe's own", "oneDNN", "share"], disable_numparse=True)


if __name__ == "__main__":
    main()
