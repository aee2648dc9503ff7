"""The line, against torch's own linear layer."""

import pytest
import torch
from torch import nn

from models.linear import LinearRegression


@pytest.mark.parametrize(("features", "targets"), [(1, 1), (3, 1), (2, 4)])
def test_it_draws_the_bits_that_torch_draws(features: int, targets: int) -> None:
    torch.manual_seed(0)
    own = LinearRegression(features, targets)
    torch.manual_seed(0)
    torchs = nn.Linear(features, targets)
    assert torch.equal(own.linear.weight, torchs.weight)
    assert torch.equal(own.linear.bias, torchs.bias)
    x = torch.randn(5, features)
    assert torch.equal(own(x), torchs(x))


def test_its_parameters_are_a_weight_and_a_bias() -> None:
    shapes = {name: tuple(value.shape) for name, value in LinearRegression(3, 2).named_parameters()}
    assert shapes == {"linear.weight": (2, 3), "linear.bias": (2,)}


def test_it_predicts_eight_at_four_on_the_exercises_line() -> None:
    network = LinearRegression()
    network.load_state_dict({"linear.weight": torch.tensor([[2.0]]), "linear.bias": torch.tensor([0.0])})
    assert network(torch.tensor([[4.0]])).tolist() == [[8.0]]


def test_without_an_intercept_it_goes_through_the_origin() -> None:
    network = LinearRegression(3, 2, intercept=False)
    assert [name for name, _ in network.named_parameters()] == ["linear.weight"]
    assert torch.equal(network(torch.zeros(1, 3)), torch.zeros(1, 2))
    assert (network.has_intercept, LinearRegression().has_intercept) == (False, True)
