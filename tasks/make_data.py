"""Step 1: the rows to learn from."""

from functools import lru_cache
from pathlib import Path

import torch

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset, line, make_dataset, read_table, sine
from fourfold.errors import RequestError
from tasks.steps import step

BUILT_IN = {"line": line, "sine": sine}


# The request is checked before its flow run exists; the step then takes the very rows that were checked.
@lru_cache(maxsize=1)
def load(config: TrainConfig) -> Dataset:
    """Read and split the rows that a configuration names; raises RequestError where they cannot be used."""
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
        seed=config.seed,
        dtype=getattr(torch, config.dtype),
    )


@step(name="make data")
def make_data(config: TrainConfig) -> Dataset:
    """Give the training rows and the held-out rows."""
    return load(config)
