"""What a network's prediction is in exact arithmetic, nearly, and how far rounding may take a runtime from it.

The network runs in float64, and beside each value runs a bound on the error that any sound evaluation of the same
steps in its own dtype makes: first-order running error analysis (N. J. Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., SIAM 2002, section 3.3). Charges are in unit roundoffs u, half the dtype's epsilon.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# What is charged for one step, in u; docs/parity.md has what was measured. tanh is off by at most 7 u of its value in
# either dtype, sigmoid by 3 u of one: onnxruntime takes it for 0 below -18 (float32) or -37 (float64).
ARITHMETIC, TANH, SIGMOID, POWER = 1.0, 8.0, 4.0, 4.0
SIGMOID_IS_ZERO_BEYOND = 40.0
SMALLER = 2.0**-64

Rule = Callable[..., Tensor | None]


def sum_of_products(terms: int) -> float:
    """What is charged for a sum of products, at the scale of the sum of its absolute terms.

    The worst case is one rounding a term and one more (Higham, section 3.1). Errors cancel, so that large sums stay
    within a multiple of the square root (N. J. Higham and T. Mary, SIAM J. Sci. Comput. 41, 2019, A2815). The most
    that onnxruntime and torch were seen to use, where all terms are equal, is 3.8 times the root, at 256 terms.
    Up to 49 terms this is the worst case itself, but for four of them.
    """
    return min(terms + 1.0, max(4.0, 8 * math.sqrt(terms) - 12))


@dataclass(frozen=True)
class Truth:
    """A network's float64 evaluation.

    Attributes:
        value: (rows, targets) float64.
        bound: (rows, targets) float64, absolute: how far an evaluation in the dtype may be off; None where the
            network does something that no bound is known for.
        basis: where the bound comes from, or why there is none.
        undecided: (rows,) bool, where a sum inside overflows in one order of its terms and not in another.
    """

    value: Tensor
    bound: Tensor | None
    basis: str
    undecided: Tensor


def evaluate_exactly(network: nn.Module, x: Tensor, numbers: torch.dtype | None = None) -> Truth:
    """Evaluate in float64, with a bound for evaluations in the dtype of x.

    Args:
        network: a float64 copy, in evaluation mode, of the network that is judged.
        x: (rows, features) in the dtype that is judged.
        numbers: the dtype that the numbers in the network's code are rounded to, where it is another than x's.

    Raises: whatever the network raises on float64 rows.
    """
    limits = torch.finfo(x.dtype)
    mode = _RunningError(x.to(torch.float64, copy=True), limits.eps / 2, limits.max, limits.tiny, numbers)
    with torch.no_grad(), mode:
        value = network(mode.x)
    error = mode.error(value)
    basis = "a running error bound"
    if error is None or mode.unknown:
        bound = None
        basis = f"what torch's own rounding deviates by, since no bound is known for {mode.unknown or 'the output'}"
    elif len(mode.products) == 1 and not mode.others and value is mode.product:
        # One linear layer: so many halves of a unit in the last place at the scale of the sum of its absolute terms,
        # which is 2 units for four features.
        ((charge, scale),) = mode.products
        units = f"{charge / 2:g} unit{'s' if charge > 2 else ''} in the last place"
        basis = f"{units} at the scale of the sum of the absolute terms"
        scale = scale.to(x.dtype)
        bound = charge / 2 * (torch.nextafter(scale, torch.full_like(scale, torch.inf)) - scale).double()
    else:
        bound = error
    if bound is not None and x.dtype is torch.float64:
        bound = 2 * bound  # the truth is rounded as well
    return Truth(value, bound, basis, mode.undecided)


class _RunningError(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a forward pass, and keeps the error bound of each tensor, of its shape."""

    def __init__(self, x: Tensor, unit: float, largest: float, tiny: float, numbers: torch.dtype | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.x, self.unit, self.largest = x, unit, largest
        self.smallest = tiny  # what is below the normal numbers may be flushed to zero
        self.numbers = numbers
        self.unknown = ""
        self.products: list[tuple[float, Tensor]] = []
        self.product: Any = None  # what the last of them gave
        self.others = 0
        self.undecided = torch.zeros(len(x), dtype=torch.bool)
        self._errors: dict[int, tuple[Tensor, Tensor]] = {id(x): (x, torch.zeros_like(x))}

    def error(self, tensor: Any) -> Tensor | None:
        """The bound of a tensor that an operation gave."""
        known = self._errors.get(id(tensor))
        return known[1] if known else None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tuple(map(self._number, args)), {key: self._number(a) for key, a in (kwargs or {}).items()}
        name = func.overloadpacket.__name__
        errors: Any = None
        tensors = _tensors_in((*args, *kwargs.values()))
        if name == "lift_fresh":  # a tensor that the network's code made of numbers
            tensors = []
            if self.numbers is not None:
                args = (args[0].to(self.numbers).to(args[0].dtype),)
        # Also what is made of parameters alone is rounded; what is made of numbers alone is as they are.
        if not self.unknown and tensors:
            # Before the operation itself, which may be in place.
            rule = _RULES.get(name.removesuffix("_"))
            if name in _VIEWS:
                errors = self._moved(func, args, kwargs)
            elif name.endswith("_") and self._is_shared(args[0]):
                self.unknown = f"{name} on memory that two tensors share"
            elif name == "pow" and not (isinstance(args[0], Tensor) and isinstance(args[1], (int, float))):
                self.unknown = "pow with a tensor as its exponent"
            elif rule is None:
                self.unknown = name
            elif name != "where" and any(tensor.dtype == torch.bool for tensor in tensors):
                self.unknown = f"{name} of a condition"
            else:
                errors = rule(self, *args, **kwargs)
        result = func(*args, **kwargs)
        if name in _PRODUCTS:
            self.product = result
        if not tensors and isinstance(result, Tensor) and result.is_floating_point():
            errors = self._of_numbers(result)
        if errors is not None:
            results, all_errors = (result, errors) if isinstance(result, (list, tuple)) else ((result,), (errors,))
            for tensor, error in zip(results, all_errors, strict=True):
                self._errors[id(tensor)] = (tensor, error)
        return result

    def _number(self, value: Any) -> Any:
        """A number of the network's code as the judged file has it."""
        rounds = self.numbers is not None and isinstance(value, float)
        return float(torch.tensor(value, dtype=self.numbers)) if rounds else value

    def _is_shared(self, value: Tensor) -> bool:
        memory = value.untyped_storage().data_ptr()
        return sum(known.untyped_storage().data_ptr() == memory for known, _ in self._errors.values()) > 1

    def tensor(self, value: Tensor) -> Tensor:
        """The error of a tensor: none, where no operation gave it."""
        known = self.error(value)
        return torch.zeros_like(value) if known is None else known

    def of(self, value: Any) -> Tensor | float:
        """The error of an argument: a tensor's, or what rounding a number of the code is off by."""
        if isinstance(value, Tensor):
            return self.tensor(value)
        return float(self._of_numbers(torch.tensor(float(value), dtype=torch.float64)))

    def _of_numbers(self, values: Tensor) -> Tensor:
        rounded = values.to(torch.float32 if self.unit > 1e-10 else torch.float64)
        return torch.where(rounded == values, 0.0, self.unit * values.abs())

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def errors(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
                return [self.of(item) for item in value]
            return self.of(value) if isinstance(value, Tensor) else value

        return func(*map(errors, args), **kwargs)

    def products_overflow(self, bias: Tensor | None, a: Tensor, b: Tensor, multiply: Callable[..., Tensor]) -> None:
        """Note the rows where sums of products may; beside an infinity, where finite products may be one too.

        The finite products are made smaller by a power of two, so that float64 holds them where the judged dtype is
        float64 itself.
        """
        finite = torch.where(a.isfinite(), a, 0) * SMALLER
        total, terms = multiply(finite, b), multiply(finite.abs(), b.abs())
        if bias is not None:
            total, terms = total + SMALLER * bias, terms + SMALLER * bias.abs()
        nan, infinite = (found.any(dim=-1, keepdim=a.dim() > 1) for found in (a.isnan(), a.isinf()))
        either = (terms > SMALLER * self.largest) & ((total.abs() < 0.99 * terms) | infinite)
        self._undecided(either & ~nan)  # beside a NaN all is NaN in any order

    def sums(self, terms: Tensor, total: Tensor) -> None:
        """Note the rows where terms of both signs may overflow before they cancel."""
        self._undecided((terms > self.largest) & (total.abs() < 0.99 * terms))

    def _undecided(self, either: Tensor) -> None:
        if either.dim() and len(either) == len(self.undecided):
            self.undecided |= either.reshape(len(either), -1).any(dim=1)
        elif either.any():
            self.undecided[:] = True


def _tensors_in(values: Sequence[Any]) -> Sequence[Tensor]:
    flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [item for item in flat if isinstance(item, Tensor)]


def _product(mode: _RunningError, bias: Any, a: Tensor, b: Tensor, multiply: Callable[[Any, Any], Tensor]) -> Tensor:
    charge = sum_of_products(a.shape[-1])
    terms = multiply(a.abs(), b.abs())
    error = multiply(mode.of(a), b.abs()) + multiply(a.abs(), mode.of(b))
    if bias is not None:
        terms, error = terms + bias.abs(), error + mode.of(bias)
    mode.products_overflow(bias, a, b, multiply)
    mode.products.append((charge, terms))
    return error + mode.unit * charge * terms + mode.smallest


def _addmm(mode: _RunningError, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta != 1 or alpha != 1:
        mode.unknown = "addmm with factors"
    return _product(mode, bias, a, b, torch.mm)


def _add(mode: _RunningError, a: Any, b: Any, *, alpha: float = 1) -> Tensor:
    mode.others += 1
    error: Tensor = mode.of(a) + abs(alpha) * mode.of(b) + mode.unit * ARITHMETIC * abs(a + alpha * b)
    if abs(alpha) != 1:  # one rounding more, and the factor's own
        error = error + (mode.of(alpha) + mode.unit * ARITHMETIC * abs(alpha)) * abs(b)
    return error


def _subtract(mode: _RunningError, a: Any, b: Any, *, alpha: float = 1) -> Tensor:
    return _add(mode, a, b, alpha=-alpha)


def _subtract_from(mode: _RunningError, a: Any, b: Any, alpha: float = 1) -> Tensor:
    return _add(mode, b, a, alpha=-alpha)


def _multiply(mode: _RunningError, a: Any, b: Any) -> Tensor:
    mode.others += 1
    error: Tensor = abs(a) * mode.of(b) + abs(b) * mode.of(a) + mode.unit * ARITHMETIC * abs(a * b) + mode.smallest
    return error


def _divide(mode: _RunningError, a: Any, b: Any) -> Tensor:
    mode.others += 1
    quotient = abs(a / b)
    error: Tensor = (
        mode.of(a) / abs(b) + quotient * mode.of(b) / abs(b) + mode.unit * ARITHMETIC * quotient + mode.smallest
    )
    return error


def _sum(mode: _RunningError, a: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    mode.others += 1
    terms = torch.sum(a.abs(), *args, **kwargs)
    mode.sums(terms, torch.sum(a, *args, **kwargs))
    return torch.sum(mode.tensor(a), *args, **kwargs) + mode.unit * sum_of_products(_per_sum(a, terms)) * terms


def _mean(mode: _RunningError, a: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    mode.others += 1
    terms = torch.mean(a.abs(), *args, **kwargs)
    count = _per_sum(a, terms)
    mode.sums(terms * count, torch.sum(a, *args, **kwargs))
    return torch.mean(mode.tensor(a), *args, **kwargs) + mode.unit * (sum_of_products(count) + ARITHMETIC) * terms


def _per_sum(a: Tensor, sums: Tensor) -> int:
    """How many terms each sum has."""
    return a.numel() // max(sums.numel(), 1)


def _elementwise(function: Callable[..., Tensor], charge: Callable[[Tensor, Tensor], Tensor | float]) -> Rule:
    """A function of single values: its argument's error moves it at most as far as to one of the two ends."""

    def rule(mode: _RunningError, a: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mode.others += 1
        value, moved = function(a, *args, **kwargs), mode.tensor(a)
        ends = [(function(a + sign * moved, *args, **kwargs) - value).abs() for sign in (-1, 1)]
        shift = torch.where(a.isinf(), 0.0, torch.maximum(*ends))  # what has become infinite is so in any evaluation
        return shift + mode.unit * charge(a, value) + mode.smallest

    return rule


def _of_sigmoid(x: Tensor, value: Tensor) -> Tensor:
    return SIGMOID * torch.where(x > -SIGMOID_IS_ZERO_BEYOND, 1.0, value)


def _of_silu(x: Tensor, value: Tensor) -> Tensor:
    return _of_sigmoid(x, torch.sigmoid(x)) * x.abs() + ARITHMETIC * value.abs()


def _isnan(mode: _RunningError, a: Tensor) -> Tensor:
    if mode.tensor(a).any():
        mode.unknown = "isnan of what rounding may have changed"
    return torch.zeros_like(a)


def _where(mode: _RunningError, condition: Tensor, a: Any, b: Any) -> Tensor | None:
    if mode.error(condition) is None:  # a comparison of rounded values may come out either way
        mode.unknown = "where"
        return None
    return torch.where(condition, mode.of(a), mode.of(b))


_PRODUCTS = {"mm", "mv", "bmm", "addmm"}
_VIEWS = {
    "t", "transpose", "permute", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "slice", "select",
    "alias", "detach", "clone", "lift_fresh", "unbind", "split", "cat", "stack",
}  # fmt: skip
_RULES: dict[str, Rule] = {
    "mm": lambda mode, a, b: _product(mode, None, a, b, torch.mm),
    "mv": lambda mode, a, b: _product(mode, None, a, b, torch.mv),
    "bmm": lambda mode, a, b: _product(mode, None, a, b, torch.bmm),
    "addmm": _addmm,
    "isnan": _isnan,
    "where": _where,
    "add": _add,
    "sub": _subtract,
    "rsub": _subtract_from,
    "mul": _multiply,
    "div": _divide,
    "sum": _sum,
    "mean": _mean,
    "neg": lambda mode, a: mode.of(a),
    "abs": lambda mode, a: mode.of(a),
    "relu": _elementwise(torch.relu, lambda x, value: 0.0),
    "tanh": _elementwise(torch.tanh, lambda x, value: TANH * value.abs()),
    "sigmoid": _elementwise(torch.sigmoid, _of_sigmoid),
    "silu": _elementwise(torch.nn.functional.silu, _of_silu),
    "pow": _elementwise(torch.pow, lambda x, value: POWER * value.abs()),
}
