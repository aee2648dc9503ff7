"""Processes are started and killed here; what is asked of them comes from the kernel."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fourfold import processes
from fourfold.processes import ProcessIdentity, process_tags, temporary_folder

ROOT = Path(__file__).parents[2]
CHILD = """
import sys, time
from pathlib import Path
from fourfold import processes
print(processes.ProcessIdentity.own().spelled, flush=True)
folder = processes.temporary_folder()
(folder / "rows.parquet").write_text("rows")
print(folder, flush=True)
part = processes.part_of(Path(sys.argv[1]))
part.write_text("half")
print(part, flush=True)
time.sleep(600)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator["tuple[subprocess.Popen[str], list[str]]"]:
    """A living process that has told who it is, and has made a temporary folder and a part of `out.csv`."""
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "out.csv")],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, [process.stdout.readline().strip() for _ in range(3)]
        process.kill()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The child's folder for temporary files, for this process as well."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def identity(text: str) -> ProcessIdentity:
    found = ProcessIdentity.read(text)
    assert found is not None
    return found


class TestWhetherItIsGone:
    def test_a_living_process_is_not_and_a_killed_one_is(
        self, child: "tuple[subprocess.Popen[str], list[str]]"
    ) -> None:
        process, (told, *_) = child
        assert identity(told).pid == process.pid
        assert not identity(told).is_gone()
        process.kill()
        process.wait()
        assert identity(told).is_gone()

    def test_one_that_waits_to_be_collected_by_its_parent_is(
        self, child: "tuple[subprocess.Popen[str], list[str]]"
    ) -> None:
        process, (told, *_) = child
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert identity(told).is_gone()

    def test_a_process_that_got_the_id_of_an_earlier_one_is_another(self) -> None:
        own = ProcessIdentity.own()
        assert not own.is_gone()
        assert not replace(own, begun=own.begun + 1).is_gone(), "the boot time is known to the second"
        assert replace(own, begun=own.begun - 60).is_gone()

    @pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["own", "none"])
    def test_of_another_host_nothing_is_certain(self, pid: int) -> None:
        assert not ProcessIdentity("0" * 12, pid, 1.0).is_gone()

    @pytest.mark.parametrize("begun", [float("nan"), float("inf") - float("inf")])
    def test_of_an_unreadable_start_nothing_is_certain(self, begun: float) -> None:
        assert not replace(ProcessIdentity.own(), begun=begun).is_gone()

    @pytest.mark.parametrize("pid", [-1, 2**40])
    def test_an_impossible_id_is_no_fault(self, pid: int) -> None:
        assert replace(ProcessIdentity.own(), pid=pid).is_gone() in (True, False)

    def test_a_clock_that_was_set_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Boot time and starts move together then."""
        tags, own = process_tags(), ProcessIdentity.own()
        booted, created = psutil.boot_time(), psutil.Process().create_time()
        monkeypatch.setattr(psutil, "boot_time", lambda: booted + 3600)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: created + 3600)
        told = ProcessIdentity.of_tags(tags)
        assert told is not None
        assert not told.is_gone()
        assert not own.is_gone()


class TestItsTags:
    def test_they_are_read_back(self) -> None:
        told = ProcessIdentity.of_tags(process_tags())
        assert told is not None
        assert told.spelled == ProcessIdentity.own().spelled

    @pytest.mark.parametrize("name", ["process_id", "process_started", "process_namespace", "process_booted"])
    def test_without_one_of_them_nothing_is_known(self, name: str) -> None:
        tags = process_tags()
        del tags[name]
        assert ProcessIdentity.of_tags(tags) is None

    @pytest.mark.parametrize("name", ["process_id", "process_started", "process_booted"])
    def test_one_that_cannot_be_read_is_as_none(self, name: str) -> None:
        assert ProcessIdentity.of_tags(process_tags() | {name: "x"}) is None

    @pytest.mark.parametrize("text", ["", "x", "0" * 12, f"{'0' * 12}-1", f"{'0' * 12}-1-2-3", f"{'0' * 12}--1-2"])
    def test_a_word_of_another_kind_is_no_process(self, text: str) -> None:
        assert ProcessIdentity.read(text) is None


class TestWhatItLeaves:
    def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(
        self, child: "tuple[subprocess.Popen[str], list[str]]", temporary: Path
    ) -> None:
        process, (_, folder, _) = child
        mine = temporary_folder()
        others = [temporary / "fourfold-of-somebody", temporary / "tmpabc"]
        for other in others:
            other.mkdir()
        assert processes.remove_left_folders() == []
        process.kill()
        process.wait()
        assert processes.remove_left_folders() == [Path(folder)]
        assert sorted(temporary.iterdir()) == sorted([mine, *others])

    def test_a_link_in_the_name_of_one_is_not_followed(
        self, child: "tuple[subprocess.Popen[str], list[str]]", temporary: Path, tmp_path: Path
    ) -> None:
        process, (told, *_) = child
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "rows.csv").write_text("1")
        process.kill()
        process.wait()
        (temporary / f"fourfold-{told}-link").symlink_to(tmp_path / "precious")
        processes.remove_left_folders()
        assert (tmp_path / "precious" / "rows.csv").exists()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
    def test_another_users_folder_is_left_alone(
        self, child: "tuple[subprocess.Popen[str], list[str]]", temporary: Path
    ) -> None:
        process, (_, folder, _) = child
        process.kill()
        process.wait()
        os.chown(folder, 4321, 4321)
        assert processes.remove_left_folders() == []

    def test_a_part_of_the_same_file_is_removed_when_its_process_is_gone(
        self, child: "tuple[subprocess.Popen[str], list[str]]", tmp_path: Path
    ) -> None:
        process, (_, _, part) = child
        _, of_other, *_ = processes.part_of(tmp_path / "other.csv").name.split(".")
        _, _, *owner = Path(part).name.split(".")
        other = Path(part).with_name(".".join(("", of_other, *owner)))
        other.write_text("half")
        processes.remove_left_parts(tmp_path / "out.csv")
        assert Path(part).exists()
        process.kill()
        process.wait()
        processes.remove_left_parts(tmp_path / "out.csv")
        assert not Path(part).exists()
        assert other.exists()
