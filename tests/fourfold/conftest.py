"""What the tests of the engine share."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of such small products a second thread only waits, for milliseconds where another process has its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def threads_end() -> Callable[[], bool]:
    """Whether all threads that the test began are gone, now or soon."""
    before = set(threading.enumerate())

    def ask() -> bool:
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=5)
        return set(threading.enumerate()) <= before

    return ask
