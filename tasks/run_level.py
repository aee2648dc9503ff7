"""One of the tutorial's levels: run, timed, recorded, and where it is a network, proved."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.configuration import TutorialConfig
from fourfold.datasets import Dataset
from fourfold.errors import AgreementError, DivergedError, ParityError
from fourfold.least_squares import least_squares
from fourfold.parity import ParityReport
from models.levels import Learned, Level, first_values, powers
from tasks.export_onnx import write_onnx
from tasks.steps import step
from tasks.tracking import NOTE, RunRecord, recorded_run
from tasks.verify_onnx import prove_onnx

ASKED = 4.0


@dataclass(frozen=True)
class LevelRun:
    """What a level came to.

    Attributes:
        learned: its coefficients, losses and network.
        polynomial: the same function as coefficients of 1, x, x^2, ..., float64.
        loss: squared error over all rows at those, in float64.
        distance: Euclidean, of the polynomial's coefficients from the cubic's least squares.
        seconds: of its steps alone.
        parity: the gate's verdict, None where the level has no network.
    """

    level: Level
    learned: Learned
    polynomial: np.ndarray
    loss: float
    distance: float
    seconds: float
    run_id: str
    parity: ParityReport | None

    @property
    def microseconds(self) -> float:
        """What a step takes."""
        return self.seconds / len(self.learned.losses) * 1e6

    def gap(self, other: "LevelRun") -> float:
        """The largest difference between two levels' coefficients."""
        return float(np.abs(self.polynomial - other.polynomial).max())


@step(name="run level")
def run_level(level: Level, config: TutorialConfig, data: Dataset, parent: RunRecord, folder: Path) -> LevelRun:
    """Run a level from the first values, in a run of its own below the parent's."""
    steps = min(level.steps, config.steps or level.steps)
    asked = {"level": level.number, "name": level.name, "steps": steps, "lr": level.rate}
    place = folder / f"level-{level.number}"
    place.mkdir()
    title = f"level {level.number}: {level.name}"
    tags = _below(parent, "A level, and part of a tutorial")
    with recorded_run(parent.experiment, title, asked | config.model_dump(exclude={"steps"}), tags) as record:
        record.dataset(data)
        # Not timed: the first use of a part of torch loads it.
        level.run(data.x, data.y, first_values(config.seed), 1, level.rate)
        start = first_values(config.seed)  # once more, since the last level has drawn
        started = time.perf_counter()
        learned = level.run(data.x, data.y, start, steps, level.rate)
        seconds = time.perf_counter() - started
        polynomial = level.polynomial(learned.coefficients)
        loss, distance = judged(polynomial, data)
        curve = np.array([*learned.losses, loss])
        record.curves({"loss": curve})
        record.table({"step": np.arange(steps + 1), "loss": curve}, place / "history.parquet")
        record.metrics(
            learned.coefficients
            | {"final_loss": loss, "least_squares/distance": distance, "fit_seconds": seconds}
            | {"microseconds_per_step": seconds / steps * 1e6}
        )
        if not np.isfinite(loss):
            raise DivergedError(f"{title} diverged: its loss went from {learned.losses[0]:.3g} to {loss:.3g}")
        parity = _prove(learned, level, data, title, record, place)
        return LevelRun(level, learned, polynomial, loss, distance, seconds, record.run_id, parity)


@step(name="refuse the random network")
def refusal(last: LevelRun, data: Dataset, record: RunRecord, folder: Path) -> str:
    """Why the gate refuses the last level's network while its forward draws: it has to.

    Raises:
        AgreementError: it does not.
    """
    assert last.learned.network is not None, "the last level has one"
    with recorded_run(
        record.experiment,
        "level 8 while it is random",
        {"level": last.level.number},
        _below(record, "What the gate is to refuse, and part of a tutorial"),
    ) as attempt:
        try:
            write_onnx(Restless(last.learned.network), data, {}, attempt, folder)
        except ParityError as error:
            return str(error)
        raise AgreementError("the gate let a network pass whose prediction is random")


def _below(parent: RunRecord, what: str) -> dict[str, str]:
    """The tags of a run that stands below another one."""
    return {"mlflow.parentRunId": parent.run_id, NOTE: f"{what}, which is [this run]({parent.url})."}


class Restless(nn.Module):
    """A network that evaluation mode does not reach: it predicts as it did while it learned."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> "Restless":
        """Stay in training mode, whatever is asked for."""
        super().train(True)
        return self

    def forward(self, x: Tensor) -> Any:
        """Predict (rows, 1) from (rows, 1), each time otherwise."""
        return self.network(x)


def judged(polynomial: np.ndarray, data: Dataset) -> tuple[float, float]:
    """A polynomial's squared error over all rows, and how far its coefficients are from the best cubic's."""
    x, y = data.x.double().numpy(), data.y.double().numpy()
    exact = least_squares(x ** np.arange(1, 4), y)
    best = np.zeros(len(polynomial))
    best[:4] = exact.intercepts[0], *exact.weights[0]
    left = np.polynomial.polynomial.polyval(x, polynomial) - y
    return float((left**2).sum()), float(np.linalg.norm(polynomial - best))


def as_taken(network: nn.Module, data: Dataset) -> tuple[Dataset, Tensor]:
    """The rows, and the point 4, in the columns that a level's network takes: x, or its powers for a linear layer."""
    asked = torch.full((1, 1), ASKED, dtype=data.x.dtype)
    if isinstance(network, nn.Linear):
        return replace(
            data, features=("x", "x^2", "x^3"), x=powers(data.x), x_test=powers(data.x_test),
            x_validation=powers(data.x_validation),
        ), powers(asked)  # fmt: skip
    return data, asked


def _prove(
    learned: Learned, level: Level, data: Dataset, title: str, record: RunRecord, folder: Path
) -> ParityReport | None:
    network = learned.network
    if network is None:
        return None
    rows, asked = as_taken(network, data)
    description = {"level": level.name, "steps": str(len(learned.losses)), "lr": repr(level.rate)}
    exported = write_onnx(network, rows, description, record, folder)
    report = prove_onnx(network, exported, rows, asked, title, record, folder)
    if not report.passed:
        raise ParityError(f"{title}: onnxruntime does not predict what torch does: {report.reason}")
    return report
