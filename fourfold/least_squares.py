"""The straight line's exact answer, for a fit to be measured against."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LeastSquares:
    """The coefficients that minimise the squared error.

    Attributes:
        weights: (targets, features) float64, in target units a feature unit.
        intercepts: (targets,) float64, in target units; 0 where the model has none.
        sum_of_squares: what is left at the minimum, summed over rows and targets.
    """

    weights: np.ndarray
    intercepts: np.ndarray
    sum_of_squares: float

    def distance(self, weights: np.ndarray, intercepts: np.ndarray) -> float:
        """Euclidean distance of other coefficients, of the same shapes, from these."""
        return float(np.hypot(np.linalg.norm(weights - self.weights), np.linalg.norm(intercepts - self.intercepts)))


def least_squares(x: np.ndarray, y: np.ndarray, *, intercept: bool = True) -> LeastSquares:
    """Solve min |x w + b - y|^2 in float64 by singular values of the centred, scaled columns.

    Centring and scaling first keeps the condition number that of the data's shape, not of its units; where
    columns depend on each other, the solution of least norm in the scaled columns is returned.

    Args:
        x: (rows, features).
        y: (rows, targets).
        intercept: whether there is a b; without one nothing is centred.

    >>> fit = least_squares(np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]]))
    >>> fit.weights.round(12).tolist(), abs(fit.intercepts).round(12).tolist()
    ([[2.0]], [0.0])
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x_mean, y_mean = (x.mean(axis=0), y.mean(axis=0)) if intercept else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    centred = x - x_mean
    if intercept:
        centred[:, np.ptp(x, axis=0) == 0] = 0.0  # a mean is rounded, and would leave a column of rounding
    scale = np.linalg.norm(centred, axis=0)
    scale[scale == 0] = 1.0
    solution, *_ = np.linalg.lstsq(centred / scale, y - y_mean, rcond=None)
    weights = (solution / scale[:, None]).T
    intercepts = y_mean - weights @ x_mean
    residual = y - y_mean - centred @ weights.T
    return LeastSquares(weights, intercepts, float(np.sum(residual**2)))


def condition_number(x: np.ndarray, *, intercept: bool = True) -> float:
    """Largest by smallest singular value of x, with a column of ones for the intercept; infinite where one is zero.

    The relative size of the gradient along the weakest direction is its square.

    Args:
        x: (rows, columns).
        intercept: whether there is one.

    >>> round(condition_number(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), intercept=False), 12)
    1.333333333333
    """
    design = np.column_stack([x, np.ones(len(x))] if intercept else [x]).astype(np.float64)
    if len(design) < design.shape[1]:
        return float("inf")
    triangle = np.linalg.qr(design, mode="r")  # the same singular values in a few rows, a fifth of the time
    singular = np.linalg.svd(triangle, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] else float("inf")
