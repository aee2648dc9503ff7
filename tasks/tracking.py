"""One MLflow run, written through the client under its own id, and always with its true status."""

import getpass
import hashlib
import itertools
import json
import logging
import math
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing as closed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from fourfold.durable import put_in_place
from fourfold.errors import ServiceError, first_line
from fourfold.processes import part_of, process_tags, remove_left_parts, remove_part
from tasks import services
from tasks.patience import SECONDS_OF_A_REQUEST, PatientClient, hurry, patiently, store_name
from tasks.run_list import experiment_tags, list_address

if TYPE_CHECKING:  # it brings torch
    from fourfold.datasets import Dataset

MOST_CURVE_POINTS = 500
LONGEST_METRIC_KEY = 200
ALREADY_EXISTS = "RESOURCE_ALREADY_EXISTS"  # as MLflow spells it
SECONDS_TO_LEAVE = 3.0  # what closing an interrupted run may take
_GIT_COMMIT = "mlflow.source.git.commit"
NOTE = "mlflow.note.content"  # what MLflow's pages show as the description, as Markdown
OPENING = "opening"  # a tag by which a run is found whose making was not answered


class RunRecord:
    """What a run leaves in MLflow: parameters, tags, curves, files.

    MLflow's "active run" belongs to a thread, so a task in another one would write into a run of its own;
    every call here names the run.
    """

    def __init__(self, client: MlflowClient, run: Run, experiment: str, origin: Mapping[str, str]) -> None:
        """Write into a run that is open.

        Args:
            client: of `store_client`.
            run: as MLflow gives it, just made or opened again.
            experiment: its name.
            origin: what the files of the run tell of where they come from, besides its id.
        """
        self.client = client
        self.run_id = run.info.run_id
        self.experiment = experiment
        self.experiment_id = run.info.experiment_id
        self.artifact_uri = run.info.artifact_uri
        self.origin = {"mlflow_run_id": self.run_id, **origin}
        # MLflow drops a point of the same key, step, value and time. One time for all makes each write, repeated by
        # whichever process, the same write.
        self._time = run.info.start_time
        self._kept = frozenset(run.data.metrics)

    @property
    def url(self) -> str:
        """Where `mlflow ui`, or the server that keeps the runs, shows this one."""
        return f"{services.ui_address()}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    @property
    def list_url(self) -> str:
        """The same of all runs of its experiment."""
        return list_address(services.ui_address(), self.experiment_id)

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log the configuration, each value as a person types it."""
        self.client.log_batch(
            self.run_id, params=[Param(key, as_parameter(value)) for key, value in parameters.items()]
        )

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None is left out."""
        self.client.log_batch(
            self.run_id,
            tags=[RunTag(key, str(value)[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items() if value is not None],
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log single values; one that a reopened run has already stays as it is."""
        metrics = [Metric(metric_key(k), float(v), self._time, 0) for k, v in values.items()]
        self.client.log_batch(self.run_id, [metric for metric in metrics if metric.key not in self._kept])

    def curves(self, columns: Mapping[str, np.ndarray]) -> None:
        """Log curves, (rows,) each, one point an epoch; of long ones 500 evenly spread, ends included."""
        metrics = []
        for name, values in columns.items():
            steps = np.unique(np.linspace(0, len(values) - 1, MOST_CURVE_POINTS).round().astype(int))
            metrics += [Metric(metric_key(name), float(values[step]), self._time, int(step)) for step in steps]
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
    experiment: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, Any], resumed: str | None = None
) -> Iterator[RunRecord]:
    """Open a run, or the one that is resumed again, and close it with what really happened to the block."""
    with closing(_reopen(resumed, tags) if resumed else _open_run(experiment, name, tags)) as record:
        record.parameters(parameters)
        yield record


@contextmanager
def closing(record: RunRecord) -> Iterator[RunRecord]:
    """Close an open run with what really happened to the block.

    FINISHED where the block ran to its end, FAILED where it raised an exception, KILLED where it was
    interrupted (Ctrl-C, SIGTERM); the exception goes on its way. Where the store is away the closing waits, but not
    for an interrupted run, nor after a wait that was in vain: such a run is closed by a later start.
    """
    try:
        yield record
        record.finish("FINISHED", "completed")
    except Exception as error:
        with _left_open_at_worst(record), hurry(SECONDS_TO_LEAVE) if isinstance(error, ServiceError) else nullcontext():
            record.finish("FAILED", type(error).__name__.removesuffix("Error").lower(), str(error))
        raise
    except BaseException as error:
        with _left_open_at_worst(record), hurry(SECONDS_TO_LEAVE):
            record.finish("KILLED", "killed", type(error).__name__)
        raise


def owner_tags() -> dict[str, str]:
    """Whose a run is while it is open: this process, of this host and user."""
    return {
        "mlflow.user": getpass.getuser(),
        **process_tags(),
        "outcome": "running",
    }


def store_client() -> MlflowClient:
    """A client of the store, whose tables are there; every call of it waits while the store is away or locked."""
    services.set_password_apart()
    uri = services.tracking_uri()
    mlflow.set_tracking_uri(uri)  # for loading and downloading, which take no client
    # MLflow's own repeating knows nothing of what a first try has done: it would make a second run.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SECONDS_OF_A_REQUEST))
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each try
    database = services.sqlite_file(uri)
    if database is None:
        return patiently(store_name(uri), lambda: PatientClient(uri))

    def connect() -> MlflowClient:
        with closed(sqlite3.connect(database, timeout=1)) as connection:  # MLflow waits for minutes, and says nothing
            connection.execute("SELECT count(*) FROM sqlite_master")
        return PatientClient(uri)

    with services.store_lock("runs"):  # of two processes that make the tables at once one would fail
        if not database.exists() or not database.stat().st_size:
            _make_tables(database)
        return patiently(store_name(uri), connect)


def _make_tables(database: Path) -> None:
    """Make MLflow's tables, in a file that gets its name when it has them all.

    MLflow would make them at its first use, and could neither go on nor begin anew where that was cut short.
    """
    remove_left_parts(database)
    part = part_of(database)
    try:
        engine = create_sqlalchemy_engine(f"sqlite:///{part}")  # type: ignore[no-untyped-call]
        try:
            _initialize_tables(engine)  # type: ignore[no-untyped-call]
        finally:
            engine.dispose()
        put_in_place(part, database)
    finally:
        remove_part(part)


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
    client = store_client()
    database = services.sqlite_file(services.tracking_uri())
    experiment_id = _experiment(client, experiment, database.parent / "mlruns" / experiment if database else None)
    git = _git_state()
    everywhere = {
        "mlflow.source.name": f"flows/{experiment}_flow.py",
        "mlflow.source.type": "LOCAL",
        _GIT_COMMIT: git.get("git_commit"),
        "git_dirty": git.get("git_dirty"),
        OPENING: secrets.token_hex(16),
        **owner_tags(),
    }
    run = _new_run(client, experiment_id, name, {k: str(v) for k, v in {**everywhere, **tags}.items() if v is not None})
    origin = {key: str(tags[key]) for key in ("flow_run_id",) if tags.get(key)} | git
    return RunRecord(client, run, experiment, origin)


def _new_run(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> Run:
    """Make a run, one even where the answer to a first try was lost."""
    tries = itertools.count()

    def make() -> Run:
        made = client.search_runs([experiment_id], f"tags.{OPENING} = '{tags[OPENING]}'") if next(tries) else []
        return made[0] if made else client.create_run(experiment_id, tags=tags, run_name=name)

    return patiently(store_name(services.tracking_uri()), make)


@contextmanager
def _left_open_at_worst(record: RunRecord) -> Iterator[None]:
    """Say that a run could not be closed, and no more: something worse is on its way."""
    try:
        yield
    except Exception as error:
        print(f"run {record.run_id} is still open, a later start closes it: {first_line(error)}", file=sys.stderr)


def _reopen(run_id: str, tags: Mapping[str, Any]) -> RunRecord:
    """Go on in a run that was closed, or whose process is gone.

    Its origin stays what it was when it was opened: the model file must come out with the same bytes.
    """
    client = store_client()
    with services.store_lock("runs"):  # else a start beside this one could find it left, and close it
        run = client.get_run(run_id)
        before = run.data.tags
        first = before.get("first_flow_run_id") or before.get("flow_run_id")
        origin = {"flow_run_id": first, "git_commit": before.get(_GIT_COMMIT), "git_dirty": before.get("git_dirty")}
        experiment = client.get_experiment(run.info.experiment_id).name
        record = RunRecord(client, run, experiment, {key: value for key, value in origin.items() if value})
        # The owner first: a run that is RUNNING and whose process is gone would be closed.
        resumed = {"first_flow_run_id": first, "resumed": int(before.get("resumed", 0)) + 1, "reason": ""}
        record.tags({**tags, **resumed, **owner_tags()})
        client.update_run(run_id, status="RUNNING")
    return record


def _experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            location = str(folder) if folder else None
            return str(client.create_experiment(name, artifact_location=location, tags=experiment_tags()))
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


def as_parameter(value: Any) -> str:
    """A parameter as MLflow keeps it."""
    return spell(value)[:MAX_PARAM_VAL_LENGTH]


def spell(value: Any) -> str:
    """A parameter as a person types it."""
    if isinstance(value, (tuple, list)):
        rows = any(isinstance(item, (tuple, list)) for item in value)
        return (";" if rows else ",").join(map(spell, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
