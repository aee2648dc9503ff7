"""The multilayer perceptron, against the same layers written out."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import nn

from fourfold.configuration import TrainConfig
from models.mlp import ACTIVATIONS, MultilayerPerceptron


@pytest.mark.parametrize(("features", "targets", "hidden"), [(1, 1, (32, 32)), (3, 2, (5,)), (2, 1, (4, 3, 2))])
def test_its_layers_have_the_widths_asked_for(features: int, targets: int, hidden: tuple[int, ...]) -> None:
    network = MultilayerPerceptron(features, targets, hidden)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    widths = (features, *hidden, targets)
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(pairwise(widths))
    for rows in (0, 1, 7):
        assert network(torch.zeros(rows, features)).shape == (rows, targets)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_linear_layers_with_an_activation_between_and_none_behind(activation: str) -> None:
    function = {
        "tanh": torch.tanh,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "silu": nn.functional.silu,
        "softsign": nn.functional.softsign,
    }[activation]
    torch.manual_seed(0)
    network = MultilayerPerceptron(2, 1, (4, 3), activation)
    torch.manual_seed(0)
    first, second, last = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 1)
    x = torch.randn(6, 2)
    assert torch.equal(network(x), last(function(second(function(first(x))))))


def test_the_activations_are_those_that_a_request_may_name() -> None:
    assert get_args(TrainConfig.model_fields["activation"].annotation) == tuple(ACTIVATIONS)
