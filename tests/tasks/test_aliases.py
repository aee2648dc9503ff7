import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from tasks import aliases, services
from tasks.aliases import Promotion, Ruling, award, promote
from tasks.tracking import RunRecord

NAME = "line"
Judge = Callable[[ModelVersion | None], Ruling]


@pytest.fixture
def versions(store: MlflowClient, tmp_path: Path) -> MlflowClient:
    """Three versions, made without any code of ours; the first is champion, the second challenger."""
    (tmp_path / "model").mkdir()
    store.create_registered_model(NAME)
    for _ in range(3):
        store.create_model_version(NAME, str(tmp_path / "model"))
    store.set_registered_model_alias(NAME, "champion", "1")
    store.set_registered_model_alias(NAME, "challenger", "2")
    return store


def named(store: MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in store.get_registered_model(NAME).aliases.items()}


def beats(*losers: str, meanwhile: Callable[[], None] = lambda: None) -> Judge:
    """Make a judge for whom a version beats these, and during whose work something happens."""

    def judge(champion: ModelVersion | None) -> Ruling:
        assert champion is not None
        meanwhile()
        alias = "champion" if str(champion.version) in losers else "challenger"
        return Ruling(alias, f"judged against {champion.version}", {"champion_version": str(champion.version)})

    return judge


