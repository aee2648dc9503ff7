"""Step 1: the rows to learn from."""

from functools import lru_cache
from pathlib import Path

import torch

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset, line, make_dataset, read_table, sine
from fourfold.errors import RequestError
from tasks.steps import step

BUILT_IN = {"line": line, "sine": sine}
# Trainings that differ in anything else share their rows.
_DECIDES_ROWS = ("data", "target", "features", "test_fraction", "validation_fraction", "dtype", "seed")


def load(config: TrainConfig) -> Dataset:
    """Read and split the rows that a configuration names; raises RequestError where they cannot be used.

    The request is checked before its flow run exists, and the step then takes the very rows that were checked,
    unless the file has changed since: a served flow lives for weeks.
    """
    rows = TrainConfig(**{name: getattr(config, name) for name in _DECIDES_ROWS})
    path = Path(config.data)
    state = path.stat() if config.is_file and path.is_file() else None
    return _load(rows, (state.st_mtime_ns, state.st_size, state.st_ino) if state else None)


@lru_cache(maxsize=1)
def _load(config: TrainConfig, _file_state: tuple[int, int, int] | None) -> Dataset:
    if not config.is_file:
        if config.target or config.features:
            raise RequestError(f"--target and --features belong to a file; {config.data} has one column of each")
        table = BUILT_IN[config.data]()
    else:
        table = read_table(Path(config.data), config.target, config.features)
    return make_dataset(
        config.data_name,
        table,
        test_fraction=config.held_out_fraction,
        validation_fraction=config.validation_share,
        seed=config.seed,
        dtype=getattr(torch, config.dtype),
    )


@step(name="make data")
def make_data(config: TrainConfig) -> Dataset:
    """Give the rows to train on, to choose by, and to judge by."""
    return load(config)
