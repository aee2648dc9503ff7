import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pyarrow.parquet
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from workplaces import at_once

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from tasks import services
from tasks.tracking import MOST_CURVE_POINTS, RunRecord, metric_key, recorded_run, store_client


def only_run(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("train")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def points(record: RunRecord, key: str) -> list[Metric]:
    history: list[Metric] = record.client.get_metric_history(record.run_id, key)
    return sorted(history, key=lambda metric: metric.step)


def kept_file(record: RunRecord, name: str, folder: Path) -> Path:
    (folder / "kept").mkdir()
    return Path(record.client.download_artifacts(record.run_id, name, str(folder / "kept")))


class TestStatus:
    def test_a_block_that_runs_to_its_end_is_finished(self, store: MlflowClient) -> None:
        with recorded_run("train", "a run", {}, {}):
            run = only_run(store)
            assert (run.info.status, run.data.tags["outcome"]) == ("RUNNING", "running")
        run = only_run(store)
        assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "completed")
        assert run.info.end_time is not None
        assert "reason" not in run.data.tags

    def test_one_that_is_interrupted_while_it_is_closed_is_killed(
        self, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupts, real = [KeyboardInterrupt()], MlflowClient.set_terminated

        def set_terminated(*arguments: Any) -> None:
            if interrupts:
                raise interrupts.pop()
            real(*arguments)

        monkeypatch.setattr(MlflowClient, "set_terminated", set_terminated)
        with pytest.raises(KeyboardInterrupt), recorded_run("train", "a run", {}, {}):
            pass
        assert only_run(store).info.status == "KILLED"

    @pytest.mark.parametrize(
        ("error", "status", "outcome", "reason"),
        [
            (ValueError("a fault"), "FAILED", "value", "a fault"),
            (MemoryError(), "FAILED", "memory", None),
            (KeyboardInterrupt(), "KILLED", "killed", "KeyboardInterrupt"),
            (SystemExit(143), "KILLED", "killed", "SystemExit"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_a_block_that_ends_otherwise_is_what_happened_to_it(
        self, error: BaseException, status: str, outcome: str, reason: str | None, store: MlflowClient
    ) -> None:
        with pytest.raises(type(error)) as raised, recorded_run("train", "a run", {}, {}):
            raise error
        assert raised.value is error
        run = only_run(store)
        assert run.info.status == status
        assert (run.data.tags["outcome"], run.data.tags.get("reason")) == (outcome, reason)

    @pytest.mark.parametrize(
        ("error", "status"), [(MlflowException("no room"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
    )
    def test_a_run_that_could_not_be_opened_to_its_end_is_not_left_running(
        self, error: BaseException, status: str, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run exists before its parameters are written: what happens between is what happens to the run."""
        real = MlflowClient.log_batch

        def fail_once(client: MlflowClient, *arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(MlflowClient, "log_batch", real)
            raise error

        monkeypatch.setattr(MlflowClient, "log_batch", fail_once)
        with pytest.raises(type(error)), recorded_run("train", "a run", {"lr": 0.1}, {}):
            raise AssertionError("the block was entered")
        assert only_run(store).info.status == status


class TestPlace:
    def test_the_experiment_is_named_and_the_default_one_stays_empty(self, store: MlflowClient) -> None:
        for _ in range(2):
            with recorded_run("train", "a run", {}, {}):
                pass
        assert sorted(experiment.name for experiment in store.search_experiments()) == ["Default", "train"]
        assert len(store.search_runs([store.get_experiment_by_name("train").experiment_id])) == 2
        assert store.search_runs(["0"]) == []

    @pytest.mark.parametrize("name", ["runs", "my runs", "Läufe & more"])
    def test_files_go_to_mlruns_beside_the_database(
        self, name: str, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        note = tmp_path / "note.txt"
        note.write_text("kept")
        with recorded_run("train", "a run", {}, {}) as record:
            record.file(note)
        (kept,) = (folder / "mlruns").rglob("note.txt")
        assert kept.read_text() == "kept"
        assert record.run_id in kept.parts
        assert [artifact.path for artifact in record.client.list_artifacts(record.run_id)] == ["note.txt"]
        assert list(Path.cwd().iterdir()) == []

    def test_a_page_in_mlflow_is_named(self, record: RunRecord) -> None:
        assert record.url == f"http://127.0.0.1:5000/#/experiments/{record.experiment_id}/runs/{record.run_id}"

    def test_a_first_use_that_is_killed_while_the_tables_are_made_stands_in_nobodys_way(self, tmp_path: Path) -> None:
        script = "from tasks.tracking import store_client; store_client()"
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            while not (parts := list(tmp_path.glob(".*.part"))) or not parts[0].stat().st_size:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        assert not (tmp_path / "mlflow.db").exists()
        assert len(store_client().search_experiments()) == 1
        assert [path.name for path in tmp_path.iterdir() if path.name != "mlruns"] == ["mlflow.db"]

    def test_two_first_runs_at_the_same_time_both_succeed(self, tmp_path: Path) -> None:
        """MLflow makes its tables on first use; the folder is empty, and both begin at one word."""
        script = (
            "from tasks.tracking import recorded_run\n"
            "wait()\n"
            "with recorded_run('train', 'a run', {'lr': 0.1}, {}) as record:\n"
            "    record.metrics({'loss': 1.0})\n"
        )
        ended = at_once(script, "0", "1")
        assert [one.code for one in ended] == [0, 0], ended
        client = MlflowClient(services.tracking_uri())
        runs = client.search_runs([client.get_experiment_by_name("train").experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
        assert all(run.data.metrics == {"loss": 1.0} for run in runs)


class TestParameters:
    @pytest.mark.parametrize(
        ("value", "spelled"),
        [
            ("SGD", "SGD"),
            (1000, "1000"),
            (0.01, "0.01"),
            (1.0, "1"),
            (1e-8, "1e-08"),
            (None, "None"),
            (True, "True"),
            ((32, 32), "32,32"),
            (("momentum=0.9", "nesterov=true"), "momentum=0.9,nesterov=true"),
            ((), ""),
        ],
        ids=repr,
    )
    def test_they_are_spelled_as_a_person_types_them(self, value: Any, spelled: str, store: MlflowClient) -> None:
        with recorded_run("train", "a run", {"it": value}, {}):
            pass
        assert only_run(store).data.params == {"it": spelled}

    @pytest.mark.parametrize("value", [0.1234567890123, 1 / 3, 16777217.0, 5e-324])
    def test_a_number_keeps_every_digit(self, value: float, store: MlflowClient) -> None:
        """A run can be made again from its parameters."""
        with recorded_run("train", "a run", {"lr": value}, {}):
            pass
        assert float(only_run(store).data.params["lr"]) == value

    def test_points_stay_apart(self, store: MlflowClient) -> None:
        """Two points of one feature are not one point of two."""
        for at in (((1.0,), (2.0,)), ((1.0, 2.0),)):
            with recorded_run("train", "a run", {"at": at}, {}):
                pass
        runs = store.search_runs([store.get_experiment_by_name("train").experiment_id])
        assert len({run.data.params["at"] for run in runs}) == 2

    def test_all_of_a_configuration_fit_into_a_run(self, store: MlflowClient) -> None:
        config = TrainConfig(hidden=(8, 4), option=("betas=0.9,0.99",), at=((1.0,),))
        with recorded_run("train", config.title, config.model_dump(), {}):
            pass
        run = only_run(store)
        assert run.info.run_name == "SGD lr=0.01 line-linear"
        assert set(run.data.params) == set(TrainConfig.model_fields)
        assert run.data.params["option"] == "betas=0.9,0.99"

    def test_a_long_one_is_cut_where_mlflow_would_refuse_it(
        self, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # else MLflow cuts them itself
        names = tuple(f"column_{number}" for number in range(2000))
        with recorded_run("train", "a run", {"features": names}, {}):
            pass
        kept = only_run(store).data.params["features"]
        assert len(kept) == 6000
        assert ",".join(names).startswith(kept)


class TestTags:
    def test_they_say_where_a_run_was_made(self, store: MlflowClient) -> None:
        tags = {"flow_run_id": "a-flow-run", "flow_run_url": None}
        with recorded_run("train", "a run", {}, tags) as record:
            pass
        kept = only_run(store).data.tags
        assert kept["flow_run_id"] == "a-flow-run"
        assert "flow_run_url" not in kept
        assert kept["host"] == socket.gethostname()
        assert kept["process_id"] == str(os.getpid())
        assert float(kept["process_started"]) == psutil.Process().create_time()
        assert kept["mlflow.source.name"] == "flows/train_flow.py"
        assert record.origin["mlflow_run_id"] == record.run_id
        assert record.origin["flow_run_id"] == "a-flow-run"

    def repository(self, folder: Path) -> str:
        """Make one with a commit, and give its name."""
        for command in (
            "init --quiet",
            "-c user.name=A -c user.email=a@example.org commit --quiet --allow-empty --message first",
        ):
            subprocess.run(["git", "-C", str(folder), *command.split()], check=True)
        return subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()

    @pytest.mark.parametrize("changed", [False, True])
    def test_they_name_the_commit_and_whether_it_was_changed(
        self, changed: bool, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkout = tmp_path / "a checkout"
        checkout.mkdir()
        commit = self.repository(checkout)
        if changed:
            (checkout / "new.py").write_text("")
        monkeypatch.setattr(services, "project_root", lambda: checkout)
        with recorded_run("train", "a run", {}, {}) as record:
            pass
        tags = only_run(store).data.tags
        assert (tags["mlflow.source.git.commit"], tags["git_dirty"]) == (commit, str(changed).lower())
        assert record.origin["git_commit"] == commit

    def test_without_a_repository_there_is_no_commit(
        self, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(services, "project_root", lambda: tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        with recorded_run("train", "a run", {}, {}) as record:
            pass
        assert "git_dirty" not in only_run(store).data.tags
        assert set(record.origin) == {"mlflow_run_id"}

    def test_without_git_there_is_no_commit(self, store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with recorded_run("train", "a run", {}, {}):
            pass
        assert "git_dirty" not in only_run(store).data.tags

    def test_none_is_left_out_and_a_long_one_cut(self, record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # else MLflow cuts it itself
        record.tags({"nothing": None, "long": "x" * 9000, "number": 3})
        tags = record.client.get_run(record.run_id).data.tags
        assert "nothing" not in tags
        assert len(tags["long"]) == 8000
        assert tags["number"] == "3"

    def test_a_long_reason_does_not_keep_a_run_from_being_closed(self, store: MlflowClient) -> None:
        with pytest.raises(ValueError, match="xxx"), recorded_run("train", "a run", {}, {}):
            raise ValueError("x" * 20_000)
        assert only_run(store).info.status == "FAILED"


class TestCurves:
    def test_a_short_one_has_all_its_steps(self, record: RunRecord) -> None:
        record.curves({"loss": np.array([4.0, 2.0, 1.0]), "w": np.array([0.0, 1.0, 2.0])})
        assert [(metric.step, metric.value) for metric in points(record, "loss")] == [(0, 4), (1, 2), (2, 1)]
        assert [metric.value for metric in points(record, "w")] == [0, 1, 2]

    @pytest.mark.parametrize("rows", [1, MOST_CURVE_POINTS - 1, MOST_CURVE_POINTS])
    def test_one_up_to_the_limit_is_whole(self, rows: int, record: RunRecord) -> None:
        record.curves({"loss": np.arange(rows, dtype=float)})
        assert [metric.step for metric in points(record, "loss")] == list(range(rows))

    @pytest.mark.parametrize("rows", [MOST_CURVE_POINTS + 1, 10_001])
    def test_a_long_one_is_thinned_out_evenly_with_both_ends(self, rows: int, record: RunRecord) -> None:
        record.curves({"loss": np.arange(rows) / 2, "w": np.arange(rows) * 1.0, "b": np.arange(rows) * 3.0})
        for key, slope in (("loss", 0.5), ("w", 1.0), ("b", 3.0)):
            curve = points(record, key)
            steps = [metric.step for metric in curve]
            assert len(steps) == MOST_CURVE_POINTS <= 1000
            assert (steps[0], steps[-1]) == (0, rows - 1)
            assert set(np.diff(steps)) <= {(rows - 1) // (MOST_CURVE_POINTS - 1) + extra for extra in (0, 1)}
            assert [metric.value for metric in curve] == [slope * step for step in steps]

    def test_what_is_not_finite_survives(self, record: RunRecord) -> None:
        record.curves({"loss": np.array([1.0, math.inf, math.nan, -math.inf])})
        values = [metric.value for metric in points(record, "loss")]
        assert values[0] == 1.0
        assert math.isnan(values[2])
        # MLflow keeps infinity as the largest number that there is.
        assert values[1] >= 1.79e308
        assert values[3] <= -1.79e308

    def test_single_values_are_kept(self, record: RunRecord) -> None:
        record.metrics({"held_out/rmse": 0.5, "epochs": 10, "worst": math.nan})
        metrics = record.client.get_run(record.run_id).data.metrics
        assert metrics["held_out/rmse"] == 0.5
        assert metrics["epochs"] == 10
        assert math.isnan(metrics["worst"])


NAMES = [
    "loss",
    "w/area",
    "linear.weight[0,0]",
    "w/price per m²",
    "w/Größe",
    "w/price ($)",
    "w/100%",
    "w//both",
    "w/ /x",
    "w/./x",
    "w/../x",
    "../x",
    "/x",
    "x/",
    "w/x.",
    "w/ends with space ",
    " ",
    "",
    "²",
    "a\nb",
    'quote"d',
    "x" * 300,
    "x" * 249 + "/y",
    "w/" + "é" * 300,
]


class TestMetricKey:
    @pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
    def test_mlflow_takes_every_name(self, name: str, record: RunRecord) -> None:
        record.metrics({name: 1.0})
        assert list(record.client.get_run(record.run_id).data.metrics) == [metric_key(name)]

    @pytest.mark.parametrize("name", ["loss", "w/area", "b", "held_out/rmse", "norm/layers.0.weight", "w/living area"])
    def test_a_name_that_mlflow_takes_stays(self, name: str) -> None:
        assert metric_key(name) == name

    def test_curves_of_two_columns_stay_apart(self, record: RunRecord) -> None:
        """Two columns whose names differ only in what MLflow does not take have a curve each."""
        record.curves({"w/price (€)": np.array([1.0, 2.0]), "w/price ($)": np.array([3.0, 4.0])})
        keys = record.client.get_run(record.run_id).data.metrics
        assert sorted(keys.values()) == [2.0, 4.0]
        assert all(len(points(record, key)) == 2 for key in keys)


class TestFiles:
    def test_a_table_keeps_every_row_as_it_is(self, record: RunRecord, tmp_path: Path) -> None:
        columns = {"epoch": np.arange(5000), "loss": np.append(np.linspace(1, 0, 4999), np.nan)}
        record.table(columns, tmp_path / "history.parquet")
        kept = pyarrow.parquet.read_table(kept_file(record, "history.parquet", tmp_path))
        assert kept.column_names == ["epoch", "loss"]
        for name, values in columns.items():
            np.testing.assert_array_equal(kept[name].to_numpy(), values)

    def test_a_document_is_kept(self, record: RunRecord, tmp_path: Path) -> None:
        content: Mapping[str, Any] = {"verdict": "passed", "cases": [{"rows": 3}]}
        record.document(content, tmp_path / "parity.json")
        assert json.loads(kept_file(record, "parity.json", tmp_path).read_text()) == content

    def test_a_document_is_json_also_where_a_number_is_not_finite(self, record: RunRecord, tmp_path: Path) -> None:
        """JSON has no NaN and no infinity: a reader other than Python's refuses them."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        record.document({"max_abs_error": math.inf, "cases": [{"max_ulp": math.nan}]}, tmp_path / "parity.json")
        json.loads((tmp_path / "parity.json").read_text(), parse_constant=refuse)

    def test_the_data_is_the_input_of_the_run(self, record: RunRecord, dataset: Callable[..., Dataset]) -> None:
        sha256 = "0123456789abcdef" * 4
        data = dataset([[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]], test=([[4.0]], [[4.0]]), sha256=sha256)
        record.dataset(data)
        (used,) = record.client.get_run(record.run_id).inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("made", sha256[:36])
        assert json.loads(used.dataset.source) == {"sha256": sha256}
        assert json.loads(used.dataset.schema) == {"features": ["f0"], "targets": ["t0"]}
        assert json.loads(used.dataset.profile) == {"training_rows": 3, "validation_rows": 0, "held_out_rows": 1}
        assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]


def test_everything_goes_to_the_named_run_whatever_mlflows_active_run_is(record: RunRecord) -> None:
    with mlflow.start_run(run_name="another") as another:
        record.metrics({"loss": 1.0})
        record.tags({"a": "tag"})
    assert record.client.get_run(record.run_id).data.metrics == {"loss": 1.0}
    assert record.client.get_run(another.info.run_id).data.metrics == {}


def test_an_experiment_is_listed_as_trainings_with_the_columns_that_tell_runs_apart(
    record: RunRecord, store: MlflowClient
) -> None:
    """The form is MLflow's own, as tests/browser sees; here that each column is one that a run has."""
    tags = store.get_experiment(record.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.fourfold"])
    columns = json.loads(view["state"])["selectedColumns"]
    assert view["name"] == "fourfold"
    named = {column for column in columns if column.startswith("params.")}
    assert named <= {f"params.`{name}`" for name in TrainConfig().parameters}
    assert record.list_url.endswith(f"/experiments/{record.experiment_id}/runs?viewStateShareKey=fourfold")
