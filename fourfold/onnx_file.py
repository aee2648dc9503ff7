"""A model as an ONNX file: what it promises to be, and how it predicts. Needs onnxruntime and numpy alone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

INPUT, OUTPUT, BATCH = "x", "y", "batch"
OPSET = 20


@dataclass(frozen=True)
class ExportedModel:
    """A model file as it lies on disk.

    Attributes:
        path: the file: weights included, no second file beside it.
        sha256: of its bytes.
    """

    path: Path
    sha256: str


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_session(content: bytes, *, optimized: bool = True) -> onnxruntime.InferenceSession:
    """Make an onnxruntime session on a model's bytes, on the CPU, with or without graph optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it warns of, the gate judges; what is wrong it raises as well
    # Threads that spin while they wait for the next few rows only keep the cores from others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def predictor(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Open a model file once, to predict as `predict` does, as often as wanted."""
    session = open_session(path.read_bytes())
    (taken,) = session.get_inputs()
    dtype = np.float64 if taken.type == "tensor(double)" else np.float32

    def predict(x: np.ndarray) -> np.ndarray:
        prediction: np.ndarray = session.run(None, {taken.name: x.astype(dtype)})[0]
        return prediction

    return predict


def predict(path: Path, x: np.ndarray) -> np.ndarray:
    """Predict (rows, targets) from raw (rows, features) with a model file, by onnxruntime; x is cast to its dtype."""
    return predictor(path)(x)
