"""Polynomials, against NumPy's own series."""

import numpy as np
import pytest
import torch
from numpy.polynomial import Chebyshev
from numpy.polynomial import Polynomial as Powers
from rescaled import rescaled

from models.polynomial import ChebyshevPolynomial, Polynomial


def rows(features: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(40, features, generator=generator, dtype=torch.float64) * 7 - 2


@pytest.mark.parametrize("degree", [1, 2, 3, 8])
def test_powers_are_those_of_numpy(degree: int) -> None:
    network, x = Polynomial(degree=degree).double(), rows()
    coefficients = [network.linear.bias.item(), *network.linear.weight[0].tolist()]
    expected = Powers(coefficients)(x.numpy())
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("degree", [1, 2, 3, 8])
def test_chebyshevs_are_those_of_numpy_on_the_training_range(degree: int) -> None:
    network, x = ChebyshevPolynomial(degree=degree).double(), rows()
    network.set_range(x)
    coefficients = [network.linear.bias.item(), *network.linear.weight[0].tolist()]
    series = Chebyshev(coefficients, domain=[x.min().item(), x.max().item()])
    np.testing.assert_allclose(network(x).detach().numpy(), series(x.numpy()), rtol=1e-11, atol=1e-11)


def test_its_range_is_saved_and_not_trained() -> None:
    network, x = ChebyshevPolynomial(2).double(), rows(2)
    network.set_range(x)
    assert torch.allclose(network.columns(x).amax(dim=0)[::3], torch.ones(2).double())
    assert {"center", "radius"} <= set(network.state_dict())
    assert {name for name, _ in network.named_parameters()} == {"linear.weight", "linear.bias"}


def test_a_constant_column_is_only_moved() -> None:
    network = ChebyshevPolynomial()
    network.set_range(torch.full((5, 1), 3.0))
    assert network.columns(torch.tensor([[3.0]])).tolist() == [[0.0, -1.0, 0.0]]


def test_columns_of_several_features_stand_feature_by_feature() -> None:
    x = torch.tensor([[2.0, 3.0]])
    assert Polynomial(2, 1, degree=3).columns(x).tolist() == [[2, 4, 8, 3, 9, 27]]


@pytest.mark.parametrize("kind", [Polynomial, ChebyshevPolynomial])
def test_raw_coefficients_are_those_of_the_whole_network(kind: type[Polynomial]) -> None:
    torch.manual_seed(0)
    x = rows(2) * torch.tensor([1.0, 100.0]) + 5
    y = torch.randn(40, 2).double() * 30 + 4
    core = kind(2, 2, degree=4).double()
    network = rescaled(core, x, y)
    reference = kind(2, 2, degree=4).double()
    if isinstance(core, ChebyshevPolynomial) and isinstance(reference, ChebyshevPolynomial):
        core.set_range(network.scale_features(x))
        reference.set_range(x)
    weights, intercepts = network.raw_coefficients(core.linear.weight, core.linear.bias)
    with torch.no_grad():
        reference.linear.weight.copy_(weights)
        reference.linear.bias.copy_(intercepts)
        torch.testing.assert_close(reference(x), network(x), rtol=1e-8, atol=1e-8)


def test_without_an_intercept_it_goes_through_the_origin_in_any_units() -> None:
    x = torch.randn(20, 2, dtype=torch.float64) * 3 + 5
    core = Polynomial(2, 1, degree=3, intercept=False).double()
    network = rescaled(core, x, x[:, :1] ** 2, centred=False)
    assert torch.equal(network(torch.zeros(1, 2).double()), torch.zeros(1, 1).double())
    weights, intercepts = network.raw_coefficients(core.linear.weight.detach(), torch.zeros(1))
    assert intercepts.tolist() == [0.0]
    expected = core.columns(x) @ weights.T
    assert torch.allclose(network(x), expected, rtol=1e-12)
