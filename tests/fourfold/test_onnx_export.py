"""What the exporter writes, as onnx and onnxruntime read it."""

import copy
import hashlib
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from rescaled import rescaled
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fourfold.errors import ExportError
from fourfold.onnx_export import detached, export
from fourfold.onnx_file import OPSET, ExportedModel, file_sha256, predict
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron
from models.standardize import Standardized

METADATA = {"data": "houses", "seed": "0", "note": "größer als π"}


def made() -> tuple[Standardized, Tensor]:
    """A network of three features and two targets that scales inside, and rows to trace with."""
    torch.manual_seed(0)
    x, y = 10 + 3 * torch.randn(7, 3), 1000 + 100 * torch.randn(7, 2)
    return rescaled(MultilayerPerceptron(3, 2, (4,)), x, y), x


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    network, x = made()
    return export(network, x, tmp_path_factory.mktemp("exported") / "model.onnx", METADATA)


@pytest.fixture(scope="module")
def session(exported: ExportedModel) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.path.read_bytes(), providers=["CPUExecutionProvider"])


def test_operators_that_are_read_anew_give_the_same_bytes(
    exported: ExportedModel,
    read_operators: Callable[[int], ONNXRegistry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All other exports in this process take what tests/conftest.py keeps."""
    network, x = made()
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", read_operators)
    assert export(network, x, tmp_path / "model.onnx", METADATA).sha256 == exported.sha256


class Branching(nn.Module):
    """A network with a branch, whose two sides become graphs of their own inside the file."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda rows: self.high(rows), lambda rows: 2 * self.low(rows), (x,))


class Undecided(nn.Module):
    """A network whose course depends on the values, which no exporter can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no forward today\nnor tomorrow")


def test_the_model_is_one_file(exported: ExportedModel) -> None:
    assert list(exported.path.parent.iterdir()) == [exported.path]


def test_it_is_valid(exported: ExportedModel) -> None:
    onnx.checker.check_model(onnx.load(exported.path), full_check=True)


def test_its_hash_is_that_of_its_bytes(exported: ExportedModel) -> None:
    assert exported.sha256 == hashlib.sha256(exported.path.read_bytes()).hexdigest() == file_sha256(exported.path)


def test_it_takes_x_and_gives_y_with_a_dynamic_batch(session: onnxruntime.InferenceSession) -> None:
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("x", "tensor(float)", ["batch", 3])
    assert (given.name, given.type, given.shape) == ("y", "tensor(float)", ["batch", 2])


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 100])
def test_any_number_of_raw_rows_gives_raw_predictions(session: onnxruntime.InferenceSession, rows: int) -> None:
    network, _ = made()
    x = 10 + torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network.eval()(x).numpy()
    assert session.run(None, {"x": x.numpy()})[0] == pytest.approx(expected, rel=1e-5)


def test_onnxruntime_gives_the_metadata_back(session: onnxruntime.InferenceSession) -> None:
    assert session.get_modelmeta().custom_metadata_map == METADATA


def test_the_same_network_gives_the_same_bytes(exported: ExportedModel, tmp_path: Path) -> None:
    network, x = made()
    assert export(network, x, tmp_path / "again.onnx", METADATA).sha256 == exported.sha256


def assert_nothing_of_this_machine(content: bytes) -> None:
    here = {
        str(Path(__file__).parent),
        str(Path.cwd()),
        str(Path.home()) + "/",
        sys.prefix,
        str(Path(torch.__file__).parent),
    }
    for trace in (*here, "site-packages", ".py", "stack_trace", "File "):
        assert trace.encode() not in content, trace


def test_the_file_says_nothing_of_the_machine(exported: ExportedModel) -> None:
    assert_nothing_of_this_machine(exported.path.read_bytes())


def test_nor_do_the_branches_of_a_network(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    path = export(Branching(), x, tmp_path / "model.onnx", {}).path
    assert predict(path, x.numpy()).shape == (4, 1)
    assert_nothing_of_this_machine(path.read_bytes())


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    network[2].eval()
    x = torch.randn(5, 3)
    network(x).sum().backward()
    before = copy.deepcopy(network)
    gradients = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    export(network, x, tmp_path / "model.onnx", {})
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    assert all(value.requires_grad for value in network.parameters())
    for name, value in network.named_parameters():
        assert torch.equal(value, before.get_parameter(name)), name
        assert value.grad is not None
        assert torch.equal(value.grad, gradients[name]), name


def test_the_exporters_logger_is_left_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="torch.onnx")
    with pytest.raises(ExportError):
        export(Raising(), torch.randn(4, 3), tmp_path / "model.onnx", {})
    assert logging.getLogger("torch.onnx").level == logging.DEBUG


def test_the_exporter_says_nothing_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(LinearRegression(3), torch.randn(4, 3), tmp_path / "model.onnx", {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Undecided(), "GuardOnDataDependentSymNode: Could not guard"), (Raising(), "RuntimeError: no forward today$")],
    ids=["its course depends on the values", "it raises"],
)
def test_a_network_that_cannot_be_exported_is_refused_in_one_line(
    network: nn.Module, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"^the network cannot be exported: {reason}") as refusal:
        export(network, torch.randn(4, 3), tmp_path / "model.onnx", {})
    assert "\n" not in str(refusal.value)
    assert not any(tmp_path.iterdir())


def test_a_float64_network_predicts_in_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = LinearRegression(3).double(), torch.randn(4, 3).double()
    path = export(network, x, tmp_path / "model.onnx", {}).path
    with torch.no_grad():
        expected = network(x).numpy()
    assert predict(path, x.float().double().numpy()).dtype == np.float64
    assert predict(path, x.numpy()) == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_its_opset_is_the_one_asked_for(exported: ExportedModel) -> None:
    assert [(entry.domain, entry.version) for entry in onnx.load(exported.path).opset_import] == [("", OPSET)]


def folded_by_optimizers() -> list[nn.Module]:
    """Networks whose weights torch's own exporter merges into others where it may optimise."""
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)),
        nn.Sequential(weighted, nn.Linear(4, 1)),
        rescaled(MultilayerPerceptron(3, 1, (4,)), torch.randn(7, 3), torch.randn(7, 1)),
    ]


