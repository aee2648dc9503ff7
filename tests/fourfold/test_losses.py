"""The losses, against closed forms in NumPy, and the two facts that are known of each."""

from typing import get_args

import numpy as np
import pytest
import torch

from fourfold.configuration import LossName
from fourfold.losses import LOSSES, is_squared, is_sum, sum_of_squares

PREDICTION = np.array([[0.5, -1.0], [3.0, 0.25], [-4.0, 2.0]])
TARGET = np.array([[0.0, 1.0], [3.0, 0.0], [2.0, 2.5]])


def huber(error: np.ndarray) -> np.ndarray:
    """Huber (1964): a parabola up to 1, a line from there on."""
    return np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)


CLOSED_FORMS = {
    "sse": lambda error: np.sum(error**2),
    "mse": lambda error: np.mean(error**2),
    "l1": lambda error: np.mean(np.abs(error)),
    "huber": lambda error: np.mean(huber(error)),
}


def test_every_loss_has_a_closed_form_here_and_can_be_asked_for() -> None:
    assert set(CLOSED_FORMS) == set(LOSSES) == set(get_args(LossName))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_closed_form(name: str) -> None:
    loss = LOSSES[name](torch.tensor(PREDICTION), torch.tensor(TARGET))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(CLOSED_FORMS[name](PREDICTION - TARGET), rel=1e-15)


def test_the_sum_of_squares_is_the_exercises_own() -> None:
    prediction, target = torch.tensor(PREDICTION).float(), torch.tensor(TARGET).float()
    assert torch.equal(sum_of_squares(prediction, target), torch.nn.MSELoss(reduction="sum")(prediction, target))


@pytest.mark.parametrize("name", LOSSES)
def test_a_sum_doubles_with_the_rows_and_a_mean_stays(name: str) -> None:
    prediction, target = torch.tensor(PREDICTION), torch.tensor(TARGET)
    once, twice = LOSSES[name](prediction, target), LOSSES[name](prediction.repeat(2, 1), target.repeat(2, 1))
    assert (twice / once).item() == pytest.approx(2 if is_sum(name) else 1)


@pytest.mark.parametrize("name", LOSSES)
def test_only_a_squared_loss_is_least_at_the_mean(name: str) -> None:
    target = torch.tensor([[0.0], [1.0], [1.0], [30.0]], dtype=torch.float64)
    constant = target.mean().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](constant.expand_as(target), target), constant)
    assert (abs(slope.item()) < 1e-12) is is_squared(name)
