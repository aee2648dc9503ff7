"""Wrong requests by name, and some hundred at random; `benchmarks/wrong_requests.py` runs thousands."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from random_requests import KINDS, LINES_FILES, Case, Ending, Kind, Runner, complaints, running, trained

from fourfold.configuration import TrainConfig

# Those that end in training and export take seconds each; the long run has enough of them.
CASES = {kind.name: 2 if kind.name in ("train", "optimizer's options", "scheduler's options") else 2 * kind.share
         for kind in KINDS}  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with running() as opened:
        yield opened


@pytest.fixture(scope="module")
def model(runner: Runner) -> tuple[bytes, bytes]:
    return trained(runner)


@pytest.mark.parametrize(
    ("flow", "line", "said"),
    [
        ("train", "--lr -1", "--lr"),
        ("train", "--optimizer Adm", "Adam"),
        ("train", "--optimizer SparseAdam", "SparseAdam cannot train this model"),
        ("train", "--data none.csv --target y", "no such file"),
        ("compare", "--optimizers SGD,SparseAdam", "SparseAdam cannot train this model"),
        ("compare", "--learning-rates 1", "--learning-rates"),
        ("tutorial", "--steps 0", "--steps"),
        ("verify", "", "--model"),
        ("verify", "--model models:/none@champion", "none"),
        ("verify", "--model nowhere", "no such folder"),
        ("predict", "--model line.onnx", "give either --input with a file, or --at with a point"),
        ("predict", "--model line.onnx --input line.csv --output o.csv --keep key", "line.csv has no such column"),
    ],
)
def test_a_wrong_request_ends_with_2_and_one_line_that_says_why(
    flow: str, line: str, said: str, runner: Runner, model: tuple[bytes, bytes]
) -> None:
    case = Case(flow, tuple(line.split()), LINES_FILES | {"line.onnx": model[0]})
    ending = runner.run(case)
    assert (ending.code, complaints(case, ending)) == (2, [])
    assert said in ending.err


NOISY = """
import torch

class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x) + torch.rand_like(x)
"""
TAMPERING = """
from dataclasses import replace

import torch

import tasks.export_onnx as step
from fourfold.onnx_file import file_sha256

honest = step.export


def export(*arguments):
    exported = honest(*arguments)
    exported.path.write_bytes(exported.path.read_bytes()[:200])
    return replace(exported, sha256=file_sha256(exported.path))


step.export = export


class Line(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
"""


@pytest.mark.parametrize(
    ("network", "code", "reason", "told", "kept"),
    [
        ("Noisy", NOISY, "random in evaluation mode", "nothing was exported", {"report.html"}),
        # Other harms are done to the steps alone, in tests/tasks/test_verify_task.py.
        ("Line", TAMPERING, "cannot be read as ONNX", "nothing was registered", {"parity.json", "parity.html"}),
    ],
)
def test_what_does_not_pass_the_gate_is_rejected_in_one_line(
    network: str, code: str, reason: str, told: str, kept: set[str], runner: Runner
) -> None:
    case = Case("train", ("--model", f"nets:{network}", "--json"), {"nets.py": code.encode()}, whole=True)
    ending = runner.run(case)
    assert (ending.code, complaints(case, ending)) == (1, [])
    result = json.loads(ending.out.splitlines()[-1])
    assert (result["status"], result["model"]) == ("rejected", None)
    assert reason in result["reason"]
    assert told in ending.err
    files = {path.rpartition("/")[2] for path in ending.created}
    assert kept <= files
    assert "model.onnx" not in files


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_request_ends_with_0_1_or_2_and_one_line(kind: Kind, runner: Runner, model: tuple[bytes, bytes]) -> None:
    @settings(
        max_examples=CASES[kind.name], derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(kind.cases(*model))
    def each(case: Case) -> None:
        assert complaints(case, runner.run(case)) == []

    each()


ENDED = Ending(0, "status  registered\n", "", 1.0, (), (), 0, 1)
REFUSED = Ending(2, "", "--lr: 'x' was given; input should be a number\n", 1.0, (), (), 0, 0)
FAILED = Ending(1, "", "train: diverged: the loss went off\n", 1.0, ("mlruns",), (), 0, 1)


@pytest.mark.parametrize("ending", [ENDED, REFUSED, FAILED])
def test_an_ending_as_promised_is_not_complained_about(ending: Ending) -> None:
    assert complaints(Case("train"), ending) == []


@pytest.mark.parametrize(
    ("ending", "change", "complaint"),
    [
        (ENDED, {"code": None}, "did not end"),
        (ENDED, {"code": -11}, "exit code -11"),
        (ENDED, {"err": "UserWarning: beware\n"}, "on standard error"),
        (ENDED, {"open_runs": 1}, "left open"),
        (ENDED, {"temporary": ("fourfold-x",)}, "fourfold-x"),
        (FAILED, {"err": ""}, "not one line"),
        (FAILED, {"err": "Traceback (most recent call last):\ntrain: x\n"}, "a traceback"),
        (FAILED, {"err": "train: TypeError: x; --verbose shows where\n"}, "unforeseen"),
        (REFUSED, {"err": "one\ntwo\n"}, "not one line"),
        (REFUSED, {"out": "status  running\n"}, "on standard output"),
        (REFUSED, {"created": ("mlflow.db",)}, "created"),
        (REFUSED, {"runs": 1}, "made 1 runs"),
    ],
)
def test_a_broken_promise_is_complained_about(ending: Ending, change: dict[str, object], complaint: str) -> None:
    assert any(complaint in said for said in complaints(Case("train"), Ending(**{**vars(ending), **change})))


def test_every_option_is_asked_for() -> None:
    """Those of tomorrow as well: the names come from the configuration."""
    asked: set[str] = set()

    @settings(
        max_examples=400, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(KINDS[0].cases(b"", b""))
    def note(case: Case) -> None:
        asked.update(argument.partition("=")[0].removeprefix("--") for argument in case.arguments)

    note()
    spelled = {name.replace("_", "-") for name in TrainConfig.model_fields}
    assert spelled - {"registered-name"} | {"register"} <= asked


def test_a_process_that_is_a_copy_ends_as_a_real_one(runner: Runner) -> None:
    """With a model, a run in the store, and the result on standard output."""
    case = Case("train", ("--epochs", "2", "--json"), whole=True)
    ending = runner.run(case)
    assert (ending.code, ending.runs, ending.open_runs) == (0, 2, 0), ending.err
    assert json.loads(ending.out.splitlines()[-1])["status"] == "registered"
    assert any(path.endswith("model.onnx") for path in ending.created)
