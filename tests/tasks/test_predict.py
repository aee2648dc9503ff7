"""Predictions for rows and points in this process: what is read, refused, written and recorded."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from fourfold.configuration import PredictConfig
from fourfold.errors import ParityError, RequestError
from fourfold.onnx_file import ExportedModel
from tasks.predict import Predicted, predict, prepare
from tasks.predict_result import PredictResult
from tasks.tracking import RunRecord

LinearFile = Callable[..., ExportedModel]
W, B = [[2.0, -0.5, 1.0]], [0.25]
TRAINING = {
    "features": {
        "area": {"low": 0.0, "high": 10.0, "mean": 5.0, "deviation": 2.0},
        "living room": {"low": -1.0, "high": 1.0, "mean": 0.0, "deviation": 0.5},
        "Höhe": {"low": 0.0, "high": 0.0, "mean": 0.0, "deviation": 0.0},
    },
    "targets": {"price": {"low": 0.0, "high": 20.0, "mean": 10.0, "deviation": 4.0}},
}
ABOUT = {
    "features": json.dumps(list(TRAINING["features"])),
    "targets": json.dumps(["price"]),
    "training": json.dumps(TRAINING),
}


@pytest.fixture
def model(linear_file: LinearFile) -> str:
    """The path of y = 2 area - 0.5 living room + Höhe + 0.25."""
    return str(linear_file(W, B, metadata=ABOUT).path)


def table(path: Path, rows: int = 5, **columns: Any) -> Path:
    random = np.random.default_rng(1)
    made = {name: random.normal(size=rows).astype(np.float32) for name in TRAINING["features"]} | columns
    pq.write_table(pa.table(made), path)
    return path


def run(record: RunRecord, folder: Path, **options: Any) -> Predicted:
    made: Predicted = predict.fn(prepare(PredictConfig(**options)), record, folder)
    return made


def by_hand(frame: pd.DataFrame) -> np.ndarray:
    x = frame[list(TRAINING["features"])].to_numpy(dtype=np.float64)
    answer: np.ndarray = x @ np.array(W[0]) + B[0]
    return answer


@pytest.mark.parametrize("rows", [1, 65_536, 150_001])
def test_every_row_is_predicted_in_order_whatever_the_chunks(
    rows: int, model: str, record: RunRecord, store: MlflowClient, tmp_path: Path
) -> None:
    path = table(tmp_path / "rows.parquet", rows, key=np.arange(rows))
    made = run(record, tmp_path, model=model, input=str(path), output=str(tmp_path / "o.parquet"), keep="key")
    assert made.rows == rows
    stored = store.get_run(record.run_id).data
    assert stored.metrics["rows"] == rows
    assert stored.metrics["seconds"] > 0
    assert stored.tags["input.sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (stored.tags["model"], stored.tags["output"]) == (model, str(tmp_path / "o.parquet"))
    written = pd.read_parquet(tmp_path / "o.parquet")
    assert written["key"].tolist() == list(range(rows))
    assert written["predicted_price"].dtype == np.float32
    np.testing.assert_allclose(written["predicted_price"], by_hand(pd.read_parquet(path)), rtol=1e-5, atol=1e-5)


def test_keys_keep_their_types_in_parquet_and_their_spelling_in_csv(
    model: str, record: RunRecord, tmp_path: Path
) -> None:
    keys = {
        "day": pa.array(["2026-01-01"]).cast(pa.date32()),
        "id": pa.array(["007"]),
        "n": pa.array([None], pa.int32()),
    }
    path = table(tmp_path / "rows.parquet", 1, **keys)
    run(record, tmp_path, model=model, input=str(path), output=str(tmp_path / "o.parquet"), keep="n,day,id")
    schema = pq.read_schema(tmp_path / "o.parquet")
    assert schema.names == ["n", "day", "id", "predicted_price"]
    assert [schema.field(name).type for name in keys] == [key.type for key in keys.values()]
    text = 'id,living room,day,Höhe,area,note\n007,0.5,01/02/2026,0,1,"a, ""b"""\n'
    (tmp_path / "rows.csv").write_text(text)
    run(
        record,
        tmp_path,
        model=model,
        input=str(tmp_path / "rows.csv"),
        output=str(tmp_path / "o.csv"),
        keep="note,id,day",
    )
    written = pd.read_csv(tmp_path / "o.csv", dtype=str)
    assert written.iloc[0].tolist() == ['a, "b"', "007", "01/02/2026", "2"]


