"""A trained net as ONNX, to run without Caffe: python -m tripletloss.export WEIGHTS --out model.onnx."""

import argparse
import sys
from collections.abc import Mapping

from tripletloss import config
from tripletloss.base import command
from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.base.outputs import add_force, check_outputs
from tripletloss.deploy.onnx_export import export
from tripletloss.deploy.onnx_graph import OPSET
from tripletloss.deploy.onnx_model import threshold_advice
from tripletloss.evaluation.arguments import add_net_arguments, add_weights, inputs_of, settings_of


def main() -> int:
    """Run python -m tripletloss.export. Returns the exit status."""
    parser = command.Parser(
        prog="python -m tripletloss.export",
        description="Write the deploy net with its weights as ONNX, for onnxruntime and OpenCV. Needs no Caffe.",
    )
    add_weights(parser)
    parser.add_argument("--out", required=True, help="the .onnx file to write")
    add_force(parser)
    add_net_arguments(parser)
    parser.add_argument(
        "--pixels", choices=("bgr", "rgb"), default="",
        help="make the model take uint8 pixels, N x S x S x 3, with these channels (default: the input of Caffe's net)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", metavar="FILE", help="take the threshold from a file of tools/measure_threshold.py (default: "
        "measure it on HELD_OUT_LIST)",
    )  # fmt: skip
    parser.add_argument("--licence", metavar="TEXT", default="not stated", help="of the weights, for the metadata")
    arguments = parser.parse_args()
    return command.run("tripletloss.export", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Write the model that the arguments ask for, and print what it is. Raises InputError."""
    settings = settings_of(arguments)
    measures = settings["HELD_OUT_LIST"] and not arguments.threshold
    config.need_files(settings, "DEPLOY", *(["IMAGEPATH", "HELD_OUT_LIST"] if measures else []))
    if not arguments.out.endswith(".onnx"):
        raise InputError(f"{arguments.out} does not say its format: end its name in .onnx")
    check_outputs([arguments.out], [*inputs_of(arguments, settings), arguments.threshold], arguments.force)
    a = arguments
    model, about = export(a.weights, settings, a.pixels, a.mirrored, a.licence, a.threshold, a.out)
    try:
        write_whole(arguments.out, model.SerializeToString())
    except OSError as error:
        raise InputError(f"{arguments.out} cannot be written ({error.strerror}): choose another --out") from None
    width = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    print(f"{arguments.out}: {settings['FEATURE']}, {width} numbers; {model.ByteSize() / 1e6:.1f} MB, opset {OPSET}")
    print("\n".join(f"  {name}: {value}" for name, value in about.items()))
    print(_about_threshold(about))


def _about_threshold(about: Mapping[str, str]) -> str:
    """What a model's metadata say about its threshold, as a sentence."""
    if "threshold" not in about:
        return f"no threshold was measured (pairs: {about['threshold_pairs']}): {threshold_advice(about)}"
    return (
        f"threshold {float(about['threshold']):.3f}: FAR {about['threshold_far']} and TAR "
        f"{float(about['threshold_tar']):.3f} on {about['threshold_pairs']}"
    )


if __name__ == "__main__":
    sys.exit(main())
