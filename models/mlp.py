"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

# Those that onnxruntime computes in float64 as well as torch does. It has no float64 kernel for the error
# function, softplus and elu, and rounds constants of gelu's tanh form to float32.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softsign": nn.Softsign,
}


class MultilayerPerceptron(nn.Module):
    """Linear layers with an activation between them; none behind the last."""

    def __init__(
        self,
        in_features: int = 1,
        out_features: int = 1,
        hidden: Sequence[int] = (32, 32),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, next_width in pairwise((in_features, *hidden)):
            layers += [nn.Linear(width, next_width), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, targets) from (rows, features)."""
        prediction: Tensor = self.layers(x)
        return prediction
