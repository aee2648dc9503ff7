"""Waits for MLflow while it is away or locked: a server's restart, or another writer, costs time and not the run."""

import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from fourfold.errors import ServiceError, first_line
from tasks import services, signals
from tasks.addresses import without_password
from tasks.waiting import SECONDS_TO_WAIT, seconds_to_wait

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0  # seconds between two tries
# MLflow lets SQLite wait for a lock for 20 s, in C, where no signal is heard: the longer waiting is done here.
MILLISECONDS_IN_SQLITE = 1000
# Of one try, where nobody waits for the answer much longer.
SECONDS_OF_A_REQUEST, SECONDS_OF_A_HURRIED_REQUEST = 30, 1
# What makes another one each time it is called: whoever calls it looks first for what an earlier try has left.
_MAKES_ANOTHER = frozenset({"create_run", "create_logged_model", "create_model_version", "log_outputs"})

_TEMPORARY = frozenset({"TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED"})
_LOCKED = re.compile(r"database (\w+ )?is (locked|busy)")
# MLflow hands on what requests and urllib3 say as text alone.
_AWAY = re.compile(
    r"Caused by (NewConnection|ConnectTimeout|NameResolution|ReadTimeout|Protocol)Error|timeout exception"
    r"|Connection (aborted|broken|refused|reset)|[Tt]imed out|too many (429|502|503|504) error responses"
)
# What a server answers to a request in the middle of which its database went away, and to a fault of its own. In the
# first case the next tries tell: they get 503, or succeed.
_FAULT = re.compile(r"too many 500 error responses")
MOST_FAULTS = 5  # in three seconds
# How a server tells that two looked for something at once and both made it: another try finds the first one's.
_OVERTAKEN = re.compile(r"BAD_REQUEST: \((psycopg2?\.errors\.UniqueViolation\)|sqlite3\.IntegrityError\) UNIQUE)")
_NO_ROOM = re.compile(r"disk is full|No space left|disk full|[Rr]ead-only|readonly", re.IGNORECASE)

Answer = TypeVar("Answer")
_limit: ContextVar[float | None] = ContextVar("limit", default=None)
_repeated: ContextVar[bool] = ContextVar("repeated", default=False)


class PatientClient(MlflowClient):
    """A client whose every call is tried again while the store is away or locked."""

    def __getattribute__(self, name: str) -> Any:
        member = super().__getattribute__(name)
        if name.startswith("_") or not callable(member):
            return member

        @functools.wraps(member)
        def call(*arguments: Any, **options: Any) -> Any:
            assert _repeated.get() or name not in _MAKES_ANOTHER, f"{name} makes another one each time: look first"
            return patiently(store_name(self.tracking_uri), lambda: member(*arguments, **options))

        return call


def patiently(what: str, work: Callable[[], Answer]) -> Answer:
    """Do some work with the store, again and again while `what` is away or locked.

    The work must leave the same where it is done twice: a try that failed may have been the answer that was lost.
    Of calls inside each other the outermost is repeated, as a whole.

    Raises:
        ServiceError: it did not come back within `FOURFOLD_SECONDS_TO_WAIT`.
    """
    if _repeated.get():
        return work()
    inside = _repeated.set(True)
    try:
        return _again_and_again(what, work)
    finally:
        _repeated.reset(inside)


@contextlib.contextmanager
def hurry(seconds: float) -> Iterator[None]:
    """Wait no longer than this in the block, in silence, all its calls together."""
    before = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(SECONDS_OF_A_HURRIED_REQUEST)
    # Kept back: the last try of one call, and the only one of the next.
    limit = _limit.set(time.monotonic() + seconds - 2 * SECONDS_OF_A_HURRIED_REQUEST)
    try:
        yield
    finally:
        _limit.reset(limit)
        if before is None:
            del os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        else:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: the store is away, or another one writes."""
    if _is_overtaken(error):
        return True
    # Behind this, SQLAlchemy tells what was to be written: names and reasons of anybody.
    text = str(error).partition("\n[SQL: ")[0]
    code = getattr(error, "error_code", "INTERNAL_ERROR")  # of an MlflowException
    if code not in _TEMPORARY | {"INTERNAL_ERROR"} or _NO_ROOM.search(text):
        return False
    if "(sqlite3." in text:
        return bool(_LOCKED.search(text))
    return code in _TEMPORARY or bool(_LOCKED.search(text) or _AWAY.search(text))


def store_name(uri: str) -> str:
    """How people are told of a store: by its address, without a password."""
    return f"MLflow at {without_password(uri)}"


def _is_overtaken(error: Exception) -> bool:
    return isinstance(error, MlflowException) and _OVERTAKEN.match(str(error)) is not None


def _again_and_again(what: str, work: Callable[[], Answer]) -> Answer:
    began, pause, told, faults = time.monotonic(), FIRST_PAUSE, False, 0
    hurried = _limit.get()
    limit = began + seconds_to_wait() if hurried is None else hurried
    # SQLAlchemy leaves the cursor of a write that is interrupted in some frame, and with it SQLite's lock: the run
    # could not even be closed. A write to a file is short.
    whole = signals.held_back if services.sqlite_file(services.tracking_uri()) else contextlib.nullcontext
    while True:
        try:
            with whole():
                answer = work()
            break
        except Exception as error:
            fault = _FAULT.search(str(error)) is not None
            faults += fault
            if not may_pass(error) and not (fault and faults <= MOST_FAULTS):
                raise
            overtaken = _is_overtaken(error)
            state = "is locked" if overtaken or _LOCKED.search(str(error)) else "does not answer"
            if time.monotonic() + pause > limit:
                waited = f"and was waited for {time.monotonic() - began:.3g} s"
                raise ServiceError(
                    f"{what} {state}, {waited} ({SECONDS_TO_WAIT} says how long): {first_line(error)}"
                ) from error
        if not told and hurried is None and not (overtaken and pause == FIRST_PAUSE):
            _tell(f"{what} {state}: waiting; the run goes on when it is back, and Ctrl-C is safe")
            told = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    if told:
        _tell(f"{what} is back after {time.monotonic() - began:.0f} s")
    return answer


def _tell(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone is no fault of the run
        print(line, file=sys.stderr, flush=True)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _leave_waiting_to_us(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
) -> tuple[str, Any]:
    if statement.startswith("PRAGMA busy_timeout"):
        statement = f"PRAGMA busy_timeout = {MILLISECONDS_IN_SQLITE}"
    return statement, parameters
