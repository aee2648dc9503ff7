"""PostgreSQL, a Prefect server and an MLflow server as a team runs them, for a block."""

import contextlib
import os
import pwd
import re
import shlex
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

from workplaces import ROOT, clean_environment

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
        until(lambda: self.query("postgres", "SELECT 1"), self.folder)

    def stop(self) -> None:
        """End its sessions and itself, as a restart of its service does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(SECONDS_TO_STOP)

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
    """Start all three, the last two as docs/shared-servers.md shows it, and end them with the block."""
    with Postgres.running() as postgres, contextlib.ExitStack() as stack:
        postgres.query("postgres", f"CREATE ROLE fourfold LOGIN PASSWORD '{PASSWORD}'")
        for database in ("mlflow", "prefect"):
            postgres.query("postgres", f"CREATE DATABASE {database} OWNER fourfold")
        mlflow, prefect = free_port(), free_port()
        here = {
            "127.0.0.1:5432": f"127.0.0.1:{postgres.port}",
            "PASSWORD": PASSWORD,
            "--port 5000": f"--port {mlflow} --workers 1",
            "--port 4200": f"--port {prefect} --no-ui",
            "/srv/mlflow": shlex.quote(str(folder / "artifacts")),
            ".venv/bin/": f"exec {shlex.quote(sys.executable)} -m ",
        }
        page = (ROOT / "docs" / "shared-servers.md").read_text()
        settings = re.findall(r"^    (export .*)$", page.partition("On each machine that")[0], flags=re.MULTILINE)
        for command in re.findall(r"^    (\S+ server .*)$", page, flags=re.MULTILINE):
            script = "\n".join([*settings, command])
            for shown, meant in here.items():
                script = script.replace(shown, meant)
            stack.enter_context(served(script, folder))
        until(lambda: answers(f"http://127.0.0.1:{mlflow}/health"), folder)
        until(lambda: answers(f"http://127.0.0.1:{prefect}/api/health"), folder)
        at = f"http://me:{PASSWORD}@127.0.0.1"
        yield Servers(postgres, f"{at}:{mlflow}", f"{at}:{prefect}/api")


@contextmanager
def served(script: str, folder: Path) -> Iterator[None]:
    environment = clean_environment() | {"PREFECT_HOME": str(folder / "prefect-server")}
    with (folder / "servers.log").open("ab") as log:
        process = subprocess.Popen(
            ["sh", "-c", script], cwd=folder, env=environment, stdout=log, stderr=log,
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


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def until(holds: Callable[[], Any], logs: Path | None = None) -> None:
    """Wait for something that another process brings about; where it does not, tell the end of the logs."""
    deadline = time.monotonic() + SECONDS_TO_BOOT
    while not holds():
        told = [log.read_text()[-2000:] for log in logs.glob("*.log")] if logs else []
        assert time.monotonic() < deadline, "\n".join(told)
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
