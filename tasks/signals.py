"""Ctrl-C and SIGTERM: how they end the process, from its first line to its last. Light to import."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_RAISE_AGAIN = 0.01
_raised: list[int] = []
_waiting: list[int] = []  # at most one
_blocks: list[None] = []  # that hold it back, one inside the other


def end_at_once() -> None:
    """Let them end the process: while the imports run nothing is there to be closed, and these catch exceptions."""
    _handle(_end)


def become_exceptions() -> None:
    """Let them raise KeyboardInterrupt and SystemExit from here on."""
    _raised.clear()
    _waiting.clear()
    _handle(_raise)
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
def held_back() -> Iterator[None]:
    """Let an interrupt wait for the end of a block that is short, and must not be left in the middle."""
    if threading.current_thread() is not threading.main_thread():  # the others hear none
        yield
        return
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()
        if not _blocks and _waiting:
            _raise(_waiting.pop(), None)


@contextmanager
def uncovered() -> Iterator[None]:
    """Let an interrupt leave the block as what it was, where a library raised an exception of its own on its way."""
    try:
        yield
    except Exception as error:
        if _raised:
            raise _interrupt(_raised[0]) from error
        raise


def raise_again() -> None:
    """Raise an interrupt once more that was lost on its way."""
    if _raised:
        raise _interrupt(_raised[0])


def _handle(handler: object) -> None:
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a process in the background may be started so
            signal.signal(number, handler)  # type: ignore[arg-type]


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
