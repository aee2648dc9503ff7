"""Ctrl-C and SIGTERM: how they end the process, from its first line to its last. Light to import."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_RAISE_AGAIN = 0.01
_heard: list[int] = []  # those that are exceptions in this process
_raised: list[int] = []
_waiting: list[int] = []  # at most one
_blocks: list[None] = []  # that hold it back: at most one, those inside it add nothing


def end_at_once() -> None:
    """Let them end the process: while the imports run nothing is there to be closed, and these catch exceptions."""
    _handle(_end)


def become_exceptions() -> None:
    """Let them raise KeyboardInterrupt and SystemExit from here on."""
    _raised.clear()
    _waiting.clear()
    _heard[:] = _handle(_raise)
    tell = sys.unraisablehook

    def raise_soon(lost: "sys.UnraisableHookArgs") -> None:
        # Python drops what is raised while a callback of its garbage runs.
        if _raised and issubclass(lost.exc_type, (KeyboardInterrupt, SystemExit)):
            signal.signal(signal.SIGALRM, lambda *_: _raise(_raised[0], None))
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_RAISE_AGAIN)
        else:
            tell(lost)

    sys.unraisablehook = raise_soon


def are_ignored() -> None:
    """Let them do nothing: the work has ended, and how is known; a signal could only spoil the telling."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def regained() -> Iterator[None]:
    """Hear SIGTERM in a flow's run as before it: Prefect puts a handler of its own there, which holds nothing back."""
    if signal.SIGTERM not in _heard or not _in_main_thread():
        yield
        return
    with _in_front():
        yield


@contextmanager
def held_back() -> Iterator[None]:
    """Let an interrupt wait for the end of a block that is short, and must not be left in the middle."""
    if _blocks or not _in_main_thread():  # the others hear none
        yield
        return
    _blocks.append(None)
    try:
        # Where a worker runs the flow, SIGTERM is Prefect's: so it tells a cancelled run from one that crashed.
        with _in_front():
            yield
    finally:
        _blocks.pop()
        if _waiting:
            signal.raise_signal(_waiting.pop())


@contextmanager
def uncovered() -> Iterator[None]:
    """Let an interrupt leave the block as what it was, where a library raised an exception of its own on its way."""
    try:
        yield
    except Exception as error:
        if interrupt := _interrupt(_raised[0]) if _raised else _termination_behind(error):
            raise interrupt from error
        raise


def raise_again() -> None:
    """Raise an interrupt once more that was lost on its way."""
    if _raised:
        raise _interrupt(_raised[0])


def _handle(handler: Callable[[int, FrameType | None], None]) -> Sequence[int]:
    """Let a handler hear them, and give those that it hears: what the process was started to ignore it ignores."""
    heard = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, handler)
    return heard


@contextmanager
def _in_front() -> Iterator[None]:
    """Let `_raise` hear in a block what another handler hears around it."""
    before = {number: other for number in NUMBERS if callable(other := signal.getsignal(number))}
    for number in before:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, other)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")  # a print could stand in the middle of another
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    if _blocks:
        _waiting[:] = [number]
        return
    _raised.append(number)
    raise _interrupt(number)


def _interrupt(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _termination_behind(error: BaseException | None) -> BaseException | None:
    """What Prefect has raised for a SIGTERM, where an exception was raised on its way."""
    from prefect.exceptions import TerminationSignal

    while error is not None:
        if isinstance(error, TerminationSignal):
            return TerminationSignal(error.signal)
        error = error.__context__
    return None
