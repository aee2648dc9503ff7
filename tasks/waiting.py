"""How long a service is waited for, and who is told of it. Light to import."""

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fourfold.errors import RequestError

SECONDS_TO_WAIT = "FOURFOLD_SECONDS_TO_WAIT"
SECONDS_OF_SILENCE = 15  # after which a wait is explained


def seconds_to_wait() -> float:
    """How long a service that is away or locked is waited for: `FOURFOLD_SECONDS_TO_WAIT`, else ten minutes.

    Raises:
        RequestError: it is no number of seconds.
    """
    given = os.environ.get(SECONDS_TO_WAIT) or "600"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise RequestError(f"{SECONDS_TO_WAIT}={given} is no number of seconds; give 0 or more, or unset it for 600")
    return seconds


@contextmanager
def told_after(seconds: float, line: str) -> Iterator[None]:
    """Print a line on standard error where the block takes longer than that."""
    timer = threading.Timer(seconds, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
