"""The gate, with files that were tampered with and networks that no file can stand for."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from fourfold.onnx_file import ExportedModel, export, file_sha256
from fourfold.parity import Case, ParityReport, verify
from models.linear import LinearRegression
from models.mlp import ACTIVATIONS, MultilayerPerceptron
from models.standardize import Standardized

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


def judge(network: nn.Module, x: Tensor, folder: Path) -> ParityReport:
    """Export a network and hold the file against it."""
    exported = export(network, x, folder / "model.onnx", {})
    return verify(network, exported, {"training": x})


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


Edit = Callable[[onnx.ModelProto], None]


def edited(faithful: ExportedModel, folder: Path, edit: Edit) -> ExportedModel:
    model = onnx.load(faithful.path)
    edit(model)
    path = folder / "edited.onnx"
    onnx.save(model, path)
    return replace(faithful, path=path, sha256=file_sha256(path))


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(initializer for initializer in model.graph.initializer if initializer.name == name)


def set_tensor(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(values, name))


def change_first_weight(model: onnx.ModelProto, change: Callable[[np.float32], float]) -> None:
    values = numpy_helper.to_array(tensor(model, "linear.weight")).copy()
    values[0, 0] = change(values[0, 0])
    set_tensor(model, "linear.weight", values)


def read_another(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let the node read a changed copy, while the file still holds the true tensor."""
    (node,) = model.graph.node
    changed = change(numpy_helper.to_array(tensor(model, name)).copy())
    model.graph.initializer.append(numpy_helper.from_array(changed, "another"))
    node.input[list(node.input).index(name)] = "another"


def append(model: onnx.ModelProto, operator: str, *more_inputs: str, **attributes: object) -> None:
    """Put one more node behind the output."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node(operator, ["before", *more_inputs], ["y"], **attributes))


def drop_column_axis(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"))
    append(model, "Squeeze", "axes")
    del model.graph.output[0].type.tensor_type.shape.dim[1]


def give_doubles(model: onnx.ModelProto) -> None:
    append(model, "Cast", to=onnx.TensorProto.DOUBLE)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def repeat_first_row(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], dtype=np.int64), "first"))
    append(model, "Gather", "first", axis=0)


def fix_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = len(rows())


def misspell_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Gemmm"


def assert_failed(report: ParityReport, reason: str = "") -> None:
    """The verdict, in one line that holds these words."""
    assert (report.verdict, report.passed) == ("failed", False)
    assert reason in report.reason
    assert report.reason == report.reason.strip()
    assert "\n" not in report.reason
    assert len(report.reason.split()) > 4, "a sentence, not a word"
    assert report.summary()["reason"] == report.reason


@pytest.mark.parametrize(("core", "standardized", "dtype"), NETWORKS)
def test_every_network_of_ours_passes(core: str, standardized: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = rows().to(dtype)
    network = CORES[core]().to(dtype)
    if standardized:
        x = 50 + 20 * x
        network = Standardized.to_rows(network, x, 1e5 + 1e4 * torch.sin(x[:, :1]))
    report = judge(network, x, tmp_path)
    assert report.passed, report.reason
    assert report.reason == ""
    assert report.summary()["worst_ratio"] < 0.5, "what passes has room to spare"


class Powers(nn.Module):
    """A polynomial after the tutorial's: one coefficient serves order 4 and 5, the fifth at random."""

    def __init__(self, random_in_evaluation: bool) -> None:
        super().__init__()
        for name, value in zip("abcde", (0.1, 0.8, -0.2, -0.1, 0.5), strict=True):
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.random_in_evaluation = random_in_evaluation

    def forward(self, x: Tensor) -> Tensor:
        highest = random.randint(4, 5) if self.training or self.random_in_evaluation else 5
        cubic = self.a + self.b * x + self.c * x**2 + self.d * x**3
        return cubic + sum(self.e * x**order for order in range(4, highest + 1))


class Packed(nn.Module):
    """A cubic that keeps its coefficients in one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([0.1, 0.8, -0.2, -0.1]))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.coefficients
        return (a + b * x + c * x**2 + d * x**3).sum(dim=1, keepdim=True)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + 0.01 * torch.rand_like(x[:, :1])


class Unused(nn.Module):
    """A network that keeps a parameter it does not predict with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.spare = nn.Linear(3, 1), nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_random_control_flow_passes_once_evaluation_fixes_it(tmp_path: Path) -> None:
    report = judge(Powers(random_in_evaluation=False), rows(features=1), tmp_path)
    assert report.passed, report.reason


