"""The gate as a whole, with files that were tampered with and networks that no file can stand for."""

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from rescaled import rescaled
from torch import Tensor, nn

import fourfold.parity
from fourfold.gate import expect, find_randomness, verify
from fourfold.onnx_export import export
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import Expectation, ParityReport
from models.linear import LinearRegression
from models.mlp import ACTIVATIONS, MultilayerPerceptron

CORES: dict[str, Callable[[], nn.Module]] = {"linear": lambda: LinearRegression(3)} | {
    f"mlp with {name}": lambda name=name: MultilayerPerceptron(3, 1, (8,), name)  # type: ignore[misc]
    for name in ACTIVATIONS
}

# All four ways for the defaults; of the other activations each dtype once, since a file takes a second to make.
NETWORKS = [
    pytest.param(core, standardized, dtype, id=f"{core}, {'standardized' if standardized else 'raw'}, {dtype}")
    for core in CORES
    for standardized in (False, True)
    for dtype in (torch.float32, torch.float64)
    if core in ("linear", "mlp with tanh") or standardized == (dtype == torch.float64)
]


def rows(count: int = 7, features: int = 3) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1))


def expectations(network: nn.Module, x: Tensor) -> list[Expectation]:
    return expect(network, {"training rows": x})


def judge(network: nn.Module, x: Tensor, folder: Path) -> ParityReport:
    """Export a network and hold the file against it."""
    exported = export(network, x, folder / "model.onnx", {})
    return verify(network, exported, expectations(network, x))


@pytest.fixture(scope="module")
def line() -> LinearRegression:
    """A plane whose weights are of the order of one."""
    network = LinearRegression(3)
    weights = {"linear.weight": torch.tensor([[0.7, -1.3, 0.4]]), "linear.bias": torch.tensor([0.9])}
    network.load_state_dict(weights)
    return network


