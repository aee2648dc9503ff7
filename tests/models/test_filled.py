"""Filling inside the network: what it computes, how far rounding takes it, and what the gate says of its files."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from fourfold.gate import expect, find_randomness, verify
from fourfold.golden import prove_again, read_golden, write_golden
from fourfold.onnx_export import export
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import Expectation, ParityReport
from fourfold.rounding import Truth, evaluate_exactly
from models.filled import Filled
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron
from models.polynomial import ChebyshevPolynomial, Polynomial
from models.standardize import Standardized

NAN = float("nan")
VALUES = torch.tensor([0.7, -1.3, 0.1])
CORES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: LinearRegression(3),
    "mlp": lambda: MultilayerPerceptron(3, 2, (8,), "tanh"),
    "polynomial": lambda: Polynomial(3, 1, 3),
    "chebyshev": lambda: ChebyshevPolynomial(3, 1, 3),
}


def rows(count: int = 40, dtype: torch.dtype = torch.float32, seed: int = 1, missing: float = 0.3) -> Tensor:
    """Features, some of them missing; one row has none and one has all."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=random)
    x[torch.rand(count, 3, generator=random) < missing] = NAN
    x[1], x[2] = NAN, torch.tensor([0.5, 0.25, -1.0])
    return x.to(dtype)


def filled(core: str, dtype: torch.dtype = torch.float32, *, scaled: bool = True) -> Filled:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        inner = CORES[core]().to(dtype)
        for parameter in inner.parameters():
            nn.init.uniform_(parameter, -0.6, 0.6)
    if isinstance(inner, ChebyshevPolynomial):
        inner.set_range(torch.tensor([[-3.0] * 3, [3.0] * 3], dtype=dtype))
    network = inner
    if scaled:
        targets = torch.ones(2 if core == "mlp" else 1, dtype=torch.float64)
        moments = (VALUES.double(), 2 * torch.ones(3, dtype=torch.float64), 1e3 * targets, 50 * targets)
        network = Standardized.to_moments(inner, *moments, dtype=dtype)
    return Filled(network, VALUES.to(dtype)).eval().requires_grad_(False)


class TestTheNetwork:
    def test_a_missing_feature_is_its_own_value(self) -> None:
        network = Filled(nn.Identity(), VALUES)
        x = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [4.0, 5.0, 6.0]])
        given = x.clone()
        expected = np.where(np.isnan(x.numpy()), VALUES.numpy(), x.numpy())
        assert np.array_equal(network(x).numpy(), expected)
        assert torch.equal(x.isnan(), given.isnan()), "the rows that were given are left alone"

    def test_infinite_values_are_not_missing(self) -> None:
        x = torch.tensor([[float("inf"), -float("inf"), NAN]])
        assert Filled(nn.Identity(), VALUES)(x).tolist() == [[float("inf"), -float("inf"), VALUES[2].item()]]

    def test_the_values_are_saved_and_never_trained(self) -> None:
        network = filled("linear")
        assert torch.equal(network.state_dict()["values"], VALUES)
        assert "values" not in dict(network.named_parameters())

    def test_rows_without_a_missing_value_are_as_without_filling(self) -> None:
        network, x = filled("mlp"), rows(missing=0.0)[2:]
        assert torch.equal(network(x), network.network(x))


