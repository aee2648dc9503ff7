"""The error bound, against sums in any order and against exact arithmetic."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from fractions import Fraction

import numpy as np
import pytest
import torch
from rescaled import rescaled
from torch import Tensor, nn

from fourfold.rounding import Truth, evaluate_exactly, sum_of_products
from models.linear import LinearRegression
from models.mlp import ACTIVATIONS, MultilayerPerceptron
from models.standardize import Standardized

# longdouble has 11 bits more than float64 on x86; elsewhere it may be no better, and can be no oracle.
LONG = np.finfo(np.longdouble).eps < 1e-18
FUNCTIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda v: np.maximum(v, v.dtype.type(0)),
    nn.Sigmoid: lambda v: 1 / (1 + np.exp(-v)),
    nn.SiLU: lambda v: v / (1 + np.exp(-v)),
    nn.Softsign: lambda v: v / (1 + np.abs(v)),
}
CORES: dict[str, Callable[[int], nn.Module]] = {"linear": lambda n: LinearRegression(n, 2)} | {
    f"mlp with {name}": lambda n, name=name: MultilayerPerceptron(n, 2, (8, 8), name)  # type: ignore[misc]
    for name in ACTIVATIONS
}


def rows(count: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def truth_of(network: nn.Module, x: Tensor) -> Truth:
    return evaluate_exactly(deepcopy(network).double().eval().requires_grad_(False), x)


def bound_of(truth: Truth) -> np.ndarray:
    assert truth.bound is not None, truth.basis
    assert truth.bound.shape == truth.value.shape
    assert truth.bound.dtype == torch.float64
    return truth.bound.numpy()


def in_numpy(network: nn.Module, v: np.ndarray, order: np.random.Generator | None) -> np.ndarray:
    """The network in the dtype of v, every sum term by term: in the drawn order, or else as it stands."""

    def kept(tensor: Tensor) -> np.ndarray:
        values: np.ndarray = tensor.detach().numpy().astype(v.dtype)
        return values

    if isinstance(network, Standardized):
        inner = in_numpy(network.core, (v - kept(network.x_mean)) / kept(network.x_deviation), order)
        return inner * kept(network.y_deviation) + kept(network.y_mean)
    if isinstance(network, nn.Linear):
        weight = kept(network.weight)
        terms = [v[:, j, None] * weight[None, :, j] for j in range(weight.shape[1])]
        terms.append(np.broadcast_to(kept(network.bias), terms[0].shape))
        if order is not None:
            terms = [terms[number] for number in order.permutation(len(terms))]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
    if type(network) in FUNCTIONS:
        return FUNCTIONS[type(network)](v)
    for child in network.children():
        v = in_numpy(child, v, order)
    return v


def networks(dtype: torch.dtype) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for core, make in CORES.items():
        for seed, features in enumerate((1, 4, 9)):
            torch.manual_seed(seed)
            x = (50 + 20 * rows(32, features, seed)).to(dtype) / 3
            for standardized in (False, True):
                network = make(features).to(dtype)
                with torch.no_grad():
                    for weight in network.parameters():
                        weight.div_(3)  # so that a float64 weight has no short float32 one in it
                if standardized:
                    network = rescaled(network, x, 1e5 + 1e4 * torch.sin(x[:, :1]).repeat(1, 2))
                yield f"{core} of {features}, {'standardised' if standardized else 'raw'}", network, x


@pytest.mark.skipif(not LONG, reason="longdouble is no better than float64 here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_order_of_each_sum_stays_within_the_bound_and_comes_close(dtype: torch.dtype) -> None:
    """Sound: no evaluation is beyond it. Sharp: for each network some come within a factor of 50 (float64: twice)."""
    sharp = 1 / 50 if dtype is torch.float32 else 1 / 100
    random = np.random.default_rng(0)
    for name, network, x in networks(dtype):
        v = x.numpy()
        with np.errstate(all="ignore"):
            exact = in_numpy(network, v.astype(np.longdouble), None)
            truth = truth_of(network, x)
            bound = bound_of(truth)
            used = [np.abs(in_numpy(network, v, random).astype(np.longdouble) - exact) / bound for _ in range(5)]
        with torch.no_grad():
            used.append(np.abs(network(x).numpy().astype(np.longdouble) - exact) / bound)
        assert np.max(used) < 1, name
        assert np.max(used) > sharp, name
        assert np.max(np.abs(truth.value.numpy() - exact) / bound) < 0.5, name


def test_the_value_of_a_linear_layer_is_the_exact_one() -> None:
    torch.manual_seed(0)
    network, x = nn.Linear(5, 1), rows(20, 5)
    truth = truth_of(network, x)
    weights, bias = map(Fraction, network.weight[0].tolist()), Fraction(network.bias.item())
    weights = list(weights)
    for row, value in zip(x.tolist(), truth.value.flatten().tolist(), strict=True):
        exact = sum((w * Fraction(v) for w, v in zip(weights, row, strict=True)), bias)
        assert value == pytest.approx(float(exact), rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_four_features_are_allowed_two_units_at_the_scale_of_the_terms(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, x = nn.Linear(4, 2).to(dtype), rows(50, 4).to(dtype)
    terms = x.abs() @ network.weight.abs().T + network.bias.abs()
    units = np.spacing(terms.detach().numpy()).astype(np.float64)
    twice = 2 if dtype is torch.float64 else 1  # the truth is rounded as well
    truth = truth_of(network, x)
    assert bound_of(truth) == pytest.approx(2 * twice * units, rel=0.51), "the scale itself may round to the next power"
    assert np.median(bound_of(truth) / units) == 2 * twice
    assert truth.basis == "2 units in the last place at the scale of the sum of the absolute terms"


@pytest.mark.parametrize(
    ("terms", "charge"), [(1, 2), (2, 3), (3, 4), (4, 4), (16, 17), (49, 44), (100, 68), (10_000, 788)]
)
def test_a_sum_is_charged_its_worst_case_or_a_multiple_of_the_root_of_its_terms(terms: int, charge: float) -> None:
    assert sum_of_products(terms) == charge


class Written(nn.Module):
    """What a line of code makes of a linear layer's output and the rows."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.written = nn.Linear(3, 2), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self.linear(x), x)


