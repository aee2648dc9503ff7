"""The Prefect API of a flow's process: one that is there, or one of its own. Light to import."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fourfold.errors import RequestError, ServiceError
from tasks.addresses import answers, user_in, without_password
from tasks.waiting import SECONDS_OF_SILENCE, seconds_to_wait, told_after

PREFECT_DEFAULT_API = "http://127.0.0.1:4200/api"
SECONDS_TO_ANSWER = 5
SECONDS_TO_BOOT = 180


class PrefectServer:
    """The Prefect API of this process: one that is there already, or one that it starts and takes along when it ends.

    `begin` must run before Prefect is imported: Prefect reads its address from the environment once.
    """

    def __init__(self, api_url: str, process: subprocess.Popen[bytes] | None = None, log: IO[bytes] | None = None):
        self.api_url = api_url
        self._process = process
        self._log = log

    @classmethod
    def begin(cls) -> "PrefectServer":
        """Choose the address, and where nothing answers start to boot a server, without waiting for it."""
        address = prefect_address()
        if address:
            return cls(address)
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server; it has no name to be left behind
        with contextlib.ExitStack() as on_failure, listener:
            on_failure.callback(log.close)
            # A session of its own: Ctrl-C in the terminal must not end it before the flow has told it how it ended.
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.prefect_server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                env={
                    **os.environ,
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                    "PREFECT_UI_ENABLED": "0",
                },
            )
            on_failure.pop_all()
        os.environ["PREFECT_API_URL"] = api_url
        # It is of this very installation: there is no version to ask for.
        os.environ.setdefault("PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED", "false")
        return cls(api_url, process, log)

    def release(self) -> None:
        """Let a server of our own touch the disk: the request is sound."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a server that died is told by the missing answer
                self._process.stdin.write(b"go\n")
                self._process.stdin.flush()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Wait until the server answers, for a block that runs flows on it.

        Raises:
            RequestError: the address that was asked for does not answer.
            ServiceError: the server of our own did not start.
        """
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        from tasks.prefect_client import patient_client

        process = self._process
        if process is None:
            check_prefect(self.api_url)
            with patient_client(self.api_url, seconds_to_wait()):
                yield
            return
        slow = (
            f"Prefect's server is not up after {SECONDS_OF_SILENCE} s: the first start makes its database, "
            "and a later one waits while that is locked"
        )
        with told_after(SECONDS_OF_SILENCE, slow):
            is_up = answers(f"{self.api_url}/health", seconds=SECONDS_TO_BOOT)
        if not is_up:
            raise ServiceError(f"Prefect's server did not start: {self._last_words()}")
        # Nobody watches the heartbeats of a run on a server that dies with it, and ending them takes a second.
        with (
            temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
            patient_client(self.api_url, seconds_to_wait(), alive=lambda: process.poll() is None),
        ):
            yield

    def check_stays(self, option: str) -> None:
        """Raise RequestError where there is no server that outlives this process, for an option that needs one."""
        if self._process is not None:
            raise RequestError(
                f"{option} needs a Prefect server that stays, since none of a run's own keeps a schedule; start one by "
                "prefect server start, or name one in PREFECT_API_URL"
            )
        check_prefect(self.api_url)

    @property
    def process_id(self) -> int | None:
        """Of the server that this process started, if it did."""
        return self._process.pid if self._process else None

    def _last_words(self) -> str:
        assert self._log is not None, "a server of our own has one"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        # After the reason uvicorn ends with a SystemExit that says nothing.
        reasons = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return (reasons or lines or ["it gave no reason"])[-1]


def prefect_address() -> str | None:
    """The address of the Prefect server that is there without us: asked for, or at Prefect's default; else None."""
    address = _configured_address()
    if not address and answers(f"{PREFECT_DEFAULT_API}/health", seconds=1):
        address = os.environ["PREFECT_API_URL"] = PREFECT_DEFAULT_API
    return address


def check_prefect(address: str) -> None:
    """Raise RequestError where the Prefect server that was asked for does not answer."""
    if not answers(f"{address}/health", seconds=SECONDS_TO_ANSWER):
        raise RequestError(
            f"PREFECT_API_URL={address} does not answer; start that server, or unset it for a server that lives as "
            "long as the run"
        )


def _configured_address() -> str | None:
    """The API address that Prefect will find, in its order: environment, files of the folder, active profile.

    A user and a password in it are handed to Prefect apart: it makes links of the address.
    """
    address = os.environ.get("PREFECT_API_URL") or _address_in_files()
    if not address:
        return None
    if user := user_in(address):
        os.environ["PREFECT_API_AUTH_STRING"] = ":".join(user)
        address = os.environ["PREFECT_API_URL"] = without_password(address)
    return address.rstrip("/")


def _address_in_files() -> str | None:
    here = _dotenv(Path(".env"))
    of_folder = [
        here.get("PREFECT_API_URL"),
        _entry(Path("prefect.toml"), "api", "url"),
        _entry(Path("pyproject.toml"), "tool", "prefect", "api", "url"),
    ]
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(
        os.environ.get("PREFECT_PROFILES_PATH")
        or here.get("PREFECT_PROFILES_PATH")
        or _entry(Path("prefect.toml"), "profiles_path")
        or _entry(Path("pyproject.toml"), "tool", "prefect", "profiles_path")
        or home / "profiles.toml"
    )
    active = os.environ.get("PREFECT_PROFILE") or _entry(profiles, "active") or ""
    return next(filter(None, [*of_folder, _entry(profiles, "profiles", active, "PREFECT_API_URL")]), None)


def _dotenv(path: Path) -> Mapping[str, str | None]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # as Prefect reads it

    return {name.upper(): value for name, value in dotenv_values(path).items()}


def _entry(path: Path, *keys: str) -> str | None:
    """A text in a TOML file; None where there is none."""
    try:
        value: Any = tomllib.loads(path.read_text())
        for key in keys:
            value = value.get(key)
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None
