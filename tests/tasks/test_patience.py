import errno
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing as closed
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from fourfold.errors import RequestError, ServiceError
from tasks import patience, services
from tasks.patience import PatientClient, may_pass, patiently
from tasks.tracking import SECONDS_TO_LEAVE, RunRecord, closing, owner_tags, recorded_run, store_client
from tasks.waiting import seconds_to_wait

EXPERIMENT = b'{"experiment": {"experiment_id": "7", "name": "train"}}'
Misbehave = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int, body: bytes = b"{}") -> Misbehave:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def break_off(handler: BaseHTTPRequestHandler) -> None:
    """Half of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(EXPERIMENT)))
    handler.end_headers()
    handler.wfile.write(EXPERIMENT[:20])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


@contextmanager
def server(*first: Misbehave) -> Iterator[tuple[str, list[str]]]:
    """One that misbehaves in these ways, one a request, and answers from then on; its address, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.close_connection = True
            (first[len(asked) - 1] if len(asked) <= len(first) else answer(200, EXPERIMENT))(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.handle_error = lambda *_: None  # type: ignore[method-assign] - a client that gave up
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listener.server_address[1]}", asked
        listener.shutdown()
        thread.join()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], MlflowClient]:
    def connect(address: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        return store_client()

    return connect


@contextmanager
def locked(database: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold the write lock of a database, until the block ends or for so long."""
    with closed(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Timer(seconds, holder.rollback)
        release.start()
        yield
        release.cancel()
        release.join()


@contextmanager
def interrupted(after: float) -> Iterator[None]:
    """Press Ctrl-C a while later."""
    finger = threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT))
    finger.start()
    yield
    finger.join()


class TestServer:
    @pytest.mark.parametrize(
        "wrong",
        [answer(429), answer(502), answer(503), answer(504), hang_up, break_off, say_nothing],
        ids=["429", "502", "503", "504", "hangs up", "breaks off", "says nothing"],
    )
    def test_what_may_pass_is_asked_again_and_told_in_two_lines(
        self, wrong: Misbehave, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with server(wrong, wrong) as (address, asked):
            assert client(address).get_experiment("7").name == "train"
        assert len(asked) == 3, "each try is one request: MLflow's own repeating is off"
        began, ended = capsys.readouterr().err.splitlines()
        assert began == (
            f"MLflow at {address} does not answer: waiting; the run goes on when it is back, and Ctrl-C is safe"
        )
        assert ended.startswith(f"MLflow at {address} is back after ")

    def test_one_that_refuses_connections_is_waited_for(self, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """Its port is kept, and served half a second later."""
        with socket.socket() as kept:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", 0))

            def serve() -> None:
                kept.listen()
                connection, _ = kept.accept()
                with connection:
                    connection.recv(4096)
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(EXPERIMENT)}\r\nConnection: close\r\n\r\n"
                    connection.sendall(head.encode() + EXPERIMENT)

            later = threading.Timer(0.5, serve)
            later.start()
            assert client(f"http://127.0.0.1:{kept.getsockname()[1]}").get_experiment("7").name == "train"
            later.join()
        assert len(capsys.readouterr().err.splitlines()) == 2

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (400, "INVALID_PARAMETER_VALUE"),
            (401, "UNAUTHENTICATED"),
            (403, "PERMISSION_DENIED"),
            (404, "RESOURCE_DOES_NOT_EXIST"),
            (400, "RESOURCE_ALREADY_EXISTS"),
        ],
    )
    def test_what_stays_wrong_is_asked_once(
        self, status: int, code: str, client: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whatever it says: a name in its message may be that of any error."""
        body = f'{{"error_code": "{code}", "message": "Connection refused, database is locked"}}'.encode()
        with server(answer(status, body)) as (address, asked), pytest.raises(MlflowException):
            client(address).get_experiment("7")
        assert len(asked) == 1
        assert capsys.readouterr().err == ""

    def test_a_fault_of_the_server_is_asked_about_five_times_more(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be that of a database which went away in the middle of the request."""
        monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.01)
        body = b'{"error_code": "INTERNAL_ERROR", "message": "a fault"}'
        with server(*[answer(500, body)] * 5) as (address, asked):
            assert client(address).get_experiment("7").name == "train"
        assert len(asked) == 6
        with server(*[answer(500, body)] * 9) as (address, asked), pytest.raises(MlflowException):
            client(address).get_experiment("7")
        assert len(asked) == 6

    def test_where_another_one_made_the_same_at_once_the_next_try_finds_it(
        self, client: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As PostgreSQL tells it, whose rows two wrote that had both looked before."""
        said = '(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint \\"dataset_pk\\"'
        overtaken = answer(400, f'{{"error_code": "BAD_REQUEST", "message": "{said}"}}'.encode())
        with server(overtaken) as (address, asked):
            assert client(address).get_experiment("7").name == "train"
        assert len(asked) == 2
        assert capsys.readouterr().err == ""

    def test_one_that_stays_away_is_given_up_in_one_line(
        self, client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", "0.5")
        with server(*[hang_up] * 99) as (address, asked), pytest.raises(ServiceError) as raised:
            client(address).get_experiment("7")
        assert str(raised.value).startswith(f"MLflow at {address} does not answer, and was waited for 0.")
        assert len(str(raised.value).splitlines()) == 1
        assert raised.value.exit_code == 1
        assert 3 <= len(asked) <= 5
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_a_password_is_not_told(self) -> None:
        assert patience.store_name("postgresql://me:secret@db/runs") == "MLflow at postgresql://db/runs"


class TestKinds:
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            OSError(errno.EROFS, os.strerror(errno.EROFS)),
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
            ValueError("a fault of our own"),
            *(
                MlflowException(f"(sqlite3.{kind}) {text}\n[SQL: INSERT]\n[parameters: ('database is locked',)]", code)
                for kind, text, code in [
                    ("OperationalError", "database or disk is full", databricks_pb2.TEMPORARILY_UNAVAILABLE),
                    ("OperationalError", "disk I/O error", databricks_pb2.TEMPORARILY_UNAVAILABLE),
                    (
                        "OperationalError",
                        "attempt to write a readonly database",
                        databricks_pb2.TEMPORARILY_UNAVAILABLE,
                    ),
                    ("OperationalError", "no such table: runs", databricks_pb2.TEMPORARILY_UNAVAILABLE),
                    ("DatabaseError", "database disk image is malformed", databricks_pb2.BAD_REQUEST),
                    ("DatabaseError", "file is not a database", databricks_pb2.INTERNAL_ERROR),
                ]
            ),
        ],
        ids=str,
    )
    def test_what_no_waiting_mends_fails_at_once(self, error: Exception) -> None:
        assert not may_pass(error)
        tries = []

        def work() -> None:
            tries.append(1)
            raise error

        with pytest.raises(type(error)):
            patiently("it", work)
        assert len(tries) == 1

    @pytest.mark.parametrize("code", [databricks_pb2.TEMPORARILY_UNAVAILABLE, databricks_pb2.INTERNAL_ERROR])
    def test_a_lock_is_waited_for_whatever_was_to_be_written(self, code: int) -> None:
        """The reason of a run that failed may be that no space was left."""
        said = (
            "(sqlite3.OperationalError) database is locked\n[SQL: INSERT]\n[parameters: ('No space left on device',)]"
        )
        assert may_pass(MlflowException(said, code))

    def test_another_database_that_is_away_is_waited_for(self) -> None:
        said = "(psycopg2.OperationalError) server closed the connection unexpectedly"
        assert may_pass(MlflowException(said, databricks_pb2.TEMPORARILY_UNAVAILABLE))

    def test_a_download_that_was_broken_off_is_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """MLflow tells several failures in one text, from the second line on."""
        with server(answer(503), hang_up) as (address, asked):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            store_client()
            uri = f"{address}/api/2.0/mlflow-artifacts/artifacts/model.onnx"
            path = patiently("it", lambda: mlflow.artifacts.download_artifacts(uri))
        assert Path(path).read_bytes() == EXPERIMENT
        assert len(asked) > 2

    def test_what_would_make_another_one_is_not_repeated_blindly(self, store: MlflowClient) -> None:
        client = store_client()
        for name in patience._MAKES_ANOTHER:
            with pytest.raises(AssertionError, match="look first"):
                getattr(client, name)("0")


class TestSeconds:
    @pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", "1e999"])
    def test_a_number_that_is_none_is_refused_before_anything_is_created(
        self, given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", given)
        with pytest.raises(RequestError, match=f"FOURFOLD_SECONDS_TO_WAIT={given} is no number of seconds; give 0"):
            services.check_tracking()
        assert not (tmp_path / "mlflow.db").exists()

    @pytest.mark.parametrize(("given", "seconds"), [("", 600), ("0", 0), ("2.5", 2.5), ("1e3", 1000)])
    def test_others_are_taken(self, given: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", given)
        assert seconds_to_wait() == seconds


class TestLock:
    def test_a_lock_is_waited_for_and_told(
        self, store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(patience, "MILLISECONDS_IN_SQLITE", 100)
        with recorded_run("train", "a run", {}, {}) as record:
            with locked(tmp_path / "mlflow.db", seconds=1):
                record.metrics({"loss": 1.0})
            assert [one.value for one in store.get_metric_history(record.run_id, "loss")] == [1.0]
        began, ended = capsys.readouterr().err.splitlines()
        assert began.startswith(f"MLflow at sqlite:///{tmp_path}/mlflow.db is locked: waiting; the run goes on")
        assert "is back after 1 s" in ended

    def test_a_locked_store_is_waited_for_when_a_run_is_opened(
        self, store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """MLflow itself would wait for minutes here, and say nothing."""
        with closed(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            release = threading.Timer(1.5, holder.rollback)
            release.start()
            with recorded_run("train", "a run", {}, {}) as record:
                pass
            release.join()
        assert store.get_run(record.run_id).info.status == "FINISHED"
        assert "is locked: waiting" in capsys.readouterr().err

    def test_ctrl_c_ends_the_waiting_and_leaves_what_a_later_start_closes(
        self, store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """While SQLite itself waits, no signal is heard; it is left to wait for a second at a time."""
        record = opened(store)
        started = time.monotonic()
        with locked(tmp_path / "mlflow.db"), interrupted(0.5):
            with pytest.raises(KeyboardInterrupt), closing(record):
                record.metrics({"loss": 1.0})
            seconds = time.monotonic() - started
        assert seconds < 0.5 + 1.5 + 3
        assert store.get_run(record.run_id).info.status == "RUNNING"
        assert f"run {record.run_id} is still open, a later start closes it: MLflow at" in capsys.readouterr().err


def opened(store: MlflowClient) -> RunRecord:
    """A run of this process, opened while nothing was wrong."""
    run = store.create_run(store.create_experiment("train"), tags=owner_tags())
    return RunRecord(store_client(), run, "train", {})


class TestClosing:
    """A store that takes connections and never answers is the slowest of all."""

    @pytest.fixture
    def unanswered(self, client: Any) -> Iterator[RunRecord]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            info = SimpleNamespace(run_id="f" * 32, experiment_id="1", start_time=1, artifact_uri="")
            run: Any = SimpleNamespace(info=info, data=SimpleNamespace(metrics={}))
            yield RunRecord(client(f"http://127.0.0.1:{listener.getsockname()[1]}"), run, "train", {})

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(143), ServiceError("away")], ids=repr)
    def test_it_takes_three_seconds_at_most_where_nobody_waits(
        self, interruption: BaseException, unanswered: RunRecord, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        started = time.monotonic()
        with pytest.raises(type(interruption)) as raised, closing(unanswered):
            raise interruption
        assert raised.value is interruption
        assert time.monotonic() - started < 3.5
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == before
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"run {'f' * 32} is still open, a later start closes it: MLflow at http")

    def test_the_fault_of_a_run_is_told_and_not_that_of_its_closing(
        self, unanswered: RunRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", "0.1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with pytest.raises(ValueError, match="of the run"), closing(unanswered):
            raise ValueError("of the run")

    def test_a_run_whose_end_cannot_be_told_did_not_succeed(
        self, unanswered: RunRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", "0.1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with pytest.raises(ServiceError), closing(unanswered):
            pass

    def test_ctrl_c_ends_the_waiting_of_the_closing(self, unanswered: RunRecord) -> None:
        """But for a last try to close the run as what it is then."""
        started = time.monotonic()
        with interrupted(0.3), pytest.raises(KeyboardInterrupt), closing(unanswered):
            pass
        assert time.monotonic() - started < 0.3 + SECONDS_TO_LEAVE


def test_mlflows_own_repeating_is_off_wherever_a_client_is_made(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is set: it would make a second run where the first one's answer was lost."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    assert isinstance(store_client(), PatientClient)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
