"""Whether the deployments would fire, asked before the night in which they should: nothing is run or created."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, ParameterTypeError, PrefectException

from fourfold.configuration import PreflightConfig
from fourfold.errors import FourfoldError, PreflightError, RequestError, first_line
from tasks import prefect_api, services
from tasks.reporting import Table
from tasks.schedule_late import LatePolicy, spell
from tasks.start import Checks

STALE = timedelta(seconds=60)  # a served flow asks for work every ten


@dataclass(frozen=True)
class Answer:
    """One question about one deployment."""

    question: str
    ok: bool
    says: str


@dataclass
class Preflight:
    """What was asked, and the answers so far.

    Attributes:
        flows: those that may be deployed, by name.
        answers: by deployment, or by "Prefect" for what concerns all.
    """

    config: PreflightConfig
    flows: Mapping[str, Flow[..., Any]]
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, one text each."""
        return [
            f"{name}: {one.question}: {one.says}" for name, all_ in self.answers.items() for one in all_ if not one.ok
        ]

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result."""
        return {
            "flow": "serve_check",
            "status": "failed" if self.faults else "ready",
            "reason": self.faults[0] if self.faults else None,
            "deployments": [
                {"name": name, "fires": all(one.ok for one in found), "answers": [vars(one) for one in found]}
                for name, found in self.answers.items()
            ],
        }

    def rows(self) -> dict[str, str]:
        """The result for a person, by name."""
        return {"status": f"{len(self.faults)} not ok" if self.faults else "ready: each of them would fire"}

    def tables(self) -> tuple[Table, ...]:
        """A line for each question."""
        rows = [
            (name, one.question, "ok" if one.ok else "not ok", one.says)
            for name, found in self.answers.items()
            for one in found
        ]
        return (Table("deployments", ("deployment", "question", "", "answer"), tuple(rows)),)


def preflight(config: PreflightConfig, flows: Mapping[str, Flow[..., Any]]) -> Preflight:
    """Ask each question about the deployments that are named, or about all of these flows.

    Raises:
        PreflightError: one of them would not fire; it carries the answers as its `result`.
    """
    found = Preflight(config, flows)
    try:
        _ask(found)
    except (PrefectException, httpx.HTTPError) as error:
        found.answers.setdefault("Prefect", []).append(Answer("server", False, f"it went away: {first_line(error)}"))
    if found.faults:
        fault = PreflightError(found.faults[0])
        fault.result = found  # type: ignore[attr-defined]
        raise fault
    return found


def _ask(found: Preflight) -> None:
    server = _server()
    found.answers["Prefect"] = [server]
    if not server.ok:
        return
    with get_client(sync_client=True) as client:
        deployments, missing = _deployments(client, found)
        for name in missing:
            found.answers[name] = [Answer("deployment", False, "there is none of that name at this server")]
        if not (deployments or missing):
            none = "none of fourfold's flows is deployed; deploy them: prefect deploy --all, or --serve of a flow"
            found.answers["Prefect"].append(Answer("deployments", False, none))
        for name, one in deployments.items():
            found.answers[name] = list(_of_deployment(client, found.flows[name.partition("/")[0]], one))


def _server() -> Answer:
    address = prefect_api.prefect_address()
    if address is None:
        return Answer(
            "server", False, "there is none, and a run's own fires no schedule; start one: prefect server start"
        )
    try:
        prefect_api.check_prefect(address)
    except RequestError:
        return Answer("server", False, f"PREFECT_API_URL={address} does not answer; start that server")
    return Answer("server", True, address)


def _deployments(client: SyncPrefectClient, found: Preflight) -> tuple[dict[str, DeploymentResponse], list[str]]:
    """Those that were asked for, by full name, and the names that there are not."""
    names: dict[str, DeploymentResponse] = {}
    for flow in found.flows:
        for one in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow]))):
            names[f"{flow}/{one.name}"] = one
    asked = found.config.deployment
    return {name: one for name, one in names.items() if not asked or name in asked}, [
        name for name in asked if name not in names
    ]


def _of_deployment(client: SyncPrefectClient, flow: Flow[..., Any], one: DeploymentResponse) -> Iterator[Answer]:
    yield _schedule(one)
    yield _taker(client, one)
    yield _next(client, one)
    yield _late(one)
    parameters, config = _parameters(flow, one)
    yield parameters
    if config is not None:
        yield _sound(flow, config, one)


def _schedule(one: DeploymentResponse) -> Answer:
    active = [schedule.schedule for schedule in one.schedules if schedule.active]
    says = "; ".join(
        getattr(schedule, "cron", None) or getattr(schedule, "rrule", None) or f"every {schedule.interval}"  # type: ignore[union-attr]
        for schedule in active
    )
    if one.paused:
        return Answer("schedule", False, "the deployment is paused")
    if not one.schedules:
        return Answer("schedule", False, "it has none; make one: prefect deployment schedule create")
    if not active:
        return Answer("schedule", False, "it is paused; prefect deployment schedule resume makes it active")
    return Answer("schedule", True, f"active: {says}")


def _taker(client: SyncPrefectClient, one: DeploymentResponse) -> Answer:
    """Who would take a run that is due: a worker of its pool, or the process that serves it."""
    now = datetime.now(UTC)
    pool = one.work_pool_name
    if pool is None:
        if one.last_polled is None or now - one.last_polled > STALE:
            last = f"it last asked for work at {spell(one.last_polled)}" if one.last_polled else "none ever asked"
            return Answer("served", False, f"no process serves it ({last}); start it again with --serve")
        return Answer("served", True, f"its process asked for work {(now - one.last_polled).seconds} s ago")
    try:
        found = client.read_work_pool(pool)
        workers = [w for w in client.read_workers_for_work_pool(pool) if w.status == WorkerStatus.ONLINE]
    except ObjectNotFound:
        return Answer("worker", False, f"there is no work pool {pool}; prefect work-pool create {pool} --type process")
    if found.is_paused:
        return Answer("worker", False, f"work pool {pool} is paused; prefect work-pool resume {pool}")
    if one.work_queue_name:
        queues = {queue.name: queue for queue in client.read_work_queues(work_pool_name=pool)}
        queue = queues.get(one.work_queue_name)
        if queue is None or queue.is_paused:
            return Answer(
                "worker", False, f"work queue {one.work_queue_name} of {pool} is {'paused' if queue else 'gone'}"
            )
    if not workers:
        return Answer("worker", False, f"none of work pool {pool} is alive; prefect worker start --pool {pool}")
    heard = max((w.last_heartbeat_time for w in workers if w.last_heartbeat_time), default=now)
    return Answer("worker", True, f"{len(workers)} of work pool {pool}, heard {(now - heard).seconds} s ago")


def _next(client: SyncPrefectClient, one: DeploymentResponse) -> Answer:
    """When the server will start it: what its own scheduler has written down, and not what the schedule means."""
    now = datetime.now(UTC)
    late = _scheduled(client, one, FlowRunFilterExpectedStartTime(before_=now))  # type: ignore[arg-type]
    coming = _scheduled(client, one, FlowRunFilterExpectedStartTime(after_=now))  # type: ignore[arg-type]
    if not coming:
        reason = "the server has written down no run; its scheduler does so once a minute, while schedules are active"
        return Answer("next run", False, reason)
    behind = f"; {len(late)} late now" if late else ""
    return Answer("next run", True, f"{spell(coming[0])}{behind}")


def _scheduled(
    client: SyncPrefectClient, one: DeploymentResponse, when: FlowRunFilterExpectedStartTime
) -> list[datetime]:
    """When the runs are due that the schedule made and nobody took."""
    waiting = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[one.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=when,
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )
    return [run.expected_start_time for run in waiting if run.auto_scheduled and run.expected_start_time]


def _late(one: DeploymentResponse) -> Answer:
    try:
        policy = LatePolicy.of_tags(one.tags)
    except RequestError as error:
        return Answer("late runs", False, str(error))
    options = one.concurrency_options
    if policy.latest_only and options and options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW:
        return Answer(
            "late runs", False, "latest-only lets an older run go, and CANCEL_NEW may have refused the latest by then"
        )
    return Answer("late runs", True, policy.in_words())


def _parameters(flow: Flow[..., Any], one: DeploymentResponse) -> tuple[Answer, Any]:
    """Whether they are still parameters of the flow as it is today; with the configuration of the next run."""
    config: Any = None
    own: list[dict[str, Any]] = [schedule.parameters for schedule in one.schedules if schedule.active]
    for parameters in own or [{}]:
        try:
            config = flow.validate_parameters(one.parameters | parameters)["config"]
        except (ParameterTypeError, TypeError, ValueError) as error:
            return Answer("parameters", False, " ".join(str(error).split())), None
    return Answer("parameters", True, config.title), config


def _sound(flow: Flow[..., Any], config: Any, one: DeploymentResponse) -> Answer:
    """Whether what the parameters name is there, seen from the folder in which it will run."""
    folder = services.project_root() if one.work_pool_name else Path(one.path or ".")
    try:
        with contextlib.chdir(folder):
            Checks.of(flow).whole(config)
    except FourfoldError as error:
        return Answer("model and data", False, str(error))
    except OSError as error:
        return Answer("model and data", False, f"{folder}: {error.strerror or error}")
    return Answer("model and data", True, f"there, seen from {folder}")
