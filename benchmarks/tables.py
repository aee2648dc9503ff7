"""What tables of ten million rows cost, in time beside a bare loop and in memory: `make bench-tables`.

Times drift on shared machines, so the sides alternate, and the ratio of medians is what counts.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

ROOT = Path(__file__).parents[1]
COLUMNS, BATCH, CHUNK, GROUP = 20, 8192, 65_536, 1_000_000
NAMES = [f"x{number}" for number in range(COLUMNS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default 3)")
    parser.add_argument("--only", choices=["train", "predict"], help="one of the two")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)  # one side, in a process of its own
    arguments = parser.parse_args()
    if arguments.side:
        side, folder = arguments.side
        seconds = SIDES[side](Path(folder))
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        _write(Path(folder) / "rows.parquet", arguments.rows)
        if arguments.only != "predict":
            _compare("one epoch of a line", "bare fit", "streamed fit", folder, arguments.repeats, 1.5)
        _flow(
            "train", "--data", f"{folder}/rows.parquet", "--target", "y", "--batch-size", str(BATCH), "--epochs", "1",
            "--register", "line", "--stream",
        )  # fmt: skip
        if arguments.only != "train":
            _compare("predictions", "bare predictions", "predictions", folder, arguments.repeats, 1.3)
            _flow(
                "predict", "--model", "models:/line/1", "--input", f"{folder}/rows.parquet", "--output",
                f"{folder}/predicted.parquet",
            )  # fmt: skip


def _write(path: Path, rows: int) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal(COLUMNS).astype(np.float32)
    writer = None
    for first in range(0, rows, GROUP):
        x = random.standard_normal((min(GROUP, rows - first), COLUMNS), dtype=np.float32)
        columns = {name: x[:, number] for number, name in enumerate(NAMES)}
        table = pa.table(columns | {"y": x @ weights + random.standard_normal(len(x), dtype=np.float32)})
        writer = writer or pa.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table, GROUP)
    assert writer is not None, "there are rows"
    writer.close()
    print(f"{rows} rows of {COLUMNS} columns of float32 and a target, {path.stat().st_size / 2**20:.0f} MiB of Parquet")


def _compare(what: str, bare: str, ours: str, folder: str, repeats: int, limit: float) -> None:
    taken: dict[str, list[tuple[float, float]]] = {bare: [], ours: []}
    for _ in range(repeats):
        for side, results in taken.items():
            ended = subprocess.run(
                [sys.executable, __file__, "--side", side, folder], capture_output=True, text=True, check=True
            )
            seconds, memory = ended.stdout.split()
            results.append((float(seconds), float(memory)))
    medians = {side: statistics.median(seconds for seconds, _ in results) for side, results in taken.items()}
    for side, results in taken.items():
        memory = max(memory for _, memory in results) / 2**20
        print(f"{what}: {side} {medians[side]:.2f} s, peak memory {memory:.0f} MiB")
    print(f"{what}: {medians[ours] / medians[bare]:.2f} times (at most {limit})")


def _flow(flow: str, *options: str) -> None:
    """A whole process, for its time and its peak memory."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "flows" / f"{flow}_flow.py"), *options], stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{flow} ended with {process.returncode}")
    print(f"{flow}_flow.py: {time.perf_counter() - started:.1f} s, peak memory {usage.ru_maxrss / 2**10:.0f} MiB")


def bare_fit(folder: Path) -> float:
    """Read the file, then one epoch of mini-batches in random order; making tensors of the columns is not counted."""
    import torch

    started = time.perf_counter()
    table = pa.parquet.read_table(folder / "rows.parquet")
    reading = time.perf_counter() - started
    x = torch.from_numpy(np.column_stack([table[name].to_numpy() for name in NAMES]))
    y = torch.from_numpy(table["y"].to_numpy().copy()).reshape(-1, 1)
    del table
    started = time.perf_counter()
    network = torch.nn.Linear(COLUMNS, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    order = torch.randperm(len(x))
    for rows in torch.split(order, BATCH):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return reading + time.perf_counter() - started


def streamed_fit(folder: Path) -> float:
    """One epoch by the engine, from the file; looking at every row before, and judging after it, is not counted."""
    from fourfold.configuration import TrainConfig
    from fourfold.fitting import fit_batches
    from tasks.build_model import build
    from tasks.make_data import load
    from tasks.train import fit_config

    config = TrainConfig(
        data=str(folder / "rows.parquet"), target=("y",), batch_size=BATCH, epochs=1, stream=True, test_fraction=0,
        loss="mse",
    )  # fmt: skip
    built = build(config, load(config))
    return fit_batches(built.core, built.batches(BATCH, 0), fit_config(config)).seconds


def bare_predictions(folder: Path) -> float:
    """The same chunks through onnxruntime, and the predictions into a file."""
    import onnxruntime

    (model,) = folder.glob("mlruns/train/models/*/artifacts/model.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    started = time.perf_counter()
    schema = pa.schema([("predicted_y", pa.float32())])
    with (
        pa.parquet.ParquetFile(folder / "rows.parquet", pre_buffer=False) as file,
        pa.parquet.ParquetWriter(folder / "bare.parquet", schema) as writer,
    ):
        for batch in file.iter_batches(CHUNK, columns=NAMES):
            x = np.column_stack([batch.column(number).to_numpy() for number in range(COLUMNS)])
            (y,) = session.run(None, {"x": x})
            writer.write_batch(pa.record_batch([pa.array(y[:, 0])], schema=schema))
    return time.perf_counter() - started


def predictions(folder: Path) -> float:
    """The step of predict_flow, as it stands, on the same rows."""
    from fourfold.configuration import PredictConfig
    from tasks import services
    from tasks.predict import predict, prepare
    from tasks.tracking import recorded_run

    services.prepare_environment()
    config = PredictConfig(
        model="models:/line/1", input=str(folder / "rows.parquet"), output=str(folder / "ours.parquet"), overwrite=True
    )
    ready = prepare(config)
    with recorded_run("predict", "bench", {}, {}) as record, tempfile.TemporaryDirectory() as rest:
        started = time.perf_counter()
        predict.fn(ready, record, Path(rest))
        return time.perf_counter() - started


SIDES = {
    "bare fit": bare_fit,
    "streamed fit": streamed_fit,
    "bare predictions": bare_predictions,
    "predictions": predictions,
}

if __name__ == "__main__":
    main()
