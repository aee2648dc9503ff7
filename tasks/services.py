"""Where the runs are kept, and what the libraries find in the environment. Light to import: it runs before them."""

import contextlib
import os
import shlex
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from fourfold.errors import RequestError
from tasks.addresses import answers, is_server, user_in, without_password
from tasks.waiting import seconds_to_wait

SECONDS_TO_ANSWER = 5
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


def enter_project() -> dict[str, str]:
    """Begin a run that a worker starts where its own installation lies: the pull step of prefect.yaml.

    Paths in the parameters are then relative to the project's root, on each machine to its own. What the libraries
    read when they are imported is set here, since the flow's file is loaded after it; a worker's log stays as it is.
    """
    prepare_environment(quiet=False)
    return {"directory": str(project_root())}


def prepare_environment(*, quiet: bool = True) -> None:
    """Set what the libraries read when they are imported; what the user has set stays."""
    for name, value in (_OFFLINE | _QUIET if quiet else _OFFLINE).items():
        os.environ.setdefault(name, value)
    set_password_apart()
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()


def set_password_apart() -> None:
    """Take user and password out of MLflow's address: MLflow tells it in messages, and links are made of it."""
    uri = tracking_uri()
    if user := user_in(uri):
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user
        os.environ["MLFLOW_TRACKING_URI"] = without_password(uri)


def tracking_uri() -> str:
    """MLflow's address: `MLFLOW_TRACKING_URI`, else the SQLite file that a bare `mlflow ui` in the root reads."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite address, absolute; None for other addresses."""
    parts = urlsplit(uri)
    return Path(uri.partition(":///")[2]).absolute() if parts.scheme == "sqlite" else None


def runs_folder() -> Path:
    """Where runs leave what is no database: `mlruns` beside the SQLite file, or in the root beside a server."""
    database = sqlite_file(tracking_uri())
    return (database.parent if database else project_root()) / "mlruns"


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
    elif is_server(uri):
        if not answers(f"{uri.rstrip('/')}/health", seconds=SECONDS_TO_ANSWER):
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
    if is_server(uri):
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
    return uri if is_server(uri) else "http://127.0.0.1:5000"


def _nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
