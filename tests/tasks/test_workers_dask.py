"""Dask's workers: the same bits as without them, and what happens when they, or their scheduler, go."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("distributed", reason="the extra dask is not installed")

import dask
from distributed import Client, LocalCluster, Security

from fourfold.comparison import contestants
from fourfold.configuration import CompareConfig, PredictConfig
from fourfold.errors import RequestError, ServiceError
from fourfold.onnx_file import ExportedModel
from fourfold.population import Members
from tasks import compare, predict, workers_dask
from tasks.compare import pose, train_members
from tasks.make_data import load
from tasks.predict import predict as predict_step
from tasks.predict import prepare
from tasks.waiting import SECONDS_TO_WAIT
from tasks.workers import Job, Needs, Workers, check_workers, workers

ROOT = Path(__file__).parents[2]
NEEDS = Needs(("torch", "numpy"), torch=True)
SECONDS_TO_BE_GONE = 5


def here_and_below() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Workers]:
    """Two workers of this machine, for all tests here that leave them as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 2)
        with workers("dask", 2, NEEDS) as opened:
            yield opened


@pytest.fixture
def lent(cluster: Workers, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the steps use that cluster; gives how many jobs could have something to do."""
    asked: list[int] = []

    @contextmanager
    def lend(_: Any, most: int, __: Needs) -> Iterator[Workers]:
        asked.append(most)
        yield cluster

    monkeypatch.setattr(compare, "workers", lend)
    monkeypatch.setattr(predict, "workers", lend)
    return asked


def one(cluster: Workers, work: Callable[[], Any], name: str = "a job") -> Any:
    ((_, result),) = cluster.results([Job(name, work)])
    return result


class TestOfThisMachine:
    def test_two_processes_do_the_jobs_and_results_come_in_their_order(self, cluster: Workers) -> None:
        nap = "(__import__('time').sleep(0.05), __import__('os').getpid())[1]"
        found = list(cluster.results([Job(str(n), partial(eval, nap)) for n in range(8)], in_order=True))
        assert [number for number, _ in found] == list(range(8))
        assert len({pid for _, pid in found}) == 2
        assert os.getpid() not in {pid for _, pid in found}

    def test_each_has_one_thread_of_torch_and_of_the_libraries_below_it(self, cluster: Workers) -> None:
        import torch

        assert one(cluster, torch.get_num_threads) == 1
        assert one(cluster, partial(eval, "__import__('os').environ['OMP_NUM_THREADS']")) == "1"

    def test_all_listen_on_loopback_alone(self, cluster: Workers) -> None:
        found = [
            connection.laddr.ip
            for process in here_and_below()
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert found
        assert set(found) == {"127.0.0.1"}

    def test_nobody_without_its_key_can_hand_in_work(self, cluster: Workers) -> None:
        address = one(cluster, partial(eval, "__import__('distributed').get_worker().scheduler.address"))
        assert address.startswith("tls://")
        with pytest.raises(OSError, match=r"(?i)ssl|certificate|timed out|verif"):
            Client(address, security=Security.temporary(), timeout=1, set_as_default=False)

    def test_a_fault_comes_back_as_itself(self, cluster: Workers) -> None:
        with pytest.raises(ZeroDivisionError):
            one(cluster, partial(divmod, 1, 0))


@contextmanager
def in_this_process(*_: Any) -> Iterator[Workers]:
    def submit(_: Any, work: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work())
        return future

    yield Workers(submit, lambda: 1, lambda error, job: None)


def compared(lent_to: Any) -> list[Any]:
    config = CompareConfig(
        optimizers="SGD,ASGD,LBFGS", budget=12, learning_rates=3, decades=4, seeds=5, lr=0.05, workers=lent_to
    )
    return list(train_members.fn(config, pose(config, load(config.training())), contestants(config.optimizers)))


class TestVersions:
    """Of real workers; it is this process whose versions are made up."""

    @pytest.fixture
    def client(self, cluster: Workers) -> Iterator[Client]:
        workers_dask.installed.cache_clear()
        yield cluster.submit.func.__self__._client  # type: ignore[attr-defined]
        workers_dask.installed.cache_clear()

    def test_the_same_ones_are_taken(self, client: Client) -> None:
        workers_dask._check_all(client, "dask", NEEDS)

    @pytest.mark.parametrize("name", ["torch", "numpy", "distributed"])
    def test_a_worker_with_another_package_is_refused_by_name(
        self, name: str, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda one: "0.0.1" if one == name else version(one))
        address = min(client.nthreads())
        said = rf"worker {address} has {name} {re.escape(version(name))}, and this process 0\.0\.1; give both the same"
        with pytest.raises(RequestError, match=said):
            workers_dask._check_all(client, "dask", NEEDS)

    def test_a_worker_with_another_python_is_refused_by_name(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platform, "python_version", lambda: "3.9.9")
        with pytest.raises(RequestError, match=r"worker tls://.* has python 3\.1.*, and this process 3\.9\.9"):
            workers_dask._check_all(client, "dask", NEEDS)

    @pytest.mark.parametrize("package", ["fourfold", "models", "tasks"])
    def test_a_worker_with_other_source_is_refused(
        self, package: str, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        changed = tmp_path / package
        shutil.copytree(ROOT / package, changed, ignore=shutil.ignore_patterns("__pycache__"))
        with (changed / "__init__.py").open("a") as file:
            file.write("# one more line\n")
        find = importlib.util.find_spec
        spec = importlib.util.spec_from_file_location(
            package, changed / "__init__.py", submodule_search_locations=[str(changed)]
        )
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == package else find(name))
        with pytest.raises(RequestError, match=r"has fourfold of source [0-9a-f]{12}, and this process of source"):
            workers_dask._check_all(client, "dask", NEEDS)

    def test_a_worker_without_a_module_of_the_users_own_is_refused(
        self, client: Client, own_modules: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "mynets.py").write_text("class Net: ...\n")
        sys.path.insert(0, str(tmp_path))
        with pytest.raises(RequestError, match=r"has mynets of source none, and this process of source [0-9a-f]{12}"):
            workers_dask._check_all(client, "dask", Needs((), "mynets"))


class TestSameBits:
    def test_a_comparison_is_that_of_one_process_bit_for_bit(
        self, lent: list[int], cluster: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compare, "SEEDS_ALONE", 2)
        monkeypatch.setattr(compare, "seeds_at_once", lambda problem, rates: 3)
        spread = compared("dask")
        assert lent == [4 * 3 + 2 + 2]
        monkeypatch.setattr(compare, "workers", in_this_process)
        for here, there in zip(compared(1), spread, strict=True):
            for field in fields(Members):
                if field.name != "seconds":
                    ours, theirs = getattr(here.members, field.name), getattr(there.members, field.name)
                    assert ours.dtype == theirs.dtype
                    assert ours.tobytes() == theirs.tobytes(), f"{here.label}: {field.name}"
        loaded = one(cluster, partial(eval, "sorted(__import__('sys').modules)"))
        assert not {"prefect", "mlflow", "flows"} & set(loaded)
        assert "torch" in loaded

    @pytest.mark.parametrize("form", ["parquet", "csv"])
    def test_predictions_of_a_folder_are_those_of_one_process_byte_for_byte(
        self, form: str, lent: list[int], linear_file: Callable[..., ExportedModel], notes: Any, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(predict, "PART_ROWS", 500)
        training = {"features": {"x": {"low": -1.0, "high": 1.0, "mean": 0.0, "deviation": 1.0}}}
        training["targets"] = {"y": {"low": -2.0, "high": 2.0, "mean": 0.0, "deviation": 2.0}}
        model = linear_file([[2.5]], [0.25], metadata={"training": json.dumps(training)})
        folder = rows_folder(tmp_path / "rows")
        made = []
        for asked in ("dask", None):
            output = tmp_path / f"{asked}.{form}"
            ready = prepare(
                PredictConfig(model=str(model.path), input=str(folder), output=str(output), keep="key", workers=asked)
            )
            made.append((predict_step.fn(ready, notes, tmp_path), output.read_bytes()))
        assert made[0] == made[1]
        assert len(list(ready.parts())) == 5, (
            "1,200 and 1,500 rows in groups of 200, at least 500 in all parts but the last"
        )
        assert lent == [5 + 2], "each file is hashed there as well"
        text = output.read_text().splitlines() if form == "csv" else []
        keys = [int(line.split(",")[0]) for line in text[1:]] if text else pq.read_table(output)["key"].to_pylist()
        assert keys == list(range(2700))

    def test_a_file_that_is_another_one_on_a_worker_is_told(
        self, lent: list[int], linear_file: Callable[..., ExportedModel], notes: Any, tmp_path: Path
    ) -> None:
        folder = rows_folder(tmp_path / "rows")
        output = tmp_path / "o.parquet"
        ready = prepare(
            PredictConfig(
                model=str(linear_file([[2.5]], [0.25]).path), input=str(folder), output=str(output), workers="dask"
            )
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fourfold.tables.TableFile.mark", property(lambda file: "another one"))  # in this process
            with pytest.raises(ServiceError, match=r"(a|b)\.parquet on .* is not the file that the flow looked at"):
                predict_step.fn(ready, notes, tmp_path)
        assert not output.exists()


class TestKilled:
    def test_a_killed_workers_job_is_done_again_elsewhere(self, cluster: Workers, tmp_path: Path) -> None:
        """The first that is given it dies of it, with the signal that nobody can catch."""
        mark = tmp_path / "mark"
        die = (
            f"__import__('os').mkdir({str(mark)!r}) or __import__('os').kill(__import__('os').getpid(), 9)"
            f" if not __import__('os').path.exists({str(mark)!r}) else 'done'"
        )
        others = [Job(str(n), partial(abs, -n)) for n in range(5)]
        found = list(cluster.results([Job("the victim", partial(eval, die)), *others], in_order=True))
        assert found == [(0, "done"), *((n + 1, n) for n in range(5))]

    def test_a_job_that_kills_each_worker_is_named_and_ends_the_work(self, cluster: Workers) -> None:
        with pytest.raises(ServiceError, match="the bomb ended each of the 3 workers that it was given to"):
            # Not the function itself: what coverage puts in its place cannot be sent.
            one(cluster, partial(eval, "__import__('os')._exit(1)"), "the bomb")
        assert one(cluster, partial(abs, -7)) == 7, "the others go on"


def rows_folder(folder: Path) -> Path:
    """Two files, whose names order otherwise than they were made, and a hidden one."""
    folder.mkdir()
    random, first = np.random.default_rng(0), 0
    for name, rows in (("a.parquet", 1200), ("b.parquet", 1500)):
        keys = np.arange(first, first + rows)
        values = random.normal(size=rows).astype(np.float32)
        pq.write_table(pa.table({"key": keys, "x": values}), folder / name, row_group_size=200)
        first += rows
    (folder / ".c.parquet").write_text("not yet whole")
    return folder


OWNER = """
import sys, time
from functools import partial
from tasks.workers import Job, Needs, workers

with workers("dask", 1, Needs(())) as pool:
    begun = pool.submit(lambda work: work(), partial(abs, -1)).result()
    print("begun", flush=True)
    list(pool.results([Job("busy", partial(exec, "while True: pass"))]))
"""


class TestAnOwnerThatEnds:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_takes_its_workers_along(
        self, number: signal.Signals, is_gone: Callable[[int], bool], tmp_path: Path
    ) -> None:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun: list[psutil.Process] = []
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "begun\n"
            begun = psutil.Process(owner.pid).children(recursive=True)
            assert begun
            time.sleep(0.5)  # until it is busy
            sent = time.monotonic()
            os.killpg(owner.pid, number)
            _, err = owner.communicate(timeout=SECONDS_TO_BE_GONE)
            _, alive = psutil.wait_procs(begun, timeout=SECONDS_TO_BE_GONE)
            assert alive == []
            assert time.monotonic() - sent < SECONDS_TO_BE_GONE
            if number == signal.SIGINT:
                assert err.splitlines()[-1] == "KeyboardInterrupt"
                assert list(tmp_path.iterdir()) == [], "no file stays"
        finally:
            for process in (owner, *begun):
                if process.pid and not is_gone(process.pid):
                    process.kill()


@contextmanager
def somebodys(count: int = 1, threads: int = 1) -> Iterator[tuple[LocalCluster, str]]:
    """A cluster as others start it, here in threads of this process, and how it is asked for."""
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(
            n_workers=count, threads_per_worker=threads, processes=False, host="127.0.0.1", protocol="tcp://",
            dashboard_address=None, silence_logs=60,
        ) as made,
    ):  # fmt: skip
        yield made, f"dask://{made.scheduler_address.removeprefix('tcp://')}"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestSomebodys:
    def test_it_is_used_and_left_without_our_work(self) -> None:
        with somebodys() as (made, asked):
            check_workers(asked, NEEDS)
            with workers(asked, 1, NEEDS) as pool:
                assert one(pool, partial(divmod, 7, 2)) == (3, 1)
            with pytest.raises(KeyboardInterrupt), workers(asked, 1, NEEDS) as pool:  # noqa: PT012
                for _ in range(20):
                    pool.submit(lambda work: work(), partial(time.sleep, 0.2))
                raise KeyboardInterrupt
            end = time.monotonic() + SECONDS_TO_BE_GONE
            while made.scheduler.tasks and time.monotonic() < end:
                time.sleep(0.05)
            assert not made.scheduler.tasks
            assert len(made.scheduler.workers) == 1

    def test_a_worker_that_comes_later_with_another_version_does_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with somebodys() as (_, asked), workers(asked, 1, NEEDS) as pool:
            expected = {"torch": "0.0.1"}
            monkeypatch.setattr(
                workers_dask, "_difference", lambda here, there, threads: f"has torch 2, and this {expected['torch']}"
            )
            with pytest.raises(ServiceError, match=r"worker tcp.*, which came later, has torch 2"):
                one(pool, partial(abs, -1))

    def test_a_worker_with_several_threads_is_refused(self) -> None:
        with somebodys(threads=2) as (_, asked), pytest.raises(RequestError, match=r"has 2 threads; .*--nthreads 1"):
            check_workers(asked, NEEDS)

    def test_a_cluster_without_workers_is_refused(self) -> None:
        with somebodys(0) as (_, asked), pytest.raises(RequestError, match="has no workers; start some: dask worker"):
            check_workers(asked, NEEDS)

    def test_where_the_last_worker_goes_others_are_waited_for_only_so_long(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(SECONDS_TO_WAIT, "1")
        with somebodys() as (made, asked), workers(asked, 1, NEEDS) as pool:
            made.scale(0)
            with pytest.raises(ServiceError, match="has had no worker for 1 s"):
                list(pool.results([Job(str(n), partial(abs, n)) for n in range(3)]))

    def test_what_is_cancelled_without_being_asked_for_is_the_schedulers_end(self) -> None:
        told = workers_dask._explain("dask://h:1", CancelledError(), Job("a job", int))
        assert isinstance(told, ServiceError)
        assert "the scheduler of --workers dask://h:1 went away" in str(told)

    def test_a_scheduler_that_goes_away_ends_the_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers_dask, "SECONDS_TO_ANSWER", 1)  # how long the client looks for it again
        with somebodys() as (made, asked), workers(asked, 1, NEEDS) as pool:
            under_way = pool.results([Job(str(n), partial(time.sleep, 0.3)) for n in range(50)])
            next(under_way)
            made.close(timeout=1)
            with pytest.raises(ServiceError, match=f"the scheduler of --workers {asked} went away"):
                list(under_way)


@pytest.mark.parametrize("listens", [False, True], ids=["nobody there", "something else there"])
def test_an_address_without_a_scheduler_is_refused_within_seconds(
    listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_dask, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listens:
            server.close()
        began = time.monotonic()
        with pytest.raises(
            RequestError, match=f"--workers dask://127.0.0.1:{port} does not answer as a Dask scheduler"
        ):
            check_workers(f"dask://127.0.0.1:{port}", NEEDS)
    assert time.monotonic() - began < 3
