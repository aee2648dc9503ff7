"""Scaling inside the network, against moments by NumPy and evaluations of the network itself."""

import numpy as np
import pytest
import torch
from rescaled import rescaled
from torch import Tensor, nn

from models.linear import LinearRegression
from models.standardize import Standardized, whitening

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
    return rescaled(LinearRegression(3, 2).to(dtype), x, y), x, y


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
    network = rescaled(LinearRegression(), x, x)
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

    network = rescaled(Perfect(), x, y)
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


class TestWithoutCentring:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_columns_are_divided_by_their_root_mean_square(self, dtype: torch.dtype) -> None:
        x, y = rows(dtype)
        network = rescaled(LinearRegression(3, 2).to(dtype), x, y, centred=False)
        for values, scale in ((x, network.scale_features), (y, network.scale_targets)):
            expected = values.double().numpy() / np.sqrt((values.double().numpy() ** 2).mean(axis=0))
            assert np.allclose(scale(values).double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
            assert torch.equal(scale(torch.zeros_like(values)), torch.zeros_like(values))

    def test_a_column_of_zeros_stays_one(self) -> None:
        x = torch.zeros(5, 1)
        network = rescaled(LinearRegression(), x, x + 3, centred=False)
        assert torch.equal(network.scale_features(x), x)
        assert torch.equal(network.scale_targets(x + 3), torch.ones(5, 1))


def collinear(dtype: torch.dtype = torch.float64) -> Tensor:
    """Two columns that differ by a hundredth, and one of its own, in units far apart."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    columns = torch.stack([own[:, 0], own[:, 0] + 0.01 * own[:, 1], own[:, 2] - 2 * own[:, 1]], dim=1)
    return (columns * torch.tensor([1e-3, 1.0, 1e4]) + torch.tensor([5.0, -3.0, 1e5])).to(dtype)


class TestDecorrelated:
    @pytest.mark.parametrize("centred", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_core_sees_uncorrelated_columns_of_mean_square_1(self, dtype: torch.dtype, centred: bool) -> None:
        x = collinear(dtype)
        network = rescaled(LinearRegression(3).to(dtype), x, x[:, :1], centred=centred, decorrelated=True)
        seen = network.scale_features(x).double().numpy()
        assert network.x_rotation is not None
        assert network.x_rotation.dtype == dtype
        tolerance = 1e-9 if dtype is torch.float64 else 2e-2
        assert np.allclose(seen.T @ seen / len(seen), np.eye(3), atol=tolerance)
        if centred:
            assert np.allclose(seen.mean(axis=0), 0, atol=5 * tolerance)  # the mean itself is rounded to the dtype

    def test_columns_that_follow_from_others_add_no_direction(self) -> None:
        x = collinear()
        x = torch.cat([x, x[:, :1] - 2 * x[:, 1:2], torch.full((len(x), 1), 7.0)], dim=1)
        network = rescaled(LinearRegression(5).double(), x, x[:, :1], decorrelated=True)
        seen = network.scale_features(x).numpy()
        assert np.allclose(seen.T @ seen / len(seen), np.diag([1, 1, 1, 0, 0]), atol=1e-8)
        assert (seen[:, 3:] == 0).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mean", [0.0, 30.0])
    @pytest.mark.parametrize("count", [20, 1000, 100_000])
    def test_columns_that_follow_but_for_rounding_are_dropped_whatever_the_dtype(
        self, count: int, mean: float, dtype: torch.dtype
    ) -> None:
        """A variance of rounding alone must not be blown up to 1."""
        for seed in range(5):
            own = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean
            x = torch.cat([own, own.sum(dim=1, keepdim=True) / 3, own[:, :1] * 0.7], dim=1).to(dtype)
            network = rescaled(LinearRegression(4).to(dtype), x, x[:, :1], decorrelated=True)
            assert network.x_rotation is not None
            assert network.x_rotation.any(dim=0).tolist() == [True, True, False, False]

    @pytest.mark.parametrize(("dtype", "difference"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])
    def test_a_small_direction_of_its_own_is_kept(self, dtype: torch.dtype, difference: float) -> None:
        a, b = torch.randn(2, 1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = torch.cat([a, a + difference * b], dim=1).to(dtype)
        network = rescaled(LinearRegression(2).to(dtype), x, a.to(dtype), decorrelated=True)
        deviation = network.scale_features(x).double().std(dim=0)
        assert torch.allclose(deviation, torch.ones(2).double(), rtol=0.02)

    @pytest.mark.parametrize("centred", [True, False])
    def test_raw_coefficients_are_those_of_the_whole_network(self, centred: bool) -> None:
        x = collinear()
        network = rescaled(
            LinearRegression(3, 2, intercept=centred).double(), x, x[:, :2], centred=centred, decorrelated=True
        )
        assert isinstance(network.core, LinearRegression)
        bias = network.core.linear.bias if centred else torch.zeros(2)
        weights, intercepts = network.raw_coefficients(network.core.linear.weight.detach(), bias.detach())
        predicted = network(x).detach()
        assert torch.allclose(x @ weights.T + intercepts, predicted, rtol=1e-8, atol=1e-8 * predicted.abs().max())
        if not centred:
            assert torch.equal(network(torch.zeros(1, 3).double()), torch.zeros(1, 2).double())

    def test_only_where_asked_for_is_there_a_rotation(self) -> None:
        network, x, y = scaled_to_rows()
        moments = {"x_mean", "x_deviation", "y_mean", "y_deviation"}
        assert {name for name in network.state_dict() if "core" not in name} == moments
        rotated = rescaled(network.core, x, y, decorrelated=True)
        assert {name for name in rotated.state_dict() if "core" not in name} == {*moments, "x_rotation"}

    @pytest.mark.parametrize("scale", [0.0, 1e-300, 1.0, 1e300])
    def test_whitening_knows_no_units(self, scale: float) -> None:
        moments = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double() * scale
        found = whitening(moments, torch.full((2,), scale * 1e-32, dtype=torch.float64))
        expected = torch.eye(2).double() if scale else torch.zeros(2, 2).double()
        assert torch.allclose(found.T @ moments @ found, expected)
