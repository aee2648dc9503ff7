"""Whole flows as processes, each with its own store and its own Prefect home."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

ROOT = Path(__file__).parents[1]
SECONDS_TO_FINISH = 120
# As sitecustomize.py in a folder on the path.
WITHOUT_TORCH = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed here")

sys.meta_path.insert(0, Refuse())
"""


# Serves for as long as there is somebody at the other end of its standard input.
SERVE = """
import sys
from tasks.prefect_api import PrefectServer
from tasks.services import prepare_environment

prepare_environment()
server = PrefectServer.begin()
server.release()
with server.ready():
    print(server.api_url, flush=True)
    sys.stdin.read()
    # As the end of this process would end it; but whoever waits for this process may then have its files.
    server._process.stdin.close()
    server._process.wait()
"""


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


def at_once(script: str, *arguments: str) -> list[Ended]:
    """Run a script in as many processes as there are arguments, one each; where it says `wait()` all go on together."""
    wait = "import sys\ndef wait():\n    print('there', flush=True)\n    sys.stdin.readline()\n"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", wait + script, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argument in arguments
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n", process.communicate()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=SECONDS_TO_FINISH) for process in processes]
    return [Ended(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


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


def workplace_in(folder: Path) -> Workplace:
    return Workplace(
        folder,
        clean_environment()
        | {
            "PREFECT_HOME": str(folder / "prefect"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "COLUMNS": "120",
        },
    )


def make_prefect_home(home: Path) -> None:
    """Let a Prefect server make its database there."""
    subprocess.run(
        [sys.executable, "-c", SERVE],
        env=clean_environment() | {"PREFECT_HOME": str(home)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=180,
    )


def search_lines(experiment: str) -> list[str]:
    """Those that docs/finding-runs.md gives for an experiment."""
    page = (ROOT / "docs" / "finding-runs.md").read_text()
    return re.findall(rf"^\| .* \| {experiment} \| `(.*)` \|$", page, flags=re.MULTILINE)


def clean_environment() -> dict[str, str]:
    """The environment without what a developer, or another test in this process, may have set for the services."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
