"""Which Prefect API and which MLflow store a flow talks to. Light to import: it runs before the heavy libraries."""

import contextlib
import http.client
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from fourfold.errors import RequestError, ServiceError

PREFECT_DEFAULT_API = "http://127.0.0.1:4200/api"
SECONDS_TO_ANSWER = 5
SECONDS_TO_BOOT = 180
REQUEST = "request.json"  # what a run was asked for, beside its checkpoints
LOCK = ".lock"  # there too: held by the process that trains the run
SECONDS_TO_WAIT = "FOURFOLD_SECONDS_TO_WAIT"
SECONDS_OF_SILENCE = 15  # after which a wait is explained
_DATABASES = ("postgresql", "mysql", "mssql")  # that MLflow could write to without a server

# Offline by default.
_OFFLINE = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
# On the terminal only what a person needs: what the libraries log goes to their servers.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for the result
}


def project_root() -> Path:
    """The checkout that this file belongs to; the working directory where it is installed without one."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


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
            answers = _answers(f"{self.api_url}/health", seconds=SECONDS_TO_BOOT)
        if not answers:
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
    if not address and _answers(f"{PREFECT_DEFAULT_API}/health", seconds=1):
        address = os.environ["PREFECT_API_URL"] = PREFECT_DEFAULT_API
    return address


def check_prefect(address: str) -> None:
    """Raise RequestError where the Prefect server that was asked for does not answer."""
    if not _answers(f"{address}/health", seconds=SECONDS_TO_ANSWER):
        raise RequestError(
            f"PREFECT_API_URL={address} does not answer; start that server, or unset it for a server that lives as "
            "long as the run"
        )


def enter_project() -> dict[str, str]:
    """Begin a run that a worker starts where its own installation lies: the pull step of prefect.yaml.

    Paths in the parameters are then relative to the project's root, on each machine to its own. What the libraries
    read when they are imported is set here, since the flow's file is loaded after it; a worker's log stays as it is.
    """
    prepare_environment(quiet=False)
    return {"directory": str(project_root())}


@contextmanager
def told_after(seconds: float, line: str) -> Iterator[None]:
    """Print a line on standard error where the block takes longer than that."""
    timer = threading.Timer(seconds, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def prepare_environment(*, quiet: bool = True) -> None:
    """Set what the libraries read when they are imported; what the user has set stays."""
    for name, value in (_OFFLINE | _QUIET if quiet else _OFFLINE).items():
        os.environ.setdefault(name, value)
    set_password_apart()
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()


def set_password_apart() -> None:
    """Take user and password out of MLflow's address: MLflow tells it in messages, and links are made of it."""
    uri = tracking_uri()
    if user := _user_in(uri):
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user
        os.environ["MLFLOW_TRACKING_URI"] = without_password(uri)


def tracking_uri() -> str:
    """MLflow's address: `MLFLOW_TRACKING_URI`, else the SQLite file that a bare `mlflow ui` in the root reads."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def without_password(address: str) -> str:
    """An address as it may be shown, kept and sent to anybody: without user and password."""
    return re.sub(r"//[^/]*@", "//", address)


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite address, absolute; None for other addresses."""
    parts = urlsplit(uri)
    return Path(uri.partition(":///")[2]).absolute() if parts.scheme == "sqlite" else None


def runs_folder() -> Path:
    """Where runs leave what is no database: `mlruns` beside the SQLite file, or in the root beside a server."""
    database = sqlite_file(tracking_uri())
    return (database.parent if database else project_root()) / "mlruns"


def seconds_to_wait() -> float:
    """How long a service that is away or locked is waited for: `FOURFOLD_SECONDS_TO_WAIT`, else ten minutes.

    Raises:
        RequestError: it is no number of seconds.
    """
    given = os.environ.get(SECONDS_TO_WAIT) or "600"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise RequestError(f"{SECONDS_TO_WAIT}={given} is no number of seconds; give 0 or more, or unset it for 600")
    return seconds


def checkpoints_of(run_id: str) -> Path:
    """Where the checkpoints of a run lie: on this machine, also where a server keeps the runs."""
    return runs_folder() / "checkpoints" / run_id


