"""A network with a backward of its own: y = a + b P3(c + d x), with the third Legendre polynomial."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class LegendreP3(Function):
    """P3(z) = (5 z^3 - 3 z) / 2, whose derivative is 3 (5 z^2 - 1) / 2.

    torch could derive the forward itself; this shows how one's own derivative is given to it.
    """

    generate_vmap_rule = True  # so that many trainings can be stacked

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        """P3 of each element, any shape."""
        return 0.5 * (5 * z * z * z - 3 * z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep what the backward needs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient by z from the gradient by P3(z): the chain rule."""
        (z,) = ctx.saved_tensors
        slope: Tensor = 1.5 * (5 * z * z - 1)
        return gradients[0] * slope


class Legendre(nn.Module):
    """y = a + b P3(c + d x) of one feature, from the first values that PyTorch's tutorial takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.0))
        self.b = nn.Parameter(torch.tensor(-1.0))
        self.c = nn.Parameter(torch.tensor(0.0))
        self.d = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, 1) from (rows, 1)."""
        p3: Tensor = LegendreP3.apply(self.c + self.d * x)  # type: ignore[no-untyped-call]
        return self.a + self.b * p3
