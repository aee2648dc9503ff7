"""PostgreSQL, a Prefect server and an MLflow server as a team runs them, for a block."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from workplaces import clean_environment

PASSWORD = "open-sesame"  # of the database and of Prefect's API; nowhere to be read afterwards
SECONDS_TO_BOOT = 120
SECONDS_TO_STOP = 20


@cache
def why_not() -> str:
    """The reason why no PostgreSQL can be started here; empty where one can."""
    if _programs() is None:
        return "PostgreSQL is not installed: no initdb on the path or in /usr/lib/postgresql"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "psycopg2 is not installed: pip install -e '.[servers]'"
    if os.getuid() == 0 and _somebody() is None:
        return "PostgreSQL does not run as root, and there is neither a user postgres nor nobody"
    return ""


def _programs() -> Path | None:
    """The folder of initdb and postgres."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _somebody() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


@dataclass
class Postgres:
    """A cluster of its own, on loopback alone, which can be stopped and started."""

    folder: Path
    port: int
    _process: "subprocess.Popen[bytes] | None" = None
    _as: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["Postgres"]:
        # Not in pytest's folder: another user must reach it.
        folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        database = cls(folder, free_port())
        try:
            if os.getuid() == 0:
                somebody = _somebody()
                assert somebody is not None, "else the test is skipped"
                database._as = {"user": somebody.pw_uid, "group": somebody.pw_gid, "extra_groups": []}
                os.chown(folder, somebody.pw_uid, somebody.pw_gid)
            database._make()
            database.start()
            yield database
        finally:
            database.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self) -> None:
        word = self.folder / "password"
        word.write_text(PASSWORD)
        word.chmod(0o644)
        options = ["--username=owner", f"--pwfile={word}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        self._run("initdb", *options, "--no-sync", "-D", str(self.folder / "data")).wait(SECONDS_TO_BOOT)

    def _run(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        programs = _programs()
        assert programs is not None, "else the test is skipped"
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [str(programs / program), *arguments], cwd=self.folder, stdout=log, stderr=log, **self._as
            )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-D", str(self.folder / "data"), "-p", str(self.port), *options)
        until(lambda: self.query("postgres", "SELECT 1"), (self.folder / "postgres.log").read_text)

    def stop(self) -> None:
        """End its sessions and itself, as a restart of its service does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(SECONDS_TO_STOP)

    def address(self, database: str, driver: str = "psycopg2") -> str:
        return f"postgresql+{driver}://owner:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """What a statement gives; nothing where the database does not answer."""
        import psycopg2

        try:
            with contextlib.closing(
                psycopg2.connect(host="127.0.0.1", port=self.port, user="owner", password=PASSWORD, dbname=database)
            ) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(statement)
                    return list(cursor.fetchall()) if cursor.description else []
        except psycopg2.OperationalError:
            return []


@dataclass(frozen=True)
class Servers:
    """Where they answer, with user and password in each address."""

    postgres: Postgres
    mlflow: str
    prefect: str


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Start all three, and end them with the block."""
    with Postgres.running() as postgres, contextlib.ExitStack() as stack:
        for database in ("mlflow", "prefect"):
            postgres.query("postgres", f"CREATE DATABASE {database}")
        environment = clean_environment() | {
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_API_AUTH_STRING": f"me:{PASSWORD}",
            "PREFECT_API_DATABASE_CONNECTION_URL": postgres.address("prefect", "asyncpg"),
            "PREFECT_HOME": str(folder / "prefect-server"),
        }
        ports = {"mlflow": free_port(), "prefect": free_port()}
        mlflow = [
            "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", "1",
            "--backend-store-uri", postgres.address("mlflow"), "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        prefect = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports["prefect"]), "--no-ui"]
        for arguments in (mlflow, prefect):
            stack.enter_context(_served(arguments, folder, environment))
        health = {"mlflow": "health", "prefect": "api/health"}
        for name, path in health.items():
            url = f"http://127.0.0.1:{ports[name]}/{path}"
            until(lambda url=url: _answers(url), (folder / f"{name}.log").read_text)
        at = f"http://me:{PASSWORD}@127.0.0.1"
        yield Servers(postgres, f"{at}:{ports['mlflow']}", f"{at}:{ports['prefect']}/api")


@contextmanager
def _served(arguments: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, env=environment, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # it has processes of its own
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def until(holds: Callable[[], Any], told: Callable[[], str] = lambda: "") -> None:
    """Wait for something that another process brings about; where it does not, tell its log."""
    deadline = time.monotonic() + SECONDS_TO_BOOT
    while not holds():
        assert time.monotonic() < deadline, told()[-2000:]
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
