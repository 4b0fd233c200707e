"""Keep of a snapshot what a deploy net needs, and no path of where it was made: ship_weights.py WEIGHTS DEPLOY OUT."""

import sys

from caffe.proto import caffe_pb2

from tripletloss.net.definition import read_net


def main():
    """Write layers' names, types and parameters; settings and solver's paths stay behind."""
    weights, deploy, out = sys.argv[1:]
    with open(weights, "rb") as file:
        found = {layer.name: layer for layer in caffe_pb2.NetParameter.FromString(file.read()).layer if layer.blobs}
    definition = read_net(deploy)
    kept = caffe_pb2.NetParameter(name=definition.name)
    for layer in definition.layer:
        if layer.name in found:
            kept.layer.add(name=layer.name, type=layer.type, blobs=found[layer.name].blobs)
    with open(out, "wb") as file:
        file.write(kept.SerializeToString())


if __name__ == "__main__":
    main()
