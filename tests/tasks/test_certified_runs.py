"""Certified coefficients through the steps of a run, from a file to the proved model, by options that can be typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified import DAN_WOOD, MISRA1A, Certified, longley, norris, solve_exactly

from fourfold.configuration import TrainConfig
from tasks import command_line
from tasks.build_model import BuiltModel, build_model
from tasks.conditioning import warn
from tasks.evaluate import Evaluation, evaluate
from tasks.export_onnx import export_onnx
from tasks.make_data import make_data
from tasks.request import check, check_optimizer
from tasks.tracking import RunRecord
from tasks.train import train
from tasks.verify_onnx import verify_onnx

ALL = "--data rows.csv --target y --test-fraction 0 --dtype float64"
WOLFE = f"{ALL} --optimizer LBFGS --lr 1 --option line_search_fn=strong_wolfe --epochs 20"
LBFGS = f"{WOLFE} --option tolerance_grad=0 --option tolerance_change=0"

NETS = """
import torch


class Nonlinear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.b1, self.b2 = torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(()))


class Misra1a(Nonlinear):
    def forward(self, x):
        return self.b1 * (1 - torch.exp(-self.b2 * x))


class Misra1aInUnitsOfItsStart(Nonlinear):
    def __init__(self):
        super().__init__()
        self.register_buffer("unit", torch.tensor([500, 1e-4], dtype=torch.float64))

    def forward(self, x):
        b1, b2 = self.b1 * self.unit[0], self.b2 * self.unit[1]
        return b1 * (1 - torch.exp(-b2 * x))


class DanWood(Nonlinear):
    def forward(self, x):
        return self.b1 * x**self.b2
"""

Run = Callable[[str, Certified], tuple[BuiltModel, dict[str, float], Evaluation]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: RunRecord, own_modules: None, interpreter: None
) -> Run:
    """Make a run of a command line on these rows, all but the registration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)

    def steps(line: str, rows: Certified) -> tuple[BuiltModel, dict[str, float], Evaluation]:
        (tmp_path / "rows.csv").write_text(rows.as_csv())
        config = check(command_line.read("train", TrainConfig, "", line.split()).config)
        check_optimizer(config)
        data = make_data.fn(config)
        assert np.array_equal(data.x.numpy(), rows.x), "the file keeps every bit"
        built = build_model.fn(config, data)
        assert warn(config, built, record) == ()
        parameters = built.parameters(train.fn(config, built, data, record, tmp_path).history)
        evaluation = evaluate.fn(config, built, data, record)
        exported = export_onnx.fn(config, built, data, record, tmp_path)
        report = verify_onnx.fn(config, built, data, exported, record, tmp_path)
        assert report.passed, report.reason
        return built, parameters, evaluation

    return steps


def digits(found: Any, certified: np.ndarray) -> float:
    """How many digits the worst of the values has in common with the certified ones: the log relative error."""
    error = np.abs(np.array(list(found)) / certified - 1).max()
    return float(-np.log10(max(error, 1e-16)))


@pytest.mark.parametrize("more", ["", " --decorrelate"])
def test_norris_to_nine_digits(run: Run, more: str) -> None:
    rows = norris()
    _, parameters, evaluation = run(WOLFE + more, rows)
    assert list(parameters) == ["w", "b"]
    assert digits(parameters.values(), rows.coefficients) > 9
    assert evaluation.least_squares is not None
    assert digits(evaluation.least_squares.parameters.values(), rows.coefficients) > 10


@pytest.mark.parametrize(("more", "enough"), [("", 6), (" --decorrelate", 10)])
def test_longley_to_six_digits_and_decorrelated_to_ten(run: Run, more: str, enough: int) -> None:
    rows = longley()
    _, parameters, evaluation = run(LBFGS + more, rows)
    assert list(parameters) == [*(f"w/{name}" for name in rows.features), "b"]
    assert digits(parameters.values(), rows.coefficients) > enough
    assert evaluation.least_squares is not None
    assert digits(evaluation.least_squares.parameters.values(), rows.coefficients) > 10


@pytest.mark.parametrize("rows", [norris(), longley()], ids=["Norris", "Longley"])
def test_through_the_origin_to_nine_digits(run: Run, rows: Certified) -> None:
    expected = solve_exactly(rows.x, rows.y, intercept=False)
    built, parameters, evaluation = run(f"{LBFGS} --no-intercept --decorrelate", rows)
    assert digits(parameters.values(), expected) > 9
    assert evaluation.least_squares is not None
    assert digits(evaluation.least_squares.parameters.values(), expected) > 10
    assert "b" not in parameters
    assert built.coefficients()[1].tolist() == [0.0]


def test_dan_wood_to_ten_digits_from_its_far_start(run: Run) -> None:
    _, parameters, _ = run(f"{LBFGS} --model nets:DanWood --loss sse --start b1=1 --start b2=5", DAN_WOOD)
    assert digits(parameters.values(), DAN_WOOD.coefficients) > 10


def test_misra1a_to_ten_digits_from_its_far_start_with_a_step_for_each_parameter(run: Run) -> None:
    line = (
        f"{ALL} --model nets:Misra1a --start b1=500 --start b2=1e-4 --optimizer Rprop --lr 1e-6 --lr-for b1=1 "
        "--option step_sizes=1e-18,50 --epochs 20000"
    )
    _, parameters, _ = run(line, MISRA1A)
    assert digits(parameters.values(), MISRA1A.coefficients) > 10


def test_misra1a_to_ten_digits_by_lbfgs_in_units_of_its_start(run: Run) -> None:
    line = f"{LBFGS} --model nets:Misra1aInUnitsOfItsStart --start b1=1 --start b2=1"
    _, parameters, _ = run(line, MISRA1A)
    assert digits([500 * parameters["b1"], 1e-4 * parameters["b2"]], MISRA1A.coefficients) > 10