def test_random_control_flow_fails_while_evaluation_is_random(tmp_path: Path) -> None:
    """The file has one order; torch draws another for each prediction."""
    random.seed(0)
    assert_failed(judge(Powers(random_in_evaluation=True), rows(features=1), tmp_path), "onnxruntime predicts")


def test_a_random_forward_fails(tmp_path: Path) -> None:
    assert_failed(judge(Noisy(), rows(), tmp_path), "training: row ")


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 1)),
        Packed(),
        Unused(),
    ],
    ids=["batch norm", "prelu", "weight norm", "packed coefficients", "unused parameter"],
)
def test_a_weight_that_the_exporter_folded_or_dropped_is_refused_by_name(network: nn.Module, tmp_path: Path) -> None:
    """What is not in the file as torch has it cannot be compared bit for bit, so the gate does not vouch for it."""
    report = judge(network, rows(), tmp_path)
    assert not report.passed
    assert "the file does not hold" in report.reason


def test_layers_that_the_exporter_keeps_pass(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.LayerNorm(4), nn.Linear(4, 1))
    report = judge(network, rows(), tmp_path)
    assert report.passed, report.reason


def test_the_report_names_what_was_compared(line: LinearRegression, faithful: ExportedModel) -> None:
    x = rows()
    report = verify(line, faithful, {"training": x, "held-out": x[:2], "points asked for": x[:0]})
    assert report.passed
    sizes = {case.name: case.rows for case in report.cases}
    assert (sizes["training"], sizes["held-out"], sizes["zeros"]) == (7, 2, 1)
    assert [sizes[f"batch of {size}"] for size in range(4)] == [0, 1, 2, 3]
    assert "points asked for" not in sizes
    assert report.onnxruntime == onnxruntime.__version__
    assert report.sha256 == faithful.sha256
    assert json.loads(json.dumps(report.full()))["cases"][0]["name"] == "training"
    assert report.summary()["cases"] == len(report.cases)


def test_the_network_is_left_in_evaluation_mode_with_its_weights(
    line: LinearRegression, faithful: ExportedModel
) -> None:
    before = {name: value.clone() for name, value in line.state_dict().items()}
    verify(line.train(), faithful, {"training": rows()})
    assert not line.training
    assert all(torch.equal(value, before[name]) for name, value in line.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [lambda w: -w, lambda w: np.nextafter(w, np.float32(9)), lambda w: math.nan],
    ids=["sign", "last bit", "nan"],
)
def test_a_weight_that_is_not_torchs_bit_for_bit_fails(
    line: LinearRegression, faithful: ExportedModel, tmp_path: Path, change: Callable[[np.float32], float]
) -> None:
    tampered = edited(faithful, tmp_path, lambda model: change_first_weight(model, change))
    assert_failed(verify(line, tampered, {"training": rows()}), "does not hold linear.weight (1, 3) as torch has it")


