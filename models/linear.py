"""The exercise's model: a straight line, or a plane for more than one feature."""

from torch import Tensor, nn


class LinearRegression(nn.Module):
    """y = x w^T + b, with w (targets, features) and b (targets,) as `torch.nn.Linear` draws and names them."""

    def __init__(self, in_features: int = 1, out_features: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, targets) from (rows, features)."""
        prediction: Tensor = self.linear(x)
        return prediction
