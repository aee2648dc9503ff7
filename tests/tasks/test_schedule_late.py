"""What becomes of a late run, with a server that stands for Prefect's."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import Abort

from fourfold.errors import RequestError
from tasks.schedule_late import LatePolicy, skip_if_late

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def run(minutes_late: float, *tags: str, by_schedule: bool = True, state: StateType = StateType.RUNNING) -> FlowRun:
    return FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        deployment_id=uuid4(),
        auto_scheduled=by_schedule,
        expected_start_time=NOW - timedelta(minutes=minutes_late),
        state_type=state,
        tags=list(tags),
    )


class Server:
    """Knows the other runs of the deployment, and hears what is told."""

    def __init__(self, *others: FlowRun) -> None:
        self.others = others
        self.told: list[Any] = []

    def read_flow_runs(self, **_: Any) -> list[FlowRun]:
        return sorted(self.others, key=lambda one: one.expected_start_time or NOW, reverse=True)

    def set_flow_run_state(self, run_id: Any, state: Any, force: bool) -> Any:
        self.told.append((run_id, state.type, state.name, force))
        return type("Told", (), {"state": state})()


def begins(one: FlowRun, *others: FlowRun) -> bool:
    server = Server(*others)
    try:
        skip_if_late(one, NOW, server)  # type: ignore[arg-type]
    except Abort:
        assert server.told == [(one.id, StateType.CANCELLED, "Skipped", True)]
        return False
    assert server.told == []
    return True


def test_without_a_policy_every_run_is_made_up_for() -> None:
    assert begins(run(10_000, "nightly"), run(0))


@pytest.mark.parametrize(("minutes", "expected"), [(29.9, True), (30.1, False)])
def test_a_run_is_skipped_that_begins_later_than_its_policy_allows(minutes: float, expected: bool) -> None:
    assert begins(run(minutes, "fourfold", "late:skip-30min")) is expected


def test_what_a_person_starts_is_never_late() -> None:
    assert begins(run(600, "late:skip-30min", by_schedule=False))
    assert begins(run(600, "late:latest-only", by_schedule=False), run(1))


def test_the_latest_run_alone_is_made_up_for() -> None:
    assert not begins(run(120, "late:latest-only"), run(60))
    assert begins(run(60, "late:latest-only"), run(120))
    assert begins(run(60, "late:latest-only"), run(60)), "two of the same moment do not skip each other"


def test_a_later_run_that_nobody_will_run_or_that_a_person_started_does_not_count() -> None:
    assert begins(run(120, "late:latest-only"), run(60, state=StateType.CANCELLED))
    assert begins(run(120, "late:latest-only"), run(60, by_schedule=False))
    assert not begins(run(120, "late:latest-only"), run(10, by_schedule=False), run(60))


@pytest.mark.parametrize(
    "tag", ["late:", "late:never", "late:skip-", "late:skip-soon", "late:skip-0min", "late:30min", "late:latest"]
)
def test_a_policy_that_there_is_not_is_refused_by_name(tag: str) -> None:
    with pytest.raises(RequestError, match=f"tag {tag} is no policy for late runs; give late:skip-30min"):
        LatePolicy.of_tags(["fourfold", tag])


def test_two_policies_are_refused() -> None:
    with pytest.raises(RequestError, match="late:latest-only, late:skip-1h: one policy"):
        LatePolicy.of_tags(["late:skip-1h", "late:latest-only"])
    assert LatePolicy.of_tags(["late:skip-1h", "late:skip-1h"]).limit == timedelta(hours=1)
