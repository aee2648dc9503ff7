"""Least squares, against NumPy's own polynomial fit and closed forms."""

import numpy as np
import pytest

from fourfold.least_squares import LeastSquares, condition_number, least_squares


def scattered(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_a_line_is_the_one_that_polyfit_finds() -> None:
    x, noise = scattered(50, 1), scattered(50, 1, seed=1)
    y = 3 * x - 2 + noise
    (slope, intercept), residual, *_ = np.polyfit(x[:, 0], y[:, 0], 1, full=True)
    fit = least_squares(x, y)
    assert fit.weights == pytest.approx(np.array([[slope]]), rel=1e-12)
    assert fit.intercepts == pytest.approx(np.array([intercept]), rel=1e-12)
    assert fit.sum_of_squares == pytest.approx(residual[0], rel=1e-12)


def test_the_cubic_of_the_sine_has_the_published_coefficients() -> None:
    """The least-squares answer to the tutorial's problem: a = c = 0, b, d and the loss to all printed digits."""
    x = np.linspace(-np.pi, np.pi, 2000).reshape(-1, 1)
    fit = least_squares(np.hstack([x, x**2, x**3]), np.sin(x))
    assert fit.intercepts == pytest.approx(np.zeros(1), abs=1e-12)
    assert fit.weights == pytest.approx(np.array([[0.8567408431, 0.0, -0.0933303890]]), abs=5.1e-11)
    assert fit.sum_of_squares == pytest.approx(8.8171654, abs=5.1e-8)


def test_two_targets_are_two_fits() -> None:
    x, y = scattered(30, 3), scattered(30, 2, seed=1)
    both, alone = least_squares(x, y), [least_squares(x, y[:, [column]]) for column in (0, 1)]
    assert both.weights == pytest.approx(np.vstack([fit.weights for fit in alone]), rel=1e-12)
    assert both.intercepts == pytest.approx(np.hstack([fit.intercepts for fit in alone]), rel=1e-12)
    assert both.sum_of_squares == pytest.approx(sum(fit.sum_of_squares for fit in alone))


def test_an_exact_plane_is_found_whatever_its_units() -> None:
    """Columns that differ by fifteen orders of magnitude, and one far from zero, cost no digits."""
    x = scattered(40, 3) * [1e-6, 1.0, 1e9] + [0.0, 1e6, 0.0]
    weights, intercept = np.array([[2e6, -3.0, 4e-9]]), 5.0
    fit = least_squares(x, x @ weights.T + intercept)
    assert fit.weights == pytest.approx(weights, rel=1e-8)
    assert fit.intercepts[0] == pytest.approx(intercept, abs=1e-2)


def test_collinear_columns_share_the_weight_equally_in_their_own_scale() -> None:
    """Of all exact answers y = w1 x + w2 (3 x) the least in scaled columns has w1 and 3 w2 alike."""
    x = scattered(20, 1)
    fit = least_squares(np.hstack([x, 3 * x]), 5 * x + 1)
    assert fit.weights == pytest.approx(np.array([[5 / 2, 5 / 6]]), rel=1e-10)
    assert fit.intercepts == pytest.approx(np.array([1.0]), rel=1e-10)
    assert fit.sum_of_squares == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("value", [0.0, 5.0, 0.1, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("rows", [3, 10, 1000])
def test_a_constant_column_gets_no_weight(rows: int, value: float) -> None:
    x = np.column_stack([np.linspace(0, 1, rows), np.full(rows, value)])
    fit = least_squares(x, 2 * x[:, :1] + 1)
    assert fit.weights == pytest.approx(np.array([[2.0, 0.0]]), abs=1e-9)
    assert fit.intercepts == pytest.approx(np.array([1.0]), abs=1e-9)


def test_the_distance_is_euclidean_over_weights_and_intercepts() -> None:
    fit = LeastSquares(np.array([[1.0, 2.0]]), np.array([3.0]), 0.0)
    assert fit.distance(np.array([[1.0 + 2, 2.0 - 3]]), np.array([3.0 + 6])) == pytest.approx(7.0)
    assert fit.distance(fit.weights, fit.intercepts) == 0.0


@pytest.mark.parametrize(("features", "targets"), [(1, 1), (3, 2)])
def test_through_the_origin_it_is_what_numpy_finds(features: int, targets: int) -> None:
    x, y = scattered(40, features) + 3, scattered(40, targets, seed=1) + 20
    expected, left, *_ = np.linalg.lstsq(x, y, rcond=None)
    fit = least_squares(x, y, intercept=False)
    assert fit.weights == pytest.approx(expected.T, rel=1e-12)
    assert fit.intercepts.tolist() == [0.0] * targets
    assert fit.sum_of_squares == pytest.approx(left.sum(), rel=1e-12)


def test_through_the_origin_a_constant_column_is_a_column() -> None:
    x = np.full((5, 1), 4.0)
    assert least_squares(x, 3 * x, intercept=False).weights == pytest.approx(np.array([[3.0]]), rel=1e-14)


def test_the_condition_number_is_numpys_own() -> None:
    x = scattered(30, 3) * [1, 1e-3, 10] + [0, 0, 5]
    assert condition_number(x, intercept=False) == pytest.approx(np.linalg.cond(x), rel=1e-12)
    with_ones = np.column_stack([x, np.ones(30)])
    assert condition_number(x) == pytest.approx(np.linalg.cond(with_ones), rel=1e-12)


def test_the_condition_number_is_infinite_where_coefficients_are_not_decided() -> None:
    assert condition_number(np.zeros((5, 1))) == np.inf
    assert condition_number(scattered(3, 3)) == np.inf
    assert condition_number(scattered(3, 3), intercept=False) < np.inf
