"""Ctrl-C and SIGTERM are what they are, whatever a library makes of them."""

import contextlib
import signal
import sys
import time
import weakref
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import capture_sigterm, is_prefect_sigterm_handler_installed

from fourfold.configuration import TrainConfig
from tasks import signals
from tasks.patience import patiently
from tasks.steps import step
from tasks.train_result import TrainResult

SIGNALS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*signals.NUMBERS, signal.SIGALRM)}
    hook = sys.unraisablehook
    signals.become_exceptions()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook
    signals._raised.clear()
    signals._heard.clear()


def covered(number: signal.Signals) -> None:
    """What a library does that closes something of its own, and cannot."""
    try:
        signal.raise_signal(number)
    finally:
        raise ValueError("it was not open")


@pytest.mark.parametrize(("number", "kind"), SIGNALS)
def test_one_that_another_exception_covers_leaves_as_itself(number: signal.Signals, kind: type[BaseException]) -> None:
    with pytest.raises(kind) as ended, signals.uncovered():
        covered(number)
    assert getattr(ended.value, "code", 128 + number) == 128 + number
    assert isinstance(ended.value.__cause__, ValueError)


@pytest.mark.parametrize(("number", "kind"), SIGNALS)
def test_the_run_that_it_ends_is_killed(number: signal.Signals, kind: type[BaseException], store: MlflowClient) -> None:
    result = TrainResult(TrainConfig())
    with pytest.raises(kind), result.recorded():
        covered(number)
    assert result.run_id is not None
    run = store.get_run(result.run_id)
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "killed")


def test_a_flows_run_hears_it_as_what_is_before_the_run() -> None:
    done: list[str] = []

    def write() -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append("whole")

    with pytest.raises(SystemExit), capture_sigterm(), signals.regained():
        patiently("a store", write)
    assert done == ["whole"]
    with pytest.raises(SystemExit), capture_sigterm(), signals.regained(), signals.uncovered():
        covered(signal.SIGTERM)


@pytest.fixture
def _of_a_worker() -> None:
    """Let SIGTERM end the process, as it does where Prefect starts it: within a flow's run it is Prefect's."""
    signals._heard.clear()
    signal.signal(signal.SIGTERM, lambda *_: None)


@pytest.mark.usefixtures("_of_a_worker")
def test_a_flows_run_of_a_worker_hears_it_as_prefect_does_after_a_write() -> None:
    done: list[str] = []

    def write() -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append("whole")

    with pytest.raises(TerminationSignal), capture_sigterm(), signals.regained():  # noqa: PT012
        assert is_prefect_sigterm_handler_installed(), "else no run can be cancelled"
        patiently("a store", write)
    assert done == ["whole"]


@pytest.mark.usefixtures("_of_a_worker")
def test_one_of_prefect_that_another_exception_covers_leaves_as_itself() -> None:
    with pytest.raises(TerminationSignal) as ended, capture_sigterm(), signals.uncovered():
        covered(signal.SIGTERM)
    assert (ended.value.signal, type(ended.value.__cause__)) == (signal.SIGTERM, ValueError)


def test_an_exception_without_one_stays() -> None:
    with pytest.raises(ValueError, match="by itself"), signals.uncovered():
        raise ValueError("by itself")


class Garbage:
    """Something that a weak reference can be made to."""


def test_one_that_python_drops_is_raised_a_moment_later() -> None:
    garbage = Garbage()
    reference = weakref.ref(garbage, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:  # noqa: PT012 - it is raised somewhere in this while
        del garbage
        for _ in range(100):
            time.sleep(0.05)
    assert (reference(), ended.value.code) == (None, 128 + signal.SIGTERM)


def test_one_that_a_library_drops_ends_the_next_step() -> None:
    done: list[str] = []
    first, second = (step(name=name)(lambda name=name: done.append(name)).fn for name in ("first", "second"))
    first()
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        second()
    assert done == ["first"]


def test_one_waits_for_the_end_of_a_write_to_a_file_and_of_those_around_it() -> None:
    done: list[str] = []

    def write() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("inside")

    def write_all() -> None:
        patiently("a store", write)
        done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        patiently("a store", write_all)
    assert done == ["inside", "whole"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_one_is_heard_at_once_by_a_write_to_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(KeyboardInterrupt):
        patiently("a server", lambda: signal.raise_signal(signal.SIGINT) or pytest.fail("it went on"))


def test_other_faults_that_python_drops_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    signals.become_exceptions()
    garbage = Garbage()
    reference = weakref.ref(garbage, lambda _: 1 / 0)
    del garbage
    assert (reference(), told) == (None, [ZeroDivisionError])


def test_the_next_work_of_the_same_process_begins_anew() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signals.become_exceptions()
    signals.raise_again()


def test_what_a_process_was_started_to_ignore_it_ignores() -> None:
    signals.are_ignored()
    signals.become_exceptions()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
