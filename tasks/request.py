"""Everything that can be wrong with a training request, found before anything is created."""

from fourfold.configuration import TrainConfig
from fourfold.fitting import try_out
from tasks import services
from tasks.build_model import build
from tasks.evaluate import points
from tasks.make_data import load
from tasks.train import fit_config


def check(config: TrainConfig) -> None:
    """Raise RequestError with the first fault; leaves nothing behind but the rows in memory, for the first step."""
    fit_config(config)
    services.check_tracking()
    data = load(config)
    points(config, data)
    build(config, data)


def check_optimizer(config: TrainConfig) -> None:
    """Raise RequestError where the optimizer cannot train this model."""
    built = build(config, load(config))
    try_out(built.core, built.x, built.y, fit_config(config))
