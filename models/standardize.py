"""Scaling inside the network, so that the exported file takes raw columns and gives raw predictions."""

from typing import Self

import torch
from torch import Tensor, nn

from models.linear import LinearRegression


class Standardized(nn.Module):
    """A core network that sees features and targets with mean 0 and deviation 1.

    The means and deviations are buffers: saved with the network, never trained. The core is what a fit
    trains, on `scale_features(x)` and `scale_targets(y)`, so that no step pays for the scaling.

    Args:
        core: (rows, features) to (rows, targets), both scaled.
        x_mean, x_deviation: (features,); y_mean, y_deviation: (targets,). No deviation may be 0.
    """

    x_mean: Tensor
    x_deviation: Tensor
    y_mean: Tensor
    y_deviation: Tensor

    def __init__(
        self, core: nn.Module, x_mean: Tensor, x_deviation: Tensor, y_mean: Tensor, y_deviation: Tensor
    ) -> None:
        super().__init__()
        self.core = core
        self.register_buffer("x_mean", x_mean)
        self.register_buffer("x_deviation", x_deviation)
        self.register_buffer("y_mean", y_mean)
        self.register_buffer("y_deviation", y_deviation)

    @classmethod
    def to_moments(
        cls, core: nn.Module, x_mean: Tensor, x_deviation: Tensor, y_mean: Tensor, y_deviation: Tensor
    ) -> Self:
        """Scale by float64 moments of the training rows, rounded to the core's dtype; a constant is only centred."""
        dtype = next(core.parameters()).dtype
        x_deviation, y_deviation = (torch.where(one == 0, 1.0, one) for one in (x_deviation, y_deviation))
        return cls(core, *(moment.to(dtype) for moment in (x_mean, x_deviation, y_mean, y_deviation)))

    def scale_features(self, x: Tensor) -> Tensor:
        """Raw (rows, features) to what the core sees."""
        return (x - self.x_mean) / self.x_deviation

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
        weights, intercepts = self.core.unscaled(weights, intercepts, self.x_mean, self.x_deviation)
        return weights * y_deviation[:, None], intercepts * y_deviation + self.y_mean.double()

    def forward(self, x: Tensor) -> Tensor:
        """Predict raw (rows, targets) from raw (rows, features)."""
        prediction: Tensor = self.core(self.scale_features(x)) * self.y_deviation + self.y_mean
        return prediction
