"""A network whose forward is ordinary Python: a loop of random length, and a weight that is used twice."""

import torch
from torch import Tensor, nn

LOWEST_ORDER, HIGHEST_ORDER = 3, 5


class DynamicPolynomial(nn.Module):
    """y = a + b x + c x^2 + d x^3 + e x^4 + e x^5 of one feature, from random first values.

    While it learns, each forward ends at an order of 3 to 5, drawn from torch's generator: from Python's, other threads
    of the process draw as well, and the same seed would not give the same bits. In evaluation mode it goes to the end,
    so that the same row always gets the same prediction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Parameter(torch.randn(())) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, 1) from (rows, 1)."""
        order = int(torch.randint(LOWEST_ORDER, HIGHEST_ORDER + 1, ())) if self.training else HIGHEST_ORDER
        power = x * x * x
        y = self.a + self.b * x + self.c * (x * x) + self.d * power
        for _ in range(LOWEST_ORDER, order):
            power = power * x
            y = y + self.e * power
        return y
