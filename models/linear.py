"""The exercise's model: a straight line, or a plane for more than one feature."""

from torch import Tensor, nn


class LinearRegression(nn.Module):
    """y = x w^T + b, with w (targets, features) and b (targets,) as `torch.nn.Linear` draws and names them.

    Args:
        intercept: whether there is a b; without one it goes through the origin.

    Attributes:
        symbols: what the coefficients of one feature are called.
        constant: what the intercept is called.
    """

    symbols: tuple[str, ...] = ("w",)
    constant = "b"

    def __init__(self, in_features: int = 1, out_features: int = 1, *, intercept: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=intercept)

    @property
    def has_intercept(self) -> bool:
        """Whether there is a b."""
        return self.linear.bias is not None

    def columns(self, x: Tensor) -> Tensor:
        """What the coefficients multiply, (rows, columns), from (rows, features)."""
        return x

    def unscaled(self, weights: Tensor, intercepts: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients for x of those for (x - mean) / deviation, in float64.

        Args:
            weights: (..., targets, columns), intercepts: (..., targets).
            mean, deviation: (features,).
        """
        raw = weights.double() / deviation.double()
        return raw, intercepts.double() - (raw * mean.double()).sum(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, targets) from (rows, features)."""
        prediction: Tensor = self.linear(self.columns(x))
        return prediction
