"""How runs begin that Prefect gives to a worker, in the engine's own context, and those that are typed."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from fourfold.configuration import TutorialConfig
from fourfold.errors import RequestError
from tasks import start
from tasks.prefect_client import MARK, PatientTransport
from tasks.start import Checks, prepared


class Told(Exception):
    """The work has begun."""


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SyncPrefectClient, list[Any]]]:
    """Let calls look as those of Prefect's engine for a run of a deployment; gives the client, and what it was told."""

    def make(config: TutorialConfig, **run: Any) -> tuple[SyncPrefectClient, list[Any]]:
        told: list[Any] = []
        client = SyncPrefectClient("http://127.0.0.1:9/api")
        monkeypatch.setattr(client, "update_flow_run", lambda run_id, tags: told.append(tags))
        flow_run = FlowRun(id=uuid4(), flow_id=uuid4(), tags=["nightly"], **{"deployment_id": uuid4()} | run)
        context = SimpleNamespace(flow_run=flow_run, client=client, parameters={"config": config})
        monkeypatch.setattr(FlowRunContext, "get", lambda: context)
        return client, told

    return make


def refuse(config: TutorialConfig) -> None:
    if config.seed == 1:
        raise RequestError("--seed 1 is wrong")


def settle(config: TutorialConfig) -> TutorialConfig:
    return config.model_copy(update={"steps": 7})


def begun(config: TutorialConfig) -> None:
    raise Told


def test_a_wrong_request_ends_a_deployed_run_before_its_work(deployed: Any) -> None:
    wrong = TutorialConfig(seed=1)
    deployed(wrong)
    for checks in ((refuse,), (settle, refuse)):
        with pytest.raises(RequestError, match="--seed 1 is wrong"):
            prepared(*checks)(begun)(wrong)


def test_a_store_that_cannot_be_used_ends_it_too(deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed(TutorialConfig())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://somewhere")
    with pytest.raises(RequestError, match="MLFLOW_TRACKING_URI=ftp://somewhere"):
        prepared(refuse)(begun)(TutorialConfig())


def test_a_sound_deployed_run_is_marked_waits_for_prefect_and_is_offline(
    deployed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DO_NOT_TRACK")
    client, told = deployed(TutorialConfig())
    with pytest.raises(Told):
        prepared(refuse)(begun)(TutorialConfig())
    assert isinstance(client._client._transport, PatientTransport)
    assert client._client._transport.seconds == 600
    ((kept, mark),) = told
    assert kept == "nightly"
    assert mark.startswith(MARK)
    assert f"-{os.getpid()}-" in mark
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL" not in os.environ, "a worker shows what its runs log"


def test_a_run_that_was_typed_is_left_alone(deployed: Any) -> None:
    client, told = deployed(TutorialConfig(seed=1), deployment_id=None)
    with pytest.raises(Told):
        prepared(refuse)(begun)(TutorialConfig(seed=1))
    assert not isinstance(client._client._transport, PatientTransport)
    assert told == []


def test_a_check_may_settle_the_configuration() -> None:
    assert Checks(settle, refuse).whole(TutorialConfig()) == TutorialConfig(steps=7)
    assert Checks(lambda config: "found", refuse).whole(TutorialConfig()) == TutorialConfig()
    assert start.Checks(refuse, settle).quick(TutorialConfig(seed=2)) == TutorialConfig(seed=2)