def test_a_feature_may_be_kept_as_well(model: str, record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("area,living room,Höhe\n1.5,0.5,0\n")
    run(record, tmp_path, model=model, input=str(tmp_path / "rows.csv"), output=str(tmp_path / "o.csv"), keep="area")
    assert pd.read_csv(tmp_path / "o.csv").to_dict("list") == {"area": [1.5], "predicted_price": [3.0]}


def test_points_are_predicted_and_can_be_written(model: str, record: RunRecord, tmp_path: Path) -> None:
    made = run(record, tmp_path, model=model, at=("1,2,3", "0,0,0"), output=str(tmp_path / "o.csv"))
    assert made.points == (((1.0, 2.0, 3.0), (4.25,)), ((0.0, 0.0, 0.0), (0.25,)))
    written = pd.read_csv(tmp_path / "o.csv")
    assert list(written) == [*TRAINING["features"], "predicted_price"]
    assert written["predicted_price"].tolist() == [4.25, 0.25]


def test_drift_is_told_per_column_against_the_training(
    model: str, record: RunRecord, store: MlflowClient, tmp_path: Path
) -> None:
    columns = {
        "area": np.array([5.0, 5.0, 11.0, -1.0], dtype=np.float32),
        "living room": np.zeros(4, dtype=np.float32),
        "Höhe": np.array([0, 0, 0, 1], dtype=np.float32),
    }
    path = table(tmp_path / "rows.parquet", 4, **columns)
    made = run(record, tmp_path, model=model, input=str(path), output=str(tmp_path / "o.parquet"))
    area, living, height = made.inputs
    assert (area.low, area.high, area.mean, area.outside, area.shift) == (-1.0, 11.0, 5.0, 0.5, 0.0)
    assert (living.outside, living.shift) == (0.0, 0.0)
    assert (height.outside, height.shift) == (0.25, np.inf)
    price = made.outputs[0]
    assert (price.mean, price.outside) == (pytest.approx(10.5), 0.5)
    assert price.shift == pytest.approx((10.5 - 10) / 4)
    metrics = store.get_run(record.run_id).data.metrics
    assert (metrics["rows"], metrics["outside/area"], metrics["shift/price"]) == (4, 0.5, pytest.approx(0.125))
    result = PredictResult(PredictConfig(model=model, input=str(path), output="o"), predicted=made)
    assert result.rows()["drift"] == "see area, Höhe"
    assert [row[0] for row in result.tables()[0].rows] == ["area", "living room", "Höhe", "predicted price"]
    assert json.dumps(result.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": "4"}, "--at 4 has 1 values; the model takes 3: area, living room, Höhe"),
        ({"output": "there.csv"}, "there.csv exists; --overwrite replaces a file"),
        ({"output": ".", "overwrite": True}, "unknown ending ''"),
        ({"output": "folder.csv", "overwrite": True}, "folder.csv exists; --overwrite replaces a file"),
        ({"output": "o.txt"}, "unknown ending '.txt'; .csv and .parquet are written"),
        ({"output": "nowhere/o.csv"}, "there is no folder .*nowhere"),
        ({"input": "nowhere.csv"}, "--input .*nowhere.csv: no such file; give the path of a"),
        ({"input": "lacking.csv"}, "lacking.csv has no column 'Höhe'; the model takes area, living room, Höhe"),
        ({"input": "text.csv"}, r"column 'area' of .*: 1 of 2 values are text, first in row 2 \('large'\)"),
        ({"input": "dates.parquet"}, "column 'area' of .* holds date32"),
        ({"input": "empty.csv"}, "empty.csv has no rows"),
        ({"input": "infinite.csv"}, "column 'area' is inf in row 2; the model takes finite numbers"),
        ({"input": "beyond.csv"}, r"column 'area' 1e\+300 is beyond float32 in row 1"),
        (
            {"input": "missing.csv"},
            "column 'area' has no value in row 2 .*; mend it, or train the model with --missing",
        ),
        ({"input": "short.parquet"}, "short.parquet cannot be read"),
        ({"at": "1e300,2,3"}, r"--at: column 'area' 1e\+300 is beyond float32 in row 1"),
        ({"output": "o" * 300 + ".csv"}, "--output .*: File name too long"),
        ({"model": "m" * 5000}, "m+: no such folder; give models:"),
        ({"keep": "key"}, "--keep key: .* has no such column; it has area, living room, Höhe"),
        ({"keep": "area,area"}, "--keep area is given twice"),
        ({"input": "scored.parquet", "keep": "predicted_price"}, "--keep predicted_price: the predictions themselves"),
        (
            {"input": "lists.parquet", "keep": "tags"},
            r"--keep tags: a \.csv file cannot hold list<element: int64>; leave it out, or choose an --output",
        ),
        ({"model": "nowhere.onnx"}, "there is no nowhere.onnx there"),
        ({"model": "there.onnx"}, "the file cannot be read as ONNX"),
        ({"model": "foreign.onnx"}, "the file does not say which columns it takes"),
    ],
    ids=str,
)
def test_a_wrong_request_is_told_in_one_line_and_leaves_nothing(
    options: dict[str, Any],
    said: str,
    model: str,
    linear_file: LinearFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    header = "area,living room,Höhe\n"
    for name, text in {
        "there.csv": f"{header}1,2,3\n", "lacking.csv": "area,living room\n1,2\n", "empty.csv": header,
        "text.csv": f"{header}1,2,3\nlarge,2,3\n", "infinite.csv": f"{header}1,2,3\ninf,2,3\n",
        "beyond.csv": f"{header}1e300,2,3\n", "missing.csv": f"{header}1,2,3\n,2,3\n", "there.onnx": "text",
    }.items():  # fmt: skip
        Path(name).write_text(text)
    Path("folder.csv").mkdir()
    table(Path("rows.parquet"))
    table(Path("dates.parquet"), 1, area=pa.array(["2026-01-01"]).cast(pa.date32()))
    table(Path("scored.parquet"), 1, predicted_price=[1.0])
    table(Path("lists.parquet"), 1, tags=[[1, 2]])
    Path("short.parquet").write_bytes(Path("rows.parquet").read_bytes()[:-20])
    linear_file(W, B, name="foreign.onnx", metadata={"features": "none"})
    before = {one.name for one in tmp_path.iterdir()}
    given = {"model": model, "output": "o.csv"} | ({} if "at" in options else {"input": "rows.parquet"}) | options
    with pytest.raises(RequestError, match=said) as refusal:
        prepare(PredictConfig(**given))
    assert "\n" not in str(refusal.value)
    assert {one.name for one in tmp_path.iterdir()} == before


def test_a_file_that_was_changed_since_it_was_registered_predicts_nothing(
    store: MlflowClient, model: str, tmp_path: Path
) -> None:
    store.create_registered_model("line")
    version = store.create_model_version("line", str(Path(model).parent))
    store.set_model_version_tag("line", version.version, "sha256", "0" * 64)
    with pytest.raises(ParityError, match="models:/line/1 is not what was registered: its file has another SHA-256"):
        prepare(PredictConfig(model="models:/line/1", at="1,2,3"))


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_an_output_is_replaced_only_when_the_new_one_is_whole(
    name: str, model: str, record: RunRecord, tmp_path: Path
) -> None:
    output = tmp_path / name
    output.write_text("precious")
    bad = np.zeros(70_000, dtype=np.float32)
    bad[-1] = np.inf
    options = {"model": model, "output": str(output), "overwrite": True}
    with pytest.raises(RequestError, match=r"column 'area' is inf in row 70000"):
        run(record, tmp_path, **options, input=str(table(tmp_path / "bad.parquet", 70_000, area=bad)))
    assert output.read_text() == "precious"
    run(record, tmp_path, **options, input=str(table(tmp_path / "good.parquet")))
    read = pd.read_csv if name == "o.csv" else pd.read_parquet
    assert len(read(output)) == 5
    assert not list(tmp_path.glob(".*.part"))


def test_an_output_that_somebody_made_meanwhile_is_left_as_it_is(model: str, record: RunRecord, tmp_path: Path) -> None:
    output = tmp_path / "o.csv"
    ready = prepare(PredictConfig(model=model, input=str(table(tmp_path / "rows.parquet")), output=str(output)))
    chunks = ready.scorer.predict

    def predict_late(x: np.ndarray) -> np.ndarray:
        output.write_text("theirs")
        return chunks(x)

    ready.scorer.predict = predict_late  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="was made by somebody else meanwhile; it was left as it is"):
        predict.fn(ready, record, tmp_path)
    assert output.read_text() == "theirs"
    assert not list(tmp_path.glob(".*.part"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 40 rows in row groups of 10, whose names are in another order than they were written."""
    made = tmp_path / "rows"
    made.mkdir()
    for name, first in (("b.parquet", 40), ("a.parquet", 0)):
        table(made / name, 40, key=np.arange(first, first + 40))
        pq.write_table(pq.read_table(made / name), made / name, row_group_size=10)
    (made / "notes.txt").write_text("no table")
    return made


@pytest.mark.parametrize("workers", [None, 1])
def test_a_folders_files_are_predicted_in_the_order_of_their_names(
    workers: int | None, folder: Path, model: str, record: RunRecord, store: MlflowClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tasks.predict.PART_ROWS", 25)
    output = tmp_path / "o.parquet"
    made = run(record, tmp_path, model=model, input=str(folder), output=str(output), keep="key", workers=workers)
    assert made.rows == 80
    written = pd.read_parquet(output)
    assert written["key"].tolist() == list(range(80))
    rows = pd.concat([pd.read_parquet(folder / name) for name in ("a.parquet", "b.parquet")])
    np.testing.assert_allclose(written["predicted_price"], by_hand(rows), rtol=1e-5, atol=1e-5)
    printed = subprocess.run(
        ["sha256sum", "a.parquet", "b.parquet"], cwd=folder, capture_output=True, check=True
    ).stdout
    assert store.get_run(record.run_id).data.tags["input.sha256"] == hashlib.sha256(printed).hexdigest()


def test_a_fault_is_told_with_its_row_in_its_file_whatever_the_parts(
    folder: Path, model: str, record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.predict.PART_ROWS", 20)
    bad = np.zeros(40, dtype=np.float32)
    bad[36] = np.inf
    table(folder / "b.parquet", 40, key=np.arange(40), area=bad)
    pq.write_table(pq.read_table(folder / "b.parquet"), folder / "b.parquet", row_group_size=10)
    with pytest.raises(RequestError, match=r"b.parquet: column 'area' is inf in row 37"):
        run(record, tmp_path, model=model, input=str(folder), output=str(tmp_path / "o.parquet"))


def test_a_folder_that_is_no_table_is_refused(folder: Path, model: str, tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(RequestError, match=match):
            prepare(
                PredictConfig(**{"model": model, "input": str(folder), "output": str(tmp_path / "o.csv")} | options)
            )

    refused("--output .* lies among the files of --input", output=str(folder / "scored.parquet"))
    table(folder / "c.parquet", 3, key=["x", "y", "z"])
    refused(r"c.parquet has other columns than .*a.parquet: key \(int64\), key \(string\); give all files the same")
    (tmp_path / "empty").mkdir()
    refused("--input .*empty is a folder without .parquet files", input=str(tmp_path / "empty"))
