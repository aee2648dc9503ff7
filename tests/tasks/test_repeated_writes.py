"""A write that was done and not answered, or tried and not done, leaves what it leaves where nothing is wrong."""

import contextlib
import functools
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing as closed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect import Task
from workplaces import at_once

from flows import train_flow as flow
from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.onnx_file import ExportedModel
from fourfold.parity import ParityReport
from tasks import patience
from tasks.evaluate import Accuracy, Evaluation
from tasks.register import Registered, register
from tasks.tracking import RunRecord, recorded_run, store_client
from tasks.train_result import TrainResult

# MLflow's own code; nothing here can mend it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

LOST = "API request to http://store failed with exception ('Connection aborted.', RemoteDisconnected())"
# What differs between two runs of the same request; the files hold the run's id.
PASSING = {"opening", "process_started", "model.sha256", "parity.sha256", "golden.sha256", "sha256", "golden_sha256"}
Call = Callable[..., Any]


def around_each_call(patch: pytest.MonkeyPatch, change: Callable[[str, Call], Call]) -> None:
    """Change every method of MLflow's client, those that MLflow makes for itself too."""
    for name, method in vars(MlflowClient).items():
        if callable(method) and not name.startswith("_"):
            patch.setattr(MlflowClient, name, change(name, method))


def called(names: Counter[str]) -> Callable[[str, Call], Call]:
    """Note the calls."""

    def change(name: str, real: Call) -> Call:
        @functools.wraps(real)
        def call(*arguments: Any, **options: Any) -> Any:
            names[name] += 1
            return real(*arguments, **options)

        return call

    return change


def failing(names: Counter[str], times: int, *, done: bool) -> Callable[[str, Call], Call]:
    """Fail so many times in each call, one with other arguments is another, after or before it is done."""
    failures: Counter[str] = Counter()

    def change(name: str, real: Call) -> Call:
        @functools.wraps(real)
        def call(*arguments: Any, **options: Any) -> Any:
            key = f"{name} {arguments[1:]} {options}"
            answer = real(*arguments, **options) if done or failures[key] == times else None
            if failures[key] < times:
                failures[key] += 1
                names[name] += 1
                raise MlflowException(LOST)
            return answer

        return call

    return change


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 1e-6)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 1e-6)


@contextmanager
def undrawn(*_: object) -> Iterator[None]:
    yield None


