"""Step 4: what the trained network predicts, and how good that is."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.losses import LOSSES, is_squared, is_sum
from fourfold.profile import Profile
from fourfold.streams import TRAINING, VALIDATION
from fourfold.tables import CHUNK_ROWS, check_points
from tasks.build_model import BuiltModel
from tasks.steps import step
from tasks.tracking import RunRecord


@dataclass(frozen=True)
class Accuracy:
    """How far predictions are from targets, in the user's units; R2 is the mean over targets."""

    rmse: float
    mae: float
    r2: float


@dataclass(frozen=True)
class Comparison:
    """The least squares solution beside the fit.

    Attributes:
        parameters: by name, in the user's units.
        loss: the configured loss at these parameters.
        distance: Euclidean distance of the fit's coefficients from these.
    """

    parameters: dict[str, float]
    loss: float
    distance: float


@dataclass(frozen=True)
class Evaluation:
    """What a trained network is worth.

    Attributes:
        loss: the configured loss over the training rows after the fit, in the user's units.
        judged_on: "held-out" or "training": the rows behind `accuracy`.
        predictions: (x, y) of each point asked for.
        least_squares: for a linear network under squared error, else None.
        validation: the accuracy on the rows kept aside to choose by, None where there are none.
    """

    loss: float
    judged_on: str
    accuracy: Accuracy
    predictions: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    least_squares: Comparison | None
    validation: Accuracy | None = None


def points(config: TrainConfig, data: Dataset) -> Tensor:
    """The rows to predict, (points, features); raises RequestError where one is of another width."""
    rows = config.at or (((4.0,),) if len(data.features) == 1 else ())
    check_points(rows, data.features)
    asked = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(data.features)).to(data.x.dtype)
    if not asked.isfinite().all():
        row = rows[int((~asked.isfinite()).any(dim=1).nonzero()[0])]
        raise RequestError(
            f"--at {','.join(f'{value:g}' for value in row)} is beyond {config.dtype}; use --dtype float64"
        )
    return asked


def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Predict (rows, targets) in evaluation mode, on the CPU."""
    network.cpu().eval()
    with torch.no_grad():
        prediction: Tensor = network(x)
    return prediction


def accuracy(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Accuracy:
    """Judge predictions, pairs of predicted and true (rows, targets); R2 of a constant target is 0 unless it is met."""
    tally = _Tally()
    for prediction, target in pairs:
        tally.add(prediction, target)
    return tally.accuracy()


class _Tally:
    """Sums over rows that come in pieces."""

    def __init__(self) -> None:
        self.rows, self.loss = 0, 0.0
        self.left: Any = 0.0  # squared errors of each target
        self.absolute = 0.0
        self.targets: Profile | None = None

    def add(self, prediction: np.ndarray, target: np.ndarray) -> None:
        prediction, target = prediction.astype(np.float64), target.astype(np.float64)
        error = prediction - target
        self.rows += len(error)
        self.left = self.left + np.sum(error**2, axis=0)
        self.absolute += float(np.abs(error).sum())
        profile = Profile.of(target)
        self.targets = self.targets.joined(profile) if self.targets else profile

    def accuracy(self) -> Accuracy:
        assert self.targets is not None, "there are rows"
        left, there = self.left, np.where(self.targets.low < self.targets.high, self.targets.squares, 0.0)
        r2 = np.where(there > 0, 1 - left / np.where(there > 0, there, 1), np.where(left == 0, 1.0, 0.0))
        values = self.rows * len(left)
        return Accuracy(float(np.sqrt(left.sum() / values)), self.absolute / values, float(r2.mean()))


@step(name="evaluate")
def evaluate(config: TrainConfig, built: BuiltModel, data: Dataset, record: RunRecord) -> Evaluation:
    """Measure the trained network, and the exact solution beside it where there is one."""
    asked = points(config, data)
    answers = predict(built.network, asked)
    tallies = _tallies(built.network, data, config.loss_name)
    loss = tallies[TRAINING].loss
    evaluation = Evaluation(
        loss=loss if is_sum(config.loss_name) else loss / tallies[TRAINING].rows,
        judged_on=data.judged_on,
        accuracy=tallies[data.judged_on].accuracy(),
        predictions=tuple(
            (tuple(row), tuple(answer)) for row, answer in zip(asked.tolist(), answers.tolist(), strict=True)
        ),
        validation=tallies[VALIDATION].accuracy() if VALIDATION in tallies else None,
        least_squares=_compare(config, built, data) if has_exact_answer(config, built) else None,
    )
    record.metrics(_metrics(evaluation))
    return evaluation


def has_exact_answer(config: TrainConfig, built: BuiltModel) -> bool:
    """Whether least squares can be solved beside the fit: its rows must be in memory."""
    return built.is_linear and is_squared(config.loss_name) and built.stream is None


def _tallies(network: nn.Module, data: Dataset, loss: str) -> dict[str, _Tally]:
    """Judge every part of the data in one pass."""
    tallies: dict[str, _Tally] = {}
    for part, all_x, all_y in data.chunks():
        tally = tallies.setdefault(part, _Tally())
        for x, y in zip(torch.split(all_x, CHUNK_ROWS), torch.split(all_y, CHUNK_ROWS), strict=True):
            prediction = predict(network, x)
            tally.add(prediction.numpy(), y.numpy())
            if part == TRAINING:
                tally.loss += float(LOSSES[loss](prediction, y)) * (1 if is_sum(loss) else len(x))
    return tallies


def _compare(config: TrainConfig, built: BuiltModel, data: Dataset) -> Comparison:
    exact = built.exact(data)
    return Comparison(
        {name: float(value) for name, value in built.named(exact.weights, exact.intercepts).items()},
        exact.sum_of_squares / (1 if is_sum(config.loss_name) else data.y.numel()),
        exact.distance(*built.coefficients()),
    )


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    prefix = evaluation.judged_on.replace("-", "_")
    metrics = {"final_loss": evaluation.loss}
    metrics |= {f"{prefix}/{name}": value for name, value in asdict(evaluation.accuracy).items()}
    if evaluation.validation:
        metrics |= {f"validation/{name}": value for name, value in asdict(evaluation.validation).items()}
    for number, (_, y) in enumerate(evaluation.predictions):
        metrics |= {f"prediction/{number}/{target}": value for target, value in enumerate(y)}
    if evaluation.least_squares:
        metrics["least_squares/loss"] = evaluation.least_squares.loss
        metrics["least_squares/distance"] = evaluation.least_squares.distance
    return metrics
