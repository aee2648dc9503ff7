"""A disk that is full: one line, exit 1, and what was there before is whole. The disks are small ones in memory."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from workplaces import Workplace

from fourfold.checkpoints import CheckpointFolder
from fourfold.onnx_export import export
from models.linear import LinearRegression


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"small disk {len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(folder)]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"this test mounts a small file system: {tried.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(folder: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)


def test_the_checkpoint_before_the_one_that_does_not_fit_is_whole(small_disk: Callable[[int], Path]) -> None:
    folder = CheckpointFolder(small_disk(200))
    written = 0
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012
        for size in range(1000, 100_000, 1000):
            folder.save({"size": size, "values": torch.ones(size)})
            written = size
    assert written > 1000
    state = folder.load()
    assert state is not None
    assert (state["size"], len(state["values"])) == (written, written)
    assert not list(folder.path.glob(".*.part")), "what did not fit is gone"


@pytest.mark.usefixtures("shared_server")
def test_a_training_whose_checkpoints_do_not_fit_goes_on_when_there_is_room(
    workplace: Workplace, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(120)
    (workplace.folder / "mlruns").mkdir()
    (workplace.folder / "mlruns" / "checkpoints").symlink_to(disk)
    ended = workplace.run("--epochs", "4000", "--checkpoint-seconds", "0.01", "--json")
    assert ended.code == 1, ended.err
    assert "no space" in ended.err.lower()
    assert len(ended.err.strip().splitlines()) <= 20
    assert "Traceback" not in ended.err
    result = ended.result
    (run_id,) = [path.name for path in disk.iterdir()]
    assert result["run_id"] == run_id
    assert workplace.client.get_run(run_id).info.status == "FAILED"
    assert CheckpointFolder(disk / run_id).load() is not None
    grow(disk, 10_000)
    again = workplace.run("--resume", run_id, "--json")
    assert again.code == 0, again.err
    assert (again.result["run_id"], again.result["epochs"]) == (run_id, 4000)
    assert [one.step for one in workplace.client.get_metric_history(run_id, "epochs")] == [0]


@pytest.mark.usefixtures("shared_server")
@pytest.mark.parametrize("room", [40, 400])
def test_a_store_that_is_full_is_told_and_sound(
    room: int, workplace: Workplace, small_disk: Callable[[int], Path], empty_database: Path
) -> None:
    disk = small_disk(empty_database.stat().st_size // 1024 + 64 + room)
    shutil.copy(empty_database, disk / "mlflow.db")
    place = replace(
        workplace, environment=workplace.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{disk}/mlflow.db"}
    )
    ended = place.run("--epochs", "3000", "--json")
    assert ended.code == 1, ended.err
    assert "no space" in ended.err.lower()
    assert "Traceback" not in ended.err
    with sqlite3.connect(disk / "mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert database.execute("select count(*) from registered_model_aliases").fetchall() == [(0,)]
        assert "FINISHED" not in {status for (status,) in database.execute("select status from runs")}


@pytest.mark.usefixtures("shared_server")
def test_predictions_that_do_not_fit_leave_the_former_output(
    workplace: Workplace, small_disk: Callable[[int], Path]
) -> None:
    export(
        LinearRegression(1),
        torch.zeros(2, 1),
        workplace.folder / "line.onnx",
        {"features": '["x"]', "targets": '["y"]'},
    )
    disk = small_disk(60)
    (disk / "out.csv").write_text("what was there\n")
    rows = workplace.folder / "rows.parquet"
    pq.write_table(pa.table({"x": [float(i) for i in range(50_000)]}), rows)
    ended = workplace.run(
        "--model", "line.onnx", "--input", str(rows), "--output", str(disk / "out.csv"),
        "--overwrite", flow="predict",
    )  # fmt: skip
    assert ended.code == 1, ended.err
    assert "no space" in ended.err.lower()
    assert (disk / "out.csv").read_text() == "what was there\n"
    assert [path.name for path in disk.iterdir()] == ["out.csv"]