@pytest.fixture
def whole_run(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run the steps of the train flow, without Prefect, in a store of their own; its folder."""
    for name, step in list(vars(flow).items()):
        if isinstance(step, Task):
            monkeypatch.setattr(flow, name, step.fn)
    monkeypatch.setattr(flow, "drawing", undrawn)  # it takes a process, and its picture is a file like others

    def run(name: str, change: Callable[[str, Call], Call]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        with pytest.MonkeyPatch.context() as patch:
            around_each_call(patch, change)
            flow.train_into(TrainResult(TrainConfig(epochs=3)))
        return folder

    return run


def rows(folder: Path) -> dict[str, int]:
    """How many rows each of MLflow's tables has: whatever is doubled, is so in one of them."""
    with closed(sqlite3.connect(folder / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}


def left(folder: Path) -> dict[str, Any]:
    """All that MLflow tells of the only run in a store, without what differs between two runs of one request."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name != "Default")
    (run,) = client.search_runs([experiment.experiment_id])
    (model,) = client.search_logged_models([experiment.experiment_id])
    (version,) = client.search_model_versions("")
    assert run.outputs is not None

    def told(values: dict[str, str]) -> dict[str, str]:
        return {
            key: value.replace(run.info.run_id, "RUN").replace(str(folder), "FOLDER")
            for key, value in values.items()
            if key not in PASSING
        }

    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    assert {one.timestamp for history in histories.values() for one in history} == {run.info.start_time}
    return {
        "status": run.info.status,
        "tags": told(run.data.tags),
        "params": run.data.params,
        "metrics": {
            key: sorted((one.step, key == "fit_seconds" or one.value) for one in history)
            for key, history in histories.items()
        },
        "inputs": [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs],
        "outputs": [one.model_id == model.model_id for one in run.outputs.model_outputs],
        "model": (model.name, model.status, model.source_run_id == run.info.run_id, dict(model.tags)),
        "model's metrics": sorted((one.key, one.key == "fit_seconds" or one.value) for one in model.metrics or []),
        "version": (version.name, version.version, version.status, version.run_id == run.info.run_id),
        "version's tags": told(version.tags),
        "aliases": client.get_registered_model(version.name).aliases,
        "files": sorted(
            str(path.relative_to(folder)).replace(run.info.run_id, "RUN").replace(model.model_id, "MODEL")
            for path in (folder / "mlruns").rglob("*")
        ),
    }


def test_whichever_answer_is_lost_and_whichever_call_fails_twice_the_run_leaves_the_same(
    whole_run: Callable[..., Path],
) -> None:
    """Every call of the flow, those to come too: what a run calls is noted, and all of it has to have failed."""
    noted, unanswered, undone = Counter[str](), Counter[str](), Counter[str]()
    undisturbed = whole_run("undisturbed", called(noted))
    expected = left(undisturbed)
    assert expected["status"] == "FINISHED"
    assert {"create_run", "log_batch", "create_model_version", "set_terminated"} <= set(noted)
    for name, names, change in (
        ("answers lost", unanswered, failing(unanswered, 1, done=True)),
        ("failing twice", undone, failing(undone, 2, done=False)),
    ):
        folder = whole_run(name, change)
        assert left(folder) == expected
        assert rows(folder) == rows(undisturbed)
        assert set(names) >= set(noted), "every kind of call has failed"


class Died(BaseException):
    """In place of SIGKILL."""


X, Y = [[1.0], [2.0], [3.0]], [[2.0], [4.0], [6.0]]


def dying(after: int, counted: list[str]) -> Callable[[str, Call], Call]:
    """End after so many calls that write, with the last one done."""

    def change(name: str, real: Call) -> Call:
        @functools.wraps(real)
        def call(*arguments: Any, **options: Any) -> Any:
            answer = real(*arguments, **options)
            if name.startswith(("create_", "log_", "set_", "finalize_")):
                counted.append(name)
                if len(counted) == after:
                    raise Died
            return answer

        return call

    return change


class TestAnotherProcess:
    """A process that was killed, and another one that goes on with its run."""

    @pytest.fixture
    def registering(
        self, store: MlflowClient, linear_file: Callable[..., ExportedModel], dataset: Callable[..., Dataset]
    ) -> Callable[[RunRecord, str], Registered]:
        exported, data = linear_file([[1.9]], [0.0]), dataset(X, Y, features=("x",), targets=("y",))
        evaluation = Evaluation(1.0, "training", Accuracy(0.2, 0.2, 0.9), (), None)
        report = ParityReport("passed", sha256=exported.sha256)
        return lambda record, name: register.fn(
            TrainConfig(registered_name=name), data, evaluation, exported, report, record
        )

    def test_wherever_a_registration_ended_the_next_one_goes_on_with_what_it_left(
        self, registering: Callable[[RunRecord, str], Registered], store: MlflowClient
    ) -> None:
        after, counted = 0, list[str]()
        while len(counted) == after:  # until one comes through
            after, counted, name = after + 1, [], f"model-{after}"
            with pytest.MonkeyPatch.context() as patch, recorded_run("train", name, {}, {}) as record:
                record.metrics({"loss": 1.0})
                around_each_call(patch, dying(after, counted))
                with contextlib.suppress(Died):
                    registering(record, name)
                patch.undo()
                again = RunRecord(store_client(), store.get_run(record.run_id), "train", {})
                assert registering(again, name).version == "1"
            (version,) = store.search_model_versions(f"name = '{name}'")
            (model,) = store.search_logged_models([record.experiment_id], f"source_run_id = '{record.run_id}'")
            assert (version.run_id, version.source) == (record.run_id, model.model_uri)
            assert model.status == "READY"
            outputs = store.get_run(record.run_id).outputs
            assert outputs is not None
            assert [one.model_id for one in outputs.model_outputs] == [model.model_id]
            assert store.get_registered_model(name).aliases == {"champion": 1}
        assert after > 15
        assert {"create_logged_model", "log_model_artifacts", "finalize_logged_model"} <= set(counted)

    def test_files_that_came_half_are_written_again(
        self, registering: Callable[[RunRecord, str], Registered], store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half(client: MlflowClient, model_id: str, folder: str) -> None:
            (Path(folder) / "MLmodel").write_text("half of")
            real(client, model_id, folder)
            raise Died

        real = MlflowClient.log_model_artifacts
        with recorded_run("train", "a run", {}, {}) as record:
            monkeypatch.setattr(MlflowClient, "log_model_artifacts", half)
            with pytest.raises(Died):
                registering(record, "line")
            monkeypatch.setattr(MlflowClient, "log_model_artifacts", real)
            (model,) = store.search_logged_models([record.experiment_id])
            assert model.status == "PENDING"
            assert registering(record, "line").version == "1"
        (model,) = store.search_logged_models([record.experiment_id])
        assert model.status == "READY"
        assert mlflow.pyfunc.load_model("models:/line/1").predict(pd.DataFrame({"x": [1.0]})).to_numpy() == [
            [np.float32(1.9)]
        ]

    def test_points_that_another_process_wrote_stay_single(self, store: MlflowClient) -> None:
        """Those that are there, those that are not yet, and a time that was measured anew."""
        loss = np.array([3.0, np.nan, np.inf, 1.0, 1.0])
        with recorded_run("train", "a run", {}, {}) as record:
            record.curves({"loss": loss[:3]})
            record.metrics({"fit_seconds": 1.0})
            time.sleep(0.002)  # another millisecond
            again = RunRecord(store_client(), store.get_run(record.run_id), "train", {})
            for _ in range(2):
                again.curves({"loss": loss, "w": np.arange(3.0)})
                again.metrics({"fit_seconds": 2.0, "final_loss": 1.0})
        history = sorted(store.get_metric_history(record.run_id, "loss"), key=lambda one: one.step)
        assert [one.step for one in history] == [0, 1, 2, 3, 4]
        assert np.isnan(history[1].value)
        assert [history[step].value for step in (0, 3, 4)] == [3, 1, 1]
        assert len(store.get_metric_history(record.run_id, "w")) == 3
        assert [one.value for one in store.get_metric_history(record.run_id, "fit_seconds")] == [1.0]
        assert [one.value for one in store.get_metric_history(record.run_id, "final_loss")] == [1.0]


def test_twenty_writers_on_one_file_lose_nothing_and_double_nothing(store: MlflowClient) -> None:
    """Ten threads in each of two processes, all at once."""
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from tasks.tracking import recorded_run

def write(number):
    with recorded_run("train", f"{sys.argv[1]}-{number}", {"lr": 0.1}, {}) as record:
        for part in range(3):
            record.curves({f"loss/{part}": np.arange(50) + part})
        record.metrics({"final_loss": 1.0, "epochs": 50})
        record.tags({"a": "tag"})

wait()
with ThreadPoolExecutor(10) as pool:
    list(pool.map(write, range(10)))
"""
    ended = at_once(script, "0", "1")
    assert [one.code for one in ended] == [0, 0], ended
    runs = store.search_runs([store.get_experiment_by_name("train").experiment_id])
    assert sorted(run.info.run_name for run in runs) == sorted(f"{p}-{n}" for p in range(2) for n in range(10))
    for run in runs:
        assert (run.info.status, run.data.params, run.data.tags["a"]) == ("FINISHED", {"lr": "0.1"}, "tag")
        for part in range(3):
            history = store.get_metric_history(run.info.run_id, f"loss/{part}")
            assert sorted((one.step, one.value) for one in history) == [(s, s + part) for s in range(50)]
        assert len(store.get_metric_history(run.info.run_id, "final_loss")) == 1


class TestServerThatGoes:
    @pytest.fixture
    def port(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return int(listener.getsockname()[1])

    @pytest.fixture
    def start(
        self, port: int, store: MlflowClient, tmp_path: Path
    ) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
        """Start MLflow's server on the store, always at the same address."""
        started: list[subprocess.Popen[bytes]] = []
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        command += ["--backend-store-uri", store.tracking_uri]

        def begin() -> "subprocess.Popen[bytes]":
            started.append(
                subprocess.Popen(
                    [*command, "--port", str(port), "--artifacts-destination", str(tmp_path / "kept")],
                    env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # it would start more processes
                    cwd=tmp_path,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            return started[-1]

        yield begin
        for process in started:
            end(process)

    def test_stopped_in_the_middle_of_a_run_and_started_again_everything_arrives_once(
        self, start: Any, port: int, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(patience, "FIRST_PAUSE", 0.1)
        first = start()
        note = tmp_path / "note.txt"
        note.write_text("kept")
        # The server's own start is the first thing that is waited for.
        with recorded_run("train", "a run", {"lr": 0.1}, {}) as record:
            record.curves({"loss": np.arange(5.0)})
            end(first)
            start()
            record.curves({"loss": np.arange(9.0)})
            record.metrics({"final_loss": 1.0})
            record.file(note)
        assert capsys.readouterr().err.count("is back after") == 2
        run = store.get_run(record.run_id)
        assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
        history = store.get_metric_history(record.run_id, "loss")
        assert sorted((one.step, one.value) for one in history) == [(step, step) for step in range(9)]
        assert len(store.get_metric_history(record.run_id, "final_loss")) == 1
        assert [path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()] == ["note.txt"]


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a server at once, with the processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
