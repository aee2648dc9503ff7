"""One MLflow run, written through the client under its own id, and always with its true status."""

import getpass
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from fourfold.processes import process_tags
from tasks import services

if TYPE_CHECKING:  # it brings torch
    from fourfold.datasets import Dataset

MOST_CURVE_POINTS = 500
LONGEST_METRIC_KEY = 200
ALREADY_EXISTS = "RESOURCE_ALREADY_EXISTS"  # as MLflow spells it


class RunRecord:
    """What a run leaves in MLflow: parameters, tags, curves, files.

    MLflow's "active run" belongs to a thread, so a task in another one would write into a run of its own;
    every call here names the run.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, experiment: str, experiment_id: str, origin: Mapping[str, str]
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.experiment = experiment
        self.experiment_id = experiment_id
        self.origin = {"mlflow_run_id": run_id, **origin}

    @property
    def url(self) -> str:
        """Where `mlflow ui`, or the server that keeps the runs, shows this one."""
        return f"{services.ui_address()}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log the configuration, each value as a person types it."""
        self.client.log_batch(
            self.run_id, params=[Param(key, spell(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in parameters.items()]
        )

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None is left out."""
        self.client.log_batch(
            self.run_id,
            tags=[RunTag(key, str(value)[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items() if value is not None],
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log single values."""
        now = _milliseconds()
        self.client.log_batch(self.run_id, [Metric(metric_key(k), float(v), now, 0) for k, v in values.items()])

    def curves(self, columns: Mapping[str, np.ndarray]) -> None:
        """Log curves, (rows,) each, one point an epoch; of long ones 500 evenly spread, ends included."""
        now = _milliseconds()
        metrics = []
        for name, values in columns.items():
            steps = np.unique(np.linspace(0, len(values) - 1, MOST_CURVE_POINTS).round().astype(int))
            metrics += [Metric(metric_key(name), float(values[step]), now, int(step)) for step in steps]
        for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics[first : first + MAX_METRICS_PER_BATCH])

    def table(self, columns: Mapping[str, np.ndarray], path: Path) -> None:
        """Keep whole columns as a Parquet file of that name."""
        pa.parquet.write_table(pa.table(dict(columns)), path)
        self.file(path)

    def document(self, content: Mapping[str, Any], path: Path) -> None:
        """Keep plain values as a JSON file of that name."""
        path.write_text(json.dumps(json_ready(content), indent=2) + "\n")
        self.file(path)

    def file(self, path: Path) -> None:
        """Keep a file as an artifact of the run."""
        self.client.log_artifact(self.run_id, str(path))

    def dataset(self, data: "Dataset") -> None:
        """Name the data as the run's input."""
        schema = {"features": list(data.features), "targets": list(data.targets)}
        profile = {f"{part.replace('-', '_')}_rows": rows for part, rows in data.count.items()}
        entity = MlflowDataset(
            data.name, data.sha256[:36], "fourfold", json.dumps({"sha256": data.sha256}), json.dumps(schema),
            json.dumps(profile),
        )  # fmt: skip
        self.client.log_inputs(
            self.run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        )

    def finish(self, status: str, outcome: str, reason: str = "") -> None:
        """Close the run: FINISHED, FAILED or KILLED, with the outcome and its reason as tags."""
        self.tags({"outcome": outcome, "reason": reason or None})
        self.client.set_terminated(self.run_id, status)


@contextmanager
def recorded_run(
    experiment: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, Any]
) -> Iterator[RunRecord]:
    """Open a run, and close it with what really happened to the block.

    FINISHED where the block ran to its end, FAILED where it raised an exception, KILLED where it was
    interrupted (Ctrl-C, SIGTERM); the exception goes on its way.
    """
    record = _open_run(experiment, name, tags)
    try:
        record.parameters(parameters)
        yield record
    except Exception as error:
        record.finish("FAILED", type(error).__name__.removesuffix("Error").lower(), str(error))
        raise
    except BaseException as error:
        record.finish("KILLED", "killed", type(error).__name__)
        raise
    record.finish("FINISHED", "completed")


def json_ready(value: Any) -> Any:
    """The same plain value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metric_key(name: str) -> str:
    """A name that MLflow takes as a metric's; one that it would not take is changed, and told apart by a hash."""
    admitted = "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /" else "_" for c in name)
    key = "/".join(part for part in map(str.strip, admitted.split("/")) if part.strip("."))
    if key and key == name and len(name) <= LONGEST_METRIC_KEY:
        return name
    return f"{key[:LONGEST_METRIC_KEY].rstrip('/. ') or '_'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _open_run(experiment: str, name: str, tags: Mapping[str, Any]) -> RunRecord:
    uri = services.tracking_uri()
    mlflow.set_tracking_uri(uri)  # for log_model, which takes no client
    database = services.sqlite_file(uri)
    if database is None:
        client = MlflowClient(uri)
        experiment_id = _experiment(client, experiment, None)
    else:
        # MLflow creates its tables on first use; two processes that do so at once would fail.
        folder = database.parent / "mlruns"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / ".create-tables.lock"):
            client = MlflowClient(uri)
            experiment_id = _experiment(client, experiment, folder / experiment)
    git = _git_state()
    everywhere = {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"flows/{experiment}_flow.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("git_commit"),
        "git_dirty": git.get("git_dirty"),
        **process_tags(),
        "outcome": "running",
    }
    run = client.create_run(
        experiment_id,
        tags={key: str(value) for key, value in {**everywhere, **tags}.items() if value is not None},
        run_name=name,
    )
    origin = {key: str(tags[key]) for key in ("flow_run_id",) if tags.get(key)} | git
    return RunRecord(client, run.info.run_id, experiment, experiment_id, origin)


def _experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=str(folder) if folder else None))
        except MlflowException as error:  # another process was faster
            if error.error_code != ALREADY_EXISTS:
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None, "it was found, or exists already"
    return str(found.experiment_id)


def _git_state() -> dict[str, str]:
    """Commit of the code that runs, and whether it was changed since; empty without a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(services.project_root()), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "-s"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def spell(value: Any) -> str:
    """A parameter as a person types it."""
    if isinstance(value, (tuple, list)):
        rows = any(isinstance(item, (tuple, list)) for item in value)
        return (";" if rows else ",").join(map(spell, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _milliseconds() -> int:
    return int(time.time() * 1000)
