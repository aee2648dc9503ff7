"""`python flows/predict_flow.py` as a user runs it, beside MLflow's own ways to the same model."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pickles import pickles_in
from workplaces import ROOT, WITHOUT_TORCH, Ended, Workplace, workplace_in

COLUMNS = ["area", "rooms", "garden", "age"]
NEW = pd.DataFrame(
    {
        "note": ["a", "b", "c", "d,e"],
        "age": [20.5, np.nan, 3.0, 77.25],
        "id": ["007", "008", "009", "010"],
        "rooms": [3, 4, 2, 7],
        "garden": [True, False, True, True],
        "area": [100, 55, 199, 20],
    }
)


def houses(rows: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "area": random.integers(20, 200, rows),
            "rooms": random.integers(1, 8, rows),
            "garden": random.random(rows) > 0.5,
            "age": random.uniform(0, 100, rows),
        }
    )
    frame["price"] = 3.0 * frame.area + 10 * frame.rooms + 5 * frame.garden - 0.5 * frame.age
    frame["tax"] = 0.1 * frame.price + frame.rooms
    frame.loc[[3, 5, 7], "age"] = np.nan
    return frame


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: str, empty_database: Path
) -> tuple[Workplace, Ended]:
    """A registered model of four columns, one with missing values, and two targets, once for all tests here."""
    workplace = workplace_in(tmp_path_factory.mktemp("trained"))
    shutil.copy(empty_database, workplace.folder / "mlflow.db")
    workplace.environment["PREFECT_API_URL"] = prefect_server
    houses(200).to_csv(workplace.folder / "houses.csv", index=False)
    (workplace.folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    NEW.to_csv(workplace.folder / "new.csv", index=False)
    ended = workplace.run(
        "--data", "houses.csv", "--target", "price,tax", "--missing", "mean", "--model", "mlp", "--hidden", "8",
        "--epochs", "50", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return workplace, ended


@pytest.fixture
def expected(trained: tuple[Workplace, Ended]) -> np.ndarray:
    """What plain onnxruntime predicts for the new rows, by the file alone."""
    session = onnxruntime.InferenceSession(trained[1].result["model"]["path"])
    prediction: np.ndarray = session.run(None, {"x": NEW[COLUMNS].to_numpy(dtype=np.float32)})[0]
    assert np.isfinite(prediction).all()
    return prediction


def predict(workplace: Workplace, *arguments: str) -> Ended:
    """Run predict_flow where torch cannot be imported."""
    path = os.pathsep.join((str(workplace.folder), str(ROOT)))
    return workplace.run(*arguments, flow="predict", PYTHONPATH=path)


@pytest.mark.parametrize(
    ("address", "output"),
    [("models:/houses-mlp@champion", "a.csv"), ("the run", "b.parquet"), ("the file", "c.parquet")],
)
def test_a_file_of_permuted_and_further_columns_is_predicted_without_torch(
    address: str, output: str, trained: tuple[Workplace, Ended], expected: np.ndarray
) -> None:
    workplace, training = trained
    result = training.result
    address = {"the run": result["run_id"], "the file": result["model"]["path"]}.get(address, address)
    ended = predict(
        workplace, "--model", address, "--input", "new.csv", "--output", output, "--keep", "id,note", "--json"
    )
    assert ended.code == 0, ended.err
    assert (ended.result["flow"], ended.result["status"], ended.result["rows"]) == ("predict", "predicted", 4)
    assert ended.result["model"]["sha256"] == result["model"]["sha256"]
    path = workplace.folder / output
    written = pd.read_csv(path, dtype={"id": str}) if path.suffix == ".csv" else pd.read_parquet(path)
    assert list(written) == ["id", "note", "predicted_price", "predicted_tax"]
    assert written["id"].tolist() == NEW["id"].tolist()
    assert written["note"].tolist() == NEW["note"].tolist()
    np.testing.assert_array_equal(written[["predicted_price", "predicted_tax"]].to_numpy(dtype=np.float32), expected)
    assert [one.name for one in workplace.folder.iterdir() if one.name.endswith(".part")] == []
    run = workplace.client.get_run(ended.result["run_id"])
    assert (run.info.status, run.data.metrics["rows"]) == ("FINISHED", 4)
    assert run.data.tags["model.sha256"] == result["model"]["sha256"]
    assert run.data.tags["flow_run_id"] == ended.result["flow_run_id"]
    assert run.data.metrics["outside/area"] == 0
    assert pickles_in(workplace.folder) == []


def test_points_are_predicted(trained: tuple[Workplace, Ended], expected: np.ndarray) -> None:
    workplace, _ = trained
    ended = predict(
        workplace, "--model", "models:/houses-mlp/1", "--at", "100,3,1,20.5", "--at", "20,7,1,77.25", "--json"
    )
    assert ended.code == 0, ended.err
    assert [one["y"] for one in ended.result["predictions"]] == [
        pytest.approx(row.tolist(), rel=1e-7) for row in expected[[0, 3]]
    ]


@pytest.mark.parametrize("signal_sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_job_leaves_no_half_file(
    signal_sent: signal.Signals, trained: tuple[Workplace, Ended], tmp_path: Path
) -> None:
    workplace, _ = trained
    rows = np.zeros(4_000_000, dtype=np.float32)
    pq.write_table(pa.table(dict.fromkeys(COLUMNS, rows)), tmp_path / "many.parquet")
    (tmp_path / "out").mkdir()
    with workplace.start(
        "--model", "models:/houses-mlp@champion", "--input", str(tmp_path / "many.parquet"), "--output",
        str(tmp_path / "out" / "o.parquet"), flow="predict",
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").iterdir()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal_sent)
        process.communicate(timeout=60)
    assert process.returncode == (143 if signal_sent == signal.SIGTERM else -9)
    left = [one.name for one in (tmp_path / "out").iterdir()]
    assert "o.parquet" not in left
    if signal_sent == signal.SIGTERM:
        assert left == []


def test_a_fault_far_down_leaves_no_file_and_ends_with_2(trained: tuple[Workplace, Ended], tmp_path: Path) -> None:
    workplace, _ = trained
    columns = {name: np.zeros(200_000, dtype=np.float32) for name in COLUMNS}
    columns["rooms"][150_000] = np.inf
    pq.write_table(pa.table(columns), tmp_path / "many.parquet")
    ended = predict(
        workplace, "--model", "models:/houses-mlp@champion", "--input", str(tmp_path / "many.parquet"), "--output",
        str(tmp_path / "o.csv"), "--json",
    )  # fmt: skip
    assert ended.code == 2
    assert "column 'rooms' is inf in row 150001" in ended.err
    assert [one.name for one in tmp_path.iterdir()] == ["many.parquet"]
    assert workplace.client.get_run(ended.result["run_id"]).info.status == "FAILED"


@pytest.fixture(scope="module")
def served(trained: tuple[Workplace, Ended], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve` for the champion, on loopback."""
    workplace, _ = trained
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    bin_folder = Path(sys.executable).parent
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                str(bin_folder / "mlflow"), "models", "serve", "--model-uri", "models:/houses-mlp@champion",
                "--env-manager", "local", "--host", "127.0.0.1", "--port", port,
            ],
            env=workplace.environment
            | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "DO_NOT_TRACK": "true"},
            cwd=workplace.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_mlflow_serves_the_same_predictions_over_a_port(served: str, expected: np.ndarray) -> None:
    rows = json.loads(NEW.drop(columns="note").to_json(orient="split", index=False))
    answer = post(served, {"dataframe_split": rows})
    assert list(answer["predictions"][0]) == ["price", "tax"]
    got = np.array([[row["price"], row["tax"]] for row in answer["predictions"]], dtype=np.float32)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("row", [{"area": 1, "rooms": 2, "age": 3}, {"area": "1", "rooms": 2, "garden": 1, "age": 3}])
def test_a_served_model_refuses_a_missing_or_mistyped_column_by_name(row: dict[str, Any], served: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        post(served, {"dataframe_records": [row]})
    assert refusal.value.code == 400
    assert ("garden" if "garden" not in row else "area") in refusal.value.read().decode()


# MLflow's own code, where it imports its flavors.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_mlflow_pyfunc_gives_the_same_predictions_whatever_the_types(
    trained: tuple[Workplace, Ended], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace, training = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workplace.environment["MLFLOW_TRACKING_URI"])
    mlflow.set_tracking_uri(workplace.environment["MLFLOW_TRACKING_URI"])
    try:
        model = mlflow.pyfunc.load_model(training.result["model"]["uri"])
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    kinds: list[dict[str, Any]] = [
        {}, {"area": "float64"}, {"rooms": "int8"}, {"area": "Int64", "garden": "boolean"}, {"rooms": object},
    ]  # fmt: skip
    for types in kinds:
        answer = model.predict(NEW.astype(types))
        assert list(answer) == ["price", "tax"]
        np.testing.assert_array_equal(answer.to_numpy(), expected)
