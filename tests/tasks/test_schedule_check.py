"""The preflight's questions, each with an answer that is not ok, asked of a server that stands for Prefect's."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.schemas.objects import ConcurrencyOptions, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from workplaces import ROOT

from fourfold.configuration import PreflightConfig, TutorialConfig
from fourfold.errors import PreflightError, RequestError
from tasks import prefect_api, schedule_check, services
from tasks.schedule_check import Preflight, preflight
from tasks.start import prepared


def find(config: TutorialConfig) -> None:
    if not Path("rows.csv").exists():
        raise RequestError("rows.csv: no such file")


@flow(name="tutorial")
@prepared(find)
def tutorial_flow(config: TutorialConfig = TutorialConfig()) -> None:
    """Stands for one of fourfold's."""


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


class Server:
    """A deployment that would fire, until a test changes something."""

    def __init__(self) -> None:
        schedule = SimpleNamespace(active=True, schedule=CronSchedule(cron="0 2 * * *"), parameters={})
        self.deployment: dict[str, Any] = {
            "id": uuid4(), "name": "nightly", "paused": False, "schedules": [schedule], "work_pool_name": "fourfold",
            "work_queue_name": "default", "parameters": {"config": {"seed": 1}}, "tags": ["late:skip-1h"],
            "concurrency_options": None, "last_polled": ago(5), "path": None,
        }  # fmt: skip
        self.schedule = schedule
        self.pool: Any = SimpleNamespace(is_paused=False)
        self.queue = SimpleNamespace(name="default", is_paused=False)
        self.worker = SimpleNamespace(status=WorkerStatus.ONLINE, last_heartbeat_time=ago(5))
        self.due = [ago(90), ago(-3600)]

    def read_deployments(self, **_: Any) -> list[DeploymentResponse]:
        return [DeploymentResponse.model_construct(**self.deployment)]

    def read_work_pool(self, name: str) -> Any:
        if self.pool is None:
            raise ObjectNotFound(http_exc=Exception())
        return self.pool

    def read_workers_for_work_pool(self, name: str) -> list[Any]:
        return [self.worker]

    def read_work_queues(self, **_: Any) -> list[Any]:
        return [self.queue]

    def read_flow_runs(self, flow_run_filter: Any, **_: Any) -> list[Any]:
        when = flow_run_filter.expected_start_time
        runs = [SimpleNamespace(auto_scheduled=True, expected_start_time=due) for due in self.due]
        return [
            run
            for run in runs
            if (when.after_ is None or run.expected_start_time >= when.after_)
            and (when.before_ is None or run.expected_start_time <= when.before_)
        ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """One that answers, seen from a project in which the data lie."""
    standing = Server()

    @contextmanager
    def client(**_: Any) -> Iterator[Server]:
        yield standing

    (tmp_path / "rows.csv").touch()
    monkeypatch.setattr(schedule_check, "get_client", client)
    monkeypatch.setattr(prefect_api, "prefect_address", lambda: "http://127.0.0.1:4200/api")
    monkeypatch.setattr(prefect_api, "check_prefect", lambda address: None)
    monkeypatch.setattr(services, "project_root", lambda: tmp_path)
    return standing


def ask(*names: str) -> Preflight:
    return preflight(PreflightConfig(deployment=names), {"tutorial": tutorial_flow})


def fault(*names: str) -> tuple[str, Preflight]:
    """The one fault that there is, and all answers."""
    with pytest.raises(PreflightError) as refused:
        ask(*names)
    found: Preflight = refused.value.result  # type: ignore[attr-defined]
    (only,) = found.faults
    assert str(refused.value) == only
    return only, found


def test_a_deployment_that_would_fire_has_an_answer_to_each_question(server: Server) -> None:
    found = ask("tutorial/nightly")
    assert found.as_json()["status"] == "ready"
    (general, one) = found.as_json()["deployments"]
    assert (general["name"], one["name"], one["fires"]) == ("Prefect", "tutorial/nightly", True)
    asked = [answer["question"] for answer in one["answers"]]
    assert asked == ["schedule", "worker", "next run", "late runs", "parameters", "model and data"]
    assert "1 late now" in one["answers"][2]["says"]
    (table,) = found.tables()
    assert [row[2] for row in table.rows] == ["ok"] * 7


def change(name: str, value: Any) -> Callable[[Server], None]:
    return lambda server: server.deployment.update({name: value})


def stop(part: str, name: str, value: Any) -> Callable[[Server], None]:
    return lambda server: setattr(getattr(server, part), name, value)


FAULTS: list[tuple[Callable[[Server], None], str]] = [
    (change("paused", True), "schedule: the deployment is paused"),
    (change("schedules", []), "schedule: it has none"),
    (stop("schedule", "active", False), "schedule: it is paused; prefect deployment schedule resume"),
    (lambda server: setattr(server, "pool", None), "worker: there is no work pool fourfold; prefect work-pool create"),
    (stop("pool", "is_paused", True), "worker: work pool fourfold is paused"),
    (stop("queue", "is_paused", True), "worker: work queue default of fourfold is paused"),
    (change("work_queue_name", "other"), "worker: work queue other of fourfold is gone"),
    (stop("worker", "status", WorkerStatus.OFFLINE), "worker: none of work pool fourfold is alive; prefect worker"),
    (lambda server: server.due.pop(), "next run: the server has written down no run"),
    (change("tags", ["late:never"]), "late runs: tag late:never is no policy"),
    (change("parameters", {"config": {"steps": 0}}), "parameters: Flow run received invalid parameters: - config.st"),
    (change("parameters", {"config": {"stepps": 5}}), "parameters: Flow run received invalid parameters: - config.ste"),
    (stop("schedule", "parameters", {"config": {"steps": 0}}), "parameters: Flow run received invalid parameters"),
    (lambda _: (services.project_root() / "rows.csv").unlink(), "model and data: rows.csv: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "said"), FAULTS, ids=[said[:50] for _, said in FAULTS])
def test_what_would_keep_it_from_firing_is_named(broken: Callable[[Server], None], said: str, server: Server) -> None:
    broken(server)
    only, found = fault()
    assert only.startswith(f"tutorial/nightly: {said}")
    assert [one["fires"] for one in found.as_json()["deployments"]] == [True, False]


def test_the_latest_alone_and_one_at_a_time_do_not_go_together(server: Server) -> None:
    options = ConcurrencyOptions(collision_strategy="CANCEL_NEW")  # type: ignore[arg-type]
    server.deployment.update(tags=["late:latest-only"], concurrency_options=options)
    assert "late runs: latest-only lets an older run go, and CANCEL_NEW" in fault()[0]
    server.deployment["concurrency_options"] = None
    assert ask().faults == []


def test_a_flow_that_is_served_needs_its_process_and_its_own_folder(server: Server, tmp_path: Path) -> None:
    server.deployment.update(work_pool_name=None, path=str(tmp_path))
    assert ask().faults == []
    server.deployment["path"] = str(tmp_path / "absent")
    assert "model and data" in fault()[0]
    server.deployment.update(path=str(tmp_path), last_polled=ago(120))
    assert "served: no process serves it (it last asked for work at 2" in fault()[0]
    server.deployment["last_polled"] = None
    assert "served: no process serves it (none ever asked)" in fault()[0]


def test_a_name_that_there_is_not_and_no_deployment_at_all_are_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault("tutorial/absent")[0].startswith("tutorial/absent: deployment: there is none of that name")
    monkeypatch.setattr(Server, "read_deployments", lambda self, **_: [])
    assert "Prefect: deployments: none of fourfold's flows is deployed" in fault()[0]


def test_a_server_that_goes_away_meanwhile_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(Server, "read_flow_runs", gone)
    assert fault()[0] == "Prefect: server: it went away: refused"


def test_without_a_server_the_command_ends_with_1_and_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "flows" / "serve_check.py"), "--json"],
        env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "http://127.0.0.1:9/api does not answer; start that server" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert '"status": "failed"' in ended.stdout.splitlines()[-1]
