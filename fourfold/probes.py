"""The rows on which a model file has to prove itself: those at hand, and those where runtimes go apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TRAINING = "training rows"
MOST_ROWS = 10_000  # of each set that is at hand; more are sampled
MOST_CORNERS, MOST_UNITS, RANDOM_ROWS, SEARCHED_ROWS = 64, 64, 128, 32
SEARCH_STEPS = 12
_SEED = 4
# Where each activation bends, and where it has become flat to the last bit of float64.
_BEND, _FLAT = 0.0, 20.0
_ACTIVATIONS = {
    "relu", "relu_", "tanh", "sigmoid", "silu", "softsign", "gelu", "elu", "celu", "selu", "softplus", "leaky_relu",
    "mish", "hardtanh", "relu6", "hardswish", "hardsigmoid", "logsigmoid", "tanhshrink",
}  # fmt: skip

Choose = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def probes(network: nn.Module, rows: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name sets of rows, (rows, features) each, all the same for the same network and rows.

    Args:
        network: in evaluation mode, on the CPU.
        rows: what is at hand, by name; "training rows" is one of them and says what the range is. Of more than
            10,000 rows a sample is taken, one from each of as many equal parts.
    """
    for name, x in rows.items():
        if len(x) > MOST_ROWS:
            yield f"{MOST_ROWS} of the {len(x)} {name}", sample(x.cpu(), MOST_ROWS)
        elif len(x):
            yield name, x.cpu()
    training = rows[TRAINING].cpu()
    training = torch.where(training.isnan(), training.nanmean(dim=0).nan_to_num(), training)
    low, high = torch.aminmax(training, dim=0)
    middle, half = low / 2 + high / 2, (high / 2 - low / 2).clamp_min(0.5)
    limits, features = torch.finfo(training.dtype), training.shape[1]
    random = torch.Generator().manual_seed(_SEED)

    def drawn(draw: Callable[..., Tensor], count: int) -> Tensor:
        return draw(count, features, generator=random, dtype=training.dtype)

    corners = _corners(features, random).to(training.dtype)
    yield "corners of the training range", middle + corners * half
    for times in (10, 100):
        yield f"corners of {times} times it", middle + times * corners * half
    yield "random rows inside", middle + (2 * drawn(torch.rand, RANDOM_ROWS) - 1) * half
    magnitudes = 10 ** (9 * drawn(torch.rand, RANDOM_ROWS) - 3)
    yield "random rows of all magnitudes", middle + drawn(torch.randn, RANDOM_ROWS).sign() * magnitudes * half
    unit = torch.nn.functional.one_hot(sample(torch.arange(features), MOST_UNITS), features).to(training.dtype)
    yield "zeros", torch.zeros_like(unit[:1])
    yield "one-hot", unit
    smallest = limits.smallest_normal * limits.eps
    subnormal = torch.tensor([smallest, limits.smallest_normal / 2, limits.smallest_normal], dtype=training.dtype)
    yield "subnormal", torch.cat([sign * value * torch.ones_like(unit[:1]) for value in subnormal for sign in (1, -1)])
    yield "largest finite", torch.cat([limits.max * unit, -limits.max * unit, limits.max * corners])
    typical = training[len(training) // 2]
    alternating = torch.where(torch.arange(features) % 2 == 0, 1.0, -1.0).to(training.dtype)  # inf - inf somewhere
    for name, value in (("NaN", torch.nan), ("infinity", torch.inf), ("minus infinity", -torch.inf)):
        alone, all_of_them = torch.where(unit == 1, value, typical), torch.full_like(unit[:1], value)
        yield name, torch.cat([alone, value * alternating[None], all_of_them])
    start = sample(training, SEARCHED_ROWS)
    start = start + 0.01 * half * drawn(torch.randn, len(start))
    searches: dict[str, tuple[Choose, tuple[float, ...]]] = {
        "driven to zero": (lambda inside: inside[-1:], (0.0,)),
        "driven to bends and flats": (lambda inside: inside[:-1], (_BEND, _FLAT, -_FLAT)),
    }
    for name, (choose, levels) in searches.items():
        found = driven(network, start, choose, levels)
        within = found[((found - middle).abs() <= 1000 * half).all(dim=1)]
        if len(within):
            yield name, within


def sample(x: Tensor, count: int) -> Tensor:
    """Rows, one drawn from each of `count` equal parts, in order; all where there are no more."""
    if len(x) <= count:
        return x
    offsets = torch.rand(count, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    edges = torch.arange(count + 1) * len(x) // count
    return x[edges[:-1] + (offsets * edges.diff()).long()]


def driven(network: nn.Module, start: Tensor, choose: Choose, levels: Sequence[float]) -> Tensor:
    """Rows whose value somewhere inside the network is driven to a level, by Newton's steps along its gradient.

    Args:
        network: in evaluation mode.
        start: (rows, features); each row is driven for one unit and one level, so that all have their turn.
        choose: takes the inputs of all activations in order, and the prediction behind them; gives those to drive.
        levels: where to.
    """
    found = []
    count = len(choose(_inside(network, start)))
    for number in range(count):
        for level in levels:
            x = start.clone()
            for _ in range(SEARCH_STEPS):
                x.requires_grad_(True)
                values = choose(_inside(network, x))[number].flatten(1)
                unit = torch.arange(len(x)) % values.shape[1]
                gap = values.gather(1, unit[:, None]).squeeze(1) - level
                try:
                    (slope,) = torch.autograd.grad(gap.sum(), x, allow_unused=True, materialize_grads=True)
                except Exception:  # a network may have no gradient, and then has nothing to be driven along
                    return start[:0]
                steepness = (slope**2).sum(dim=1)
                step = torch.where(steepness > 0, gap / steepness, 0)
                x = (x - step[:, None] * slope).detach()
            found.append(x[torch.isfinite(x).all(dim=1)])
    return torch.cat(found) if found else start[:0]


def _inside(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The inputs of the activations, in order, then the prediction."""
    with torch.enable_grad(), _Activations() as seen:
        prediction = network(x.clone())  # which it may change
    return [value for value in seen.inputs if value.dim() > 1 and len(value) == len(x)] + [prediction]


class _Activations(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ACTIVATIONS and args and isinstance(args[0], Tensor):
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))


def _corners(features: int, random: torch.Generator) -> Tensor:
    """Signs, (corners, features): every corner of a small box, else as many at random, the two extremes among them."""
    if 2**features <= MOST_CORNERS:
        bits = torch.arange(2**features)[:, None] >> torch.arange(features)
        return 2 * (bits & 1) - 1
    signs = 2 * torch.randint(0, 2, (MOST_CORNERS, features), generator=random) - 1
    signs[0], signs[1] = -1, 1
    return signs