# In all of these the numbers 0.1 and 0.3 are rounded to float32, and some results are near zero.
CANCELLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda h, x: h + x[:, :2] - h,
    "number added": lambda h, x: (h + 0.1) - (h - 0.3),
    "number subtracted from": lambda h, x: 0.1 - 0.3 * h,
    "product": lambda h, x: 0.1 * h * h - 0.1 * (h * h),
    "quotient": lambda h, x: h / (1 + h.abs()) / 0.3,
    "powers": lambda h, x: h**2 - h**3 + 2 * h.neg(),
    "sum over columns": lambda h, x: (h * x[:, :2]).sum(dim=1, keepdim=True) - 0.1,
    "mean over columns": lambda h, x: torch.cat([h, x], 1).mean(dim=1, keepdim=True),
    "products of matrices": lambda h, x: torch.bmm(h[:, None, :], x[:, :2, None]).squeeze(2),
    "in place": lambda h, x: h.mul_(0.1).add_(0.3).tanh_().sub_(0.1),
    "relu in place": lambda h, x: nn.functional.relu(h, inplace=True) * 0.1 - 0.1,
    "pieces": lambda h, x: torch.stack([h.unbind(1)[0] * 0.3, h.split(1, 1)[1].squeeze(1)], 1),
}


@pytest.mark.parametrize("name", CANCELLING)
def test_what_code_writes_between_layers_is_charged(name: str) -> None:
    network, x = Written(CANCELLING[name]).eval().requires_grad_(False), rows(2000, 3)
    with torch.no_grad():
        single, double = network(x.clone()), deepcopy(network).double()(x.double())
    truth = truth_of(network, x)
    assert torch.equal(truth.value, double)
    assert truth.basis == "a running error bound"
    assert np.max(np.abs(single.numpy() - double.numpy()) / bound_of(truth)) < 1


@pytest.mark.parametrize(
    ("activation", "seen"),
    [
        (nn.Tanh(), lambda x: 7 * x.tanh().abs()),
        (nn.Sigmoid(), lambda x: 3 * torch.ones_like(x)),
        (nn.SiLU(), lambda x: 3 * x.abs()),
    ],
    ids=["tanh", "sigmoid", "silu"],
)
def test_an_activation_may_be_off_by_what_runtimes_were_seen_to_be(
    activation: nn.Module, seen: Callable[[Tensor], Tensor]
) -> None:
    """Of tanh 7 unit roundoffs of its value, of sigmoid 3 of one: also where it is next to nothing."""
    x = torch.linspace(-30, 30, 3 * 1001).reshape(-1, 3)
    truth = truth_of(Written(lambda h, x: activation(x)), x)
    least = 2**-24 * seen(x.double()).numpy()
    assert (bound_of(truth) >= least).all()
    assert (bound_of(truth) <= 2 * least + 2**-23 * truth.value.abs().numpy() + 1e-30).all()


