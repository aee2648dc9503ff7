"""How a flow talks to Prefect's server, which may be busy, restart, or be gone for good."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import SyncClientContext, TagsContext, tags
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from fourfold.errors import ServiceError
from fourfold.processes import ProcessIdentity
from tasks.waiting import SECONDS_OF_SILENCE, told_after

MARK = "fourfold-process:"  # how the tag of a flow run begins that says which process runs it
SECONDS_BETWEEN_TRIES = 1.0
SECONDS_OF_THE_INTERRUPTED = 1.5
SECONDS_TO_FLUSH = 20
BUSY = 503  # what Prefect's server answers where its database is locked, or was lost in the middle of a request
FAULT = 500  # and what it answers where a database server is away, as to a fault of its own
FINAL_STATES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class PatientTransport(httpx.BaseTransport):
    """Sends each request until it is answered, or until there is nothing left to wait for.

    Prefect's own client gives up after a minute, and the engine then throws the flow's result away. Here a final
    state that could not be told is taken as told, with a warning: the work was done, and the next start of a flow
    puts Prefect right.

    Attributes:
        alive: False where a server of our own has died.
        lost: it was waited for in vain once; from then on each request is tried once.
    """

    def __init__(self, inner: httpx.BaseTransport, address: str, seconds: float, alive: Callable[[], bool]) -> None:
        self.inner = inner
        self.address = address
        self.seconds = seconds
        self.alive = alive
        self.lost = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it, and wait for a server that is away or busy.

        Raises:
            ServiceError: it was waited for in vain.
        """
        # The engine tells how an interrupted run ended while it handles the interrupt: that must not take long.
        hurried = is_interrupt(sys.exc_info()[1])
        if hurried:
            limits = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS_OF_THE_INTERRUPTED)
            request.extensions["timeout"] = limits  # Prefect gives a server that hangs a minute
        # Prefect's server itself waits a minute for a database that is locked, before it says that it is busy.
        silent = (
            f"Prefect's server at {self.address} has not answered for {SECONDS_OF_SILENCE} s: its database may be "
            "locked; waiting for it"
        )
        began, waiting, faults = time.monotonic(), False, 0
        while True:
            try:
                with told_after(SECONDS_OF_SILENCE, silent):
                    answer = self.inner.handle_request(request)
            except httpx.TransportError as error:
                reason = f"does not answer ({str(error) or type(error).__name__})"
            else:
                faults += answer.status_code == FAULT
                # What is a fault of the server itself stays one while its database is there.
                away = answer.status_code == FAULT and (faults == 1 or not self._is_ready(request))
                if answer.status_code != BUSY and not away:
                    if waiting:
                        _tell(f"Prefect's server answers again, after {time.monotonic() - began:.0f} s")
                    return answer
                answer.close()
                reason = (
                    "answers with a fault: its database may be away"
                    if away
                    else "is busy: its database is locked or restarts"
                )
            in_vain = time.monotonic() - began + SECONDS_BETWEEN_TRIES > self.seconds
            if hurried or self.lost or in_vain or not self.alive():
                self.lost = self.lost or not hurried
                return self._untold(request, reason)
            if not waiting:
                _tell(f"Prefect's server at {self.address} {reason}; waiting for it, {self.seconds:g} s at most")
            waiting = True
            time.sleep(SECONDS_BETWEEN_TRIES)

    def _is_ready(self, request: httpx.Request) -> bool:
        """Whether the server reaches its database, asked with the patience of a request that it answered."""
        try:
            answer = self.inner.handle_request(
                httpx.Request("GET", f"{self.address}/ready", extensions=request.extensions)
            )
        except httpx.TransportError:
            return False
        answer.close()
        return answer.status_code != BUSY

    def _untold(self, request: httpx.Request, reason: str) -> httpx.Response:
        if request.url.path.endswith("/set_state"):
            state = json.loads(request.content)["state"]
            if state["type"] in FINAL_STATES:
                _tell(
                    f"warning: Prefect's server at {self.address} {reason}: it was not told that the run ended as "
                    f"{state['type'].lower()}; the next start of a flow puts that right"
                )
                told = {"state": state, "status": "ACCEPT", "details": {"type": "accept_details"}}
                return httpx.Response(201, json=told, request=request)
        raise ServiceError(f"Prefect's server at {self.address} {reason}")

    def close(self) -> None:
        """Close the connections."""
        self.inner.close()


def be_patient(
    client: SyncPrefectClient, address: str, seconds: float, alive: Callable[[], bool] = lambda: True
) -> PatientTransport:
    """Let a client wait for Prefect's server from now on."""
    http = client._client
    # Wrapped once they are made, with the proxies and certificates that Prefect's settings ask for.
    transport = PatientTransport(http._transport, address, seconds, alive)
    http._transport = transport
    for pattern, mounted in http._mounts.items():
        if mounted is not None:
            http._mounts[pattern] = PatientTransport(mounted, address, seconds, alive)
    return transport


@contextmanager
def patient_client(address: str, seconds: float, alive: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Let flows in the block use a client that waits for Prefect's server, and mark their runs as this process's."""
    with SyncClientContext() as context, tags(f"{MARK}{ProcessIdentity.own().spelled}"):
        transport = be_patient(context.client, address, seconds, alive)
        interrupted = False
        try:
            yield
        except BaseException as error:
            interrupted = is_interrupt(error)
            raise
        finally:
            # What is still to be sent is sent here, where the wait has an end: at the interpreter's exit it has none.
            if not (interrupted or transport.lost):
                APILogWorker.drain_all(timeout=SECONDS_TO_FLUSH)
                EventsWorker.drain_all(timeout=SECONDS_TO_FLUSH)


@contextmanager
def without_mark() -> Iterator[None]:
    """Take the mark off what the block makes: Prefect would ask its server about the tags of each task run."""
    others = {tag for tag in TagsContext.get().current_tags if not tag.startswith(MARK)}
    with TagsContext(current_tags=others):
        yield


def is_interrupt(error: BaseException | None) -> bool:
    """Whether somebody asked for the end: Ctrl-C, SIGTERM."""
    return error is not None and not isinstance(error, Exception)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
