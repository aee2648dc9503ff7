"""What becomes of a scheduled run that begins late, because no worker was there when it was due.

The policy is a tag of the deployment, which Prefect shows beside it and hands on to its runs: `late:skip-30min` skips
what begins more than half an hour after it was due, `late:latest-only` all that a later one of the same deployment
follows. Without such a tag every run is made up for, as Prefect does. Runs that a person starts are never late.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import Abort
from prefect.states import Cancelled

from fourfold.configuration import LATE_POLICIES, duration
from fourfold.errors import RequestError

TAG = "late:"
LATEST_ONLY = "latest-only"
SKIPPED = "Skipped"


@dataclass(frozen=True)
class LatePolicy:
    """How late a run may begin.

    Attributes:
        limit: later than that after it was due, it is skipped; None for any time.
        latest_only: it is skipped where a later one is due as well.
    """

    limit: timedelta | None = None
    latest_only: bool = False

    @classmethod
    def of_tags(cls, tags: list[str]) -> "LatePolicy":
        """Read the policy of a deployment or a run.

        Raises:
            RequestError: there are two, or there is no such policy.
        """
        found = sorted({tag for tag in tags if tag.startswith(TAG)})
        if not found:
            return cls()
        if len(found) > 1:
            raise RequestError(f"tags {', '.join(found)}: one policy for late runs is allowed; remove the others")
        name = found[0].removeprefix(TAG)
        if name == LATEST_ONLY:
            return cls(latest_only=True)
        try:
            limit = duration(name.removeprefix("skip-"))
        except ValueError:
            limit = None
        if limit is None or not name.startswith("skip-"):
            raise RequestError(f"tag {found[0]} is no policy for late runs; give {TAG}{LATE_POLICIES}")
        return cls(limit=limit)

    def in_words(self) -> str:
        """What becomes of a late run."""
        if self.limit is not None:
            return f"skipped later than {self.limit} after they were due"
        return "the latest alone is made up for" if self.latest_only else "all are made up for"

    def reason_to_skip(self, run: FlowRun, now: datetime, client: SyncPrefectClient) -> str:
        """Why a run is not to begin now; empty where it is."""
        due = run.expected_start_time
        if not run.auto_scheduled or due is None:
            return ""
        if self.limit is not None and now - due > self.limit:
            return f"it was due at {spell(due)}, {(now - due).total_seconds():.0f} s ago, and no worker took it in time"
        if self.latest_only and (later := _later(run, now, client)):
            return f"it was due at {spell(due)}, and a later one was due at {spell(later)}"
        return ""


def skip_if_late(run: FlowRun, now: datetime, client: SyncPrefectClient) -> None:
    """End a run that its policy skips, as cancelled under the name of Skipped: it neither failed nor did its work.

    Raises:
        Abort: it was told that it is skipped; Prefect's engine then leaves quietly.
    """
    reason = LatePolicy.of_tags(run.tags).reason_to_skip(run, now, client)
    if reason:
        state: State[Any] = Cancelled(name=SKIPPED, message=f"skipped: {reason}")
        told: OrchestrationResult[Any] = client.set_flow_run_state(run.id, state, force=True)
        ended = Abort(state.message)
        ended.state = told.state  # type: ignore[attr-defined] # by which the engine knows that it is told
        raise ended


def spell(moment: datetime) -> str:
    """A time for a person, in this machine's time zone, which it names."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _later(run: FlowRun, now: datetime, client: SyncPrefectClient) -> datetime | None:
    """When the latest run was due that the schedule made of the same deployment, if it was after this one.

    Those that were cancelled count for nothing: nobody will run them.
    """
    assert run.expected_start_time is not None
    newest = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),  # type: ignore[list-item]
            expected_start_time=FlowRunFilterExpectedStartTime(after_=run.expected_start_time, before_=now),  # type: ignore[arg-type]
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    for one in newest:
        if one.auto_scheduled and one.state_type != StateType.CANCELLED and one.expected_start_time is not None:
            return one.expected_start_time if one.expected_start_time > run.expected_start_time else None
    return None
