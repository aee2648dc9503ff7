"""Runs that an MLflow server and a Prefect server keep, both with their pages for a browser."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.running import answers, free_port, served, until
from workplaces import ROOT, SECONDS_TO_FINISH, Ended, workplace_in


@dataclass(frozen=True)
class Kept:
    """Where the servers answer, and the result of each run by its name.

    Attributes:
        artifacts: the folder in which MLflow's server keeps files.
    """

    mlflow: str
    prefect: str
    artifacts: Path
    results: Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Visited:
    """A training and a comparison, kept by two servers that a browser has looked at.

    Attributes:
        results: of each flow.
        seen: what the browser saw.
    """

    artifacts: Path
    results: dict[str, dict[str, Any]]
    seen: dict[str, Any]

    def file(self, flow: str, name: str) -> Path:
        """A file that a run left."""
        (path,) = self.artifacts.glob(f"*/{self.results[flow]['run_id']}/artifacts/{name}")
        return path


@contextmanager
def kept_runs(folder: Path, asked: Mapping[str, Sequence[str]], seconds: float = SECONDS_TO_FINISH) -> Iterator[Kept]:
    """Start both servers, run flows side by side, and end the servers with the block.

    Args:
        folder: for all that they leave; a Prefect home in `prefect-server` and a database `mlflow.db` are used.
        asked: by name a flow and its options.
        seconds: that they may take.
    """
    mlflow, prefect = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    python, database = shlex.quote(sys.executable), f"sqlite:///{folder / 'mlflow.db'}"
    at_mlflow, at_prefect = (f"--host 127.0.0.1 --port {url.rpartition(':')[2]}" for url in (mlflow, prefect))
    scripts = (
        "export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false\n"
        f"exec {python} -m mlflow server --workers 1 --backend-store-uri {shlex.quote(database)} "
        f"--artifacts-destination {shlex.quote(str(folder / 'artifacts'))} {at_mlflow}",
        # Its pages ask the API at port 4200 unless they are told.
        f"export PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_UI_API_URL={prefect}/api "
        f"PREFECT_UI_STATIC_DIRECTORY={shlex.quote(str(folder / 'static'))}\n"
        f"exec {python} -m prefect server start {at_prefect}",
    )
    with ExitStack() as stack:
        for script in scripts:
            stack.enter_context(served(script, folder))
        until(lambda: answers(f"{mlflow}/health"), folder)
        until(lambda: answers(f"{prefect}/api/health"), folder)
        place = workplace_in(folder)
        place.environment.update(
            MLFLOW_TRACKING_URI=mlflow, PREFECT_API_URL=f"{prefect}/api", PYTHONPATH=str(ROOT), DO_NOT_TRACK="true"
        )
        with ExitStack() as running:
            processes = {
                name: running.enter_context(place.start(*options, "--json", flow=flow))
                for name, (flow, *options) in asked.items()
            }
            told = {name: process.communicate(timeout=seconds) for name, process in processes.items()}
        ended = {name: Ended(processes[name].returncode, *told[name]) for name in asked}
        assert not any(one.code for one in ended.values()), ended
        yield Kept(mlflow, prefect, folder / "artifacts", {name: one.result for name, one in ended.items()})
