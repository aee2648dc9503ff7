"""What all tests share."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch.onnx._internal.exporter._registration import ONNXRegistry

os.environ.setdefault("DO_NOT_TRACK", "true")  # MLflow decides when it is imported
# A job in the background is started with Ctrl-C ignored, and hands that on to the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

from mlflow import MlflowClient
from workplaces import ROOT, SERVE, Workplace, clean_environment, make_prefect_home, workplace_in

import fourfold  # noqa: F401 - before any test loads onnxruntime: it turns its telemetry off

torch.set_num_threads(1)  # as many tests run side by side as there are cores
# The millions of objects that were imported stay; looking for garbage among them took a seventh of the tests' time.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _interpreter_as_found() -> Iterator[None]:
    """Let no test leave a changed interpreter to those after it."""

    def state() -> object:
        return gc.isenabled(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = state()
    yield
    assert state() == before, "this test left the garbage collector or a signal's handler changed"


@pytest.fixture(scope="session", autouse=True)
def read_operators() -> Iterator[Callable[[int], ONNXRegistry]]:
    """Keep what torch's exporter reads anew for each file, the source of 500 operators: half of its time.

    Gives the function that reads. The flows that tests start as processes export as a user does.
    """
    read = ONNXRegistry.from_torchlib
    known = cache(read)

    def copied(opset_version: int) -> ONNXRegistry:
        registry = ONNXRegistry()
        registry._opset_version = opset_version
        registry.functions = {target: list(found) for target, found in known(opset_version).functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield read


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Fill a folder, unless another of xdist's workers has done so; nobody may change what is in it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def prefect_home(
    made_once: Callable[[str, Callable[[Path], None]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Prefect home whose database is up to date: making it takes ten seconds, copying it none."""
    made = made_once("prefect-home", make_prefect_home)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("prefect") / "home"))


@pytest.fixture(scope="session")
def server_home(prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Prefect home of the server that stays."""
    return Path(shutil.copytree(prefect_home, tmp_path_factory.mktemp("prefect-server") / "home"))


@pytest.fixture(scope="session")
def prefect_server(server_home: Path) -> Iterator[str]:
    """The address of one server, for the flows whose own is not what a test is about: each takes three seconds."""
    environment = clean_environment() | {"PREFECT_HOME": str(server_home)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], env=environment, cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "Prefect's server did not start"
        yield address


@pytest.fixture(scope="session")
def empty_database(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A SQLite file with MLflow's tables: they take seconds."""

    def fill(folder: Path) -> None:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_once("mlflow", fill) / "mlflow.db"


@pytest.fixture
def workplace(tmp_path: Path, prefect_home: Path, empty_database: Path) -> Workplace:
    """One with the databases of both services, where a flow starts a Prefect server of its own."""
    folder = tmp_path / "a place with spaces"
    folder.mkdir()
    shutil.copytree(prefect_home, folder / "prefect")
    shutil.copy(empty_database, folder / "mlflow.db")
    return workplace_in(folder)


@pytest.fixture
def shared_server(workplace: Workplace, prefect_server: str) -> None:
    """Let the flows of the workplace use the server that is there."""
    workplace.environment["PREFECT_API_URL"] = prefect_server


@pytest.fixture
def empty_workplace(tmp_path: Path) -> Workplace:
    """One where Prefect has never been, either."""
    return workplace_in(tmp_path)
