import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psutil
import pytest
from prefect.settings import Settings

from fourfold.errors import RequestError, ServiceError
from tasks import prefect_api, prefect_client
from tasks.prefect_api import PrefectServer

SECONDS_TO_STOP = 60


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} within {seconds:g} seconds"
        time.sleep(0.02)


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
        monkeypatch.setattr(prefect_api, "PREFECT_DEFAULT_API", f"{unused_address}/api")

    @pytest.fixture(autouse=True)
    def _no_server_of_our_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a server was started")

        monkeypatch.setattr(prefect_api.subprocess, "Popen", refuse)

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
        monkeypatch.setattr(prefect_api, "PREFECT_DEFAULT_API", f"{healthy_address}/api")
        server = PrefectServer.begin()
        assert (server.api_url, server.process_id) == (f"{healthy_address}/api", None)
        assert os.environ["PREFECT_API_URL"] == f"{healthy_address}/api"

    def test_a_server_of_another_kind_at_the_default_address_is_passed_by(
        self, monkeypatch: pytest.MonkeyPatch, ssh_address: str
    ) -> None:
        monkeypatch.setattr(prefect_api, "PREFECT_DEFAULT_API", f"{ssh_address}/api")
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
from tasks import prefect_api

prefect_api.PREFECT_DEFAULT_API = sys.argv[1] + "/api"
server = prefect_api.PrefectServer.begin()
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
    monkeypatch.setattr(prefect_api, "PREFECT_DEFAULT_API", f"{unused_address}/api")
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
