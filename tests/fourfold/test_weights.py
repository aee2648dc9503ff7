"""Which tensor of a file is which tensor of the network."""

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fourfold.onnx_file import INPUT, OUTPUT
from fourfold.structure import Refused
from fourfold.weights import check_weights

ROWS = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).requires_grad_(False).eval()


def file(nodes: list[NodeProto], tensors: Mapping[str, np.ndarray | Tensor]) -> ModelProto:
    """A model of these nodes, made without any exporter."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array(values, order="C"), name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def line_file(network: nn.Linear, *more: NodeProto, **tensors: np.ndarray) -> ModelProto:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    return file([*more, gemm], {"w": network.weight.numpy(), "b": network.bias.numpy()} | tensors)


def refusal(model: ModelProto, network: nn.Module, x: Tensor = ROWS) -> str:
    with pytest.raises(Refused) as refused:
        check_weights(model, network, x)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def optimized(network: nn.Module) -> ModelProto:
    """The file that torch's exporter makes where it may fold weights into others."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (ROWS[:2],), dynamo=True, optimize=True, opset_version=20, external_data=False,
                dynamic_shapes=({0: "batch"},), input_names=[INPUT], output_names=[OUTPUT], verbose=False,
            )  # fmt: skip
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    return onnx.load_model_from_string(program.model_proto.SerializeToString())


# What is accounted for.


def test_tensors_are_found_whatever_their_names_are() -> None:
    network = line()
    assert check_weights(line_file(network), network, ROWS) == {"weight": "as it is", "bias": "as it is"}


def test_a_transposed_weight_is_found_and_said_to_be_so() -> None:
    network = line()
    nodes = [helper.make_node("MatMul", ["x", "wt"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    model = file(nodes, {"wt": network.weight.numpy().T, "b": network.bias.numpy()})
    assert check_weights(model, network, ROWS) == {"weight": "transposed", "bias": "as it is"}


def test_a_weight_in_a_constant_node_is_found() -> None:
    network = line()
    model = line_file(network)
    (kept,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    model.graph.initializer.remove(kept)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=kept))
    assert check_weights(model, network, ROWS) == {"weight": "as it is", "bias": "as it is"}


def test_a_vector_of_numbers_in_a_constant_node_is_found() -> None:
    network = line()
    model = line_file(network, helper.make_node("Constant", [], ["b"], value_floats=network.bias.tolist()))
    del model.graph.initializer[1]
    assert check_weights(model, network, ROWS) == {"weight": "as it is", "bias": "as it is"}


def test_a_weight_inside_a_branch_is_found() -> None:
    network = line()
    model = line_file(network)
    weight, gemm = model.graph.initializer[0], model.graph.node[0]
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    inner = helper.make_graph([gemm], "inner", [], given, [weight])
    model.graph.node[0].CopyFrom(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    del model.graph.initializer[0]
    assert check_weights(model, network, ROWS) == {"weight": "as it is", "bias": "as it is"}


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.second(self.first(x))
        return prediction


def test_tied_weights_may_stand_in_the_file_once() -> None:
    network = Tied().requires_grad_(False)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1), helper.make_node("Gemm", ["h", "w"], ["y"])]
    accounts = check_weights(file(nodes, {"w": network.first.weight.numpy()}), network, ROWS)
    assert accounts == {"first.weight": "as it is", "second.weight": "as it is"}


class Kept(nn.Module):
    """A number a column as a saved buffer, as one that is not saved, and as a mere attribute."""

    saved: Tensor
    unsaved: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("saved", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("unsaved", torch.tensor([4.0, 5.0, 6.0]), persistent=False)
        self.attribute = torch.tensor([7.0, 8.0, 9.0])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.saved + self.unsaved * self.attribute


def test_buffers_and_attributes_are_the_networks_own_tensors() -> None:
    network = Kept()
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["p"]),
        helper.make_node("Mul", ["u", "a"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    tensors = {"s": network.saved.numpy(), "u": network.unsaved.numpy(), "a": network.attribute.numpy()}
    expected = dict.fromkeys(("saved", "unsaved", "attribute"), "as it is")
    assert check_weights(file(nodes, tensors), network, ROWS) == expected
    for name, spelled in (("s", "saved"), ("u", "unsaved"), ("a", "attribute")):
        others = {key: values for key, values in tensors.items() if key != name}
        assert f"the file does not hold {spelled} (3,) of the Kept as torch has it" in refusal(
            file(nodes, others), network
        )


def test_a_single_number_of_the_code_is_no_weight() -> None:
    network = line()
    two = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2)))
    half = helper.make_node("Constant", [], ["half"], value_float=0.5)
    axes = helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([0, 1])))
    assert check_weights(line_file(network, two, half, axes), network, ROWS)


# What is not there.


