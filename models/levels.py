"""A cubic fitted to rows at eight levels, from NumPy by hand to a network with control flow.

The levels are those of "Learning PyTorch with Examples" (https://docs.pytorch.org/tutorials). Levels 1, 2, 3, 5 and 7
are one algorithm in five spellings. All take the same rows, x and y (rows, 1), and the same first a, b, c and d of
y = a + b x + c x^2 + d x^3; none calls another. The loss is squared error, summed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Legendre as LegendreSeries
from numpy.polynomial import Polynomial as PowerSeries
from torch import Tensor, nn

from models.dynamic import DynamicPolynomial
from models.legendre import LegendreP3

Start = tuple[float, float, float, float]


@dataclass(frozen=True)
class Learned:
    """Where a level ended.

    Attributes:
        coefficients: by the letters of its formula.
        losses: before each step.
        network: what was trained, where that is a module.
    """

    coefficients: dict[str, float]
    losses: list[float]
    network: nn.Module | None = None


def numpy_by_hand(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 1: forward and gradients by hand, no torch."""
    rows, targets = x.numpy(), y.numpy()
    a, b, c, d = np.array(start, dtype=rows.dtype)
    losses = []
    for _ in range(steps):
        difference = a + b * rows + c * rows**2 + d * rows**3 - targets
        losses.append(float(np.square(difference).sum()))
        gradient = 2 * difference
        a = a - rate * gradient.sum()
        b = b - rate * (gradient * rows).sum()
        c = c - rate * (gradient * rows**2).sum()
        d = d - rate * (gradient * rows**3).sum()
    return Learned({"a": float(a), "b": float(b), "c": float(c), "d": float(d)}, losses)


