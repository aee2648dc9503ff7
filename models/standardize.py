"""Scaling inside the network, so that the exported file takes raw columns and gives raw predictions."""

from typing import Self

import torch
from torch import Tensor, nn

from models.linear import LinearRegression

# How many units of rounding a column may leave in the smallest variance of columns that follow from each other: 7 were
# seen at 100,000 rows, and they grow with the root of the rows.
ROUNDING_OF_MOMENTS = 100


class Standardized(nn.Module):
    """A core network that sees features and targets with mean 0 and deviation 1.

    The means and deviations are buffers: saved with the network, never trained. The core is what a fit
    trains, on `scale_features(x)` and `scale_targets(y)`, so that no step pays for the scaling.

    Args:
        core: (rows, features) to (rows, targets), both scaled.
        x_mean, x_deviation: (features,); y_mean, y_deviation: (targets,). No deviation may be 0.
        x_rotation: (features, features), which takes scaled features to uncorrelated ones; None for none.
    """

    x_mean: Tensor
    x_deviation: Tensor
    y_mean: Tensor
    y_deviation: Tensor
    x_rotation: Tensor | None

    def __init__(
        self,
        core: nn.Module,
        x_mean: Tensor,
        x_deviation: Tensor,
        y_mean: Tensor,
        y_deviation: Tensor,
        x_rotation: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.core = core
        self.register_buffer("x_mean", x_mean)
        self.register_buffer("x_deviation", x_deviation)
        self.register_buffer("y_mean", y_mean)
        self.register_buffer("y_deviation", y_deviation)
        self.register_buffer("x_rotation", x_rotation)

    @classmethod
    def to_moments(
        cls,
        core: nn.Module,
        x_mean: Tensor,
        x_deviation: Tensor,
        y_mean: Tensor,
        y_deviation: Tensor,
        *,
        dtype: torch.dtype,
        centred: bool = True,
        x_covariance: Tensor | None = None,
    ) -> Self:
        """Scale by float64 moments of the training rows; a constant column is only centred.

        Args:
            core: see above.
            x_mean, x_deviation: (features,); y_mean, y_deviation: (targets,).
            dtype: of the rows.
            centred: whether columns lose their mean; else they are divided by their root mean square, so that zero
                stays zero and a core without an intercept is a network without one.
            x_covariance: (features, features), where the features are to be rotated as well.
        """
        x_moments, y_moments = _scale(x_mean, x_deviation, centred), _scale(y_mean, y_deviation, centred)
        rotation = None
        if x_covariance is not None:
            shift, scale = x_moments
            apart = x_mean - shift
            moments = (x_covariance + torch.outer(apart, apart)) / torch.outer(scale, scale)
            stored = torch.finfo(dtype).eps ** 2 * (1 + (shift / scale) ** 2)
            rotation = whitening(moments, stored)
        return cls(core, *x_moments, *y_moments, rotation).to(dtype)

    def scale_features(self, x: Tensor) -> Tensor:
        """Raw (rows, features) to what the core sees."""
        scaled = (x - self.x_mean) / self.x_deviation
        return scaled if self.x_rotation is None else scaled @ self.x_rotation

    def scale_targets(self, y: Tensor) -> Tensor:
        """Raw (rows, targets) to what the core predicts."""
        return (y - self.y_mean) / self.y_deviation

    def raw_coefficients(self, weights: Tensor, intercepts: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of a linear core in raw units, in float64.

        Args:
            weights: (..., targets, columns), intercepts: (..., targets), as the core has them.
        """
        assert isinstance(self.core, LinearRegression), "only such a core has coefficients"
        y_deviation = self.y_deviation.double()
        if self.x_rotation is not None:
            weights = weights.double() @ self.x_rotation.double().T
        weights, intercepts = self.core.unscaled(weights, intercepts, self.x_mean, self.x_deviation)
        return weights * y_deviation[:, None], intercepts * y_deviation + self.y_mean.double()

    def forward(self, x: Tensor) -> Tensor:
        """Predict raw (rows, targets) from raw (rows, features)."""
        prediction: Tensor = self.core(self.scale_features(x)) * self.y_deviation + self.y_mean
        return prediction


def whitening(moments: Tensor, noise: Tensor) -> Tensor:
    """The matrix R for which columns z become uncorrelated columns z R of mean square 1.

    A direction in which the columns do not vary, but for rounding, gets scale 0: what a linear core learns then is the
    solution of least norm. Rounding is that of the rows as they are stored, and that of the moments themselves.

    Args:
        moments: (columns, columns) float64, the mean of z^T z over the rows: correlations, where z is standardised.
        noise: (columns,) float64, the mean square of what rounding the rows to their dtype leaves in z.

    Returns:
        (columns, columns) float64, the direction of largest variance first.
    """
    variances, directions = torch.linalg.eigh(moments)
    of_moments = ROUNDING_OF_MOMENTS * len(moments) * torch.finfo(moments.dtype).eps * variances[-1]
    dropped = variances <= torch.maximum(directions.square().T @ noise, of_moments)
    scales = torch.where(dropped, 0.0, variances.clamp(min=0).rsqrt())
    rotation: Tensor = (directions * scales).flip(1)
    return rotation.contiguous()


def _scale(mean: Tensor, deviation: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """What is taken off each column, and what it is divided by: never 0."""
    if not centred:
        mean, deviation = torch.zeros_like(mean), torch.hypot(mean, deviation)
    return mean, torch.where(deviation == 0, 1.0, deviation)
