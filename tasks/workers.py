"""Jobs for processes, of this machine or of a Dask cluster: the same jobs and results, whoever does them.

A job is a function of values, and can be pickled. What is cut into which jobs is the request's alone, so that each
result is the same bits wherever it was computed, and results have numbers, so that it does not matter when.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fourfold.errors import FourfoldError, RequestError, ServiceError
from tasks.workers_processes import processes

SECONDS_BETWEEN_LOOKS = 0.5
MOST_HELD = 4  # results for each worker that wait for an earlier one, where they are wanted in order

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job(Generic[Result]):
    """What one worker does at a time.

    Attributes:
        name: for people, where it fails.
        work: that can be pickled, of a module that imports neither Prefect nor MLflow: each worker imports it.
    """

    name: str
    work: Callable[[], Result]


@dataclass(frozen=True)
class Needs:
    """What of a worker elsewhere must be as it is here.

    Attributes:
        packages: that are installed, by name.
        module: of the user's own code, empty where there is none.
        torch: whether processes of this machine load torch while they begin.
    """

    packages: tuple[str, ...]
    module: str = ""
    torch: bool = False


@dataclass(frozen=True)
class Workers:
    """An executor, and what has to be known of it.

    Attributes:
        submit: of the executor.
        count: how many jobs it does at a time, now; raises ServiceError where nobody is left to do one.
        explain: gives the foreseen error that one of the executor's own stands for, None for any other.
    """

    submit: Callable[..., Future[Any]]
    count: Callable[[], int]
    explain: Callable[[BaseException, Job[Any]], FourfoldError | None]

    def results(self, jobs: Iterable[Job[Result]], *, in_order: bool = False) -> Iterator[tuple[int, Result]]:
        """The number and the result of each job, as they end or in order.

        No more jobs are handed out than workers are there: a worker that dies then takes one job along, and that one is
        known. In order, few results wait for an earlier one, so that memory is bounded however many jobs there are.

        Raises:
            ServiceError: nobody could do a job.
        """
        coming = enumerate(jobs)
        running: dict[Future[Result], tuple[int, Job[Result]]] = {}
        ready: dict[int, Result] = {}
        given, more = 0, True
        while True:
            count = self.count()
            while more and len(running) < count and not (in_order and len(ready) + len(running) >= MOST_HELD * count):
                if (begun := next(coming, None)) is None:
                    more = False
                    break
                running[self.submit(on_one_core, begun[1].work)] = begun
            if not running:
                if not more:
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)  # until a worker is there again
                continue
            for future in wait(running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done:
                number, job = running.pop(future)
                try:
                    ready[number] = future.result()
                except BaseException as error:
                    if foreseen := self.explain(error, job):
                        raise foreseen from error
                    raise
            if not in_order:
                yield from ready.items()
                ready = {}
            while given in ready:
                yield given, ready.pop(given)
                given += 1


def on_one_core(work: Callable[[], Result]) -> Result:
    """Do a job on one thread: there is a worker for each core."""
    if torch := sys.modules.get("torch"):  # loaded with the work, where it is needed
        torch.set_num_threads(1)
    return work()


@contextmanager
def workers(asked: int | str | None, most: int, needs: Needs) -> Iterator[Workers]:
    """Who does the jobs of a block: processes that end with it, or a cluster that is left as it was.

    Args:
        asked: as `--workers` takes it.
        most: that can have something to do.
    """
    if isinstance(asked, str):
        with _dask().cluster(asked, min(os.cpu_count() or 1, most), needs) as cluster:
            yield cluster
        return
    count = min(asked or os.cpu_count() or 1, most)
    with processes(count, torch=needs.torch) as pool:
        yield Workers(pool.submit, lambda: count, _explain)


def check_workers(asked: int | str | None, needs: Needs) -> None:
    """Raise RequestError where a cluster that was asked for is not there, or its workers are not as this process is."""
    if isinstance(asked, str):
        _dask().check(asked, needs)


def _explain(error: BaseException, job: Job[Any]) -> FourfoldError | None:
    if not isinstance(error, BrokenExecutor):
        return None
    return ServiceError(
        f"a process was killed, or had no memory left, while {job.name} was done; close what takes the memory, or take "
        "fewer --workers"
    )


def _dask() -> Any:
    try:
        from tasks import workers_dask
    except ModuleNotFoundError as error:
        raise RequestError(
            f"--workers dask needs Dask, and there is no {error.name}; install it: pip install fourfold[dask]"
        ) from error
    return workers_dask
