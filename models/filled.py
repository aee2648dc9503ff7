"""Filling missing values inside the network, so that the exported file takes rows as they come."""

import torch
from torch import Tensor, nn


class Filled(nn.Module):
    """A network whose missing features, given as NaN, are replaced by fixed values: the training rows' means.

    The values are a buffer: saved with the network, never trained.

    Args:
        network: (rows, features) to (rows, targets).
        values: (features,), what stands for a missing value of each.
    """

    values: Tensor

    def __init__(self, network: nn.Module, values: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("values", values)

    def fill(self, x: Tensor) -> Tensor:
        """Give (rows, features) without NaN."""
        return torch.where(torch.isnan(x), self.values, x)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, targets) from (rows, features)."""
        prediction: Tensor = self.network(self.fill(x))
        return prediction