def test_the_factor_of_a_sum_is_charged() -> None:
    """The rows cancel 0.1 as float32 has it: next to nothing is left but what the factor is off by."""
    column = rows(500, 1)
    x = torch.cat([-(0.1 * column.double()).float(), column, column], dim=1)
    network = Written(lambda h, x: torch.add(x[:, :1], x[:, 1:2], alpha=0.1))
    gap = np.abs((x[:, :1] + torch.tensor(0.1) * x[:, 1:2]).double().numpy() - truth_of(network, x).value.numpy())
    assert np.max(gap / bound_of(truth_of(network, x))) < 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda h, x: h[:, :1],
        lambda h, x: torch.cat([h, x], dim=1),
        lambda h, x: h[:, :1].expand(-1, 3),
        lambda h, x: h.reshape(-1, 1, 2).transpose(1, 2).squeeze(2),
        lambda h, x: torch.stack([h[:, 1], h[:, 0]], dim=1),
    ],
    ids=["column", "with the rows", "repeated", "reshaped", "exchanged"],
)
def test_moved_columns_keep_their_bounds(forward: Callable[[Tensor, Tensor], Tensor]) -> None:
    """One linear layer, whose outputs are not the network's as they stand."""
    network, x = Written(forward).eval().requires_grad_(False), rows(100, 3)
    network.linear.weight[1] *= 1000
    with torch.no_grad():
        single, double = network(x), deepcopy(network).double()(x.double())
    bound = bound_of(truth_of(network, x))
    assert np.max(np.abs(single.numpy() - double.numpy()) - bound) <= 0
    assert np.max(bound / np.maximum(np.abs(double.numpy()), 1)) < 1e-5


def test_a_number_that_its_dtype_holds_exactly_costs_nothing_more() -> None:
    """0.5 is a float32 number, 0.1 is none: the sum is rounded, and before it the number."""
    x = rows(100, 3)
    for number, roundings in ((0.5, 1), (0.1, 2)):
        network = Written(lambda h, x, number=number: h * 0 + number)
        assert bound_of(truth_of(network, x)) == pytest.approx(np.full((100, 2), roundings * number * 2**-24), rel=1e-6)


def test_a_written_number_is_charged_by_the_dtype_that_rounds_it() -> None:
    network, x = Written(lambda h, x: h * 0 + 0.1), rows(100, 3)
    single, double = bound_of(truth_of(network, x)), bound_of(truth_of(network.double(), x.double()))
    assert (double < 1e-8 * single).all()


@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (lambda h, x: h.cumsum(1), "cumsum"),
        (lambda h, x: torch.sin(h) + 1, "sin"),
        (lambda h, x: nn.functional.gelu(h), "gelu"),
        (lambda h, x: torch.softmax(h, 1), "softmax"),
        (lambda h, x: 2**h, "pow"),
        (lambda h, x: (1 + h.abs()) ** h, "pow"),
        (lambda h, x: torch.addmm(h, x, x.T[:, :2] @ torch.ones(2, 2, dtype=x.dtype), alpha=0.5), "addmm"),
    ],
)
def test_an_operation_without_a_rule_is_named_and_has_no_bound(
    forward: Callable[[Tensor, Tensor], Tensor], named: str
) -> None:
    network, x = Written(forward), rows(3, 3)
    truth = truth_of(network, x)
    assert truth.bound is None
    assert truth.basis.startswith("what torch's own rounding deviates by, since no bound is known for ")
    assert named in truth.basis
    with torch.no_grad():
        assert torch.equal(truth.value, deepcopy(network).double()(x.double()))


def test_an_in_place_step_on_a_part_is_not_overlooked() -> None:
    """Where a view is changed, so is what it is a view of."""

    def forward(h: Tensor, x: Tensor) -> Tensor:
        h[:, 0].mul_(1e6).add_(0.1)
        return h

    network, x = Written(forward), rows(500, 3)
    with torch.no_grad():
        gap = (network(x) - deepcopy(network).double()(x.double())).abs()
    truth = truth_of(network, x)
    assert truth.bound is None or (gap <= truth.bound).all()


