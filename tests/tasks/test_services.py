import contextlib
import errno
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psutil
import pytest
from prefect.settings import Settings

from fourfold.errors import RequestError, ServiceError
from tasks import prefect_client, services
from tasks.services import PrefectServer

SECONDS_TO_STOP = 60


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} within {seconds:g} seconds"
        time.sleep(0.02)


@pytest.fixture
def unused_address() -> str:
    """An address of this machine where nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def healthy_address() -> Iterator[str]:
    """A server whose `/api/health` and `/health` answer with 200, and all else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/api/health") else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def speaking_no_http() -> Iterator[str]:
    """The address of a server of another kind, which greets as SSH does."""

    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


class TestTrackingAddress:
    def test_by_default_it_is_the_file_that_a_bare_mlflow_ui_in_the_root_reads(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.chdir(tmp_path)
        assert services.tracking_uri() == f"sqlite:///{services.project_root()}/mlflow.db"
        assert (services.project_root() / "pyproject.toml").is_file()

    def test_an_empty_variable_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        assert services.tracking_uri().startswith("sqlite:///")

    def test_the_variable_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
        assert services.tracking_uri() == "http://mlflow.example:5000"

    def test_without_a_checkout_the_root_is_the_working_directory(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(services, "__file__", str(tmp_path / "site-packages" / "tasks" / "services.py"))
        monkeypatch.chdir(tmp_path)
        assert services.project_root() == tmp_path

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("sqlite:////data/mlflow.db", Path("/data/mlflow.db")),
            ("sqlite:////data/my runs/mlflow.db", Path("/data/my runs/mlflow.db")),
            ("http://localhost:5000", None),
            ("postgresql://localhost/mlflow", None),
        ],
    )
    def test_the_file_of_an_address(self, uri: str, expected: Path | None) -> None:
        assert services.sqlite_file(uri) == expected

    def test_a_relative_file_is_in_the_working_directory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert services.sqlite_file("sqlite:///runs.db") == tmp_path / "runs.db"