@pytest.mark.parametrize("network", folded_by_optimizers(), ids=["batch norm", "prelu", "weight norm", "standardized"])
def test_every_weight_is_in_the_file_under_its_own_name(network: nn.Module, tmp_path: Path) -> None:
    """Only a counter of training batches has no place in a prediction."""
    path = export(network, torch.randn(7, 3), tmp_path / "model.onnx", {}).path
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    weights = {name: value.numpy() for name, value in network.state_dict().items() if not name.endswith("_tracked")}
    assert stored.keys() == weights.keys()
    for name, value in weights.items():
        assert stored[name].tobytes() == value.tobytes(), name


def test_a_detached_copy_is_in_evaluation_mode_without_gradients() -> None:
    copied = detached(nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train())
    assert not any(module.training for module in copied.modules())
    assert not any(value.requires_grad for value in copied.parameters())


def test_detaching_leaves_the_network_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    network[0].bias.requires_grad_(False)
    copied = detached(network)
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    assert all(module.training for module in network.modules())
    assert [value.requires_grad for value in network.parameters()] == [True, False, True, True]
    assert network[0].weight.abs().min() > 0
    assert torch.equal(network[1].running_var, torch.ones(2))


def test_a_network_that_cannot_be_copied_is_refused_in_one_line() -> None:
    network = nn.Linear(3, 1)
    network.lock = threading.Lock()
    with pytest.raises(ExportError, match=r"^the network cannot be copied: TypeError: cannot pickle .*lock") as refusal:
        detached(network)
    assert "\n" not in str(refusal.value)
