"""How a flow's run begins: typed in a terminal, or given to a worker or a served process by Prefect.

Both times the same is done, in the order that each allows: the environment is set, the request is checked before
MLflow has a run of it, and Prefect's server is waited for where it is away.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, ParamSpec, TypeVar

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from fourfold.configuration import FlowConfig
from fourfold.processes import ProcessIdentity
from tasks import command_line, services, signals
from tasks.command_line import Request
from tasks.prefect_api import PrefectServer
from tasks.prefect_client import MARK, be_patient
from tasks.schedule_late import skip_if_late
from tasks.waiting import seconds_to_wait

P = ParamSpec("P")
R = TypeVar("R")
Config = TypeVar("Config", bound=FlowConfig)
Check = Callable[[Any], Any]


@dataclass(frozen=True)
class Checks:
    """What finds the faults of a flow's request; nothing is created.

    Attributes:
        first: raises RequestError; where it gives a configuration, that is the one to go on with.
        meanwhile: as well, and takes a while, in which a server of our own gets ready.
    """

    first: Check
    meanwhile: Check

    @classmethod
    def of(cls, flow: Flow[..., Any]) -> "Checks":
        """Those of a flow whose function is `prepared`."""
        found: Checks = flow.fn.checks  # type: ignore[attr-defined]
        return found

    def whole(self, config: Config) -> Config:
        """Give the configuration to go on with, or raise RequestError with its first fault."""
        config = self.quick(config)
        self.meanwhile(config)
        return config

    def quick(self, config: Config) -> Config:
        """The same without what takes a while."""
        services.check_tracking()
        found = self.first(config)
        return found if isinstance(found, type(config)) else config


def prepared(check: Check, meanwhile: Check = lambda config: None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let the runs that Prefect gives to a worker begin as those that are typed do, which it leaves alone."""
    checks = Checks(check, meanwhile)

    def decorate(work: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(work)
        def begin(*arguments: P.args, **parameters: P.kwargs) -> R:
            context = FlowRunContext.get()
            if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
                with signals.regained():
                    return work(*arguments, **parameters)
            assert isinstance(context.client, SyncPrefectClient), "no flow of ours is asynchronous"
            _begin_deployed(context.flow_run, context.client)
            checks.whole((context.parameters or {})["config"])
            return work(*arguments, **parameters)

        begin.checks = checks  # type: ignore[attr-defined]
        return begin

    return decorate


def typed(request: Request[Config], flow: Flow[..., Any], server: PrefectServer) -> NoReturn:
    """Do what was typed, and end the process: serve the flow, or check the request and run it once."""
    checks = Checks.of(flow)

    def work(config: Config) -> Any:
        if request.serving.serve:
            from tasks.schedule_serve import serve  # Prefect's runner takes a tenth of a second to import

            serve(flow, checks.whole(config), request.serving, server)
        config = checks.quick(config)
        server.release()
        checks.meanwhile(config)
        with server.ready():
            return flow(config)

    command_line.run(request, flow.name, work)


def _begin_deployed(run: FlowRun, client: SyncPrefectClient) -> None:
    """Do for a deployed run what the command line does for a typed one; one that its policy skips ends here."""
    services.prepare_environment(quiet=False)
    be_patient(client, str(client.api_url), seconds_to_wait())
    skip_if_late(run, datetime.now(UTC), client)
    # By this a later start can tell that the run's process is gone, where its worker went as well.
    client.update_flow_run(run.id, tags=[*run.tags, f"{MARK}{ProcessIdentity.own().spelled}"])
