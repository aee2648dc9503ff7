"""What all Prefect tasks here have in common."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from tasks import signals

P = ParamSpec("P")
R = TypeVar("R")


def step(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a Prefect task.

    Values are handed on in memory: a cache key over tensors would differ every time, and cost their hashing.
    """

    def decorate(work: Callable[P, R]) -> Task[P, R]:
        @wraps(work)
        def begin(*arguments: P.args, **named: P.kwargs) -> R:
            signals.raise_again()
            return work(*arguments, **named)

        return task(cache_policy=NO_CACHE, persist_result=False, **options)(begin)

    return decorate
