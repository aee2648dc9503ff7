import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fourfold.errors import RequestError
from tasks import services


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

    def test_a_server_that_speaks_no_http_is_refused(self, monkeypatch: pytest.MonkeyPatch, ssh_address: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", ssh_address)
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
