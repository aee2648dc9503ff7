"""Step 4: what the trained network predicts, and how good that is."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.fitting import evaluate_loss
from fourfold.losses import is_squared, is_sum
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
    for row in rows:
        if len(row) != len(data.features):
            raise RequestError(
                f"--at {','.join(f'{value:g}' for value in row)} has {len(row)} values; the model takes "
                f"{len(data.features)}: {', '.join(data.features)}"
            )
    return torch.tensor(rows, dtype=data.x.dtype).reshape(-1, len(data.features))


def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Predict (rows, targets) in evaluation mode, on the CPU."""
    network.cpu().eval()
    with torch.no_grad():
        prediction: Tensor = network(x)
    return prediction


def accuracy(prediction: np.ndarray, target: np.ndarray) -> Accuracy:
    """Judge predictions, (rows, targets) both; R2 of a constant target is 0 unless it is met exactly."""
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    error = prediction - target
    left = np.sum(error**2, axis=0)
    there = np.sum((target - target.mean(axis=0)) ** 2, axis=0)
    r2 = np.where(there > 0, 1 - left / np.where(there > 0, there, 1), np.where(left == 0, 1.0, 0.0))
    return Accuracy(float(np.sqrt(np.mean(error**2))), float(np.mean(np.abs(error))), float(r2.mean()))


@step(name="evaluate")
def evaluate(config: TrainConfig, built: BuiltModel, data: Dataset, record: RunRecord) -> Evaluation:
    """Measure the trained network, and the exact solution beside it where there is one."""
    network = built.network
    asked = points(config, data)
    judged_on, x, y = data.evaluation_rows
    answers = predict(network, asked)
    evaluation = Evaluation(
        loss=evaluate_loss(network, data.x, data.y, config.loss_name, config.batch_size),
        judged_on=judged_on,
        accuracy=_accuracy_of(network, x, y),
        predictions=tuple(
            (tuple(row), tuple(answer)) for row, answer in zip(asked.tolist(), answers.tolist(), strict=True)
        ),
        validation=_accuracy_of(network, data.x_validation, data.y_validation) if len(data.x_validation) else None,
        least_squares=_compare(config, built, data) if built.is_linear and is_squared(config.loss_name) else None,
    )
    record.metrics(_metrics(evaluation))
    return evaluation


def _accuracy_of(network: nn.Module, x: Tensor, y: Tensor) -> Accuracy:
    return accuracy(predict(network, x).numpy(), y.numpy())


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
