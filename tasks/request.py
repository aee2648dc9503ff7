"""Everything that can be wrong with a training request, found before anything is created."""

from dataclasses import replace

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.fitting import try_out
from tasks import services
from tasks.build_model import build
from tasks.evaluate import points
from tasks.make_data import load
from tasks.resume import asked_again
from tasks.train import fit_config, settle


def check(config: TrainConfig) -> TrainConfig:
    """Give the settled configuration, or raise RequestError with the first fault.

    Leaves nothing behind but the rows in memory, for the first step.
    """
    services.check_tracking()
    settled = settle(asked_again(config))
    data = load(settled)
    points(settled, data)
    build(settled, two_rows(data))
    return settled


def check_optimizer(config: TrainConfig) -> None:
    """Raise RequestError where the optimizer cannot train this model."""
    built = build(config, two_rows(load(config)))
    try_out(built.core, built.x, built.y, fit_config(config))


def two_rows(data: Dataset) -> Dataset:
    """Enough to see whether a network can be made and trained: the step scales all of them, once."""
    return replace(data, x=data.x[:2], y=data.y[:2], stream=None)
