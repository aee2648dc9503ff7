"""What killed processes left: real ones, that open a run and are killed. Prefect's server is one of our own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from workplaces import at_once

from fourfold.processes import ProcessIdentity, process_tags
from tasks import sweep as module
from tasks.sweep import FLOWS, sweep
from tasks.tracking import recorded_run

ROOT = Path(__file__).parents[2]
CHILD = """
from mlflow import MlflowClient
import sys, time
from tasks.tracking import recorded_run

with recorded_run("compare", "a parent", {}, {}) as parent:
    with recorded_run("compare", "a child", {}, {"mlflow.parentRunId": parent.run_id}) as child:
        for record in (parent, child):
            MlflowClient().create_logged_model(record.experiment_id, source_run_id=record.run_id)
        print(parent.run_id, child.run_id, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def killed(store: MlflowClient) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A process with two open runs, a parent and its child; a test kills it."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()
        process.kill()


def opened(store: MlflowClient, **tags: str | None) -> str:
    """A run that is RUNNING, with the tags of this process but for those given; None leaves one out."""
    experiment = store.get_experiment_by_name("train")
    experiment_id = experiment.experiment_id if experiment else store.create_experiment("train")
    kept = {key: value for key, value in {**process_tags(), **tags}.items() if value is not None}
    return str(store.create_run(experiment_id, tags=kept).info.run_id)


def gone() -> dict[str, str]:
    """The tags of a process that has ended."""
    script = "from fourfold.processes import process_tags; print(process_tags())"
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return dict(eval(told.stdout))


def status(store: MlflowClient, run_id: str) -> str:
    return str(store.get_run(run_id).info.status)


class TestMlflow:
    def test_the_runs_of_a_killed_process_are_closed_with_their_models_and_told_once(
        self, killed: Any, store: MlflowClient, capsys: pytest.CaptureFixture[str]
    ) -> None:
        process, run_ids = killed
        sweep()
        assert [status(store, run_id) for run_id in run_ids] == ["RUNNING", "RUNNING"], "it lives"
        process.kill()
        process.wait()
        assert capsys.readouterr().err == ""
        sweep()
        for run_id in run_ids:
            run = store.get_run(run_id)
            assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "killed")
            assert run.data.tags["reason"] == "its process was gone"
            assert run.info.end_time is not None
            (model,) = store.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
            assert model.status == LoggedModelStatus.FAILED
        told = capsys.readouterr().err
        assert told == f"closed, because its process was gone: run {run_ids[0]}\n"
        sweep()
        assert capsys.readouterr().err == ""

    def test_a_run_with_a_checkpoint_is_told_with_the_way_to_continue_it(
        self, store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_id = opened(store, **gone())
        (tmp_path / "mlruns" / "checkpoints" / run_id).mkdir(parents=True)
        (tmp_path / "mlruns" / "checkpoints" / run_id / "request.json").write_text("{}")
        sweep()
        assert f"run {run_id} (--resume {run_id} continues it)" in capsys.readouterr().err

    def test_checkpoints_of_a_finished_run_are_removed_and_others_kept(
        self, store: MlflowClient, tmp_path: Path
    ) -> None:
        finished, stopped = opened(store), opened(store)
        store.set_terminated(finished, "FINISHED")
        store.set_terminated(stopped, "KILLED")
        folder = tmp_path / "mlruns" / "checkpoints"
        for run_id in (finished, stopped, "0" * 32):
            (folder / run_id).mkdir(parents=True)
            (folder / run_id / "request.json").write_text("{}")
        sweep()
        assert {path.name for path in folder.iterdir()} == {stopped, "0" * 32}

    def test_the_runs_of_a_living_process_stay_open_in_whatever_thread_they_are(self, store: MlflowClient) -> None:
        run_id = opened(store)
        with recorded_run("train", "a run", {}, {}) as record:
            sweep()
            assert status(store, record.run_id) == "RUNNING"
        assert status(store, run_id) == "RUNNING"

    def test_a_process_that_has_the_id_of_the_gone_one_does_not_stand_for_it(self, store: MlflowClient) -> None:
        started = float(process_tags()["process_started"]) - 600
        run_id = opened(store, process_started=str(started))
        sweep()
        assert status(store, run_id) == "KILLED"

    @pytest.mark.parametrize(
        "tags",
        [
            {"host": "another"},
            {"host": None},
            {"process_namespace": "0" * 12},
            {"process_namespace": None},
            {"process_id": None},
            {"process_id": "x"},
            {"process_started": None},
            {"process_started": "nan"},
        ],
        ids=str,
    )
    def test_a_run_of_another_host_or_of_nobody_known_is_left_alone(
        self, tags: dict[str, str | None], store: MlflowClient
    ) -> None:
        run_id = opened(store, **{**gone(), **tags})
        sweep()
        assert status(store, run_id) == "RUNNING"

    @pytest.mark.parametrize("ended", ["FINISHED", "FAILED", "KILLED"])
    def test_what_has_ended_keeps_its_end(self, ended: str, store: MlflowClient) -> None:
        run_id = opened(store, **gone(), outcome="as it was")
        store.set_terminated(run_id, ended)
        before = store.get_run(run_id).to_dictionary()
        sweep()
        assert store.get_run(run_id).to_dictionary() == before

    def test_an_experiment_that_is_not_ours_is_left_alone(self, store: MlflowClient) -> None:
        run = store.create_run(store.create_experiment("somebody's"), tags=gone())
        sweep()
        assert status(store, run.info.run_id) == "RUNNING"

    def test_a_run_that_is_continued_meanwhile_is_left_alone(
        self, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the search and the closing another process takes it over."""
        run_id = opened(store, **gone())
        real = ProcessIdentity.is_gone

        def taken_over(identity: ProcessIdentity) -> bool:
            answer = real(identity)
            for key, value in process_tags().items():
                store.set_tag(run_id, key, value)
            return answer

        monkeypatch.setattr(ProcessIdentity, "is_gone", taken_over)
        sweep()
        assert status(store, run_id) == "RUNNING"

    def test_a_run_that_another_process_goes_on_in_is_left_alone(self, store: MlflowClient, tmp_path: Path) -> None:
        """It holds the checkpoints before it says in the store whose the run is now: a server's store has no lock."""
        run_id = opened(store, **gone())
        place = tmp_path / "mlruns" / "checkpoints" / run_id
        place.mkdir(parents=True)
        (place / "request.json").write_text("{}")
        with FileLock(place / ".lock"):
            sweep()
            assert status(store, run_id) == "RUNNING"
            sweep(run_id)
            assert status(store, run_id) == "KILLED", "it is this process that holds it"

    def test_two_at_once_do_no_harm(self, store: MlflowClient, tmp_path: Path) -> None:
        run_ids = [opened(store, **gone()) for _ in range(3)]
        both = at_once("from tasks.sweep import sweep\nwait()\nsweep()\n", "0", "1")
        told = "".join(one.err for one in both)
        assert [one.code for one in both] == [0, 0], told
        assert {status(store, run_id) for run_id in run_ids} == {"KILLED"}
        assert [told.count(run_id) for run_id in run_ids] == [1, 1, 1]
        assert "warning" not in told

    def test_where_nothing_was_kept_yet_no_store_is_made(self, tmp_path: Path) -> None:
        sweep()
        assert list(tmp_path.iterdir()) == []

    def test_a_fault_is_a_warning(
        self, store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any, **__: Any) -> list[Run]:
            raise OSError("no route\nto the host")

        monkeypatch.setattr(MlflowClient, "search_experiments", fail)
        sweep()
        assert capsys.readouterr().err == "warning: what killed runs left open was not closed: no route\n"

    def test_nothing_to_do_takes_no_time(self, store: MlflowClient) -> None:
        opened(store)
        sweep()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            sweep()
            seconds.append(time.perf_counter() - began)
        assert min(seconds) < 0.05


def test_every_flow_is_swept() -> None:
    assert sorted(FLOWS) == sorted(path.stem.removesuffix("_flow") for path in (ROOT / "flows").glob("*_flow.py"))
    assert module.GONE
