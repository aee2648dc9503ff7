"""What `--serve` makes of what was typed; that it runs is shown in tests/flows/test_schedules.py."""

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from pydantic import ValidationError

from fourfold.configuration import ServeConfig, TrainConfig, duration
from fourfold.errors import RequestError
from tasks import command_line, schedule_serve
from tasks.prefect_api import PrefectServer
from tasks.schedule_serve import schedule_of, serve

pytestmark = pytest.mark.usefixtures("interpreter")

GOOD_LINES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--serve --interval 90s", {"serve": True, "interval": "90s"}),
    ("--serve --interval 3600", {"serve": True, "interval": "3600"}),
    ("--serve --interval 1h --timezone Asia/Tokyo", {"serve": True, "interval": "1h", "timezone": "Asia/Tokyo"}),
    ("--serve --interval 1h --late skip-30min", {"serve": True, "interval": "1h", "late": "skip-30min"}),
    ("--serve --interval 1h --late latest-only", {"serve": True, "interval": "1h", "late": "latest-only"}),
    ("--serve --interval 1d --name houses", {"serve": True, "interval": "1d", "name": "houses"}),
    ("--serve --cron @daily --timezone Europe/Berlin", {"serve": True, "cron": "@daily", "timezone": "Europe/Berlin"}),
]


@pytest.mark.parametrize(("line", "expected"), GOOD_LINES, ids=[line or "nothing" for line, _ in GOOD_LINES])
def test_a_good_line_says_when_and_leaves_the_flows_parameters_alone(line: str, expected: dict[str, Any]) -> None:
    request = command_line.read("train", TrainConfig, "", [*line.split(), "--epochs", "5"])
    assert request.serving == ServeConfig(**expected)
    assert request.config == TrainConfig(epochs=5)


def test_every_option_of_serving_has_a_good_line() -> None:
    assert {name for _, expected in GOOD_LINES for name in expected} == set(ServeConfig.model_fields)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--cron", "0 6 * * *"], "--cron needs --serve"),
        (["--name", "served"], "--name needs --serve"),
        (["--serve"], "--serve needs either --cron"),
        (["--serve", "--cron", "@daily", "--interval", "1h"], "--serve needs either --cron"),
        (["--serve", "--interval", "0"], "--interval: '0' was given; should be a number and s, min, h or d"),
        (["--serve", "--interval=-1h"], "--interval: '-1h' was given"),
        (["--serve", "--interval", "soon"], "--interval: 'soon' was given"),
        (["--serve", "--interval", "1h", "--timezone", "Mars/Base"], "--timezone: 'Mars/Base' was given"),
        (["--serve", "--interval", "1h", "--timezone", "../etc"], "--timezone: '../etc' was given"),
        (["--serve", "--interval", "1h", "--late", "maybe"], "--late: 'maybe' was given; should be skip-30min"),
        (["--serve", "--interval", "1h", "--name", "a/b"], "--name: 'a/b' was given"),
        (["--serve", "--interval", "1h", "--json"], "--json needs a result"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.read("train", TrainConfig, "", line)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("cron", ["x", "61 * * * *", "* * *", "0 6 * * 9"])
def test_a_cron_that_is_no_time_is_refused(cron: str) -> None:
    with pytest.raises(RequestError, match=r"--cron .* is no time: .*; give five fields"):
        schedule_of(ServeConfig(serve=True, cron=cron))


def test_the_clock_is_the_time_zones_and_utc_without_one() -> None:
    assert schedule_of(ServeConfig(serve=True, cron="0 6 * * *", timezone="Europe/Berlin")).timezone == "Europe/Berlin"
    assert schedule_of(ServeConfig(serve=True, cron="0 6 * * *")).timezone == "UTC"


def test_an_interval_falls_on_the_same_times_whenever_it_is_served() -> None:
    schedule = schedule_of(ServeConfig(serve=True, interval="6h"))
    assert schedule.interval == timedelta(hours=6)
    assert (datetime(2026, 11, 26, 18, tzinfo=UTC) - schedule.anchor_date) % schedule.interval == timedelta(0)


def test_a_server_that_ends_with_the_process_is_refused() -> None:
    temporary = PrefectServer("http://127.0.0.1:9/api", process=cast(Any, object()))
    with pytest.raises(RequestError, match="--serve needs a Prefect server that stays"):
        serve(cast(Any, None), TrainConfig(), ServeConfig(serve=True, interval="1h"), temporary)


def test_a_server_that_does_not_answer_is_refused() -> None:
    with pytest.raises(RequestError, match=r"http://127\.0\.0\.1:9/api does not answer"):
        serve(
            cast(Any, None),
            TrainConfig(),
            ServeConfig(serve=True, interval="1h"),
            PrefectServer("http://127.0.0.1:9/api"),
        )


@pytest.mark.parametrize(("text", "seconds"), [("45", 45), ("45s", 45), ("2min", 120), ("3h", 10_800), ("1d", 86_400)])
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: int) -> None:
    assert duration(text).total_seconds() == seconds


def test_serving_knows_no_other_option() -> None:
    with pytest.raises(ValidationError, match="extra"):
        ServeConfig(rrule="FREQ=DAILY")  # type: ignore[call-arg]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_runner_and_not_whatever_the_loop_is_at(number: signal.Signals) -> None:
    """Raised in the middle of the loop, it would end all tasks at once, the one that waits for the runner included."""
    told: list[int] = []
    waits: list[int] = []

    class Runner:
        async def start(self) -> None:
            asyncio.get_running_loop().call_later(0.05, signal.raise_signal, number)
            try:
                await asyncio.sleep(30)
            finally:
                waits.extend(task.cancelling() for task in asyncio.all_tasks() if task is not asyncio.current_task())

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(schedule_serve._until_told(Runner(), told))  # type: ignore[arg-type]
    assert (told, waits) == ([number], [0])