class Of(nn.Module):
    """A function of two columns, with parameters that are not short numbers."""

    def __init__(self, function: Callable[["Of", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.v = nn.Parameter(torch.tensor([0.1, 0.7]))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


FILLS: dict[str, Callable[[Of, Tensor], Tensor]] = {
    "values": lambda of, x: torch.where(torch.isnan(x), of.v, x),
    "a number": lambda of, x: torch.where(torch.isnan(x), 0.1, x),
    "a number in the other place": lambda of, x: torch.where(torch.isnan(x), x.new_tensor(0.1), x) * 3,
    "a tensor made here": lambda of, x: torch.where(torch.isnan(x), torch.tensor(0.1, dtype=x.dtype), x),
    "something computed": lambda of, x: torch.where(torch.isnan(x), of.v * 3.3, x / 3),
    "twice": lambda of, x: torch.where(torch.isnan(x), of.v, torch.where(torch.isnan(x), x, 3.3 * x)),
    "filled and summed": lambda of, x: torch.where(torch.isnan(x), of.v, x / 3).sum(dim=1, keepdim=True),
}
UNKNOWN: dict[str, Callable[[Of, Tensor], Tensor]] = {
    "where one value is larger": lambda of, x: torch.where(x * 3 > 1, of.v, x),
    "where a raw value is larger": lambda of, x: torch.where(x > 1, of.v, x),
    "where rounding may have made it": lambda of, x: torch.where(torch.isnan(x * 3.3), of.v, x),
    "where overflow may have made it": lambda of, x: torch.where(torch.isnan(x * 1e30 - x * 1e30), of.v, x),
    "where a mask says so": lambda of, x: torch.where(of.mask, of.v, x),
    "where it is not": lambda of, x: torch.where(~torch.isnan(x), x, of.v),
    "times a condition": lambda of, x: torch.isnan(x) * of.v,
}


class TestRounding:
    X = torch.tensor([[NAN, 2.3], [0.3, NAN], [1.1, 2.7], [NAN, NAN], [1e30, -1e-30]])

    def truth(self, network: nn.Module, x: Tensor) -> Truth:
        return evaluate_exactly(deepcopy(network).double(), x)

    @pytest.mark.parametrize("name", FILLS)
    def test_a_fill_has_a_bound_and_stays_within(self, name: str) -> None:
        """The reference is the same function in numpy's longer numbers, of the very float32 parameters."""
        network = Of(FILLS[name]).requires_grad_(False)
        truth = self.truth(network, self.X)
        assert truth.bound is not None, truth.basis
        off = (network(self.X).double() - truth.value).abs()
        assert torch.all(off <= truth.bound)
        assert torch.all(truth.bound <= 1e-6 * truth.value.abs() + 1e-30), "a bound that allows anything proves nothing"

    @pytest.mark.parametrize("name", UNKNOWN)
    def test_what_is_chosen_by_a_rounded_value_has_none(self, name: str) -> None:
        network = Of(UNKNOWN[name]).requires_grad_(False)
        truth = self.truth(network, self.X)
        assert truth.bound is None
        assert "no bound is known for" in truth.basis

    def test_the_fill_itself_is_exact(self) -> None:
        truth = self.truth(Of(FILLS["values"]).requires_grad_(False), self.X)
        assert truth.bound is not None
        assert not truth.bound.any()
        assert torch.equal(truth.value, torch.where(self.X.isnan(), torch.tensor([0.1, 0.7]), self.X).double())

    @pytest.mark.parametrize("core", CORES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_filled_network_is_as_near_as_the_network_of_filled_rows(self, core: str, dtype: torch.dtype) -> None:
        network, x = filled(core, dtype), rows(dtype=dtype)
        truth, inner = self.truth(network, x), self.truth(network.network, network.fill(x))
        assert torch.equal(truth.value, inner.value)
        assert truth.bound is not None
        assert inner.bound is not None
        assert torch.allclose(truth.bound, inner.bound, rtol=1.0, atol=0)


class TestTheGate:
    @pytest.mark.parametrize("core", CORES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scaled", [False, True], ids=["raw", "standardized"])
    def test_a_faithful_file_passes_and_is_proved_again(
        self, core: str, dtype: torch.dtype, scaled: bool, tmp_path: Path
    ) -> None:
        network, x = filled(core, dtype, scaled=scaled), rows(dtype=dtype)
        assert find_randomness(network, x) == ""
        exported = export(network, x, tmp_path / "model.onnx", {})
        expectations = expect(network, {"training rows": x, "held-out rows": rows(9, dtype, seed=5)})
        report = verify(network, exported, expectations)
        assert report.passed, report.reason
        assert {"IsNaN", "Where"} <= set(report.operators)
        assert "values" in report.weights
        targets = [f"t{number}" for number in range(expectations[0].predicted.shape[1])]
        golden = read_golden(write_golden(exported, expectations, ["a", "b", "c"], targets))
        assert np.isnan(golden.expectations[0].x).any(), "rows with missing values are kept to prove it again"
        again = prove_again(exported.path, golden)
        assert again.passed, again.reason

    def test_a_file_takes_raw_rows_with_nan(self, tmp_path: Path) -> None:
        network, x = filled("linear"), rows()
        exported = export(network, x, tmp_path / "model.onnx", {})
        (predicted,) = onnxruntime.InferenceSession(exported.path).run(None, {"x": x.numpy()})
        weights, bias = network.network.core.linear.weight.numpy(), network.network.core.linear.bias.numpy()  # type: ignore[union-attr]
        there = np.where(np.isnan(x.numpy()), VALUES.numpy(), x.numpy())
        expected = 1000 + 50 * ((there - VALUES.numpy()) / 2 @ weights.T + bias)
        assert predicted == pytest.approx(expected, rel=1e-6)

    def test_rows_in_which_nothing_is_missing_pass_as_well(self, tmp_path: Path) -> None:
        network, x = filled("linear"), rows(missing=0.0)[2:]
        exported = export(network, x, tmp_path / "model.onnx", {})
        assert verify(network, exported, expect(network, {"training rows": x})).passed

    def test_a_fill_by_a_number_of_a_users_own_passes(self, tmp_path: Path) -> None:
        """0.1 is another number in each dtype, and the network's own rounding no fault of the file."""

        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(torch.where(torch.isnan(x), 0.1, x))

        torch.manual_seed(0)
        network, x = Own().eval().requires_grad_(False), rows()
        exported = export(network, x, tmp_path / "model.onnx", {})
        report = verify(network, exported, expect(network, {"training rows": x}))
        assert report.passed, report.reason


Edit = Callable[[ModelProto], None]


def without(operator: str) -> Edit:
    """Take a node out, and let what came in go on."""

    def edit(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == operator)
        passed = node.input[2] if operator == "Where" else node.input[0]
        for other in model.graph.node:
            other.input[:] = [passed if name == node.output[0] else name for name in other.input]
        model.graph.node.remove(node)
        if operator == "Where":
            model.graph.node.remove(next(node for node in model.graph.node if node.op_type == "IsNaN"))

    return edit


def fill_value(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(model: ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == "values")
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))

    return edit


def one_bit(values: np.ndarray) -> np.ndarray:
    values[1] = np.nextafter(values[1], np.inf, dtype=values.dtype)
    return values


def where_of(change: Callable[[ModelProto, onnx.NodeProto], None]) -> Edit:
    return lambda model: change(model, next(node for node in model.graph.node if node.op_type == "Where"))


def put_before(model: ModelProto, node: onnx.NodeProto, operator: str, place: int) -> None:
    made = helper.make_node(operator, [node.input[place]], [f"{node.input[place]}_changed"])
    model.graph.node.insert(list(model.graph.node).index(node), made)
    node.input[place] = made.output[0]


def turned(model: ModelProto, node: onnx.NodeProto) -> None:
    node.input[1], node.input[2] = node.input[2], node.input[1]


def zeros(model: ModelProto, node: onnx.NodeProto) -> None:
    """Fill with nothing: the weights are still there, and nobody reads them."""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, dtype=np.float32), "nothing"))
    node.input[1] = "nothing"


def beyond_a_missing_value(model: ModelProto, node: onnx.NodeProto) -> None:
    """Fill what is infinite, too, as if it were missing."""
    x = node.input[2]
    model.graph.node.insert(0, helper.make_node("IsInf", [x], ["infinite"]))
    made = helper.make_node("Or", [node.input[0], "infinite"], ["either"])
    model.graph.node.insert(list(model.graph.node).index(node), made)
    node.input[0] = "either"


MUTANTS: dict[str, Edit] = {
    "one bit of a fill value": fill_value(one_bit),
    "fill values in another order": fill_value(lambda values: values[::-1].copy()),
    "no fill": without("Where"),
    "filled with zeros": where_of(zeros),
    "the other way round": where_of(turned),
    "where it is not missing": where_of(lambda model, node: put_before(model, node, "Not", 0)),
    "filled with the opposite": where_of(lambda model, node: put_before(model, node, "Neg", 1)),
    "infinite values are filled": where_of(beyond_a_missing_value),
}


Made = tuple[Filled, ExportedModel, list[Expectation]]


@pytest.fixture(scope="module")
def faithful(tmp_path_factory: pytest.TempPathFactory) -> Made:
    network, x = filled("linear"), rows()
    exported = export(network, x, tmp_path_factory.mktemp("faithful") / "model.onnx", {})
    return network, exported, expect(network, {"training rows": x})


class TestMutants:
    """Each file is wrong in one way; all predict the same for rows in which nothing is missing, but for the last."""

    def judged(self, faithful: Made, edit: Edit, folder: Path, *, weights: bool) -> ParityReport:
        """By the gate, or by golden predictions alone, which know no weights."""
        network, exported, expectations = faithful
        model = onnx.load(exported.path)
        edit(model)
        path = folder / "model.onnx"
        onnx.save(model, path)
        changed = replace(exported, path=path, sha256=file_sha256(path))
        if weights:
            return verify(network, changed, expectations)
        golden = read_golden(write_golden(changed, expectations, ["a", "b", "c"], ["y"]))
        return prove_again(path, golden)

    @pytest.mark.parametrize("name", MUTANTS)
    def test_the_gate_refuses_it(self, name: str, faithful: Made, tmp_path: Path) -> None:
        report = self.judged(faithful, MUTANTS[name], tmp_path, weights=True)
        assert not report.passed
        assert report.reason

    @pytest.mark.parametrize("name", [name for name in MUTANTS if name != "one bit of a fill value"])
    def test_golden_predictions_refuse_it(self, name: str, faithful: Made, tmp_path: Path) -> None:
        """But for a bit of a value, whose effect another order of the sums may have."""
        assert not self.judged(faithful, MUTANTS[name], tmp_path, weights=False).passed

    @pytest.mark.parametrize("weights", [False, True])
    def test_an_untouched_file_passes(self, weights: bool, faithful: Made, tmp_path: Path) -> None:
        report = self.judged(faithful, lambda model: None, tmp_path, weights=weights)
        assert report.passed, report.reason