class Spares(nn.Module):
    """A plane that keeps tensors of every sort which it does not predict with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = line()
        self.spare = nn.Parameter(torch.tensor([3.0, -1.0]), requires_grad=False)
        self.register_buffer("number", torch.tensor(3.0, dtype=torch.float64))
        self.register_buffer("counter", torch.tensor(7))
        self.register_buffer("small", torch.tensor([1, 2], dtype=torch.uint8))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.linear(x)
        return prediction


SPARES = ["spare", "number", "counter", "small", "mask"]


def test_tensors_of_any_type_that_a_prediction_does_not_need_may_be_missing() -> None:
    network = Spares()
    accounts = check_weights(line_file(network.linear), network, ROWS)
    assert [name for name, account in accounts.items() if account == "not used in evaluation"] == SPARES


def test_looking_for_unused_tensors_leaves_the_network_as_it_was() -> None:
    network = Spares()
    before = deepcopy(network.state_dict())
    check_weights(line_file(network.linear), network, ROWS)
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name


class Choosing(nn.Module):
    """Predicts with a whole number, a truth value, and a weight that only some rows meet."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(2))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        return x**self.order * self.mask


@pytest.mark.parametrize("name", ["order", "mask"])
def test_whole_numbers_and_truth_values_that_are_used_may_not_be_missing(name: str) -> None:
    network = Choosing()
    others = {key: value.numpy() for key, value in network.state_dict().items() if key != name}
    model = file([helper.make_node("Use", ["x", *others], ["y"])], others)
    before = deepcopy(network.state_dict())
    assert f"the file does not hold {name} " in refusal(model, network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Packed(nn.Module):
    """A cubic that keeps its coefficients in one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([0.1, 0.8, -0.2, -0.1]))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.coefficients
        return (a + b * x + c * x**2 + d * x**3).sum(dim=1, keepdim=True)


def trained_norm() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    network(10 * torch.randn(50, 3))
    return network


FOLDED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "batch norm": (trained_norm, r"0\.weight \(4, 3\) of the Linear", r" \(4, 3\), which Gemm reads"),
    "prelu": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)),
        r"1\.weight \(1,\) of the PReLU",
        r" \(1, 1\), which PRelu reads",
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 1)),
        r"0\.parametrizations\.weight\.original0 \(4, 1\) of the ParametrizationList",
        r" \(4, 3\), which \w+ reads",
    ),
    "packed": (Packed, r"coefficients \(4,\) of the Packed", r" \(.*\), which \w+ reads"),
}


@pytest.mark.parametrize("case", FOLDED)
def test_a_folded_weight_is_named_with_what_seems_to_hold_it(case: str) -> None:
    """The exporter's own optimizer folds; the gate says which tensor is gone and where to look for it."""
    make, missing, holder = FOLDED[case]
    network = make().eval().requires_grad_(False)
    found = refusal(optimized(network), network)
    pattern = f"the file does not hold {missing} as torch has it; it seems to be folded into .+{holder}"
    assert re.fullmatch(pattern, found), found


@pytest.mark.parametrize(
    "change",
    [lambda w: -w, lambda w: np.nextafter(w, np.float32(9)), lambda w: w.astype(np.float64), lambda w: w.reshape(3, 2)],
    ids=["sign", "last bit", "dtype", "shape"],
)
def test_a_weight_that_is_not_torchs_bit_for_bit_is_missing(change: Callable[[np.ndarray], np.ndarray]) -> None:
    network = line()
    found = refusal(line_file(network, w=change(network.weight.numpy())), network)
    assert found.startswith("the file does not hold weight (2, 3) of the Linear as torch has it; it seems to be folded")


def test_minus_zero_is_not_zero() -> None:
    network = line()
    network.bias.zero_()
    assert "does not hold bias (2,)" in refusal(line_file(network, b=np.float32([0.0, -0.0])), network)


def test_a_nan_weight_is_found_by_its_bits() -> None:
    network = line()
    network.bias[0] = torch.nan
    assert check_weights(line_file(network), network, ROWS)["bias"] == "as it is"


# What does not belong there.


FOREIGN = np.float32([0.5, 0.25])


@pytest.mark.parametrize(
    "node",
    [
        None,
        helper.make_node("Constant", [], ["more"], value=numpy_helper.from_array(FOREIGN, "")),
        helper.make_node("Constant", [], ["more"], value_floats=FOREIGN.tolist()),
    ],
    ids=["initializer", "constant node", "list of numbers"],
)
def test_a_tensor_that_the_network_does_not_have_is_refused(node: NodeProto | None) -> None:
    network = line()
    reader = helper.make_node("Mul", ["x", "more"], ["scaled"])
    model = line_file(network, *([node] if node else []), reader, **({} if node else {"more": FOREIGN}))
    assert refusal(model, network) == (
        "the file holds more (2,), which Mul reads, and the network has no such tensor; "
        "a constant of yours must be a buffer"
    )


def test_a_true_tensor_that_no_operator_reads_is_refused() -> None:
    """A file that holds the true bias, and adds another, or none."""
    network = line()
    model = line_file(network)
    del model.graph.node[0].input[2]
    assert refusal(model, network) == "the file holds b, which no operator reads"


@pytest.mark.parametrize("size", [0, 3, 7])
def test_a_tensor_whose_bytes_do_not_fill_its_shape_is_refused(size: int) -> None:
    """Some of these pass onnx's checker."""
    network = line()
    model = line_file(network)
    model.graph.initializer[0].raw_data = bytes(size)
    assert "the file" in refusal(model, network)
