"""Files and addresses that lead elsewhere, never end, or are larger than they look."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from fourfold.configuration import PredictConfig, TrainConfig
from fourfold.errors import ParityError, RequestError
from fourfold.onnx_file import ExportedModel, file_sha256
from tasks import make_data
from tasks.find_model import find_model, locate
from tasks.make_data import load
from tasks.predict import predict, prepare
from tasks.prove_again import prove
from tasks.tracking import RunRecord

LinearFile = Callable[..., ExportedModel]
pytestmark = pytest.mark.timeout(60)  # what hangs is a failure


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is not the store's."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture
def version(store: MlflowClient, linear_file: LinearFile) -> Callable[[Path | None], Path]:
    """Register y = 2 x, kept in the folder given or in the store's, with hashes; gives its folder."""

    def make(folder: Path | None = None) -> Path:
        exported = linear_file([[2.0]], [0.0], name="kept/model.onnx")
        kept = exported.path.parent
        if folder:
            kept = Path(shutil.copytree(kept, folder / "kept"))
        store.create_registered_model("line")
        tags = {"sha256": exported.sha256, "golden_sha256": file_sha256(kept / "golden.parquet")}
        store.create_model_version("line", str(kept), tags=tags)
        return kept

    return make


class TestAddress:
    @pytest.mark.parametrize(
        "address",
        [
            "models:/../1", "models:/..@champion", "models:/a/../b/1", "models:/line/1/../../..", "models:/line/1\n",
            "models:/a%2f..%2fb/1", "models:/a'b/1", "models:/a' or '1'='1/1", "models:/line/" + "9" * 40,
            "models:/a\0b/1", "models:/a\ud800/1", "models:/" + "a" * 5000 + "/1", "../../etc", "/etc", "/dev/zero",
            "f" * 31 + "/", "f" * 32 + "/../x", "runs:/" + "f" * 32, "file:///etc", "http://127.0.0.1:1/x",
            "a" * 5000, "a" * 5000 + ".onnx", "x\0.onnx", "$(touch x)", "",
        ],
    )  # fmt: skip
    def test_one_that_names_no_model_is_refused_in_one_line(
        self, address: str, version: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version()
        monkeypatch.chdir(tmp_path / "kept")
        (tmp_path / "kept" / "model.onnx").unlink()  # which the empty address, this folder, would find

        def files() -> list[Path]:
            return sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock")

        before = files()
        with pytest.raises(RequestError):
            locate(address)
        assert files() == before

    def test_a_version_outside_of_the_store_is_refused(self, version: Callable[..., Path], elsewhere: Path) -> None:
        kept = version(elsewhere)
        with pytest.raises(RequestError, match="outside of the store; give that folder itself if you trust it"):
            locate("models:/line/1")
        assert locate(str(kept)).path == kept / "model.onnx"

    @pytest.mark.parametrize("where", ["{elsewhere}", "{store}/../../{name}", "file://{elsewhere}"])
    def test_a_run_whose_files_were_pointed_elsewhere_is_refused(
        self, where: str, record: RunRecord, linear_file: LinearFile, elsewhere: Path, tmp_path: Path
    ) -> None:
        import sqlite3

        exported = linear_file([[2.0]], [0.0])
        for path in (exported.path, exported.path.with_name("golden.parquet")):
            record.file(path)
            shutil.copy(path, elsewhere)
        record.tags({"model.sha256": exported.sha256})
        assert locate(record.run_id).path.is_relative_to(tmp_path / "mlruns")
        relative = os.path.relpath(elsewhere, tmp_path / "mlruns" / "..")
        pointed = where.format(elsewhere=elsewhere, store=tmp_path / "mlruns" / "train", name=relative)
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("update runs set artifact_uri = ?", (pointed,))
        database.close()
        assert elsewhere.samefile(pointed.removeprefix("file://"))
        with pytest.raises(RequestError, match="outside of the store"):
            locate(record.run_id)

    def test_an_experiment_that_keeps_its_files_elsewhere_is_in_the_store(
        self, store: MlflowClient, linear_file: LinearFile, elsewhere: Path
    ) -> None:
        run = store.create_run(store.create_experiment("mine", artifact_location=str(elsewhere)))
        exported = linear_file([[2.0]], [0.0])
        store.log_artifact(run.info.run_id, str(exported.path))
        assert locate(run.info.run_id).path.read_bytes() == exported.path.read_bytes()

    def test_a_store_whose_files_are_linked_to_another_disk_is_the_store(
        self, store: MlflowClient, linear_file: LinearFile, elsewhere: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "mlruns").symlink_to(elsewhere)
        kept = linear_file([[2.0]], [0.0], name="mlruns/kept/model.onnx").path
        store.create_registered_model("line")
        store.create_model_version("line", str(kept.parent))
        assert locate("models:/line/1").path.samefile(kept)

    @pytest.mark.parametrize("name", ["model.onnx", "golden.parquet"])
    @pytest.mark.parametrize("kind", ["link", "link to a device", "pipe", "folder", "link to itself"])
    def test_a_file_of_a_version_that_is_none_is_not_opened(
        self, name: str, kind: str, version: Callable[..., Path], elsewhere: Path
    ) -> None:
        path = version() / name
        shutil.move(path, elsewhere / name)
        make: dict[str, Callable[[], Any]] = {
            "link": lambda: path.symlink_to(elsewhere / name),
            "link to a device": lambda: path.symlink_to("/dev/zero"),
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
            "link to itself": lambda: path.symlink_to(path),
        }
        make[kind]()
        with pytest.raises(RequestError, match=f"{name} is no regular file"):
            locate("models:/line/1")

    def test_looking_at_a_version_writes_nothing_through_a_link_that_lies_there(
        self, version: Callable[..., Path], elsewhere: Path, record: RunRecord, tmp_path: Path
    ) -> None:
        """MLflow itself would write `registered_model_meta` beside each MLmodel that it fetches."""
        folder, precious = version(), elsewhere / "precious"
        precious.write_text("mine")
        (folder / "MLmodel").write_text("flavors: {}\n")
        (folder / "registered_model_meta").symlink_to(precious)
        before = sorted(folder.iterdir())
        predict.fn(prepare(PredictConfig(model="models:/line/1", at="4")), record, tmp_path)
        assert prove.fn(find_model("models:/line/1"), "a title", record, tmp_path).passed
        assert precious.read_text() == "mine"
        assert sorted(folder.iterdir()) == before

    def test_both_files_forged_to_fit_each_other_are_found_by_what_the_registry_remembers(
        self, version: Callable[..., Path], linear_file: LinearFile, record: RunRecord, tmp_path: Path
    ) -> None:
        version()
        linear_file([[2.5]], [0.0], name="kept/model.onnx")
        assert prove.fn(find_model(str(tmp_path / "kept")), "a title", record, tmp_path).passed, "a good forgery"
        assert "was changed since" in prove.fn(find_model("models:/line/1"), "a title", record, tmp_path).reason
        with pytest.raises(ParityError, match="another SHA-256"):
            prepare(PredictConfig(model="models:/line/1", at="4"))

    def test_both_files_forged_in_a_run_are_found_by_what_the_run_remembers(
        self, linear_file: LinearFile, record: RunRecord, tmp_path: Path
    ) -> None:
        exported = linear_file([[2.0]], [0.0])
        golden = exported.path.with_name("golden.parquet")
        record.tags({"model.sha256": exported.sha256, "golden.sha256": file_sha256(golden)})
        linear_file([[2.5]], [0.0])
        for path in (exported.path, golden):
            record.file(path)
        assert "was changed since" in prove.fn(find_model(record.run_id), "a title", record, tmp_path).reason
        with pytest.raises(ParityError, match="another SHA-256"):
            prepare(PredictConfig(model=record.run_id, at="4"))


class TestData:
    @pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to itself", "too long", "NUL", "no text"])
    def test_what_is_no_file_is_refused_and_never_waited_for(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "x.csv"
        make: dict[str, Callable[[], Any]] = {
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "device": lambda: path.symlink_to("/dev/zero"),
            "link to itself": lambda: path.symlink_to(path),
        }
        make.get(kind, lambda: None)()
        data = {"too long": "x" * 5000 + ".csv", "NUL": "x\0.csv", "no text": "x\ud800.csv"}.get(kind, str(path))
        with pytest.raises((RequestError, ValueError), match=r"no such file|unable to parse"):
            load(TrainConfig(data=data, target="y"))

    @pytest.mark.parametrize("content", [b"x" * 2**24 + b",y\n1,2\n3,4\n", b"x,y\n1,2\n" + b"9" * 2**24 + b",2\n3,4\n"])
    def test_a_line_without_end_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(RequestError, match=r"x.csv cannot be read"):
            load(TrainConfig(data=str(tmp_path / "x.csv"), target="y"))

    def test_tens_of_thousands_of_columns_are_looked_at_in_seconds(self, tmp_path: Path) -> None:
        """Each looked up in a list, a hundred thousand of them are minutes."""
        width = 30_000
        rows = [",".join(f"c{column}" for column in range(width))]
        rows += [",".join(str((column * 7 + row * 3) % 11) for column in range(width)) for row in range(5)]
        (tmp_path / "wide.csv").write_text("\n".join(rows))
        started = time.process_time()
        data = load(TrainConfig(data=str(tmp_path / "wide.csv"), target="c0"))
        assert time.process_time() - started < 8
        assert (len(data.features), data.rows) == (width - 1, 5)

    @pytest.mark.parametrize(("options", "each"), [({"stream": False}, 16), ({"batch_size": 9}, 17)])
    def test_rows_that_no_memory_could_hold_are_refused_by_what_the_file_says(
        self, options: dict[str, Any], each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twenty million equal numbers are a file of some kilobytes."""
        rows = 20_000_000
        same = pa.array(np.zeros(rows, dtype=np.float32))
        pq.write_table(pa.table({"x": same, "y": same}), tmp_path / "bomb.parquet", compression="zstd")
        assert (tmp_path / "bomb.parquet").stat().st_size < rows / 10
        config = TrainConfig(data=str(tmp_path / "bomb.parquet"), target="y", dtype="float64", **options)
        little = psutil.virtual_memory()._replace(available=rows * each - 1)
        monkeypatch.setattr(make_data.psutil, "virtual_memory", lambda: little)
        with pytest.raises(RequestError, match=r"has 20000000 rows, which take 0.\d+ GiB at least"):
            load(config)


class TestOutput:
    @pytest.fixture
    def asked(self, linear_file: LinearFile, tmp_path: Path) -> dict[str, Any]:
        model = linear_file([[2.0]], [0.0]).path
        pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "in.parquet")
        return {"model": str(model), "input": str(tmp_path / "in.parquet"), "overwrite": True}

    @pytest.mark.parametrize("kind", ["pipe", "device", "folder", "too long", "NUL", "in a folder too long"])
    def test_what_is_no_file_is_neither_written_nor_replaced(
        self, kind: str, asked: dict[str, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "out.csv"
        make: dict[str, Callable[[], Any]] = {
            "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/full"), "folder": path.mkdir,
        }  # fmt: skip
        make.get(kind, lambda: None)()
        given = {"too long": "x" * 5000 + ".csv", "NUL": "x\0.csv", "in a folder too long": "x" * 5000 + "/o.csv"}
        before = sorted(tmp_path.iterdir())
        with pytest.raises(RequestError, match="--output "):
            prepare(PredictConfig(**asked, output=given.get(kind, str(path))))
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("by", ["its name", "a link", "a hard link"])
    def test_the_input_itself_is_never_the_output(self, by: str, asked: dict[str, Any], tmp_path: Path) -> None:
        rows, output = Path(asked["input"]), tmp_path / "out.parquet"
        if by == "a link":
            output.symlink_to(rows)
        elif by == "a hard link":
            output.hardlink_to(rows)
        with pytest.raises(RequestError, match="is the file of --input; give it another name"):
            prepare(PredictConfig(**asked, output=str(rows if by == "its name" else output)))

    @pytest.mark.parametrize("there", [True, False])
    def test_a_link_is_replaced_and_what_it_leads_to_is_not_touched(
        self, there: bool, asked: dict[str, Any], record: RunRecord, elsewhere: Path, tmp_path: Path
    ) -> None:
        output, precious = tmp_path / "out.csv", elsewhere / "precious"
        if there:
            precious.write_text("mine")
        output.symlink_to(precious)
        predict.fn(prepare(PredictConfig(**asked, output=str(output))), record, tmp_path)
        assert output.read_text().split() == ['"predicted_y"', "2", "4"]
        assert not output.is_symlink()
        assert precious.read_text() == "mine" if there else not precious.exists()

    def test_the_name_of_the_half_written_file_cannot_be_foreseen(
        self, asked: dict[str, Any], record: RunRecord, elsewhere: Path, tmp_path: Path
    ) -> None:
        """In a folder that others write to, a link that waits there would lead the predictions into another file."""
        output, precious = tmp_path / "out.csv", elsewhere / "precious"
        precious.write_text("mine")
        for name in (f".out.csv.{os.getpid()}.part", f".{os.getpid()}.part", ".out.csv.part", "out.csv.part"):
            (tmp_path / name).symlink_to(precious)
        predict.fn(prepare(PredictConfig(**asked, output=str(output))), record, tmp_path)
        assert precious.read_text() == "mine"

    def test_a_name_as_long_as_a_file_can_have_is_written(
        self, asked: dict[str, Any], record: RunRecord, tmp_path: Path
    ) -> None:
        output = tmp_path / ("x" * 251 + ".csv")
        predict.fn(prepare(PredictConfig(**asked, output=str(output))), record, tmp_path)
        assert output.is_file()


def test_no_thread_is_left_waiting() -> None:
    """A pipe that was opened after all would keep one."""
    assert [one.name for one in threading.enumerate() if one.name.startswith("ThreadPoolExecutor")] == []