@pytest.fixture(scope="module")
def faithful(line: LinearRegression, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """The plane's own file, which the tests below tamper with in copies."""
    return export(line, rows(), tmp_path_factory.mktemp("faithful") / "model.onnx", {})


@pytest.fixture(scope="module")
def of_the_line(line: LinearRegression) -> list[Expectation]:
    return expectations(line, rows())


Edit = Callable[[onnx.ModelProto], None]


def edited(faithful: ExportedModel, folder: Path, edit: Edit) -> ExportedModel:
    model = onnx.load(faithful.path)
    edit(model)
    path = folder / "edited.onnx"
    onnx.save(model, path)
    return replace(faithful, path=path, sha256=file_sha256(path))


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(initializer for initializer in model.graph.initializer if initializer.name == name)


def assert_failed(report: ParityReport, reason: str = "") -> None:
    """The verdict, in one line that holds these words."""
    assert (report.verdict, report.passed) == ("failed", False)
    assert reason in report.reason
    assert report.reason == report.reason.strip()
    assert "\n" not in report.reason
    assert len(report.reason.split()) > 4, "a sentence, not a word"
    assert report.summary()["reason"] == report.reason


# What passes.


@pytest.mark.parametrize(("core", "standardized", "dtype"), NETWORKS)
def test_every_network_of_ours_passes(core: str, standardized: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = rows().to(dtype)
    network = CORES[core]().to(dtype)
    if standardized:
        x = 50 + 20 * x
        network = rescaled(network, x, 1e5 + 1e4 * torch.sin(x[:, :1]))
    report = judge(network, x, tmp_path)
    assert report.passed, report.reason
    assert (report.reason, report.notes) == ("", ())
    assert report.summary()["worst_ratio"] < 1
    assert set(report.weights.values()) == {"as it is"}
    assert report.weights.keys() == network.state_dict().keys()


class Coded(nn.Module):
    """Two linear layers, and what a line of code makes of them and the rows."""

    def __init__(self, forward: Callable[["Coded", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.coded = nn.Linear(3, 2), nn.Linear(2, 1), forward
        self.scale: Tensor
        self.register_buffer("scale", torch.linspace(1, 2, 3 * 500_000).reshape(3, -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.coded(self, x)


HONEST: dict[str, Callable[[Coded, Tensor], Tensor]] = {
    "a column of a layer's outputs": lambda net, x: net.first(x)[:, :1],
    "changes its rows": lambda net, x: net.first(x.mul_(2)),
    "changes what it has": lambda net, x: net.second(net.first(x).relu_().mul_(0.5)),
    "no gradient": lambda net, x: net.second(net.first(x.detach()).detach()),
    "an operation without a bound": lambda net, x: net.second(nn.functional.gelu(net.first(x))),
    "a large buffer that is not saved": lambda net, x: x @ net.scale[:, :1],
    "nothing but float32": lambda net, x: net.second(net.first(x).float()),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_a_network_of_anyones_does_passes(name: str, tmp_path: Path) -> None:
    network, x = Coded(HONEST[name]), rows(20)
    before = x.clone()
    assert find_randomness(network, x) == ""
    report = judge(network, x, tmp_path)
    assert report.passed, report.reason
    assert torch.equal(x, before)


def test_where_a_network_does_not_run_in_float64_the_report_says_so() -> None:
    network = Coded(lambda net, x: net.second(net.first(x).float()))
    found = expectations(network, rows())
    assert {one.basis for one in found} == {"epsilons of the outputs: the network does not run in float64"}
    assert all((one.allowed >= 0).all() for one in found)
    largest = float(np.abs(found[0].truth).max())
    assert found[0].allowed.max() < 1e-5 * largest


class Extra(LinearRegression):
    """A network that saves more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def test_a_state_that_is_no_tensor_is_no_weight(line: LinearRegression, faithful: ExportedModel) -> None:
    network = Extra(3)
    network.linear.load_state_dict(line.linear.state_dict())
    report = verify(network, faithful, expectations(network, rows()))
    assert report.passed, report.reason


def test_layers_that_the_exporter_keeps_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Dropout(), nn.LayerNorm(4), nn.Linear(4, 1)
    )
    report = judge(network, rows(), tmp_path)
    assert report.passed, report.reason
    assert report.weights["1.num_batches_tracked"] == "not used in evaluation"


# What is expected.


def test_rows_at_hand_come_first_and_are_marked(line: LinearRegression) -> None:
    x = rows()
    found = expect(line, {"training rows": x, "points asked for": x[:0], "held-out rows": x[:2]})
    assert [one.name for one in found[:2]] == ["training rows", "held-out rows"]
    assert [one.at_hand for one in found] == [True, True] + [False] * (len(found) - 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_expectation_holds_torchs_own_prediction_and_a_better_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = MultilayerPerceptron(3, 2, (8,)).to(dtype)
    for one in expectations(network, rows(20).to(dtype)):
        x = torch.from_numpy(one.x)
        with torch.no_grad():
            assert np.array_equal(one.predicted, network(x).numpy(), equal_nan=True), one.name
            assert np.array_equal(one.truth, deepcopy(network).double()(x.double()).numpy(), equal_nan=True), one.name
        assert one.predicted.dtype == one.x.dtype
        assert one.truth.dtype == one.allowed.dtype == np.float64
        assert one.truth.shape == one.allowed.shape == one.predicted.shape
        assert one.undecided.shape == (len(x),)
        assert not np.isnan(one.allowed).any(), one.name


# The user's own things.


def test_the_network_is_left_as_it_was(line: LinearRegression, faithful: ExportedModel) -> None:
    network = nn.Sequential(deepcopy(line), nn.BatchNorm1d(1), nn.Dropout())
    network[1].eval()
    x = rows()
    network(x).sum().backward()
    network[0].linear.bias.requires_grad_(False)
    before = deepcopy(network)
    gradients = [value.grad.clone() for value in network.parameters() if value.grad is not None]
    find_randomness(network, x)
    verify(network, faithful, expectations(network, x))
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    assert [value.requires_grad for value in network.parameters()] == [True, False, True, True]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    assert all(torch.equal(value.grad, one) for value, one in zip(network.parameters(), gradients, strict=True))


def test_a_network_in_training_mode_is_judged_as_it_predicts_in_evaluation(
    line: LinearRegression, faithful: ExportedModel
) -> None:
    network = deepcopy(line).train()
    assert verify(network, faithful, expectations(network, rows())).passed
    assert network.training


# Randomness.


class Stateful(nn.Module):
    """Counts its own forward passes, and predicts the count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        prediction: Tensor = self.linear(x) + self.calls
        return prediction


RANDOM: dict[str, Callable[[Coded, Tensor], Tensor]] = {
    "torch.rand": lambda net, x: net.first(x) + torch.rand(len(x), 1),
    "rand_like": lambda net, x: net.first(x) + 1e-6 * torch.rand_like(x[:, :1]),
    "dropout that is always on": lambda net, x: nn.functional.dropout(net.first(x), 0.5, training=True),
    "random": lambda net, x: net.first(x) ** random.randint(1, 2),
    "numpy": lambda net, x: net.first(x) * float(np.random.default_rng().random()),
    "numpy's global generator": lambda net, x: net.first(x) * float(np.random.rand()),
    "one row of many": lambda net, x: net.first(x) + (torch.arange(len(x))[:, None] == random.randint(0, len(x))),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_network_that_is_random_in_evaluation_is_found(name: str) -> None:
    found = find_randomness(Coded(RANDOM[name]), rows())
    assert found.startswith("the network is random in evaluation mode: for the same row it predicts ")
    first, again = (part.split()[0] for part in found.split("predicts ")[1].split(", and when asked again "))
    assert float(first) != float(again)


def test_a_network_that_remembers_is_found_and_does_not_remember_this() -> None:
    network = Stateful()
    assert "and when asked again" in find_randomness(network, rows())
    assert network.calls == 0


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.first(x),
        lambda net, x: net.first(x) * torch.nan,
        lambda net, x: net.first(x) ** (random.randint(2, 3) if net.training else 2),
    ],
    ids=["plain", "NaN", "random in training"],
)
def test_a_network_that_is_the_same_each_time_is_not(forward: Callable[[Coded, Tensor], Tensor]) -> None:
    assert find_randomness(Coded(forward).train(), rows()) == ""


@pytest.mark.parametrize("name", RANDOM)
def test_no_generator_is_moved_by_looking(name: str) -> None:
    network = Coded(RANDOM[name])  # draws its weights
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    find_randomness(network, rows())
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


# Networks that no file can stand for.


def test_a_network_that_subtracts_the_mean_of_its_batch_fails(tmp_path: Path) -> None:
    network = Coded(lambda net, x: net.first(x - x.mean(dim=0)))
    assert_failed(judge(network, rows(), tmp_path), "batch of 1: ")


def test_a_constant_that_is_no_buffer_fails_by_name(tmp_path: Path) -> None:
    network = Coded(lambda net, x: net.first(x) @ torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    assert_failed(judge(network, rows(), tmp_path), "a constant of yours must be a buffer")


def test_an_unused_parameter_passes_and_is_named(tmp_path: Path) -> None:
    report = judge(Coded(lambda net, x: net.first(x)), rows(), tmp_path)
    assert report.passed, report.reason
    unused = dict.fromkeys(("second.weight", "second.bias", "scale"), "not used in evaluation")
    assert report.weights == {"first.weight": "as it is", "first.bias": "as it is"} | unused


# Files that were tampered with.


def add_true_weights_beside(model: onnx.ModelProto) -> None:
    """Every tensor is there and read; a single number in a node spoils the prediction."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Constant", [], ["shift"], value_float=1e-5))
    model.graph.node.append(helper.make_node("Add", ["before", "shift"], ["y"]))


def negate_a_weight(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(tensor(model, "linear.weight")) * np.float32([[-1, 1, 1]])
    tensor(model, "linear.weight").CopyFrom(numpy_helper.from_array(values, "linear.weight"))


def drop_the_bias(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2]
    model.graph.initializer.remove(tensor(model, "linear.bias"))


def fix_the_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = len(rows())


def tear_a_tensor(model: onnx.ModelProto) -> None:
    tensor(model, "linear.weight").raw_data = bytes(7)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (add_true_weights_beside, "training rows: row "),
        (negate_a_weight, "the file does not hold linear.weight (1, 3) of the Linear as torch has it"),
        (drop_the_bias, "the file does not hold linear.bias (1,) of the Linear as torch has it"),
        (fix_the_batch, "the file's input is x float32(7, 3); x float32(batch, 3) was promised"),
        (tear_a_tensor, "the file"),
    ],
)
def test_a_file_that_was_tampered_with_fails(
    line: LinearRegression,
    faithful: ExportedModel,
    of_the_line: list[Expectation],
    tmp_path: Path,
    edit: Edit,
    reason: str,
) -> None:
    assert_failed(verify(line, edited(faithful, tmp_path, edit), of_the_line), reason)


@pytest.mark.parametrize("edit", [negate_a_weight, drop_the_bias, fix_the_batch, None])
def test_nothing_is_loaded_where_structure_or_weights_are_refused(
    line: LinearRegression,
    faithful: ExportedModel,
    of_the_line: list[Expectation],
    tmp_path: Path,
    edit: Edit | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *given, **more: loaded.append(given))
    monkeypatch.setattr(fourfold.parity, "open_session", lambda *given, **more: loaded.append(given))
    refused = edited(faithful, tmp_path, edit) if edit else replace(faithful, path=tmp_path / "torn.onnx")
    if edit is None:
        refused.path.write_bytes(faithful.path.read_bytes()[:100])
    assert_failed(verify(line, refused, of_the_line))
    assert not loaded


def test_a_file_a_thousand_times_too_large_is_not_read(
    line: LinearRegression,
    faithful: ExportedModel,
    of_the_line: list[Expectation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(10**10)  # sparse: takes no room
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    report = verify(line, replace(faithful, path=path), of_the_line)
    assert_failed(report, "the file has 10000000000 bytes, for weights of 16")


def test_a_large_network_may_have_a_large_file(tmp_path: Path) -> None:
    network, x = nn.Linear(2000, 600), rows(4, 2000)
    exported = export(network, x, tmp_path / "model.onnx", {})
    assert exported.path.stat().st_size > 4 * 2**20
    one = Expectation(
        "few", x.numpy(), network(x).detach().numpy(), network(x).detach().double().numpy(),
        np.full((4, 600), 1e-4), np.zeros(4, bool),
    )  # fmt: skip
    report = verify(network, exported, [one])
    assert report.passed, report.reason


def test_a_missing_file_fails(line: LinearRegression, faithful: ExportedModel, of_the_line: list[Expectation]) -> None:
    gone = replace(faithful, path=faithful.path.with_name("gone.onnx"))
    assert_failed(verify(line, gone, of_the_line), "the file cannot be read: No such file or directory")


def test_a_folder_in_the_files_place_fails(
    line: LinearRegression, faithful: ExportedModel, of_the_line: list[Expectation]
) -> None:
    folder = replace(faithful, path=faithful.path.parent)
    assert_failed(verify(line, folder, of_the_line), "the file cannot be read: Is a directory")


def test_the_verdict_is_on_the_bytes_that_were_exported(
    line: LinearRegression, faithful: ExportedModel, of_the_line: list[Expectation], tmp_path: Path
) -> None:
    """A file that was written anew after its export is another one, even where it predicts the same."""
    path = edited(faithful, tmp_path, lambda model: helper.set_model_props(model, {"seed": "1"})).path
    report = verify(line, replace(faithful, path=path), of_the_line)
    assert_failed(report, "the file's bytes are others than were exported")
    assert report.sha256 == file_sha256(path) != faithful.sha256
    assert all(case.reason == "" for case in report.cases)


def test_another_networks_file_fails(faithful: ExportedModel) -> None:
    torch.manual_seed(0)
    network = LinearRegression(3)
    assert_failed(verify(network, faithful, expectations(network, rows())), "does not hold linear.weight")


class Blended(nn.Module):
    """A network whose code has a number that float32 does not have, as an argument by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.linear(x), x[:, :1], alpha=0.1)


def test_a_number_that_is_given_by_name_is_rounded_as_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = judge(Blended(), rows(), tmp_path)
    assert report.passed, report.reason


def test_the_number_of_threads_is_left_as_it_was(line: LinearRegression) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expectations(line, rows())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("constant", ["initializer of a node", "value_float"])
def test_a_step_that_hides_below_the_rounding_of_float32_is_found_in_float64(
    constant: str, line: LinearRegression, faithful: ExportedModel, of_the_line: list[Expectation], tmp_path: Path
) -> None:
    """Adding 1e-9 to outputs of the order of one changes hardly a float32."""

    def add(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "before"
        value = {"value": numpy_helper.from_array(np.float32(1e-9))} if constant[0] == "i" else {"value_float": 1e-9}
        model.graph.node.append(helper.make_node("Constant", [], ["little"], **value))
        model.graph.node.append(helper.make_node("Add", ["before", "little"], ["y"]))

    report = verify(line, edited(faithful, tmp_path, add), of_the_line)
    assert_failed(report, "onnx.reference in float64 predicts")
    assert all(
        case.worst_ratio <= 1 for case in report.cases if case.runtime.startswith("onnxruntime") and case.at_hand
    )
