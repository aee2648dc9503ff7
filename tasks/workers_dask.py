"""Dask's workers: a cluster of this machine that ends with the block, or somebody's that is left as it was.

The owner alone talks to MLflow and Prefect; what a worker gets is a function and its arguments. This module is imported
by workers as well, and in each of this machine's it ends them with their owner.
"""

import asyncio
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import dask
from distributed import Client, KilledWorker, Scheduler, Security, SpecCluster, get_worker
from distributed.comm import connect
from distributed.versions import VersionMismatchWarning

from fourfold.errors import FourfoldError, RequestError, ServiceError, first_line
from fourfold.processes import temporary_folder
from tasks.waiting import SECONDS_OF_SILENCE, SECONDS_TO_WAIT, seconds_to_wait
from tasks.workers import Job, Needs, Workers

OF_THIS_MACHINE = "dask"
SECONDS_TO_ANSWER = 5
SECONDS_TO_BOOT = 60
SECONDS_TO_LEAVE = 2
MOST_DEATHS = 2  # of workers that a job may survive
_OURS = ("fourfold", "tasks", "models")
# Dask looks at itself a hundred times a second and more, and takes Python's lock from the work for it: 4 % of the time
# of trainings one by one.
_CALM = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
_SETTINGS = {
    **_CALM,
    "distributed.scheduler.http.routes": [],
    "distributed.comm.timeouts.connect": f"{SECONDS_TO_ANSWER}s",
    "distributed.admin.large-graph-warning-threshold": "1TB",  # a job has its rows with it
}
_SETTINGS_OF_WORKERS = {
    **{f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": str(value) for name, value in _CALM.items()},
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    # Read when the libraries are imported: a worker for each core, and a thread for each worker.
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}


def check(asked: str, needs: Needs) -> None:
    """Raise RequestError where the cluster does not answer, or has no workers, or some that are not as this process."""
    if asked != OF_THIS_MACHINE:
        with dask.config.set(_SETTINGS), _quiet(), _connected(asked) as client:
            _check_all(client, asked, needs)


@contextmanager
def cluster(asked: str, count: int, needs: Needs) -> Iterator[Workers]:
    """A cluster's workers for a block; what they still do at its end is cancelled.

    Args:
        asked: `dask` for one of this machine, or `dask://HOST:PORT`.
        count: of this machine's workers.
    """
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        stack.enter_context(_quiet())
        if asked == OF_THIS_MACHINE:
            client, is_alive = stack.enter_context(_begun(count))
        else:
            client, is_alive = stack.enter_context(_connected(asked)), lambda: True
            _check_all(client, asked, needs)
        executor = client.get_executor(pure=False)
        yield Workers(
            partial(executor.submit, _as_here, installed(needs), needs),
            _Count(client, asked, is_alive),
            partial(_explain, asked),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Dask logs off the terminal: what a person needs is raised or told."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # `_check_all` refuses what matters
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _connected(asked: str) -> Iterator[Client]:
    """Connect to somebody's scheduler, by TLS where Dask's own settings ask for it."""
    security = Security()
    address = f"{'tls' if security.require_encryption else 'tcp'}://{asked.partition('://')[2]}"
    try:
        with ThreadPoolExecutor(1) as beside:  # an event loop may run in this thread
            beside.submit(asyncio.run, _greet(address, security)).result()
        client = Client(address, security=security, timeout=SECONDS_TO_ANSWER, set_as_default=False)
    except Exception as error:  # whatever there is may answer anything
        raise RequestError(
            f"--workers {asked} does not answer as a Dask scheduler: {first_line(error)}; start one there "
            "(docs/scaling.md), or take --workers dask for this machine alone"
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=SECONDS_TO_LEAVE)


async def _greet(address: str, security: Security) -> None:
    """Exchange greetings: Dask's client would wait for ever for those of something else that listens there."""
    comm = connect(address, timeout=SECONDS_TO_ANSWER, **security.get_connection_args("client"))
    (await asyncio.wait_for(comm, SECONDS_TO_ANSWER)).abort()


@contextmanager
def _begun(count: int) -> Iterator[tuple[Client, Callable[[], bool]]]:
    """A scheduler in this process and workers beside it, which nobody but this process can talk to."""
    security = Security.temporary()
    with ExitStack() as stack:
        folder = temporary_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(dask.config.set({"temporary-directory": str(folder)}))
        options = {"host": "127.0.0.1", "port": 0, "protocol": "tls://", "security": security}
        options |= {"dashboard": False, "dashboard_address": "127.0.0.1:0", "allowed_failures": MOST_DEATHS}
        scheduler = SpecCluster(
            {}, scheduler={"cls": Scheduler, "options": options}, security=security, silence_logs=False
        )
        stack.callback(scheduler.close, timeout=SECONDS_TO_LEAVE)
        client = Client(scheduler.scheduler_address, security=security, set_as_default=False)
        stack.callback(client.close, timeout=SECONDS_TO_LEAVE)
        log = stack.enter_context(tempfile.TemporaryFile())
        process = _start_workers(scheduler.scheduler_address, count, security, folder, log)
        stack.callback(_end, process)
        deadline = time.monotonic() + SECONDS_TO_BOOT
        while not client.nthreads():
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                words = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise ServiceError(f"Dask's workers did not start: {words[-1]}")
            time.sleep(0.05)
        yield client, lambda: process.poll() is None


def _start_workers(
    address: str, count: int, security: Security, folder: Path, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start Dask's own command, which starts each worker again that dies.

    Dask's LocalCluster would import the flow's file in each worker, with Prefect and MLflow. A session of their own
    leaves Ctrl-C to the owner.
    """
    files = {"ca-file": security.tls_ca_file, "cert": security.tls_worker_cert, "key": security.tls_worker_key}
    options = []
    for name, text in files.items():
        (folder / f"{name}.pem").write_text(text)
        options += [f"--tls-{name}", str(folder / f"{name}.pem")]
    return subprocess.Popen(
        [
            sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", str(count), "--nthreads", "1",
            "--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--memory-limit", "0",
            "--local-directory", str(folder), "--preload-nanny", __name__, *options,
        ],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, **_SETTINGS_OF_WORKERS, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )  # fmt: skip


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def dask_setup(_nanny: Any) -> None:
    """Called by Dask in the process that starts this machine's workers: all of them end when the owner has.

    By themselves they would first finish what they do, up to half a minute.
    """

    def watch() -> None:
        os.read(0, 1)  # the owner writes nothing; the pipe ends with it
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class _Count:
    """How many workers there are; without one they are waited for as the other services are."""

    def __init__(self, client: Client, asked: str, is_alive: Callable[[], bool]) -> None:
        self.client, self.asked, self.is_alive = client, asked, is_alive
        self.last, self.told = time.monotonic(), False

    def __call__(self) -> int:
        try:
            count = len(self.client.nthreads())
        except (OSError, ValueError, RuntimeError, CancelledError) as error:
            raise _gone(self.asked) from error
        if not self.is_alive():
            raise ServiceError("the process that starts Dask's workers was killed; start the flow again")
        now, limit = time.monotonic(), seconds_to_wait()
        if count:
            self.last, self.told = now, False
        elif now - self.last > limit:
            raise ServiceError(
                f"--workers {self.asked} has had no worker for {limit:g} s ({SECONDS_TO_WAIT} says how long): "
                "start some, and the flow again"
            )
        elif not self.told and now - self.last > SECONDS_OF_SILENCE:
            print(f"--workers {self.asked} has no worker: waiting for one", file=sys.stderr, flush=True)
            self.told = True
        return count


def _explain(asked: str, error: BaseException, job: Job[Any]) -> FourfoldError | None:
    if isinstance(error, KilledWorker):
        return ServiceError(
            f"{job.name} ended each of the {error.allowed_failures + 1} workers that it was given to: most often it "
            "needs more memory than there is"
        )
    return _gone(asked) if isinstance(error, CancelledError) else None


def _gone(asked: str) -> ServiceError:
    return ServiceError(
        f"the scheduler of --workers {asked} went away, and with it what its workers did; start the flow again when "
        "it is back"
    )


def _check_all(client: Client, asked: str, needs: Needs) -> None:
    threads: dict[str, int] = client.nthreads()
    if not threads:
        raise RequestError(
            f"--workers {asked} has no workers; start some: dask worker {asked.partition('://')[2]} --nthreads 1 "
            "--nworkers CORES"
        )
    here = installed(needs)
    found = client.run(installed, needs, on_error="return")
    for address, there in sorted(found.items()):
        if isinstance(there, BaseException):
            raise RequestError(
                f"worker {address} cannot load this fourfold: {first_line(there)}; start it where the same version is "
                "installed"
            )
        if fault := _difference(here, there, threads.get(address, 1)):
            raise RequestError(f"worker {address} {fault}")


def _difference(here: Mapping[str, str], there: Mapping[str, str], threads: int) -> str:
    """Say what of a worker is not as it must be; empty where nothing is."""
    for name, version in here.items():
        if there.get(name) != version:
            return f"has {name} {there.get(name)}, and this process {version}; give both the same"
    # Trainings that draw would take each other's draws, and all would share one core's threads.
    return "" if threads == 1 else f"has {threads} threads; start it with --nthreads 1, and as many --nworkers as cores"


@lru_cache(maxsize=4)
def installed(needs: Needs) -> Mapping[str, str]:
    """What decides the bits of a result in this process, by name: versions, and the source of our own code."""
    found = {"python": platform.python_version(), "processor": platform.machine()}
    for name in (*needs.packages, "distributed"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    found["fourfold"] = f"of source {_hash_of(*_OURS)}"
    if needs.module:
        found[needs.module] = f"of source {_hash_of(needs.module.partition('.')[0])}"
    return found


def _hash_of(*packages: str) -> str:
    """Twelve digits that stand for the text of modules, or of all that packages hold."""
    digest = hashlib.sha256()
    for package in packages:
        found = importlib.util.find_spec(package)
        if found is None or not found.origin:
            return "none"
        root = Path(found.origin)
        files = sorted(root.parent.rglob("*.py")) if found.submodule_search_locations else [root]
        for file in files:
            digest.update(f"{file.relative_to(root.parent)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _as_here(here: Mapping[str, str], needs: Needs, function: Callable[..., Any], *arguments: Any) -> Any:
    """Do a job, where this worker is as its owner is: it may have come after the owner looked."""
    worker = get_worker()
    if fault := _difference(here, installed(needs), worker.state.nthreads):
        raise ServiceError(f"worker {worker.address}, which came later, {fault}")
    return function(*arguments)
