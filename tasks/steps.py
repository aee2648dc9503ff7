"""What all Prefect tasks here have in common."""

from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE

# Values are handed on in memory. A cache key over tensors would differ every time, and cost their hashing.
step = partial(task, cache_policy=NO_CACHE, persist_result=False)
