"""Processes that train beside this one: what they are, and that they end with it on every path."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import psutil
import pytest
import torch

from tasks.workers_processes import processes

ROOT = Path(__file__).parents[2]
SECONDS_TO_BE_GONE = 5
SECONDS_TO_BEGIN = 60


def trainers(owner: int) -> list[psutil.Process]:
    """The workers of a process; loky's tracker of semaphores lives as long as the process itself."""
    found = []
    for child in psutil.Process(owner).children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if "loky" in line and "resource_tracker" not in line:
            found.append(child)
    return found


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with processes(1) as opened:
        yield opened


class TestOfEach:
    def test_it_is_another_process(self, pool: Executor) -> None:
        assert pool.submit(os.getppid).result() == os.getpid()

    def test_it_uses_one_thread_of_torch(self, pool: Executor) -> None:
        assert pool.submit(torch.get_num_threads).result() == 1

    def test_this_process_keeps_its_own_threads(self, pool: Executor) -> None:
        before = torch.get_num_threads()
        pool.submit(torch.get_num_threads).result()
        assert torch.get_num_threads() == before

    def test_it_imports_neither_prefect_nor_mlflow_nor_this_file(self, pool: Executor) -> None:
        names = pool.submit(eval, "sorted(__import__('sys').modules)").result()
        assert not {"prefect", "mlflow", "pytest", "flows"} & set(names)
        assert "torch" in names

    def test_ctrl_c_is_left_to_the_owner(self, pool: Executor) -> None:
        (worker,) = (process for process in trainers(os.getpid()) if process.pid == pool.submit(os.getpid).result())
        running = pool.submit(time.sleep, 0.3)
        worker.send_signal(signal.SIGINT)
        assert running.result() is None
        assert pool.submit(signal.getsignal, signal.SIGINT).result() is signal.SIG_IGN

    def test_a_fault_comes_back_as_itself(self, pool: Executor) -> None:
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        assert pool.submit(divmod, 7, 2).result() == (3, 1), "the worker goes on"


class TestTheEnd:
    def test_they_end_with_the_block(self) -> None:
        before = {process.pid for process in trainers(os.getpid())}
        with processes(2) as pool:
            assert [future.result() for future in [pool.submit(abs, -n) for n in range(4)]] == [0, 1, 2, 3]
            begun = [process for process in trainers(os.getpid()) if process.pid not in before]
            assert 1 <= len(begun) <= 2
        _, alive = psutil.wait_procs(begun, timeout=SECONDS_TO_BE_GONE)
        assert alive == []

    @pytest.mark.parametrize("thrown", [ValueError, KeyboardInterrupt, SystemExit])
    def test_what_still_runs_is_killed_where_the_block_is_left_by_an_exception(
        self, thrown: type[BaseException]
    ) -> None:
        before = {process.pid for process in trainers(os.getpid())}
        begun: list[psutil.Process] = []
        with pytest.raises(thrown), processes(1) as pool:  # noqa: PT012 - what happens in the block counts
            pool.submit(abs, 1).result()
            begun += [process for process in trainers(os.getpid()) if process.pid not in before]
            pool.submit(time.sleep, 600)
            pool.submit(time.sleep, 600)
            left = time.monotonic()
            raise thrown("stop")
        assert time.monotonic() - left < SECONDS_TO_BE_GONE
        assert len(begun) == 1
        _, alive = psutil.wait_procs(begun, timeout=SECONDS_TO_BE_GONE)
        assert alive == []


OWNER = """
import os, time
from tasks.workers_processes import processes

with processes(2) as pool:
    busy = [pool.submit(*job) for job in {jobs}]
    {wait}
    print("begun", flush=True)
    time.sleep(600)
"""
BUSY = '[(time.sleep, 600), (exec, "while True: pass")]'


class TestAnOwnerThatIsKilled:
    @pytest.mark.parametrize(
        ("jobs", "wait"),
        [
            ("[(os.getpid,)] * 4", "[one.result() for one in busy]"),
            (BUSY, "while not all(one.running() for one in busy): time.sleep(0.02)"),
            (BUSY, "pass"),
        ],
        ids=["idle", "busy", "still beginning"],
    )
    def test_takes_its_workers_along(self, jobs: str, wait: str, is_gone: Callable[[int], bool]) -> None:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(jobs=jobs, wait=wait)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        begun: list[psutil.Process] = []
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "begun\n"
            begun = psutil.Process(owner.pid).children(recursive=True)
            assert len(trainers(owner.pid)) == 2
            owner.kill()
            owner.wait(timeout=SECONDS_TO_BE_GONE)
            wait_until(lambda: all(is_gone(process.pid) for process in begun), SECONDS_TO_BE_GONE)
        finally:
            for process in (owner, *begun):
                if process.pid and not is_gone(process.pid):
                    process.kill()
            owner.communicate()


INTERRUPTED = """
import time
from tasks.workers_processes import processes

with processes(1) as pool:
    job = pool.submit(abs, -7)
    print("begun", flush=True)
    print(job.result())
"""


def test_a_worker_that_is_still_beginning_leaves_ctrl_c_to_the_owner_as_well() -> None:
    """A terminal sends it to all processes of the group; a worker that dies of it fills the screen with tracebacks."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "begun\n"
        wait_until(lambda: len(trainers(owner.pid)) == 1, SECONDS_TO_BEGIN)
        trainers(owner.pid)[0].send_signal(signal.SIGINT)
        out, err = owner.communicate(timeout=SECONDS_TO_BEGIN)
    assert "Traceback" not in err
    assert (owner.returncode, out) == (0, "7\n")