def test_the_rows_are_left_as_they_were() -> None:
    x = rows(5, 3).double()
    before = x.clone()
    network = Written(lambda h, x: h + x.mul_(2)[:, :2])
    truth = truth_of(network, x)
    assert torch.equal(x, before)
    with torch.no_grad():
        assert torch.equal(truth.value, network.double()(before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_where_the_order_of_a_sum_decides_on_overflow_are_undecided(dtype: torch.dtype) -> None:
    """The sum of large, large and -large is large or infinite; large alone, or a total beyond all doubt, is decided."""
    network = nn.Linear(3, 1).to(dtype)
    with torch.no_grad():
        network.weight.fill_(1)
        network.bias.fill_(0)
    large, inf, nan = 0.7 * torch.finfo(dtype).max, math.inf, math.nan
    undecided = [[large, large, -large], [-large, large, 0], [inf, -large, -large]]
    decided = [[large, 0, 0], [large, large, large], [1, 2, 3], [inf, -inf, large], [inf, 1, -2], [nan, large, -large]]
    assert truth_of(network, torch.tensor(undecided, dtype=dtype)).undecided.all()
    assert not truth_of(network, torch.tensor(decided, dtype=dtype)).undecided.any()


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean])
def test_so_are_sums_over_columns(reduce: Callable[..., Tensor]) -> None:
    large = 0.7 * torch.finfo(torch.float32).max
    network = Written(lambda h, x: reduce(x, dim=1, keepdim=True))
    x = torch.tensor([[large, large, -large], [large, 0, 0], [1, 2, 3]])
    assert truth_of(network, x).undecided.tolist() == [True, False, False]


def saturated(activation: str) -> MultilayerPerceptron:
    torch.manual_seed(0)
    return MultilayerPerceptron(3, 1, (8,), activation)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("size", [1e20, 3e38, math.inf])
def test_a_saturated_activation_forgets_how_large_its_argument_was(activation: str, size: float) -> None:
    """What float32 has made infinite is as certain as a one."""
    network = saturated(activation)
    x = torch.tensor([[size, 0.0, 0.0], [-size, 1.0, 1.0], [0.0, size, 2.0]])
    truth = truth_of(network, x)
    assert torch.isfinite(truth.value).all()
    bound = bound_of(truth)
    assert np.isfinite(bound).all()
    assert bound.max() < 1e-5
    with torch.no_grad():
        assert np.max(np.abs(network(x).numpy() - truth.value.numpy()) / bound) < 1


def test_a_result_below_the_normal_numbers_may_be_flushed_to_zero() -> None:
    x = torch.full((1, 3), torch.finfo(torch.float32).smallest_normal / 4)
    truth = truth_of(Written(lambda h, x: 0.5 * x), x)
    assert (bound_of(truth) >= truth.value.abs().numpy()).all()
    assert (truth.value > 0).all()


class Scaled(nn.Linear):
    """Makes its weight anew in each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 0.1 * self.weight)


def test_a_computed_weight_is_rounded_too() -> None:
    """It carries an error of its own before it meets a row: of the factor, and of the product."""
    torch.manual_seed(0)
    network, x = Scaled(3, 2), rows(50, 3)
    terms = (x.abs() @ (0.1 * network.weight.abs()).T).detach().numpy()
    charge = bound_of(truth_of(network, x)) / terms * 2**24
    assert charge == pytest.approx(np.full((50, 2), sum_of_products(3) + 2), rel=1e-5)


@pytest.mark.parametrize("terms", [30, 100, 256, 4096])
def test_equal_terms_whose_errors_do_not_cancel_stay_within_the_bound(terms: int) -> None:
    """A layer that was initialised with a constant, on features that are all the same."""
    network = nn.Linear(terms, 1, bias=False)
    x = torch.full((64, terms), 1.1) * torch.linspace(0.5, 2, 64)[:, None]
    with torch.no_grad():
        network.weight.fill_(0.1)
        found = network(x).double()
    truth = truth_of(network, x)
    assert truth.bound is not None
    assert ((found - truth.value).abs() <= truth.bound).all()
    assert ((found - truth.value).abs() > 0.01 * truth.bound).any()
