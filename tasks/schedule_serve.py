"""A flow that is served: a process that stays, and runs the flow each time it is due by Prefect's schedule."""

import asyncio
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectException
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule

from fourfold.configuration import FlowConfig, ServeConfig, duration
from fourfold.errors import RequestError, ServiceError, first_line
from tasks.prefect_api import PrefectServer
from tasks.schedule_late import TAG

OURS = "fourfold"  # the tag of each deployment


def serve(flow: Flow[..., Any], config: FlowConfig, asked: ServeConfig, server: PrefectServer) -> NoReturn:
    """Make or replace the deployment, and run what comes due until the process is told to end.

    The schedule stays when it ends: what comes due meanwhile is run, or skipped by the deployment's policy, once the
    flow is served again.

    Raises:
        RequestError: the schedule is wrong, or there is no server that stays.
        ServiceError: the server does not take the deployment.
    """
    schedule = schedule_of(asked)
    server.check_stays("--serve")
    deployment = RunnerDeployment.from_flow(
        flow,
        asked.name,
        schedule=schedule,
        # What was typed, and no more: the defaults are the code's.
        parameters={"config": config.model_dump(mode="json", exclude_unset=True)},
        tags=[OURS, *([f"{TAG}{asked.late}"] if asked.late else [])],
    )
    deployment._path = str(Path.cwd())  # in which it runs, and a preflight looks from there
    runner = Runner(name=asked.name, pause_on_shutdown=False)
    full_name = f"{flow.name}/{asked.name}"
    try:
        runner.add_deployment(deployment)
    except PrefectException as error:
        raise ServiceError(f"Prefect's server at {server.api_url} refuses {full_name}: {first_line(error)}") from error
    print(
        f"serving {full_name}, {spell_schedule(asked)}; Ctrl-C ends this process and keeps the schedule",
        file=sys.stderr,
        flush=True,
    )
    told: list[int] = []
    try:
        asyncio.run(_until_told(runner, told))
        reason = "Prefect's runner ended by itself"
    except asyncio.CancelledError:
        raise (KeyboardInterrupt if told == [signal.SIGINT] else SystemExit(128 + signal.SIGTERM)) from None
    except Exception as error:  # of any kind, or a group of them: the server was away for too long, say
        reason = first_line(error)
    raise ServiceError(f"{full_name} is served no more: {reason}; is Prefect's server at {server.api_url} there?")


async def _until_told(runner: Runner, told: list[int]) -> None:
    """Serve until Ctrl-C or SIGTERM, which is noted in `told`; both end the runner in an orderly way.

    Its own handler does not, and an interrupt that is raised in the middle of the loop fills the screen with what it
    broke.
    """
    serving = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # in which it sets that handler

    def end(number: int) -> None:
        told[:] = told or [number]
        serving.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    await serving


def schedule_of(asked: ServeConfig) -> Schedule:
    """When it is due, for Prefect; raises RequestError where Prefect does not understand the cron."""
    zone = asked.timezone or "UTC"
    if asked.interval:
        # Counted from the same moment each time it is served: the times stay.
        return Interval(
            duration(asked.interval), anchor_date=datetime(2020, 1, 1, tzinfo=ZoneInfo(zone)), timezone=zone
        )
    assert asked.cron is not None, "one of the two is given"
    try:
        return Cron(asked.cron, timezone=zone)
    except ValueError as error:
        raise RequestError(
            f'--cron {asked.cron!r} is no time: {first_line(error)}; give five fields, as "0 6 * * *" for six each day'
        ) from error


def spell_schedule(asked: ServeConfig) -> str:
    """When it is due, for a person."""
    zone = asked.timezone or "UTC"
    return f"every {asked.interval}" if asked.interval else f"cron {asked.cron} {zone}"
