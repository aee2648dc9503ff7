"""Waiting for a Prefect server, with a transport that stands for it and a clock that does not wait."""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.context import TagsContext, tags

from fourfold.errors import ServiceError
from tasks import prefect_client
from tasks.prefect_client import PatientTransport, without_mark

ADDRESS = "http://127.0.0.1:4200/api"
AWAY = httpx.ConnectError("Connection refused")
BUSY = httpx.Response(503)
DONE = httpx.Response(200, json={})


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept; the clock goes on by it at once."""
    naps: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(naps), sleep=naps.append)
    monkeypatch.setattr(prefect_client, "time", clock)
    return naps


def answering(*answers: httpx.Response | httpx.TransportError) -> httpx.MockTransport:
    """A server that answers so, one after the other; the last from then on."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, httpx.TransportError):
            raise one
        return httpx.Response(one.status_code, json={})

    return httpx.MockTransport(answer)


def transport(*answers: Any, seconds: float = 60, alive: Callable[[], bool] = lambda: True) -> PatientTransport:
    return PatientTransport(answering(*answers), ADDRESS, seconds, alive)


def request(state: str | None = None) -> httpx.Request:
    if state is None:
        return httpx.Request("POST", f"{ADDRESS}/artifacts/", json={})
    return httpx.Request("POST", f"{ADDRESS}/flow_runs/abc/set_state", json={"state": {"type": state}, "force": False})


class TestWaiting:
    def test_a_server_that_answers_is_not_spoken_of(
        self, slept: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert transport(DONE).handle_request(request()).status_code == 200
        assert slept == []
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (AWAY, "does not answer (Connection refused)"),
            (httpx.ReadTimeout(""), "does not answer (ReadTimeout)"),
            (httpx.RemoteProtocolError("Server disconnected"), "does not answer (Server disconnected)"),
            (BUSY, "is busy: its database is locked or restarts"),
        ],
        ids=["away", "silent", "ended", "locked"],
    )
    def test_one_that_is_away_or_busy_is_waited_for_and_told_once(
        self, answer: Any, said: str, slept: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        patient = transport(answer, answer, answer, DONE)
        assert patient.handle_request(request()).status_code == 200
        assert len(slept) == 3
        assert capsys.readouterr().err.splitlines() == [
            f"Prefect's server at {ADDRESS} {said}; waiting for it, 60 s at most",
            "Prefect's server answers again, after 3 s",
        ]

    def test_one_that_is_silent_is_told_of_after_a_while(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(prefect_client, "SECONDS_OF_SILENCE", 0.1)

        def answer(request: httpx.Request) -> httpx.Response:
            time.sleep(0.5)
            return DONE

        PatientTransport(httpx.MockTransport(answer), ADDRESS, 60, lambda: True).handle_request(request())
        (line,) = capsys.readouterr().err.splitlines()
        assert "has not answered for 0.1 s: its database may be locked; waiting for it" in line

    def test_a_fault_is_waited_for_while_the_servers_database_is_away(
        self, slept: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Prefect answers with 500 where PostgreSQL is away, and says on `/ready` alone that it is."""
        ready = iter([503, 503, 200])
        asked: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            if request.url.path == "/api/ready":
                return httpx.Response(next(ready))
            return DONE if len(slept) == 3 else httpx.Response(500)

        patient = PatientTransport(httpx.MockTransport(answer), ADDRESS, 60, lambda: True)
        assert patient.handle_request(request()).status_code == 200
        assert asked.count("/api/ready") == 2
        assert capsys.readouterr().err.splitlines() == [
            f"Prefect's server at {ADDRESS} answers with a fault: its database may be away; waiting for it, 60 s at "
            "most",
            "Prefect's server answers again, after 3 s",
        ]

    def test_a_fault_of_a_server_whose_database_is_there_is_handed_on_the_second_time(self, slept: list[float]) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200 if request.url.path == "/api/ready" else 500)

        patient = PatientTransport(httpx.MockTransport(answer), ADDRESS, 60, lambda: True)
        assert patient.handle_request(request()).status_code == 500
        assert len(slept) == 1

    def test_any_other_answer_is_handed_on(self, slept: list[float]) -> None:
        assert transport(httpx.Response(404)).handle_request(request()).status_code == 404
        assert slept == []

    def test_after_the_time_it_is_given_up_and_from_then_on_tried_once(
        self, slept: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        patient = transport(AWAY, seconds=10)
        with pytest.raises(ServiceError, match="does not answer"):
            patient.handle_request(request())
        assert 8 <= sum(slept) <= 10
        capsys.readouterr()
        before = len(slept)
        with pytest.raises(ServiceError):
            patient.handle_request(request())
        assert len(slept) == before
        assert capsys.readouterr().err == ""

    def test_one_of_our_own_that_died_is_not_waited_for(self, slept: list[float]) -> None:
        with pytest.raises(ServiceError):
            transport(AWAY, alive=lambda: False).handle_request(request())
        assert slept == []

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(143)])
    def test_after_an_interrupt_there_is_no_time_to_wait(
        self, interrupt: BaseException, slept: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        try:
            raise interrupt
        except BaseException:
            hurried = request("CRASHED")
            assert transport(AWAY).handle_request(hurried).status_code == 201
        assert slept == []
        assert set(hurried.extensions["timeout"].values()) == {1.5}, "a server that hangs must not keep it either"


class TestAnEndThatCannotBeTold:
    @pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"])
    def test_is_taken_as_told_with_a_warning(
        self, state: str, slept: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        answer = transport(AWAY, alive=lambda: False).handle_request(request(state))
        assert json.loads(answer.content)["status"] == "ACCEPT"
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: ")
        assert f"ended as {state.lower()}; the next start of a flow puts that right" in line

    @pytest.mark.parametrize("state", ["RUNNING", "PENDING", None])
    def test_but_a_beginning_is_not(self, state: str | None, slept: list[float]) -> None:
        with pytest.raises(ServiceError):
            transport(AWAY, alive=lambda: False).handle_request(request(state))


def test_what_a_flow_makes_has_its_users_tags_without_the_mark() -> None:
    with tags("of the user's", f"{prefect_client.MARK}abc"):
        with without_mark():
            assert TagsContext.get().current_tags == {"of the user's"}
        assert len(TagsContext.get().current_tags) == 2