def tensors_by_hand(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 2: the same in tensors, which could live on a GPU."""
    a, b, c, d = torch.tensor(start, dtype=x.dtype, device=x.device)
    losses = []
    for _ in range(steps):
        difference = a + b * x + c * x**2 + d * x**3 - y
        losses.append(difference.pow(2).sum().item())
        gradient = 2 * difference
        a = a - rate * gradient.sum()
        b = b - rate * (gradient * x).sum()
        c = c - rate * (gradient * x**2).sum()
        d = d - rate * (gradient * x**3).sum()
    return Learned({"a": a.item(), "b": b.item(), "c": c.item(), "d": d.item()}, losses)


def autograd(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 3: `backward()` finds the gradients; the update is still by hand, where autograd must not look."""
    a, b, c, d = parameters = [torch.tensor(value, dtype=x.dtype, requires_grad=True) for value in start]
    losses = []
    for _ in range(steps):
        loss = (a + b * x + c * x**2 + d * x**3 - y).pow(2).sum()
        losses.append(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in parameters:
                parameter -= rate * parameter.grad  # type: ignore[operator]
                parameter.grad = None
    return Learned({"a": a.item(), "b": b.item(), "c": c.item(), "d": d.item()}, losses)


def own_function(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 4: y = a + b P3(c + d x) through a Function with its own backward; its first values are its own."""
    a, b, c, d = parameters = [
        torch.tensor(value, dtype=x.dtype, requires_grad=True) for value in (0.0, -1.0, 0.0, 0.3)
    ]
    losses = []
    for _ in range(steps):
        p3 = LegendreP3.apply(c + d * x)  # type: ignore[no-untyped-call]
        loss = (a + b * p3 - y).pow(2).sum()
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= rate * parameter.grad  # type: ignore[operator]
                parameter.grad = None
    return Learned({"a": a.item(), "b": b.item(), "c": c.item(), "d": d.item()}, losses)


def layers(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 5: a layer of `torch.nn` on the columns x, x^2, x^3 holds the parameters, and a loss of it the formula."""
    network = nn.Linear(3, 1, dtype=x.dtype)
    with torch.no_grad():
        network.bias.copy_(torch.tensor(start[:1]))
        network.weight.copy_(torch.tensor(start[1:]))
    loss_function, columns, losses = nn.MSELoss(reduction="sum"), powers(x), []
    for _ in range(steps):
        loss = loss_function(network(columns), y)
        losses.append(loss.item())
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= rate * parameter.grad  # type: ignore[operator, misc]
    return Learned(_of_linear(network), losses, network)


def optimizer(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 6: the same layer, updated by `torch.optim`; RMSprop scales each parameter's step by itself."""
    network = nn.Linear(3, 1, dtype=x.dtype)
    with torch.no_grad():
        network.bias.copy_(torch.tensor(start[:1]))
        network.weight.copy_(torch.tensor(start[1:]))
    rmsprop = torch.optim.RMSprop(network.parameters(), lr=rate)
    loss_function, columns, losses = nn.MSELoss(reduction="sum"), powers(x), []
    for _ in range(steps):
        loss = loss_function(network(columns), y)
        losses.append(loss.item())
        rmsprop.zero_grad()
        loss.backward()
        rmsprop.step()
    return Learned(_of_linear(network), losses, network)


class Cubic(nn.Module):
    """y = a + b x + c x^2 + d x^3 of one feature: parameters in the constructor, the formula in forward."""

    def __init__(self, a: float, b: float, c: float, d: float) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.tensor(value)) for value in (a, b, c, d))

    def forward(self, x: Tensor) -> Tensor:
        """Predict (rows, 1) from (rows, 1)."""
        return self.a + self.b * x + self.c * x * x + self.d * x * x * x


def own_module(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 7: a network as a class of one's own, under SGD."""
    network = Cubic(*start).to(x.dtype)
    sgd = torch.optim.SGD(network.parameters(), lr=rate)
    loss_function, losses = nn.MSELoss(reduction="sum"), []
    for _ in range(steps):
        loss = loss_function(network(x), y)
        losses.append(loss.item())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return Learned({name: value.item() for name, value in network.named_parameters()}, losses, network)


def control_flow(x: Tensor, y: Tensor, start: Start, steps: int, rate: float) -> Learned:
    """Level 8: a forward with a loop of random length, and e in two places; momentum carries over the noise."""
    network = DynamicPolynomial().to(x.dtype)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (*start, 0.0), strict=True):
            parameter.fill_(value)
    sgd = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    loss_function, losses = nn.MSELoss(reduction="sum"), []
    for _ in range(steps):
        loss = loss_function(network(x), y)
        losses.append(loss.item())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return Learned({name: value.item() for name, value in network.named_parameters()}, losses, network)


def powers_of_cubic(coefficients: dict[str, float]) -> np.ndarray:
    """Coefficients of 1, x, x^2, ... in float64: as they are, the e of the last level for both of its orders."""
    a, b, c, d, *e = coefficients.values()
    return np.array([a, b, c, d, *e, *e])


def powers_of_legendre(coefficients: dict[str, float]) -> np.ndarray:
    """The same of a + b P3(c + d x), multiplied out."""
    a, b, c, d = coefficients.values()
    found: np.ndarray = (a + b * LegendreSeries.basis(3)(PowerSeries([c, d]))).coef
    return found


@dataclass(frozen=True)
class Level:
    """One of the eight.

    Attributes:
        run: takes x, y, the first values, steps, and the learning rate.
        adds: what it shows that the level before did not.
        same_as_first: whether it is the first level's algorithm, and must end where that does.
        polynomial: takes its coefficients to those of 1, x, x^2, ...
    """

    number: int
    name: str
    run: Callable[[Tensor, Tensor, Start, int, float], Learned]
    adds: str
    steps: int = 2000
    rate: float = 1e-6
    same_as_first: bool = False
    polynomial: Callable[[dict[str, float]], np.ndarray] = powers_of_cubic


LEVELS = (
    Level(1, "NumPy", numpy_by_hand, "gradients by hand", same_as_first=True),
    Level(2, "tensors", tensors_by_hand, "the same in tensors", same_as_first=True),
    Level(3, "autograd", autograd, "backward()", same_as_first=True),
    Level(4, "own Function", own_function, "its own backward", rate=5e-6, polynomial=powers_of_legendre),
    Level(5, "nn", layers, "a layer", same_as_first=True),
    Level(6, "optim", optimizer, "an optimizer", rate=1e-3),
    Level(7, "own Module", own_module, "a class of its own", same_as_first=True),
    Level(8, "control flow", control_flow, "loop, shared weight", steps=30_000, rate=1e-8),
)


def first_values(seed: int) -> Start:
    """Where all levels but the fourth begin: what `torch.nn.Linear(3, 1)` draws from a seed."""
    torch.manual_seed(seed)
    drawn = nn.Linear(3, 1)
    b, c, d = drawn.weight[0].tolist()
    return drawn.bias.item(), b, c, d


def powers(x: Tensor) -> Tensor:
    """The columns x, x^2 and x^3 of (rows, 1)."""
    return x.pow(torch.tensor([1, 2, 3]))


def _of_linear(network: nn.Linear) -> dict[str, float]:
    values = (network.bias.item(), *network.weight[0].tolist())
    return dict(zip("abcd", values, strict=True))
