"""Step 1: the rows to learn from."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset, line, make_dataset, read_table, sine, streamed_dataset
from fourfold.errors import RequestError
from fourfold.streams import open_stream
from fourfold.tables import TableFile, choose_columns, looking, open_table
from tasks.steps import step

BUILT_IN = {"line": line, "sine": sine}
STREAM_BEYOND = 256 * 2**20  # bytes
# Trainings that differ in anything else share their rows.
_DECIDES_ROWS = (
    "data", "target", "features", "missing", "test_fraction", "validation_fraction", "stream", "dtype", "seed",
)  # fmt: skip


def load(config: TrainConfig) -> Dataset:
    """Read and split the rows that a configuration names; raises RequestError where they cannot be used.

    The request is checked before its flow run exists, and the step then takes the very rows that were checked,
    unless the file has changed since: a served flow lives for weeks.
    """
    rows = TrainConfig(**{name: getattr(config, name) for name in _DECIDES_ROWS})
    path = Path(config.data)
    with looking("--data", path):
        state = path.stat() if config.is_file and path.is_file() else None
    data = _load(rows, (state.st_mtime_ns, state.st_size, state.st_ino) if state else None)
    if data.stream and config.batch_size is None:
        raise RequestError(
            f"--data {config.data} is read anew for each epoch, so that its {data.rows} rows cannot be one batch: "
            "give --batch-size, as 8192, or --no-stream to hold them all in memory"
        )
    return data


@lru_cache(maxsize=1)
def _load(config: TrainConfig, _file_state: tuple[int, int, int] | None) -> Dataset:
    dtype = getattr(torch, config.dtype)
    split: dict[str, Any] = {
        "test_fraction": config.held_out_fraction,
        "validation_fraction": config.validation_share,
        "seed": config.seed,
        "dtype": dtype,
    }
    if not config.is_file:
        if config.target or config.features:
            raise RequestError(f"--target and --features belong to a file; {config.data} has one column of each")
        if config.stream or config.missing != "error":
            raise RequestError(f"--stream and --missing belong to a file; {config.data} is small and whole")
        return make_dataset(config.data_name, BUILT_IN[config.data](), **split)
    file = open_table(Path(config.data))
    features, targets = choose_columns(file, config.target, config.features)
    if config.stream or (config.stream is None and _bytes(file, len(features) + len(targets), dtype) > STREAM_BEYOND):
        stream = open_stream(file, features, targets, missing=config.missing, **split)
        return streamed_dataset(config.data_name, stream, missing=config.missing)
    table = read_table(file, features, targets, missing=config.missing)
    return make_dataset(config.data_name, table, missing=config.missing, **split)


def _bytes(file: TableFile, columns: int, dtype: torch.dtype) -> int:
    """What the rows take in memory; of a CSV file, whose rows nobody has counted, about its own size."""
    return file.path.stat().st_size if file.rows is None else file.rows * columns * dtype.itemsize


@step(name="make data")
def make_data(config: TrainConfig) -> Dataset:
    """Give the rows to train on, to choose by, and to judge by."""
    return load(config)
