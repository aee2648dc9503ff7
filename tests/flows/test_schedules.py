"""Schedules that fire: a Prefect server, `prefect deploy` of prefect.yaml, a worker, and a flow that is served."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from workplaces import ROOT, Workplace

from fourfold.configuration import TrainConfig

QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PYTHONPATH": str(ROOT),
}
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Api:
    """Prefect's REST API as anybody may use it."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=30)

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, path: str, content: Any) -> Any:
        def answered() -> httpx.Response | None:
            answer = self.http.post(path, json=content)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        answer = until("its SQLite file is free", answered)
        assert answer.is_success, answer.text
        return answer.json()

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/deployments/name/{name}").json()
        return found

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Of a deployment, in the order in which they were due."""
        found: list[dict[str, Any]] = self.post(
            "/flow_runs/filter",
            {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"},
        )
        return found

    def due_twice(self, deployment: str, first: datetime) -> None:
        """Let it be due then and two seconds later, and at no other time."""
        for schedule in self.http.get(f"/deployments/{deployment}/schedules").json():
            self.http.delete(f"/deployments/{deployment}/schedules/{schedule['id']}")
        start = first.strftime("DTSTART:%Y%m%dT%H%M%SZ")
        rule = {"rrule": f"{start}\nRRULE:FREQ=SECONDLY;INTERVAL=2;COUNT=2", "timezone": "UTC"}
        self.post(f"/deployments/{deployment}/schedules", [{"schedule": rule, "active": True}])


def until(what: str, holds: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} within {seconds:g} s"
        time.sleep(0.1)
    return found


@contextmanager
def running(workplace: Workplace, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended after the block, in an orderly way."""
    log = workplace.folder / f"{arguments[2]}.log"
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, *arguments], env=workplace.environment, cwd=workplace.folder, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def reached(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").is_success
    except httpx.TransportError:
        return False


def test_a_schedule_trains_and_late_runs_follow_their_policy(workplace: Workplace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    address = f"http://127.0.0.1:{port}/api"
    workplace.environment.update(QUICK | {"PREFECT_API_URL": address})
    worker = ("-m", "prefect", "worker", "start", "--pool", "fourfold", "--type", "process")
    serve = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    with running(workplace, *serve), Api(address) as api:
        until("the server answers", lambda: reached(address))
        with running(workplace, *worker):
            until("the worker has made its pool", lambda: api.http.get("/work_pools/fourfold").is_success)
            deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
            told = subprocess.run(deploy, env=workplace.environment, cwd=ROOT, capture_output=True, text=True)
            assert told.returncode == 0, told.stdout + told.stderr
            nightly, hourly = api.deployment("train/train-nightly"), api.deployment("predict/predict-hourly")

            check_deployed(nightly)
            refused = api.http.post(
                f"/deployments/{nightly['id']}/create_flow_run", json={"parameters": {"config": {"lr": -1}}}
            )
            assert refused.is_client_error
            assert "config.lr" in refused.text

            # A few seconds, in place of each night.
            interval = {"interval": 3600, "anchor_date": (datetime.now(UTC) + timedelta(seconds=3)).isoformat()}
            api.post(f"/deployments/{nightly['id']}/schedules", [{"schedule": interval, "active": True}])

            def trained() -> list[dict[str, Any]]:
                return [run for run in api.runs(nightly["id"]) if run["state_type"] in OVER]

            (run,) = until("the scheduled run ends", trained)
            check_trained(run, workplace, api)

        # Nobody is there at two due times of each policy.
        skipping = copy_of(hourly, name="predict-skipping", tags=["late:skip-1s"])
        skipping["id"] = api.post("/deployments/", skipping)["id"]
        first = datetime.now(UTC) + timedelta(seconds=4)  # the scheduler writes down what is to come, not what was
        for deployment in (hourly, skipping):
            api.due_twice(deployment["id"], first)
        served = check_served(workplace, api)
        until("both due times have passed", lambda: datetime.now(UTC) > first + timedelta(seconds=3.5))
        with running(workplace, *worker):
            of_both = [deployment["id"] for deployment in (hourly, skipping)]

            def ended() -> bool:
                runs = [run for one in of_both for run in api.runs(one)]
                return len(runs) == 4 and all(run["state_type"] in OVER for run in runs)

            until("what is late has ended", ended)

        states = [run["state_name"] for run in api.runs(skipping["id"])]
        assert states == ["Skipped", "Skipped"], "more than a second late"
        older, latest = api.runs(hourly["id"])
        assert (older["state_name"], older["state_type"]) == ("Skipped", "CANCELLED")
        assert "a later one was due" in older["state"]["message"]
        assert latest["state_name"] == "Completed", latest["state"]["message"]
        assert {run.data.tags["flow_run_id"] for run in runs_of(workplace, "predict")} == {served, latest["id"]}


def check_deployed(nightly: dict[str, Any]) -> None:
    """What the deployment says of itself: no folder of this machine, one run at a time, and each option's form."""
    assert "CANCEL_NEW" in str(nightly["concurrency_options"])
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert "nightly" in nightly["tags"]
    assert nightly["description"]
    assert str(ROOT) not in str({key: nightly[key] for key in ("pull_steps", "path", "entrypoint", "parameters")})
    form = nightly["parameter_openapi_schema"]["definitions"]["TrainConfig"]["properties"]
    assert set(form) == set(TrainConfig.model_fields), "the command line's own options are no parameters"
    for name, option in form.items():
        assert option["description"] == TrainConfig.model_fields[name].description
    assert (form["epochs"]["minimum"], form["lr"]["exclusiveMinimum"]) == (1, 0)
    assert (form["degree"]["minimum"], form["degree"]["maximum"]) == (1, 100)
    assert form["dtype"]["enum"] == ["float32", "float64"]
    assert form["test_fraction"]["anyOf"][0] == {"minimum": 0, "exclusiveMaximum": 1, "type": "number"}


def check_trained(run: dict[str, Any], workplace: Workplace, api: Api) -> None:
    """The scheduled run trained, verified and registered, and each of the two services points at the other."""
    assert (run["state_name"], run["auto_scheduled"]) == ("Completed", True), run["state"]["message"]
    assert any(tag.startswith("fourfold-process:") for tag in run["tags"]), "a killed one can be closed"
    (kept,) = runs_of(workplace, "train")
    assert (kept.info.status, kept.data.tags["outcome"]) == ("FINISHED", "completed")
    assert kept.data.tags["flow_run_id"] == run["id"]
    assert kept.data.tags["parity"] == "passed"
    assert workplace.client.get_model_version_by_alias("line-linear", "champion").run_id == kept.info.run_id
    pages = api.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    assert any(kept.info.run_id in str(page["data"]) for page in pages)


def check_served(workplace: Workplace, api: Api) -> str:
    """A flow that is served takes its runs, and its schedule outlives its process; gives the id of the run."""
    script = str(ROOT / "flows" / "predict_flow.py")
    options = ("--serve", "--interval", "1h", "--model", "models:/line-linear@champion", "--at", "4")
    with running(workplace, script, *options) as process:

        def served() -> dict[str, Any]:
            return api.deployment("predict/served")

        until("the deployment is made", lambda: "id" in served())
        run: str = api.post(f"/deployments/{served()['id']}/create_flow_run", {})["id"]
        until("it is run", lambda: api.http.get(f"/flow_runs/{run}").json()["state_name"] == "Completed")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    left = served()
    assert left["parameters"] == {"config": {"model": "models:/line-linear@champion", "at": [[4.0]]}}
    assert [schedule["active"] for schedule in left["schedules"]] == [True]
    assert left["paused"] is False
    return run


def copy_of(deployment: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same deployment under another name, as it would be asked for."""
    kept = (
        "flow_id", "entrypoint", "pull_steps", "parameters", "work_pool_name", "parameter_openapi_schema",
    )  # fmt: skip
    return {name: deployment[name] for name in kept} | changes


def runs_of(workplace: Workplace, experiment: str) -> list[Any]:
    found = workplace.client.get_experiment_by_name(experiment)
    assert found is not None
    return list(workplace.client.search_runs([found.experiment_id]))
