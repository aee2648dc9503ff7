"""The model file, as onnxruntime reads it."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fourfold.onnx_file import file_sha256, open_session, predict

WEIGHT, BIAS = np.array([[1.0, -2.0, 0.5]]), np.array([0.25])


def line(dtype: type) -> bytes:
    """A plane, y = x w^T + b, as a file that was made without any exporter."""
    kind = TensorProto.DOUBLE if dtype is np.float64 else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "line",
        [helper.make_tensor_value_info("x", kind, ["batch", 3])],
        [helper.make_tensor_value_info("y", kind, ["batch", 1])],
        [numpy_helper.from_array(WEIGHT.astype(dtype), "w"), numpy_helper.from_array(BIAS.astype(dtype), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("stored", [np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float64, np.float32, np.int64])
def test_predicting_casts_rows_to_what_the_file_takes(stored: type, given: type, tmp_path: Path) -> None:
    path = tmp_path / "line.onnx"
    path.write_bytes(line(stored))
    prediction = predict(path, np.array([[8, 9, 10], [11, 12, 13]], dtype=given))
    assert prediction.dtype == stored
    assert prediction.tolist() == [[-4.75], [-6.25]]


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_the_hash_is_that_of_the_bytes(size: int, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("optimized", "level"),
    [
        (True, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (False, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ],
)
def test_a_session_optimises_as_it_is_told_and_runs_on_the_cpu(
    optimized: bool, level: onnxruntime.GraphOptimizationLevel
) -> None:
    session = open_session(line(np.float32), optimized=optimized)
    assert session.get_session_options().graph_optimization_level == level
    assert session.get_providers() == ["CPUExecutionProvider"]
