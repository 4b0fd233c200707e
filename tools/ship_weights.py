"""Keep only what a deploy net needs of a snapshot, and no paths: ship_weights.py WEIGHTS DEPLOY OUT [WITHOUT ...]."""

import sys

from caffe.proto import caffe_pb2

from tripletloss.net.definition import read_net


def main():
    """Write the names, types and parameters of the layers, without settings and without the solver's paths.

    WITHOUT: names of layers to leave out, such as the projection that is to be trained again.
    """
    weights, deploy, out, *without = sys.argv[1:]
    with open(weights, "rb") as file:
        found = {layer.name: layer for layer in caffe_pb2.NetParameter.FromString(file.read()).layer if layer.blobs}
    definition = read_net(deploy)
    kept = caffe_pb2.NetParameter(name=definition.name)
    for layer in definition.layer:
        if layer.name in found and layer.name not in without:
            kept.layer.add(name=layer.name, type=layer.type, blobs=found[layer.name].blobs)
    with open(out, "wb") as file:
        file.write(kept.SerializeToString())


if __name__ == "__main__":
    main()
