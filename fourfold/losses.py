"""The losses a fit can minimise, each as torch computes it, and how those of several batches add up."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def sum_of_squares(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error summed over rows and targets, in squared target units.

    Args:
        prediction, target: (rows, targets), the same shape: whoever builds a network checks that it gives it.
    Returns: a () scalar, the exercise's `MSELoss(reduction="sum")`.
    """
    return functional.mse_loss(prediction, target, reduction="sum")


LOSSES: dict[str, Loss] = {
    "sse": sum_of_squares,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


def is_sum(name: str) -> bool:
    """Whether the loss of several batches is the sum of theirs, and not their mean weighted by rows."""
    return name == "sse"


def is_squared(name: str) -> bool:
    """Whether least squares minimises the loss."""
    return name in ("sse", "mse")