class TestSecondsToWait:
    @pytest.mark.parametrize(("text", "seconds"), [(None, 600), ("", 600), ("0", 0), ("2.5", 2.5)])
    def test_the_variable_decides(self, text: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FOURFOLD_SECONDS_TO_WAIT", raising=False)
        if text is not None:
            monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", text)
        assert services.seconds_to_wait() == seconds

    @pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
    def test_what_is_no_number_of_seconds_is_refused(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", text)
        with pytest.raises(RequestError, match=f"FOURFOLD_SECONDS_TO_WAIT={text} is no number of seconds"):
            services.check_tracking()


class TestEnvironment:
    def test_telemetry_is_off_before_the_libraries_are_imported(self) -> None:
        services.prepare_environment()
        assert os.environ["DO_NOT_TRACK"] == "true"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"

    def test_what_the_user_has_set_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
        services.prepare_environment()
        assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow.example"

    def test_a_password_in_the_address_reaches_mlflow_apart_from_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me%40work:a%2Fb:c@mlflow.example/at")
        services.prepare_environment()
        assert os.environ["MLFLOW_TRACKING_URI"] == services.ui_address() == "https://mlflow.example/at"
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me@work"
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "a/b:c"

    def test_mlflow_gets_the_address_that_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        services.prepare_environment()
        assert os.environ["MLFLOW_TRACKING_URI"] == services.tracking_uri()


class TestCheckTracking:
    def test_a_new_file_in_an_empty_folder_is_accepted_and_leaves_it_empty(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        folder = tmp_path / "my runs"
        folder.mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        services.check_tracking()
        assert list(folder.iterdir()) == []

    def test_a_server_that_answers_is_accepted(self, monkeypatch: pytest.MonkeyPatch, healthy_address: str) -> None:
        for address in (healthy_address, f"{healthy_address}/"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            services.check_tracking()

    @pytest.mark.parametrize("kind", ["postgresql", "postgresql+psycopg2", "mysql+pymysql"])
    def test_a_database_without_a_server_is_refused(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{kind}://me:secret@db/mlflow")
        with pytest.raises(RequestError, match="start mlflow server on it") as refused:
            services.check_tracking()
        assert str(refused.value).startswith(f"MLFLOW_TRACKING_URI={kind}://db/mlflow is a database")

    @pytest.mark.parametrize(
        ("uri", "reason"),
        [
            ("sqlite:///{folder}/missing/mlflow.db", r"{folder}/missing cannot be written \(No such file"),
            ("sqlite:///{folder}/file/mlflow.db", r"{folder}/file cannot be written \(Not a directory"),
            ("{folder}/mlruns", "is not an address that MLflow keeps runs at; give sqlite:///FILE"),
            ("file://{folder}/mlruns", "is not an address"),
            ("mlruns", "is not an address"),
            ("databricks", "is not an address"),
        ],
    )
    def test_where_no_run_can_be_kept_the_request_is_refused_and_nothing_left(
        self, uri: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        uri = uri.format(folder=tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(RequestError, match=reason.format(folder=tmp_path)) as refused:
            services.check_tracking()
        assert f"MLFLOW_TRACKING_URI={uri}" in str(refused.value)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_folder_that_cannot_be_written_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Told by the system and not by permission bits, which mean nothing to an administrator."""

        def refuse(dir: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))

        monkeypatch.setattr(services.tempfile, "TemporaryFile", refuse)
        with pytest.raises(RequestError, match=rf"{tmp_path} cannot be written \(Permission denied\); choose a folder"):
            services.check_tracking()

    def test_files_of_runs_that_cannot_be_written_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "mlruns").mkdir()
        real = services.tempfile.TemporaryFile

        def refuse_runs(dir: Path) -> object:
            if dir == tmp_path / "mlruns":
                raise PermissionError(errno.EACCES, "Permission denied", str(dir))
            return real(dir=dir)

        monkeypatch.setattr(services.tempfile, "TemporaryFile", refuse_runs)
        with pytest.raises(RequestError, match=rf"{tmp_path}/mlruns cannot be written"):
            services.check_tracking()

    def test_a_folder_in_the_place_of_the_file_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "mlflow.db").mkdir()
        with pytest.raises(RequestError, match=r"mlflow\.db"):
            services.check_tracking()

    def test_a_file_in_the_place_of_the_folder_of_runs_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mlruns").write_text("")
        with pytest.raises(RequestError, match="mlruns"):
            services.check_tracking()

    @pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
    def test_a_store_in_memory_is_refused(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would be gone with the run, and each thread would have one of its own."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(RequestError, match="give sqlite:///FILE"):
            services.check_tracking()

    def test_a_server_that_refuses_is_refused(self, monkeypatch: pytest.MonkeyPatch, unused_address: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address)
        with pytest.raises(RequestError, match=f"{unused_address} does not answer; start that server"):
            services.check_tracking()

    def test_a_server_that_is_not_mlflows_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, healthy_address: str
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{healthy_address}/elsewhere")
        with pytest.raises(RequestError, match="does not answer"):
            services.check_tracking()

    def test_a_server_that_speaks_no_http_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with speaking_no_http() as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            with pytest.raises(RequestError, match="does not answer"):
                services.check_tracking()

    def test_no_message_tells_a_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for uri in ("http://me:sec@ret@127.0.0.1:1", "http://me:secret@[::1", "ftp://me:secret@host/runs"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            with pytest.raises(RequestError) as refused:
                services.check_tracking()
            assert "sec" not in str(refused.value)
            assert "ret" not in str(refused.value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
        assert services.ui_command() == services.ui_address() == "http://127.0.0.1:1"

    @pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[::1", "http://a b:80", "http://"])
    def test_an_address_that_is_none_is_refused(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(RequestError, match="MLFLOW_TRACKING_URI="):
            services.check_tracking()


class TestWhereRunsAreShown:
    def test_the_file_in_the_working_directory_needs_no_address(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        program, *rest = shlex.split(services.ui_command())
        assert Path(program) == Path(sys.executable).with_name("mlflow")
        assert rest == ["ui"]

    def test_another_file_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert shlex.split(services.ui_command())[1:] == [
            "ui",
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/mlflow.db",
        ]

    def test_spaces_and_quotes_survive_the_shell(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        uri = f"sqlite:///{tmp_path}/my runs; it's/$HOME.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "a venv" / "bin" / "python"))
        echoed = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {services.ui_command()}"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert echoed == [str(tmp_path / "a venv" / "bin" / "mlflow"), "ui", "--backend-store-uri", uri]

    def test_a_program_below_the_working_directory_is_named_from_there(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
        assert services.ui_command() == ".venv/bin/mlflow ui"

    def test_a_server_shows_its_runs_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000/")
        assert services.ui_command() == "http://mlflow.example:5000/"
        assert services.ui_address() == "http://mlflow.example:5000"

    def test_pages_of_a_file_are_where_mlflow_ui_serves_them(self) -> None:
        assert services.ui_address() == "http://127.0.0.1:5000"


class TestWhichPrefect:
    def profile(self, home: Path, text: str) -> None:
        home.mkdir(exist_ok=True)
        (home / "profiles.toml").write_text(text)

    PROFILES = (
        'active = "work"\n\n[profiles.work]\nPREFECT_API_URL = "http://work.example/api"\n\n'
        '[profiles.home]\nPREFECT_API_URL = "http://home.example/api"\n\n[profiles.bare]\n'
    )

    @pytest.fixture(autouse=True)
    def _nothing_at_the_default_address(self, monkeypatch: pytest.MonkeyPatch, unused_address: str) -> None:
        monkeypatch.setattr(services, "PREFECT_DEFAULT_API", f"{unused_address}/api")

    @pytest.fixture(autouse=True)
    def _no_server_of_our_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a server was started")

        monkeypatch.setattr(services.subprocess, "Popen", refuse)

    def test_the_variable_comes_first(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.profile(tmp_path / "prefect-home", self.PROFILES)
        monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
        server = PrefectServer.begin()
        assert (server.api_url, server.process_id) == ("http://prefect.example/api", None)

    def test_then_the_active_profile(self, tmp_path: Path) -> None:
        self.profile(tmp_path / "prefect-home", self.PROFILES)
        server = PrefectServer.begin()
        assert (server.api_url, server.process_id) == ("http://work.example/api", None)
        assert "PREFECT_API_URL" not in os.environ, "Prefect reads its profile itself"

    def test_a_profile_can_be_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.profile(tmp_path / "prefect-home", self.PROFILES)
        monkeypatch.setenv("PREFECT_PROFILE", "home")
        assert PrefectServer.begin().api_url == "http://home.example/api"

    def test_profiles_can_lie_elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "mine.toml").write_text(self.PROFILES)
        monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "mine.toml"))
        assert PrefectServer.begin().api_url == "http://work.example/api"

    def test_a_password_in_the_address_reaches_prefect_apart_from_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PREFECT_API_URL", "http://me:a%2Fb@prefect.example/api/")
        assert PrefectServer.begin().api_url == "http://prefect.example/api"
        assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api/"
        assert os.environ["PREFECT_API_AUTH_STRING"] == "me:a/b"

    FILES: ClassVar = {
        ".env": 'PREFECT_PROFILE=home\nprefect_api_url="http://env.example/api"\n',
        "prefect.toml": '[api]\nurl = "http://prefect-toml.example/api"\n',
        "pyproject.toml": '[tool.prefect.api]\nurl = "http://pyproject.example/api"\n',
        "prefect-home/profiles.toml": PROFILES,
    }

    @pytest.mark.parametrize("count", range(1, len(FILES) + 1))
    def test_it_is_what_prefect_itself_finds_in_the_folder(
        self, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Of the last files of those above, where each lies before the next."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "prefect-home").mkdir()
        for name in list(self.FILES)[-count:]:
            (tmp_path / name).write_text(self.FILES[name])
        address = Settings().api.url
        assert address is not None
        assert PrefectServer.begin().api_url == address

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (".env", "PREFECT_PROFILES_PATH=mine.toml\n"),
            ("prefect.toml", 'profiles_path = "mine.toml"\n'),
            ("pyproject.toml", '[tool.prefect]\nprofiles_path = "mine.toml"\n'),
        ],
    )
    def test_a_file_of_the_folder_may_say_where_profiles_lie(
        self, name: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).write_text(text)
        (tmp_path / "mine.toml").write_text(self.PROFILES)
        assert PrefectServer.begin().api_url == Settings().api.url == "http://work.example/api"

    @pytest.mark.parametrize(
        "text",
        [
            None,
            "",
            "not toml [",
            'active = "absent"\n',
            'active = "work"\n[profiles.work]\n',
            'active = "work"\nprofiles = "none"\n',
            'active = "work"\n[profiles]\nwork = 3\n',
            'active = "work"\n[profiles.work]\nPREFECT_API_URL = ""\n',
        ],
    )
    def test_then_a_server_at_the_default_address(
        self, text: str | None, monkeypatch: pytest.MonkeyPatch, healthy_address: str, tmp_path: Path
    ) -> None:
        if text is not None:
            self.profile(tmp_path / "prefect-home", text)
        monkeypatch.setattr(services, "PREFECT_DEFAULT_API", f"{healthy_address}/api")
        server = PrefectServer.begin()
        assert (server.api_url, server.process_id) == (f"{healthy_address}/api", None)
        assert os.environ["PREFECT_API_URL"] == f"{healthy_address}/api"

    def test_a_server_of_another_kind_at_the_default_address_is_passed_by(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with speaking_no_http() as address:
            monkeypatch.setattr(services, "PREFECT_DEFAULT_API", f"{address}/api")
            with pytest.raises(AssertionError, match="a server was started"):
                PrefectServer.begin()

    def test_an_address_that_was_asked_for_must_answer(
        self, monkeypatch: pytest.MonkeyPatch, unused_address: str
    ) -> None:
        monkeypatch.setenv("PREFECT_API_URL", f"{unused_address}/api")
        server = PrefectServer.begin()
        server.release()  # nothing to release, and no fault
        with pytest.raises(RequestError, match=f"{unused_address}/api does not answer"), server.ready():
            raise AssertionError("nothing answers")

    def test_an_address_that_answers_is_ready(self, monkeypatch: pytest.MonkeyPatch, healthy_address: str) -> None:
        monkeypatch.setenv("PREFECT_API_URL", f"{healthy_address}/api")
        asked_for: list[tuple[str, float]] = []

        def client(address: str, seconds: float) -> contextlib.AbstractContextManager[None]:
            asked_for.append((address, seconds))
            return contextlib.nullcontext()

        monkeypatch.setattr(prefect_client, "patient_client", client)  # nothing more of Prefect answers here
        entered = False
        with PrefectServer.begin().ready():
            entered = True
        assert entered
        assert asked_for == [(f"{healthy_address}/api", 600)]


# A process that owns a server; it tells how far it came, and waits for a word to go on.
OWNER = """
import sys
from tasks import prefect_client, services

services.PREFECT_DEFAULT_API = sys.argv[1] + "/api"
server = services.PrefectServer.begin()
print(server.process_id, server.api_url, flush=True)
if sys.stdin.readline() != "release\\n":
    sys.exit()
server.release()
with server.ready():
    print("ready", flush=True)
    sys.stdin.readline()
"""


class Owner:
    def __init__(self, unused_address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, unused_address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        process_id, self.api_url = self._line().split()
        self.server_id = int(process_id)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def release(self) -> None:
        self.say("release")
        assert self._line() == "ready\n"


@contextmanager
def ended_at_last(owner: Owner, is_gone: Callable[[int], bool]) -> Iterator[Owner]:
    try:
        yield owner
    finally:
        owner.process.kill()
        owner.process.communicate()
        if not is_gone(owner.server_id):  # the test failed: it is ours to end
            os.kill(owner.server_id, signal.SIGKILL)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, unused_address: str) -> Iterator[Callable[[], PrefectServer]]:
    """Begin a server in this process, and close at the end what the end of a process would."""
    monkeypatch.setattr(services, "PREFECT_DEFAULT_API", f"{unused_address}/api")
    made: list[PrefectServer] = []

    def begin() -> PrefectServer:
        made.append(PrefectServer.begin())
        return made[-1]

    yield begin
    for server in made:
        assert server._process is not None
        assert server._process.stdin is not None
        assert server._log is not None
        with contextlib.suppress(BrokenPipeError):
            server._process.stdin.close()
        server._process.wait(timeout=SECONDS_TO_STOP)
        server._log.close()


class TestServerOfOurOwn:
    def test_it_answers_on_loopback_alone_and_dies_with_an_owner_that_is_killed(
        self, tmp_path: Path, prefect_home: Path, unused_address: str, is_gone: Callable[[int], bool]
    ) -> None:
        shutil.copytree(prefect_home, tmp_path / "prefect-home")
        with ended_at_last(Owner(unused_address), is_gone) as owner:
            owner.release()
            with urllib.request.urlopen(f"{owner.api_url}/health", timeout=30) as answer:
                assert answer.read() == b"true"
            connections = psutil.Process(owner.server_id).net_connections(kind="inet")
            listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
            assert [address.ip for address in listening] == ["127.0.0.1"]
            assert owner.api_url == f"http://127.0.0.1:{listening[0].port}/api"
            self.refuses_what_a_web_page_sends(owner.api_url)

            owner.process.kill()
            until(lambda: is_gone(owner.server_id), SECONDS_TO_STOP, "the server ends")
            with pytest.raises(OSError, match="refused"):
                urllib.request.urlopen(f"{owner.api_url}/health", timeout=5)

    def refuses_what_a_web_page_sends(self, api_url: str) -> None:
        """One that has bound its own name to 127.0.0.1, one that asks across origins, and a socket of either."""
        port = urlsplit(api_url).port
        assert port is not None
        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol": "prefect",
        }  # fmt: skip
        origin = {"Origin": "http://evil.example"}
        for method, path, headers, expected in [
            ("GET", "/api/health", {}, 200),
            ("GET", "/api/health", {"Host": f"evil.example:{port}"}, 400),
            ("GET", "/api/health", {"Host": f"localhost:{port}"}, 400),
            ("GET", "/api/health", origin, 403),
            ("GET", "/api/health", {"Origin": "null"}, 403),
            ("OPTIONS", "/api/flow_runs/filter", {**origin, "Access-Control-Request-Method": "POST"}, 403),
            ("GET", "/api/events/in", upgrade, 101),
            ("GET", "/api/events/in", {**upgrade, **origin}, 403),
            ("GET", "/api/events/in", {**upgrade, "Host": "evil.example"}, 400),
        ]:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request(method, path, headers=headers)
                answer = connection.getresponse()
                assert (answer.status, headers) == (expected, headers)
                assert answer.getheader("access-control-allow-origin") is None

    @pytest.mark.parametrize("end", ["return", "SIGKILL"])
    def test_before_the_word_it_writes_nothing_and_without_it_ends_with_its_owner(
        self, end: str, tmp_path: Path, unused_address: str, is_gone: Callable[[int], bool]
    ) -> None:
        """It reads that its owner is gone only when all is imported, so that the whole of its start is looked at."""
        (tmp_path / "prefect-home").mkdir()
        with ended_at_last(Owner(unused_address), is_gone) as owner:
            if end == "return":
                owner.say("no")
            else:
                owner.process.kill()
            owner.process.wait(timeout=SECONDS_TO_STOP)
            until(lambda: is_gone(owner.server_id), SECONDS_TO_STOP, "the server ends")
        assert list((tmp_path / "prefect-home").iterdir()) == []

    def test_one_that_dies_at_boot_gives_its_last_words(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: Callable[[], PrefectServer]
    ) -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "uvicorn.py").write_text("raise ImportError('uvicorn is broken today')\n")
        monkeypatch.setenv("PYTHONPATH", str(broken))
        server = begun()
        assert server._process is not None
        server._process.wait(timeout=SECONDS_TO_STOP)
        server.release()
        with pytest.raises(ServiceError, match="did not start: ImportError: uvicorn is broken today"), server.ready():
            raise AssertionError("nothing answers")

    def test_its_last_words_are_the_reason_where_its_database_cannot_be_opened(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: Callable[[], PrefectServer]
    ) -> None:
        """The server tells the reason first, and then ends with a `SystemExit: 3` that says nothing."""
        monkeypatch.setenv(
            "PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/no-such-folder/prefect.db"
        )
        server = begun()
        server.release()
        with pytest.raises(ServiceError, match="unable to open database file"), server.ready():
            raise AssertionError("nothing answers")

    def test_prefect_finds_it_by_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, begun: Callable[[], PrefectServer]
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/true")
        server = begun()
        assert os.environ["PREFECT_API_URL"] == server.api_url
        assert server.api_url.startswith("http://127.0.0.1:")
