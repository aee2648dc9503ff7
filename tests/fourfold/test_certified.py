"""The engine against certified coefficients, and against exact fractions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from certified import Certified, collinear, longley, norris, solve_exactly
from rescaled import rescaled

from fourfold.fitting import FitConfig, fit
from fourfold.least_squares import least_squares
from fourfold.optimizers import OptimizerConfig
from models.linear import LinearRegression

LBFGS = OptimizerConfig.parse(
    "LBFGS", 1.0, ("line_search_fn=strong_wolfe", "tolerance_grad=0.0", "tolerance_change=0.0")
)


def trained(rows: Certified, *, decorrelated: bool, intercept: bool = True, seed: int = 0) -> np.ndarray:
    """The coefficients of 20 steps of LBFGS, as `Certified` has them."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(rows.x), torch.from_numpy(rows.y).reshape(-1, 1)
    core = LinearRegression(x.shape[1], intercept=intercept).double()
    network = rescaled(core, x, y, centred=intercept, decorrelated=decorrelated)
    fit(core, network.scale_features(x), network.scale_targets(y), FitConfig(LBFGS, epochs=20, loss="mse"))
    bias = core.linear.bias.detach() if intercept else torch.zeros(1).double()
    weights, intercepts = network.raw_coefficients(core.linear.weight.detach(), bias)
    return np.append(weights.numpy(), intercepts.numpy() if intercept else [])


def solved(rows: Certified) -> np.ndarray:
    found = least_squares(rows.x, rows.y.reshape(-1, 1))
    return np.append(found.weights, found.intercepts)


def norm_wise(found: np.ndarray, rows: Certified) -> float:
    """The relative error of the slopes, each by its column's deviation, so that units do not count."""
    units, expected = rows.x.std(axis=0), rows.coefficients[: rows.x.shape[1]]
    return float(np.linalg.norm((found[: len(units)] - expected) * units) / np.linalg.norm(expected * units))


@pytest.mark.parametrize("rows", [norris(), longley()], ids=["Norris", "Longley"])
class TestCertified:
    def test_the_fractions_are_the_certified_coefficients(self, rows: Certified) -> None:
        """Two oracles that know nothing of each other."""
        assert solve_exactly(rows.x, rows.y) == pytest.approx(rows.coefficients, rel=2e-14)

    def test_the_closed_form_has_ten_digits_and_more(self, rows: Certified) -> None:
        assert solved(rows) == pytest.approx(rows.coefficients, rel=1e-12, abs=0)

    def test_training_has_ten_digits_where_features_are_decorrelated(self, rows: Certified) -> None:
        assert trained(rows, decorrelated=True) == pytest.approx(rows.coefficients, rel=1e-10, abs=0)

    def test_through_the_origin_it_is_what_the_fractions_give(self, rows: Certified) -> None:
        expected = solve_exactly(rows.x, rows.y, intercept=False)
        found = least_squares(rows.x, rows.y.reshape(-1, 1), intercept=False)
        assert found.weights[0] == pytest.approx(expected, rel=1e-11, abs=0)
        assert trained(rows, decorrelated=True, intercept=False) == pytest.approx(expected, rel=1e-9, abs=0)


def test_training_has_nine_digits_on_norris_and_six_on_longley_as_it_is() -> None:
    for rows, digits in ((norris(), 9), (longley(), 6)):
        assert trained(rows, decorrelated=False) == pytest.approx(rows.coefficients, rel=10.0**-digits, abs=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("condition", [10.0, 1e2, 1e3, 1e4])
def test_decorrelated_training_and_the_closed_form_have_nine_digits(condition: float, noise: float, seed: int) -> None:
    rows = collinear(condition, noise, seed)
    assert norm_wise(trained(rows, decorrelated=True, seed=seed), rows) < 1e-9
    assert norm_wise(solved(rows), rows) < 1e-9


def test_without_decorrelating_collinear_columns_lose_their_digits() -> None:
    """What the option is for: the line search sees no change of the loss that is below the loss's own rounding."""
    worst = max(
        norm_wise(trained(rows, decorrelated=False), rows) for rows in (collinear(1e4, 0.1, s) for s in (0, 1, 2))
    )
    assert worst > 1e-9


def test_the_measure_finds_a_tenth_digit() -> None:
    rows = norris()
    off = replace(rows, coefficients=rows.coefficients * (1 + 1e-9))
    assert norm_wise(rows.coefficients, off) == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_the_made_columns_are_as_collinear_as_asked(condition: float) -> None:
    x = collinear(condition, 0.0, seed=0).x
    found = np.linalg.cond((x - x.mean(axis=0)) / x.std(axis=0))
    assert condition / 5 < found < condition * 5