class TestLock:
    def test_it_waits_for_another_process_and_is_free_when_that_is_killed(
        self, versions: MlflowClient, tmp_path: Path
    ) -> None:
        with services.store_lock("aliases"):
            pass
        (lock,) = (tmp_path / "mlruns").glob(".aliases.lock")
        hold = (
            f"import filelock, time; lock = filelock.FileLock({str(lock)!r}); lock.acquire(); print(); time.sleep(60)"
        )
        done = threading.Event()

        def work() -> None:
            award(versions, NAME, "3", beats("1"), {})
            done.set()

        with subprocess.Popen([sys.executable, "-u", "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            thread = threading.Thread(target=work)
            thread.start()
            try:
                assert not done.wait(1)
                assert named(versions)["champion"] == "1"
            finally:
                holder.kill()
            thread.join(30)
        assert done.is_set()
        assert named(versions)["champion"] == "3"

    def test_promoting_takes_the_same_lock(self, versions: MlflowClient, record: RunRecord) -> None:
        thread = threading.Thread(target=promote.fn, args=(NAME, "2", record))
        with services.store_lock("aliases"):
            thread.start()
            thread.join(1)
            assert thread.is_alive()
            assert named(versions)["champion"] == "1"
        thread.join(30)
        assert named(versions)["champion"] == "2"

    def test_judging_a_champion_that_stays_holds_nobody_up(self, versions: MlflowClient) -> None:
        def look() -> None:
            lock = services.store_lock("aliases")
            assert isinstance(lock, FileLock)
            lock.acquire(timeout=0)
            lock.release()

        award(versions, NAME, "3", beats("1", meanwhile=look), {})
        assert named(versions)["champion"] == "3"

    def test_a_server_has_none(self, versions: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
        with services.store_lock("aliases"):
            award(versions, NAME, "3", beats("1"), {})
        assert named(versions)["champion"] == "3"


class TestWithoutALock:
    """A store that is a server: nothing keeps another host from moving the alias at any time."""

    @pytest.fixture(autouse=True)
    def _no_lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(services, "store_lock", lambda _: nullcontext())

    @pytest.mark.parametrize("moment", ["while it is judged", "while it is tagged"])
    def test_a_champion_that_came_meanwhile_is_judged_against(
        self, moment: str, versions: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def come() -> None:
            versions.set_registered_model_alias(NAME, "champion", "2")

        real = MlflowClient.set_model_version_tag

        def tag(client: MlflowClient, *arguments: Any) -> None:
            real(client, *arguments)
            if moment == "while it is tagged":
                come()

        monkeypatch.setattr(MlflowClient, "set_model_version_tag", tag)
        judge = beats("1", meanwhile=come if moment == "while it is judged" else lambda: None)
        ruling = award(versions, NAME, "3", judge, {})
        assert (ruling.alias, ruling.decision) == ("challenger", "judged against 2")
        assert named(versions) == {"champion": "2", "challenger": "3"}
        tags = versions.get_model_version(NAME, "3").tags
        assert (tags["decision"], tags["champion_version"]) == ("judged against 2", "2")

    def test_where_it_never_stops_changing_the_version_is_challenger(self, versions: MlflowClient) -> None:
        judged: list[str] = []

        def change() -> None:
            judged.append(named(versions)["champion"])
            versions.set_registered_model_alias(NAME, "champion", "2" if judged[-1] == "1" else "1")

        ruling = award(versions, NAME, "3", beats("1", "2", meanwhile=change), {})
        assert ruling.alias == "challenger"
        assert "changed 5 times" in ruling.decision
        assert 2 < len(judged) < 10
        assert named(versions)["challenger"] == "3"
        assert versions.get_model_version(NAME, "3").tags["decision"] == ruling.decision


class TestTurns:
    """A store that is a server, with versions of runs on whichever machine; each waits for those below it."""

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(services, "sqlite_file", lambda _: None)
        monkeypatch.setattr(aliases, "SECONDS_BETWEEN_LOOKS", 0.02)

    @pytest.fixture
    def run_ids(self, versions: MlflowClient, tmp_path: Path) -> list[str]:
        """Open runs, whose versions 4 and 5 are to be decided."""
        experiment = versions.create_experiment("train")
        runs = [versions.create_run(experiment).info.run_id for _ in range(2)]
        for run_id in runs:
            versions.create_model_version(NAME, str(tmp_path / "model"), run_id=run_id, tags=aliases.undecided())
        return runs

    def begin(self, versions: MlflowClient, work: Callable[[], Any]) -> tuple[threading.Thread, threading.Event]:
        done = threading.Event()

        def act() -> None:
            work()
            done.set()

        thread = threading.Thread(target=act)
        thread.start()
        return thread, done

    def test_a_version_is_decided_after_the_ones_below_it_and_against_their_outcome(
        self, versions: MlflowClient, run_ids: list[str]
    ) -> None:
        thread, done = self.begin(versions, lambda: award(versions, NAME, "5", beats("1"), {}))
        assert not done.wait(0.5)
        award(versions, NAME, "4", beats("1"), {})
        thread.join(30)
        assert named(versions) == {"champion": "4", "challenger": "5"}
        tags = versions.get_model_version(NAME, "5").tags
        assert tags == {"champion_version": "4", "decision": "judged against 4"}

    def test_promoting_waits_for_all_that_are_being_decided(
        self, versions: MlflowClient, run_ids: list[str], record: RunRecord
    ) -> None:
        thread, done = self.begin(versions, lambda: promote.fn(NAME, "2", record))
        assert not done.wait(0.3)
        for version in ("4", "5"):
            award(versions, NAME, version, beats("1"), {})
        thread.join(30)
        assert named(versions) == {"champion": "2", "challenger": "4"}

    @pytest.mark.parametrize("status", ["KILLED", "FAILED"])
    def test_one_whose_run_was_closed_is_not_waited_for(
        self, status: str, versions: MlflowClient, run_ids: list[str]
    ) -> None:
        versions.set_terminated(run_ids[0], status)
        award(versions, NAME, "5", beats("1"), {})
        assert named(versions)["champion"] == "5"
        assert versions.get_model_version(NAME, "4").tags["undecided"] == "yes", "it was not given up after a minute"

    def test_one_that_stays_undecided_is_given_up_once_for_all(
        self, versions: MlflowClient, run_ids: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its machine lost power, so that nobody closes its run."""
        monkeypatch.setattr(aliases, "SECONDS_FOR_ANOTHER", 0.2)
        award(versions, NAME, "5", beats("1"), {})
        assert named(versions)["champion"] == "5"
        assert "undecided" not in versions.get_model_version(NAME, "4").tags

    def test_a_fault_leaves_it_undecided_while_its_run_is_open(
        self, versions: MlflowClient, run_ids: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The step is tried again, or the run is closed."""

        def fail(*_: Any) -> None:
            raise ConnectionError("the connection was lost")

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "set_registered_model_alias", fail)
            with pytest.raises(ConnectionError):
                award(versions, NAME, "4", beats("1"), {})
        assert versions.get_model_version(NAME, "4").tags["undecided"] == "yes"
        award(versions, NAME, "4", beats("1"), {})
        assert named(versions)["champion"] == "4"


class TestPromote:
    def test_the_former_champion_becomes_challenger_and_everything_remembers_it(
        self, versions: MlflowClient, record: RunRecord
    ) -> None:
        promotion = promote.fn(NAME, "2", record)
        assert named(versions) == {"champion": "2", "challenger": "1"}
        assert (promotion.name, promotion.former, promotion.version) == (NAME, "1", "2")
        assert promotion.time is not None
        age = datetime.now(UTC) - datetime.fromisoformat(promotion.time)
        assert timedelta(seconds=-1) < age < timedelta(minutes=5)
        facts = {"time": promotion.time, "run_id": record.run_id}
        expected = {"1": ("demoted", {"to": "2", **facts}), "2": ("promoted", {"from": "1", **facts}), "3": ("", {})}
        for version, (what, tags) in expected.items():
            kept = versions.get_model_version(NAME, version).tags
            assert kept == {f"{what}.{key}": value for key, value in tags.items()}
        of_run = versions.get_run(record.run_id).data.tags
        told = {key: of_run[f"promotion.{key}"] for key in ("model", "from", "to", "time")}
        assert told == promotion.as_json() == {"model": NAME, "from": "1", "to": "2", "time": promotion.time}
        assert promotion.in_words() == "from version 1, now challenger, to version 2 of line"

    def test_it_can_be_taken_back(self, versions: MlflowClient, record: RunRecord) -> None:
        promote.fn(NAME, "3", record)
        promote.fn(NAME, "1", record)
        assert named(versions) == {"champion": "1", "challenger": "3"}

    def test_the_present_champion_stays_and_nothing_moves(self, versions: MlflowClient, record: RunRecord) -> None:
        promotion = promote.fn(NAME, "1", record)
        assert promotion == Promotion(NAME, "1", "1", None)
        assert promotion.in_words() == "version 1 of line, which was champion already"
        assert named(versions) == {"champion": "1", "challenger": "2"}
        assert versions.get_model_version(NAME, "1").tags == {}
        assert versions.get_run(record.run_id).data.tags["promotion.to"] == "1"

    def test_where_none_was_champion_the_version_is_challenger_no_longer(
        self, versions: MlflowClient, record: RunRecord
    ) -> None:
        versions.delete_registered_model_alias(NAME, "champion")
        promotion = promote.fn(NAME, "2", record)
        assert named(versions) == {"champion": "2"}
        assert promotion.former is None
        assert promotion.in_words() == "from no version to version 2 of line"

    def test_a_move_that_failed_half_way_is_made_whole_by_the_same_command(
        self, versions: MlflowClient, record: RunRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = MlflowClient.set_registered_model_alias
        calls: list[str] = []

        def fail_second(client: MlflowClient, name: str, alias: str, version: str) -> None:
            calls.append(alias)
            if len(calls) == 2:
                raise ConnectionError("the connection was lost")
            real(client, name, alias, version)

        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", fail_second)
        with pytest.raises(ConnectionError):
            promote.fn(NAME, "2", record)
        promote.fn(NAME, "2", record)
        assert named(versions) == {"champion": "2", "challenger": "1"}
