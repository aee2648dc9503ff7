"""What the tests of the tasks share: an MLflow store of their own, small models, the environment put back."""

import atexit
import gc
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import psutil
import pytest
import torch
from mlflow import MlflowClient
from onnx import TensorProto, helper, numpy_helper

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.golden import write_golden
from fourfold.onnx_file import OPSET, ExportedModel, file_sha256
from fourfold.parity import Expectation
from tasks import command_line, signals
from tasks.make_data import _load
from tasks.tracking import RunRecord, json_ready, recorded_run


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path) -> Iterator[None]:
    """Put the environment back, and keep every test away from the stores and servers of whoever runs it."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    os.environ["PREFECT_HOME"] = str(tmp_path / "prefect-home")
    os.environ["DO_NOT_TRACK"] = os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # for processes that a test starts
    _load.cache_clear()
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what `command_line` sets for a whole process."""
    thresholds = gc.get_threshold()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(command_line, "_exit_code", [])
    monkeypatch.setattr(signals, "_heard", [])
    monkeypatch.setattr(command_line, "_limit_exit", lambda seconds: None)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    yield
    atexit.unregister(command_line._leave)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the modules that a test imports, and take their folder off the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not getattr(sys.modules[name], "__file__", None) or "site-packages" not in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> MlflowClient:
    """A client of an empty store, which `MLFLOW_TRACKING_URI` names: `mlflow.db` in the test's folder."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def record(store: MlflowClient) -> Iterator[RunRecord]:
    """An open run in that store."""
    with recorded_run("train", "a run", {}, {}) as opened:
        yield opened


class Notes:
    """Takes what a step records, in place of a run in MLflow."""

    def __init__(self) -> None:
        self.origin = {"mlflow_run_id": "f" * 32}
        self.noted_metrics: dict[str, float] = {}
        self.noted_tags: dict[str, Any] = {}
        self.files: list[str] = []

    def metrics(self, values: Mapping[str, float]) -> None:
        self.noted_metrics |= values

    def tags(self, tags: Mapping[str, Any]) -> None:
        self.noted_tags |= tags

    def document(self, content: Mapping[str, Any], path: Path) -> None:
        path.write_text(json.dumps(json_ready(content)))
        self.file(path)

    def file(self, path: Path) -> None:
        assert path.is_file(), "only what is there can be kept"
        self.files.append(path.name)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def dataset() -> Callable[..., Dataset]:
    """Make a dataset from arrays, (rows, columns) each, with no or with given held-out rows."""

    def make(
        x: Any, y: Any, *, test: tuple[Any, Any] | None = None, features: tuple[str, ...] = (),
        targets: tuple[str, ...] = (), dtype: torch.dtype = torch.float64, sha256: str = "d" * 64,
    ) -> Dataset:  # fmt: skip
        rows = [torch.as_tensor(np.asarray(values), dtype=dtype) for values in (x, y)]
        held_out = [torch.as_tensor(np.asarray(values), dtype=dtype) for values in test] if test else None
        x_test, y_test = held_out or (rows[0][:0], rows[1][:0])
        return Dataset(
            "made", features or tuple(f"f{i}" for i in range(rows[0].shape[1])),
            targets or tuple(f"t{i}" for i in range(rows[1].shape[1])), *rows, x_test, y_test,
            rows[0][:0], rows[1][:0], sha256,
        )  # fmt: skip

    return make


@pytest.fixture
def linear_file(tmp_path: Path) -> Callable[..., ExportedModel]:
    """Write an ONNX file of y = x w^T + b by hand, and golden predictions, so that no code of ours decides them."""

    def write(
        w: Any, b: Any, *, name: str = "model.onnx", dtype: type = np.float32, metadata: Mapping[str, str] | None = None
    ) -> ExportedModel:
        weights, intercepts = np.asarray(w, dtype=dtype), np.asarray(b, dtype=dtype)
        kind = TensorProto.DOUBLE if dtype is np.float64 else TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
            "line",
            [helper.make_tensor_value_info("x", kind, ["batch", weights.shape[1]])],
            [helper.make_tensor_value_info("y", kind, ["batch", weights.shape[0]])],
            [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(intercepts, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        columns = {"features": json.dumps(["x"]), "targets": json.dumps(["y"])}  # of a line; others are told
        helper.set_model_props(model, columns | dict(metadata or {}))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        exported = ExportedModel(path, file_sha256(path))
        x = np.arange(3 * weights.shape[1], dtype=dtype).reshape(3, -1)
        truth = x.astype(np.float64) @ weights.astype(np.float64).T + intercepts
        allowed = np.full(truth.shape, 8 * np.finfo(dtype).eps * (1 + np.abs(truth).max()))
        undecided = np.zeros(3, dtype=bool)
        rows = Expectation("training rows", x, truth.astype(dtype), truth, allowed, undecided, at_hand=True)
        targets, features = weights.shape
        write_golden(exported, [rows], [f"f{i}" for i in range(features)], [f"t{i}" for i in range(targets)])
        return exported

    return write


@pytest.fixture
def table_file(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Write a CSV file, and give the configuration that trains on it."""

    def write(text: str, name: str = "rows.csv", **options: Any) -> TrainConfig:
        path = tmp_path / name
        path.write_text(text)
        return TrainConfig(data=str(path), **options)

    return write


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    """Whether a process has ended; one that only waits to be collected by its parent has."""

    def ask(process_id: int) -> bool:
        try:
            return bool(psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    return ask


@pytest.fixture
def unused_address() -> str:
    """An address of this machine where nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def healthy_address() -> Iterator[str]:
    """A server whose `/api/health` and `/health` answer with 200, and all else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/api/health") else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def ssh_address() -> Iterator[str]:
    """The address of a server of another kind, which greets as SSH does."""

    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
