"""What workers gain and cost: `make bench-scaling`.

Each job is done by one process and by Dask's workers, by turns, in processes of their own, and the ratio of the medians
counts, since times drift on shared machines. The rates are what docs/scaling.md reckons with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

COLUMNS, GROUP = 20, 2**20
NAMES = [f"x{number}" for number in range(COLUMNS)]
ONE_CORE, ALL_CORES = "one", "all"
COMPARED = ("SGD", "Adagrad", "Adam", "Adamax", "ASGD", "RMSprop", "Rprop", "LBFGS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default 3)")
    parser.add_argument("--seeds", type=int, default=80, help="of the comparison; at least 30 s of work (default 80)")
    parser.add_argument("--rows", type=int, default=100_000_000, help="that are predicted (default 100,000,000)")
    parser.add_argument("--workers", type=int, default=2, help="processes of Dask's cluster (default 2)")
    parser.add_argument("--only", choices=["compare", "predict", "overhead"], help="one of the measurements")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)  # one side, in a process of its own
    asked = parser.parse_args()
    if asked.side:
        what, workers, folder = asked.side
        cores = asked.workers
        os.cpu_count = lambda: cores  # so many workers has a cluster of this machine
        if workers == ONE_CORE:
            os.sched_setaffinity(0, {0})
        given = {ONE_CORE: None, ALL_CORES: None, "1": 1}.get(workers, workers)
        print(json.dumps(SIDES[what](given, Path(folder), asked)))
        return
    print(f"{os.cpu_count()} cores, {asked.workers} workers, {asked.repeats} repeats")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        if asked.only in (None, "compare"):
            _against("compare", "trainings", ["1"], folder, asked)
        if asked.only in (None, "predict"):
            _write(Path(folder), asked.rows)
            # Without workers a prediction has a thread for each core: that is what workers are measured against, too.
            _against("predict", "rows", [ONE_CORE, ALL_CORES], folder, asked)
        if asked.only in (None, "overhead"):
            _overhead(folder, asked)


def _against(what: str, unit: str, alone: list[str], folder: str, asked: argparse.Namespace) -> None:
    taken: dict[str, list[float]] = {side: [] for side in [*alone, "dask"]}
    amount = 0
    for _ in range(asked.repeats):
        for workers, seconds in taken.items():
            ended = _side(what, workers, folder, asked)
            seconds.append(ended["seconds"])
            amount = ended["amount"]
    *others, spread = (statistics.median(seconds) for seconds in taken.values())
    for side, one in zip(alone, others, strict=True):
        name = "one process" + ("" if side == "1" else f" of {side} core{'s' * (side == ALL_CORES)}")
        print(f"{what}: {amount} {unit}: {name} {one:.1f} s, {asked.workers} workers of Dask {spread:.1f} s, "
              f"{one / spread:.2f} times; {amount / one:.0f} {unit} a second")  # fmt: skip
    print(f"{what}: {amount / spread / asked.workers:.0f} {unit} a second and worker")


def _overhead(folder: str, asked: argparse.Namespace) -> None:
    measured = [_side("overhead", "dask", folder, asked) for _ in range(asked.repeats)]
    for name in measured[0]:
        print(f"{name}: {statistics.median(one[name] for one in measured):.4f} s")


def _side(what: str, workers: str, folder: str, asked: argparse.Namespace) -> dict[str, float]:
    options = ["--seeds", asked.seeds, "--rows", asked.rows, "--workers", asked.workers]
    ended = subprocess.run(
        [sys.executable, __file__, "--side", what, workers, folder, *map(str, options)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def compare(workers: int | str | None, folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """The step that trains, workers' start included."""
    from fourfold.comparison import contestants
    from fourfold.configuration import CompareConfig
    from tasks.compare import pose, train_members
    from tasks.make_data import load

    config = CompareConfig(optimizers=COMPARED, seeds=asked.seeds, budget=200, learning_rates=13, workers=workers)
    posed = pose(config, load(config.training()))
    started = time.perf_counter()
    standings = train_members.fn(config, posed, contestants(config.optimizers))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "amount": sum(one.members.loss.size for one in standings)}


def predict(workers: int | str | None, folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """The step that predicts, with the output written."""
    from fourfold.configuration import PredictConfig
    from tasks import services
    from tasks.predict import predict, prepare
    from tasks.tracking import recorded_run

    services.prepare_environment()
    ready = prepare(
        PredictConfig(
            model=str(folder / "model.onnx"), input=str(folder / "rows"), output=str(folder / "predicted.parquet"),
            overwrite=True, workers=workers,
        )
    )  # fmt: skip
    with recorded_run("predict", "bench", {}, {}) as record, tempfile.TemporaryDirectory() as rest:
        started = time.perf_counter()
        predicted = predict.fn(ready, record, Path(rest))
        return {"seconds": time.perf_counter() - started, "amount": predicted.rows}


def overhead(workers: int | str | None, folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Of a cluster of this machine: until its first answer, until the first of work that needs torch, and a job's."""
    from tasks.workers import Job, Needs
    from tasks.workers import workers as begun

    started = time.perf_counter()
    with begun(workers, asked.workers, Needs(("torch", "numpy"), torch=True)) as pool:
        list(pool.results([Job("first", partial(abs, -1))]))
        up = time.perf_counter() - started
        list(pool.results(Job(str(n), partial(eval, "__import__('torch') and None")) for n in range(asked.workers)))
        loaded = time.perf_counter() - started
        jobs = 500
        list(pool.results((Job(str(n), partial(abs, -n)) for n in range(jobs)), in_order=True))
        each = (time.perf_counter() - started - loaded) / jobs
        left = time.perf_counter()
    return {
        "a cluster of this machine, first answer after": up,
        "the same, with torch": loaded,
        "an empty job": each,
        "its end": time.perf_counter() - left,
    }


def _write(folder: Path, rows: int) -> None:
    """A folder of files of ten row groups each, and a model of their columns."""
    import torch

    from fourfold.onnx_export import export

    (folder / "rows").mkdir()
    random = np.random.default_rng(0)
    x = random.standard_normal((GROUP, COLUMNS), dtype=np.float32)
    table = pa.table({name: x[:, number] for number, name in enumerate(NAMES)})
    groups = -(-rows // GROUP)
    for first in range(0, groups, 10):
        with pa.parquet.ParquetWriter(folder / "rows" / f"{first:06}.parquet", table.schema) as writer:
            for group in range(first, min(first + 10, groups)):
                writer.write_table(table.slice(0, min(GROUP, rows - group * GROUP)), GROUP)
    network = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    about = {"features": json.dumps(NAMES), "targets": '["y"]'}
    export(network, torch.zeros(2, COLUMNS), folder / "model.onnx", about)


SIDES = {"compare": compare, "predict": predict, "overhead": overhead}

if __name__ == "__main__":
    main()
