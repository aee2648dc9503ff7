"""Processes that work beside this one, and end with it on every path."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from loky import ProcessPoolExecutor
from loky.backend import get_context

SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def processes(count: int, *, torch: bool = True) -> Iterator[Executor]:
    """Start processes for a block; what still runs where it is left by an exception is killed.

    The standard library's own would import the flow's file again in each process, with Prefect and MLflow; loky's
    import only what a job needs.
    """
    pool = ProcessPoolExecutor(count, context=get_context("loky"), initializer=_begin, initargs=(os.getpid(), torch))
    try:
        _boot(pool)
        yield pool
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise
    pool.shutdown()


def _boot(pool: Executor) -> None:
    """Start the processes with Ctrl-C ignored, which they inherit: until `_begin` they would die of it, loudly."""
    if threading.current_thread() is not threading.main_thread():
        return  # nobody else may change it
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool.submit(int)
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(owner: int, with_torch: bool) -> None:
    """Leave Ctrl-C to the owner, use one core, and end when the owner is gone, however that came."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if with_torch:
        import torch

        torch.set_num_threads(1)
