"""Scaling inside the network, against moments by NumPy and evaluations of the network itself."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.linear import LinearRegression
from models.standardize import Standardized

DTYPES = [torch.float32, torch.float64]


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Fifty rows of three features and two targets, in units far apart and far from zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e4])
    y = torch.randn(50, 2, generator=generator, dtype=torch.float64) * torch.tensor([10.0, 1e-2])
    return (x + torch.tensor([5.0, -3.0, 1e5])).to(dtype), (y + torch.tensor([0.0, 7.0])).to(dtype)


def scaled_to_rows(dtype: torch.dtype = torch.float64) -> tuple[Standardized, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = rows(dtype)
    return Standardized.to_rows(LinearRegression(3, 2).to(dtype), x, y), x, y


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_moments_are_those_of_the_rows(dtype: torch.dtype) -> None:
    network, x, y = scaled_to_rows(dtype)
    for values, mean, deviation in (
        (x, network.x_mean, network.x_deviation),
        (y, network.y_mean, network.y_deviation),
    ):
        exact, tolerance = values.double().numpy(), 2 * torch.finfo(dtype).eps
        assert mean.dtype == deviation.dtype == dtype
        # The sums behind the mean are as wrong as their largest term, so that a mean near zero has fewer digits.
        assert np.allclose(mean.double(), exact.mean(axis=0), rtol=tolerance, atol=1e-15 * np.abs(exact).max())
        assert np.allclose(deviation.double(), exact.std(axis=0), rtol=max(tolerance, 1e-12), atol=0)


def test_the_core_sees_mean_zero_and_deviation_one() -> None:
    network, x, y = scaled_to_rows()
    for scaled in (network.scale_features(x), network.scale_targets(y)):
        assert torch.allclose(scaled.mean(dim=0), torch.zeros(()).double(), atol=1e-9)
        assert torch.allclose(scaled.std(dim=0, correction=0), torch.ones(()).double(), atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 5.0, 0.1, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("count", [2, 3, 10, 1000])
def test_a_constant_column_is_only_centred(count: int, value: float, dtype: torch.dtype) -> None:
    x = torch.full((count, 1), value, dtype=dtype)
    network = Standardized.to_rows(LinearRegression(), x, x)
    assert torch.equal(network.x_mean, x[0])
    assert network.x_deviation.item() == 1.0
    assert torch.equal(network.scale_features(x), torch.zeros_like(x))
    assert torch.equal(network.scale_targets(x + 1), (x + 1) - x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_takes_raw_rows_and_gives_raw_predictions(dtype: torch.dtype) -> None:
    """A core that predicts the scaled targets perfectly gives the raw ones back."""
    x, y = rows(dtype)

    class Perfect(nn.Module):
        def forward(self, scaled: Tensor) -> Tensor:
            assert torch.equal(scaled, network.scale_features(x))
            return network.scale_targets(y)

    network = Standardized.to_rows(Perfect(), x, y)
    assert torch.allclose(network(x), y, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert network(x).dtype == dtype


def test_the_moments_are_saved_and_never_trained() -> None:
    network, _, _ = scaled_to_rows()
    assert {name for name, _ in network.named_parameters()} == {"core.linear.weight", "core.linear.bias"}
    assert {"x_mean", "x_deviation", "y_mean", "y_deviation"} <= set(network.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_coefficients_are_those_of_the_whole_network(dtype: torch.dtype) -> None:
    """The intercepts are what it predicts at zero, the weights how that changes by a unit of each feature."""
    network, _, _ = scaled_to_rows(dtype)
    assert isinstance(network.core, LinearRegression)
    weights, intercepts = network.raw_coefficients(network.core.linear.weight, network.core.linear.bias)
    assert weights.dtype == intercepts.dtype == torch.float64
    network = network.double()
    with torch.no_grad():
        at_zero = network(torch.zeros(1, 3).double())
        slopes = (network(torch.eye(3).double()) - at_zero).T
    assert torch.allclose(intercepts, at_zero[0], rtol=1e-9)
    assert torch.allclose(weights, slopes, rtol=1e-6)


def test_raw_coefficients_of_a_whole_curve_are_those_of_its_points() -> None:
    network, _, _ = scaled_to_rows()
    weights, intercepts = torch.randn(4, 2, 3).double(), torch.randn(4, 2).double()
    together = network.raw_coefficients(weights, intercepts)
    for point in range(4):
        alone = network.raw_coefficients(weights[point], intercepts[point])
        assert torch.equal(together[0][point], alone[0])
        assert torch.equal(together[1][point], alone[1])