def can_go_on(run_id: str) -> bool:
    """Whether a run that was stopped left what it takes to go on."""
    return (checkpoints_of(run_id) / REQUEST).is_file()


@contextmanager
def held(run_id: str) -> Iterator[bool]:
    """Hold a run's checkpoints for a block, so that no process of this machine goes on from them meanwhile.

    Gives whether they were free; of a run that has none there is nothing to hold.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if can_go_on(run_id):
            try:
                stack.enter_context(FileLock(checkpoints_of(run_id) / LOCK).acquire(timeout=0))
            except Timeout:
                free = False
        yield free


def store_lock(purpose: str) -> AbstractContextManager[Any]:
    """Let one process or thread at a time do something with the store; others wait, however long that takes.

    The lock is a file's beside the SQLite database, and the kernel frees it where its holder dies. A store that is a
    server has none: its clients may be anywhere.
    """
    if sqlite_file(tracking_uri()) is None:
        return nullcontext()
    folder = runs_folder()
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f".{purpose}.lock")


def check_tracking() -> None:
    """Make sure, without leaving a trace, that MLflow's store can be used.

    Raises:
        RequestError: the address does not answer, its folder cannot be written, or it is of another kind; or what
            the environment says of waiting is no number.
    """
    seconds_to_wait()
    uri = tracking_uri()
    shown = f"MLFLOW_TRACKING_URI={without_password(uri)}"
    advice = "give sqlite:///FILE or http://HOST"
    try:
        database, scheme = sqlite_file(uri), urlsplit(uri).scheme
    except ValueError as error:
        raise RequestError(f"{shown} is not an address ({error}); {advice}") from error
    if scheme == "sqlite" and uri.partition("://")[2] in ("", "/", "/:memory:"):
        raise RequestError(f"{shown} would be gone with the run; {advice}")
    if database is not None:
        runs = database.parent / "mlruns"
        for path, wrong in ((database, database.is_dir()), (runs, runs.exists() and not runs.is_dir())):
            if wrong:
                raise RequestError(f"{shown}: {path} is in the way; choose another folder")
        for folder in {database.parent, _nearest_folder(runs)}:
            try:
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise RequestError(
                    f"{shown}: {folder} cannot be written ({error.strerror}); choose a folder that exists and is yours"
                ) from error
    elif _is_server(uri):
        if not _answers(f"{uri.rstrip('/')}/health", seconds=SECONDS_TO_ANSWER):
            raise RequestError(f"{shown} does not answer; start that server, or unset it")
    elif scheme.partition("+")[0] in _DATABASES:
        raise RequestError(
            f"{shown} is a database, which holds no files of runs; start mlflow server on it, and give that server's "
            "http://HOST"
        )
    else:
        raise RequestError(f"{shown} is not an address that MLflow keeps runs at; {advice}")


def ui_command() -> str:
    """The exact line that shows the runs: a command, or the address of a server that shows them already."""
    uri = tracking_uri()
    if _is_server(uri):
        return without_password(uri)
    program = Path(sys.executable).with_name("mlflow")
    with contextlib.suppress(ValueError):
        program = program.relative_to(Path.cwd())
    if sqlite_file(uri) == Path.cwd() / "mlflow.db":
        return f"{shlex.quote(str(program))} ui"
    return f"{shlex.quote(str(program))} ui --backend-store-uri {shlex.quote(uri)}"


def ui_address() -> str:
    """Where a browser finds MLflow's pages: the server itself, or where `mlflow ui` serves a local store."""
    uri = without_password(tracking_uri().rstrip("/"))
    return uri if _is_server(uri) else "http://127.0.0.1:5000"


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _answers(url: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _configured_address() -> str | None:
    """The API address that Prefect will find, in its order: environment, files of the folder, active profile.

    A user and a password in it are handed to Prefect apart: it makes links of the address.
    """
    address = os.environ.get("PREFECT_API_URL") or _address_in_files()
    if not address:
        return None
    if user := _user_in(address):
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


def _user_in(address: str) -> tuple[str, str] | None:
    """User and password in the address of a server, if there are any."""
    with contextlib.suppress(ValueError):  # what is no address is refused later, by name
        parts = urlsplit(address)
        if _is_server(address) and parts.username is not None:
            return unquote(parts.username), unquote(parts.password or "")
    return None