def test_a_dropped_bias_fails(line: LinearRegression, faithful: ExportedModel, tmp_path: Path) -> None:
    def drop(model: onnx.ModelProto) -> None:
        del model.graph.node[0].input[2]
        model.graph.initializer.remove(tensor(model, "linear.bias"))

    assert_failed(verify(line, edited(faithful, tmp_path, drop), {"training": rows()}))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("linear.weight", lambda values: values + np.float32([[1e-4, 0, 0]])),
        ("linear.weight", lambda values: values * np.float32(1.00005)),
        ("linear.weight", lambda values: values * np.float32(math.nan)),
        ("linear.bias", lambda values: 0 * values),
        ("linear.bias", lambda values: values + np.float32(1e-4)),
    ],
    ids=["a weight by 1e-4", "all by 5e-5 of themselves", "nan", "no bias", "the bias by 1e-4"],
)
def test_true_weights_beside_false_ones_do_not_pass(
    line: LinearRegression,
    faithful: ExportedModel,
    tmp_path: Path,
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Where a file holds the tensors and predicts with others, the predictions give it away."""
    tampered = edited(faithful, tmp_path, lambda model: read_another(model, name, change))
    assert_failed(verify(line, tampered, {"training": rows()}), "they may differ by")


def test_the_worst_row_is_shown_with_both_predictions(
    line: LinearRegression, faithful: ExportedModel, tmp_path: Path
) -> None:
    x = rows()
    tampered = edited(
        faithful, tmp_path, lambda model: read_another(model, "linear.weight", lambda w: w + np.float32([[0.5, 0, 0]]))
    )
    report = verify(line, tampered, {"training": x})
    session = onnxruntime.InferenceSession(tampered.path.read_bytes(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = line(x).numpy()
    actual = session.run(None, {"x": x.numpy()})[0]
    row = int(np.abs(actual - expected).argmax())
    assert_failed(
        report, f"training: row {row}: onnxruntime predicts {actual[row, 0]:.9g}, torch {expected[row, 0]:.9g}; "
    )
    case = report.cases[0]
    assert case.worst_row == tuple(x[row].tolist())
    assert case.max_abs_error == pytest.approx(np.abs(actual.astype(float) - expected.astype(float)).max())
    assert case.worst_ratio > 1
    assert report.summary()["max_abs_error"] == max(case.max_abs_error for case in report.cases)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (drop_column_axis, "training: onnxruntime gives float32(7,), torch float32(7, 1)"),
        (repeat_first_row, "training: onnxruntime gives float32(1, 1), torch float32(7, 1)"),
        (give_doubles, "training: onnxruntime gives float64(7, 1), torch float32(7, 1)"),
        (fix_batch, "onnxruntime cannot run it: "),
        (misspell_operator, "onnxruntime cannot load the file: "),
    ],
)
def test_a_file_of_another_form_fails(
    line: LinearRegression, faithful: ExportedModel, tmp_path: Path, edit: Edit, reason: str
) -> None:
    assert_failed(verify(line, edited(faithful, tmp_path, edit), {"training": rows()}), reason)


def test_a_batch_size_that_is_fixed_fails_on_another(
    line: LinearRegression, faithful: ExportedModel, tmp_path: Path
) -> None:
    """The rows at hand have the very size; the other batches show it."""
    report = verify(line, edited(faithful, tmp_path, fix_batch), {"training": rows()})
    first, *others = report.cases
    assert first.reason == ""
    assert all("cannot run it" in case.reason for case in others if case.rows != len(rows()))
    assert math.isinf(report.summary()["max_abs_error"])


@pytest.mark.parametrize("kept", [0, 1, 60, 200, -1])
def test_a_truncated_file_fails(line: LinearRegression, faithful: ExportedModel, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "truncated.onnx"
    path.write_bytes(faithful.path.read_bytes()[:kept])
    truncated = replace(faithful, path=path, sha256=file_sha256(path))
    assert_failed(verify(line, truncated, {"training": rows()}), "the file")


def test_a_file_that_is_no_model_fails(line: LinearRegression, faithful: ExportedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("this is not a model\n" * 20)
    other = replace(faithful, path=path, sha256=file_sha256(path))
    assert_failed(verify(line, other, {"training": rows()}), "the file")


def test_the_verdict_is_on_the_bytes_that_were_read(
    line: LinearRegression, faithful: ExportedModel, tmp_path: Path
) -> None:
    """A file that was written anew after its export is another one, even where it predicts the same."""

    def annotate(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {"seed": "1"})

    path = edited(faithful, tmp_path, annotate).path
    report = verify(line, replace(faithful, path=path), {"training": rows()})
    assert report.sha256 == file_sha256(path) != faithful.sha256


def test_another_networks_file_fails(faithful: ExportedModel) -> None:
    torch.manual_seed(0)
    assert_failed(verify(LinearRegression(3), faithful, {"training": rows()}), "does not hold linear.weight")


def test_a_report_without_cases_has_a_summary_too() -> None:
    report = ParityReport("failed", "the file is gone", "", "", ())
    assert report.summary()["worst_ratio"] == 0.0
    assert not report.passed
    assert replace(report, verdict="passed", reason="", cases=(Case("x", 1, 0.0, 0.0, 0.0),)).passed
