"""A model made by tripletloss.export, run by onnxruntime."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

from tripletloss.base.errors import InputError
from tripletloss.base.files import read_file
from tripletloss.core.alignment import TEMPLATES
from tripletloss.core.distances import first_not_finite

BATCH_SIZE = 32
MOST_BYTES = 2**31 - 1  # protobuf's limit


def threshold_advice(about: Mapping[str, str]) -> str:
    """What to do about a model without a threshold, as a clause. about: the model's metadata."""
    example = ""
    if "threshold_equal_errors" in about:
        example = f", such as {float(about['threshold_equal_errors']):.3f}, where errors of both kinds are equal,"
    return f"give verify one with --threshold{example} or export with a larger HELD_OUT_LIST"


class Model:
    """A model that turns faces into embeddings."""

    def __init__(self, source: str | bytes, name: str = "") -> None:
        """source: the path of the .onnx file, or its bytes; name: of the model in error messages.

        Raises InputError if it is not a model made by tripletloss.export, or its parameters hold NaN or infinity.
        """
        self.name = name or str(source)
        try:
            content = source if isinstance(source, bytes) else read_file(source, MOST_BYTES)
            loaded = onnx.load_model_from_string(content)
            self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except (OSError, DecodeError, Fail, InvalidArgument, InvalidGraph, InvalidProtobuf):
            raise InputError(
                f"{self.name} does not exist or is not an ONNX model: make one with tripletloss.export"
            ) from None
        for parameter in loaded.graph.initializer:
            if not np.isfinite(numpy_helper.to_array(parameter)).all():
                raise InputError(
                    f"{self.name}: the parameter {parameter.name!r} holds NaN or infinity: export other weights"
                )
        self.about = self.session.get_modelmeta().custom_metadata_map
        try:
            self.size, self.crop = int(self.about["image_size"]), int(self.about["crop"])
            self.means = np.array(json.loads(self.about["pixel_means"]), np.float32)
            self.channels = self.about["channels"]
            # A model from before this was noted takes faces as face997 does.
            points = json.loads(self.about["points"]) if "points" in self.about else TEMPLATES["face997"]
            self.points = np.array(points, np.float64).reshape(5, 2)
            [given] = self.session.get_inputs()
            if given.shape[1:] not in ([3, self.size, self.size], [self.size, self.size, 3]):
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(f"{self.name} does not say what it takes: make it with tripletloss.export") from None

    def embed(self, faces: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
        """Embeddings (N, D) float32 of faces (N, size, size, 3) uint8, B, G, R.

        names: of the faces in error messages. Raises InputError if an embedding is NaN or infinite.
        """
        [given] = self.session.get_inputs()
        if self.channels == "rgb":
            faces = faces[..., ::-1]
        if given.type == "tensor(float)":
            faces = (faces - self.means).transpose(0, 3, 1, 2)
        rows = [
            self.session.run(None, {given.name: np.ascontiguousarray(faces[start : start + BATCH_SIZE])})[0]
            for start in range(0, len(faces), BATCH_SIZE)
        ]
        embeddings = np.concatenate(rows)
        row = first_not_finite(embeddings)
        if row is not None:
            face = names[row] if names else f"face {row}"
            raise InputError(f"{self.name} gives NaN or infinity for {face}: export other weights")
        return embeddings
