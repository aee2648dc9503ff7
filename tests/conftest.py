"""What all tests share: whole flows as processes, each with its own store and its own Prefect home."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import fourfold  # noqa: F401 - before any test loads onnxruntime: it turns its telemetry off

ROOT = Path(__file__).parents[1]
SECONDS_TO_FINISH = 120


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line on standard output, as --json promises it."""
        answer: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return answer


@dataclass(frozen=True)
class Workplace:
    """An empty folder to run flows in, with an MLflow store and a Prefect home inside."""

    folder: Path
    environment: dict[str, str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.environment["MLFLOW_TRACKING_URI"])

    def start(self, *arguments: str, flow: str = "train", **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(ROOT / "flows" / f"{flow}_flow.py"), *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, flow: str = "train", **environment: str) -> Ended:
        with self.start(*arguments, flow=flow, **environment) as process:
            out, err = process.communicate(timeout=SECONDS_TO_FINISH)
        return Ended(process.returncode, out, err)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home whose database is up to date: making it takes ten seconds, copying it none."""
    home = tmp_path_factory.mktemp("prefect-home")
    begin_and_wait = (
        "from tasks.services import PrefectServer, prepare_environment\n"
        "prepare_environment(); server = PrefectServer.begin(); server.release()\n"
        "with server.ready(): pass\n"
    )
    environment = _clean_environment() | {"PREFECT_HOME": str(home)}
    subprocess.run([sys.executable, "-c", begin_and_wait], env=environment, cwd=ROOT, check=True, timeout=180)
    return home


@pytest.fixture
def workplace(tmp_path: Path, prefect_home: Path) -> Workplace:
    folder = tmp_path / "a place with spaces"
    folder.mkdir()
    shutil.copytree(prefect_home, folder / "prefect")
    return _workplace(folder)


@pytest.fixture
def empty_workplace(tmp_path: Path) -> Workplace:
    """One where Prefect has never been, either."""
    return _workplace(tmp_path)


def _workplace(folder: Path) -> Workplace:
    return Workplace(
        folder,
        _clean_environment()
        | {
            "PREFECT_HOME": str(folder / "prefect"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "COLUMNS": "120",
        },
    )


def _clean_environment() -> dict[str, str]:
    """The environment without what a developer, or another test in this process, may have set for the services."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
