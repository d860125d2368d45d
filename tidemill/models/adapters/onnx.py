"""ONNX, run by onnxruntime with one thread: a request's few rows are faster so.

The model takes one tensor of floats or doubles, (n, features). Of a classifier the probabilities come as (n, 2), as a probability a row, or
as skl2onnx's list of dicts. Most models compute in float32: their scores are that exact, and no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.manifest import Class, Kind, Manifest
from tidemill.models.predictor import Context, Dumped, Matrix

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


class OnnxPredictor:
    """Asks a session for one of its outputs."""

    def __init__(self, session: Any, output: str, positive: int | None, key: Class | None) -> None:
        self._session = session
        (given,) = session.get_inputs()
        self._input, self._type = given.name, _TYPES[given.type]
        self._output, self._positive, self._key = output, positive, key

    def predict(self, matrix: Matrix) -> Matrix:
        if not len(matrix):
            return np.empty(0)
        with np.errstate(over="ignore"):  # a double that no float32 can hold is infinite
            given = matrix.astype(self._type)
        (found,) = self._session.run([self._output], {self._input: given})
        if isinstance(found, list):
            return np.array([row[self._key] for row in found], dtype=np.float64)
        scores = np.asarray(found, dtype=np.float64)
        if scores.ndim == 2 and scores.shape[1] == 2 and self._positive is not None:
            return np.ascontiguousarray(scores[:, self._positive])
        if scores.ndim == 2 and scores.shape[1] == 1:
            scores = scores[:, 0]
        return scores if self._positive != 0 else 1.0 - scores


def dump(model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:  # noqa: ARG001 - runs no code of others
    """A model of the package onnx, or the bytes of an .onnx file. Without `kind`, two outputs or a pair a row make a classifier."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = _session(data, "this model")
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        raise ModelError(
            f"an ONNX model takes one tensor of floats or doubles, (n, features); this one takes {', '.join(i.type for i in inputs)}: "
            "export it with one input"
        )
    shape = inputs[0].shape
    width = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None
    outputs = session.get_outputs()
    output = outputs[-1]
    pair = output.type.startswith("seq(") or (len(output.shape) == 2 and output.shape[1] == 2)
    found: Kind = kind or ("classifier" if pair or len(outputs) > 1 else "regressor")
    if found == "classifier" and classes is None:
        classes = (0, 1)
        if output.type.startswith("seq("):
            zeros = np.zeros((1, width or 1), dtype=_TYPES[inputs[0].type])
            (rows,) = session.run([output.name], {inputs[0].name: zeros})
            classes = tuple(rows[0])
    return Dumped(
        "model.onnx",
        data,
        found,
        classes if found == "classifier" else None,
        width=width,
        libraries=("onnxruntime", "numpy"),
        options={"output": output.name},
    )


def load(data: bytes, manifest: Manifest, context: Context) -> OnnxPredictor:  # noqa: ARG001 - as above
    """A session of the model."""
    session = _session(data, manifest.title)
    positive = manifest.positive_index if manifest.kind == "classifier" else None
    return OnnxPredictor(session, manifest.options["output"], positive, manifest.positive)


def _session(data: bytes, what: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no common class
        raise ModelRefusedError(f"{what} cannot be read as an ONNX model: {error}") from error
