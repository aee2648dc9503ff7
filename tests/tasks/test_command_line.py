import gc
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel
from workplaces import ROOT

from flows.__main__ import FLOWS
from fourfold.configuration import TrainConfig, VerifyConfig
from fourfold.errors import DivergedError, FourfoldError, ParityError, RequestError
from tasks import command_line
from tasks.command_line import Request
from tasks.reporting import Table

pytestmark = pytest.mark.usefixtures("interpreter")


def read(*arguments: str) -> Request[TrainConfig]:
    return command_line.read("train", TrainConfig, "Train a model.", list(arguments))


@dataclass
class Told:
    """A result as a flow would give it."""

    status: str = "completed"
    shown: Mapping[str, str] = field(default_factory=lambda: {"status": "completed", "y at 4": "8"})
    tabled: tuple[Table, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {"flow": "train", "status": self.status}

    def rows(self) -> Mapping[str, str]:
        return self.shown

    def tables(self) -> tuple[Table, ...]:
        return self.tabled


def run(work: Callable[[TrainConfig], Any], *, as_json: bool = False, verbose: bool = False) -> int:
    with pytest.raises(SystemExit) as ended:
        command_line.run(Request(TrainConfig(), as_json, verbose), "train", work)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def raising(error: BaseException, result: Told | None = None) -> Callable[[TrainConfig], Any]:
    if result is not None:
        error.result = result  # type: ignore[attr-defined]

    def work(config: TrainConfig) -> Any:
        raise error

    return work


# What is typed, and the configuration's fields that it decides.
GOOD_LINES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--data sine", {"data": "sine"}),
    ("--data rows.csv --target price", {"data": "rows.csv", "target": ("price",)}),
    ("--data=rows.csv --target=price", {"data": "rows.csv", "target": ("price",)}),
    ("--target price --target rent", {"target": ("price", "rent")}),
    ("--target price,rent", {"target": ("price", "rent")}),
    ("--features area --features rooms,age", {"features": ("area", "rooms", "age")}),
    ("--missing mean", {"missing": "mean"}),
    ("--checkpoint-seconds 0.5", {"checkpoint_seconds": 0.5}),
    ("--resume latest", {"resume": "latest"}),
    ("--resume " + "0a" * 16, {"resume": "0a" * 16}),
    ("--stream", {"stream": True}),
    ("--no-stream", {"stream": False}),
    ("--test-fraction 0.25", {"test_fraction": 0.25}),
    ("--test-fraction 0", {"test_fraction": 0.0}),
    ("--standardize", {"standardize": True}),
    ("--no-standardize", {"standardize": False}),
    ("--decorrelate", {"decorrelate": True}),
    ("--no-intercept", {"intercept": False}),
    ("--start b1=500 --start layer.weight=1,-2e-3", {"start": ("b1=500", "layer.weight=1,-2e-3")}),
    ("--model mlp", {"model": "mlp"}),
    ("--model polynomial --degree 5 --basis chebyshev", {"model": "polynomial", "degree": 5, "basis": "chebyshev"}),
    ("--model my.package:Cubic", {"model": "my.package:Cubic"}),
    ("--hidden 32,16", {"hidden": (32, 16)}),
    ("--hidden 8", {"hidden": (8,)}),
    ("--hidden 8 --hidden 4", {"hidden": (8, 4)}),
    ("--activation relu", {"activation": "relu"}),
    ("--loss huber", {"loss": "huber"}),
    ("--optimizer adamw", {"optimizer": "adamw"}),
    ("--lr 1e-3", {"lr": 1e-3}),
    ("--option momentum=0.9 --option nesterov=true", {"option": ("momentum=0.9", "nesterov=true")}),
    ("--option betas=0.9,0.99", {"option": ("betas=0.9,0.99",)}),
    ("--lr-for bias=0.1 --lr-for *.weight=0.01", {"lr_for": ("bias=0.1", "*.weight=0.01")}),
    ("--scheduler StepLR", {"scheduler": "StepLR"}),
    ("--scheduler-option step_size=10", {"scheduler_option": ("step_size=10",)}),
    ("--epochs 50", {"epochs": 50}),
    ("--budget 50", {"budget": 50}),
    ("--validation-fraction 0.25", {"validation_fraction": 0.25}),
    ("--batch-size 8", {"batch_size": 8}),
    ("--dtype float64", {"dtype": "float64"}),
    ("--device cpu", {"device": "cpu"}),
    ("--seed 7", {"seed": 7}),
    ("--at 4", {"at": ((4.0,),)}),
    ("--at -1.5", {"at": ((-1.5,),)}),
    ("--at 1.5,2 --at 3,4", {"at": ((1.5, 2.0), (3.0, 4.0))}),
    ("--min-improvement 0.01", {"min_improvement": 0.01}),
    ("--register houses", {"registered_name": "houses"}),
    ("--no-register", {"no_register": True}),
]


@pytest.mark.parametrize(("line", "expected"), GOOD_LINES, ids=[line or "nothing" for line, _ in GOOD_LINES])
def test_a_good_line_gives_its_options_and_leaves_the_others_at_their_defaults(
    line: str, expected: dict[str, Any]
) -> None:
    request = read(*line.split())
    assert request.config == TrainConfig(**expected)
    assert request.config.model_dump() == TrainConfig().model_dump() | expected
    assert (request.json, request.verbose) == (False, False)


def test_every_option_of_the_configuration_has_a_good_line() -> None:
    assert {name for _, expected in GOOD_LINES for name in expected} == set(TrainConfig.model_fields)
    assert {name for _, expected, *_ in GOOD_LINES_OF_VERIFY for name in expected} == set(VerifyConfig.model_fields)


def read_verify(line: str) -> Request[VerifyConfig]:
    return command_line.read("verify", VerifyConfig, "Prove again.", line.split())


# As above, and the model that is proved, the one that is promoted.
GOOD_LINES_OF_VERIFY: list[tuple[str, dict[str, str], str, tuple[str, str] | None]] = [
    ("--model models:/line@champion", {"model": "models:/line@champion"}, "models:/line@champion", None),
    ("--model some/folder", {"model": "some/folder"}, "some/folder", None),
    ("--promote models:/line/12", {"promote": "models:/line/12"}, "models:/line/12", ("line", "12")),
    (
        "--promote 3 --model models:/line@champion",
        {"promote": "3", "model": "models:/line@champion"},
        "models:/line/3",
        ("line", "3"),
    ),
    (
        "--model models:/line/7 --promote 3",
        {"promote": "3", "model": "models:/line/7"},
        "models:/line/3",
        ("line", "3"),
    ),
]


@pytest.mark.parametrize(
    ("line", "expected", "address", "promoted"), GOOD_LINES_OF_VERIFY, ids=[line for line, *_ in GOOD_LINES_OF_VERIFY]
)
def test_a_good_line_of_verify_names_a_model_and_what_becomes_of_it(
    line: str, expected: dict[str, str], address: str, promoted: tuple[str, str] | None
) -> None:
    config = read_verify(line).config
    assert config.model_dump(exclude_none=True) == expected
    assert (config.address, config.promoted) == (address, promoted)
    assert config.title == f"{'promote' if promoted else 'verify'} {address}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "give --model, or --promote"),
        ("--json", "give --model, or --promote"),
        ("--promote 3", "--promote 3 needs --model models:/NAME@ALIAS or models:/NAME/VERSION beside it; none"),
        (f"--promote 3 --model {'f' * 32}", f"beside it; {'f' * 32} was given"),
        ("--promote 3 --model some/folder", "beside it; some/folder was given"),
        ("--promote 3 --model models:/line", "beside it; models:/line was given"),
        ("--promote models:/line/3 --model models:/line@champion", "leave --model models:/line@champion out"),
        ("--promote models:/line@challenger", "'models:/line@challenger' was given; should be models:/NAME/VERSION"),
        (f"--promote {'f' * 32}", f"'{'f' * 32}' was given; should be models:/NAME/VERSION"),
        ("--promote some/folder", "'some/folder' was given; should be models:/NAME/VERSION"),
        ("--promote 0 --model models:/line@champion", "'0' was given; should be"),
        ("--promote -1 --model models:/line@champion", "'-1' was given; should be"),
    ],
)
def test_a_wrong_line_of_verify_is_refused_in_one_line(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_verify(line)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_what_a_terminal_cannot_spell_is_shown_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii", errors="strict"))
    read()
    assert run(lambda config: Told(shown={"name": "Höhe"})) == 0
    sys.stdout.flush()
    assert b"H\\xf6he" in out.getvalue()


def test_help_is_given_also_where_nothing_typed_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_verify("--help")
    assert ended.value.code == 0
    assert "--promote" in capsys.readouterr().out


def test_the_result_is_told_as_asked() -> None:
    assert read("--json").json
    assert read("--verbose").verbose


def test_verbose_shows_what_the_libraries_log() -> None:
    read()
    quiet = os.environ.get("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL")
    assert quiet != "INFO"
    read("--verbose")
    assert os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "INFO"
    assert os.environ["MLFLOW_LOGGING_LEVEL"] == "INFO"


def test_arguments_are_those_of_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_flow.py", "--seed", "5"])
    assert command_line.read("train", TrainConfig, "").config.seed == 5


def test_garbage_is_not_collected_from_reading_to_running() -> None:
    gc.enable()
    read()
    assert not gc.isenabled()
    seen: list[bool] = []

    def work(config: TrainConfig) -> Told:
        seen.append(gc.isenabled())
        return Told()

    run(work)
    assert seen == [True]


WRONG_LINES = [
    ("--optimiser Adam", "--optimiser", "--optimizer"),
    ("--lr", "--lr", "argument"),
    ("--lr -1", "--lr", "'-1'"),
    ("--lr 0", "--lr", "'0'"),
    ("--lr nan", "--lr", "'nan'"),
    ("--lr inf", "--lr", "'inf'"),
    ("--lr fast", "--lr", "'fast'"),
    ("--lr 1 --lr 2", "--lr", "multiple"),
    ("--epochs 0", "--epochs", "'0'"),
    ("--epochs 1.5", "--epochs", "'1.5'"),
    ("--batch-size 0", "--batch-size", "'0'"),
    ("--test-fraction 1", "--test-fraction", "'1'"),
    ("--test-fraction -0.1", "--test-fraction", "'-0.1'"),
    ("--seed -1", "--seed", "'-1'"),
    ("--hidden 0", "--hidden", "'0'"),
    ("--hidden wide", "--hidden", "'wide'"),
    ("--model perceptron", "--model", "'perceptron'"),
    ("--model my-module:Net", "--model", "'my-module:Net'"),
    ("--degree 0", "--degree", "0"),
    ("--basis fourier", "--basis", "fourier"),
    ("--activation gelu", "--activation", "'gelu'"),
    ("--loss mae", "--loss", "'mae'"),
    ("--dtype half", "--dtype", "'half'"),
    ("--device tpu", "--device", "'tpu'"),
    ("--option momentum", "--option", "'momentum'"),
    ("--start b1", "--start", "'b1'"),
    ("--lr-for bias", "--lr-for", "'bias'"),
    ("--scheduler-option step_size", "--scheduler-option", "'step_size'"),
    ("--at nan", "--at", "'nan'"),
    ("--at four", "--at", "'four'"),
    ("--min-improvement -0.01", "--min-improvement", "'-0.01'"),
    ("--min-improvement 1", "--min-improvement", "'1'"),
    ("--min-improvement nan", "--min-improvement", "'nan'"),
    ("--register a/b", "--register", "'a/b'"),
    ("--register a:b", "--register", "'a:b'"),
    ("--no-register=perhaps", "--no-register", "perhaps"),
    ("--registered-name x", "--registered-name", "--register"),
    ("--data=", "--data", "''"),
    ("surplus", "surplus", "surplus"),
    ("--seed 1 surplus", "surplus", "surplus"),
]


@pytest.mark.parametrize(("line", "option", "given"), WRONG_LINES, ids=[line for line, _, _ in WRONG_LINES])
def test_a_wrong_line_is_refused_in_one_line_that_names_the_option_and_what_was_given(
    line: str, option: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(*line.split())
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert option in err
    assert given in err
    assert "--help" in err


def test_what_was_given_is_told_in_one_line_also_where_it_has_several(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--model", "two\nlines")
    assert capsys.readouterr().err.count("\n") == 1


def test_help_shows_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--help")
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    assert err == ""
    options = set(re.findall(r"--[\w-]+", out))
    spelled = {f"--{name.replace('_', '-')}" for name in TrainConfig.model_fields} - {"--registered-name"}
    assert spelled | {"--register", "--json", "--verbose", "--help"} <= options
    for default in ("line", "32,32", "SGD", "0.01", "1000"):
        assert f"[default: {default}]" in " ".join(out.replace("│", " ").split())


# Lines at 80 and at 120 columns: a screen or two.
LINES_OF_HELP = {
    "train": (104, 76),
    "compare": (100, 74),
    "predict": (44, 36),
    "verify": (28, 26),
    "tutorial": (24, 20),
}


def spelled_help(flow: str, width: int, *more: str) -> str:
    file = f"{ROOT}/flows/{flow}_flow.py"
    return subprocess.run(
        [sys.executable, file, *more, "--help"], capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"COLUMNS": str(width)},
    ).stdout  # fmt: skip


@pytest.mark.parametrize("flow", LINES_OF_HELP)
def test_help_of_a_flow_is_a_screen_or_two_with_examples_that_can_be_copied(flow: str) -> None:
    narrow, wide = spelled_help(flow, 80), spelled_help(flow, 120)
    assert len(narrow.splitlines()) <= LINES_OF_HELP[flow][0]
    assert len(wide.splitlines()) <= LINES_OF_HELP[flow][1]
    assert max(map(len, narrow.splitlines())) <= 80
    examples = narrow.partition("\nExamples:\n")[2].partition("\n\n")[0]
    lines = [shlex.split(line) for line in examples.replace("\\\n", "").splitlines()]
    asked = [shlex.split(line) for line in FLOWS[flow].examples]  # type: ignore[attr-defined]
    assert lines == [["python", f"flows/{flow}_flow.py", *line] for line in asked]


def test_help_shows_how_to_serve_where_that_is_asked_for() -> None:
    assert "--cron" not in spelled_help("tutorial", 80)
    assert "--serve" in spelled_help("tutorial", 80)
    assert "--cron" in spelled_help("tutorial", 80, "--serve")


@pytest.mark.parametrize("config_class", FLOWS.values())
def test_help_tells_the_bounds_of_a_number(config_class: type[BaseModel]) -> None:
    """Those that a person might meet: that a count is at least 1, and a rate above 0, goes without saying."""
    told: dict[str, str] = {name: str(one.description) for name, one in config_class.model_fields.items()}
    for name, one in config_class.model_fields.items():
        for bound in (getattr(rule, "le", None) or getattr(rule, "lt", None) for rule in one.metadata):
            if bound is not None and bound < 2**31:
                assert re.search(rf"\b{bound:g}\b" if bound < 1e5 else str(bound), told[name]), name


def test_success_shows_a_table_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config: Told()) == 0
    out, err = capsys.readouterr()
    assert re.search(r"status\s+completed", out)
    assert re.search(r"y at 4\s+8", out)
    assert err == ""


def test_the_work_gets_the_configuration() -> None:
    got: list[TrainConfig] = []

    def work(config: TrainConfig) -> Told:
        got.append(config)
        return Told()

    config = TrainConfig(seed=3)
    with pytest.raises(SystemExit):
        command_line.run(Request(config, False, False), "train", work)
    assert got == [config]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FourfoldError("the work failed"), 1),
        (DivergedError("the work failed"), 1),
        (ParityError("the work failed"), 1),
        (RequestError("the work failed"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_foreseen_end_is_one_sentence_and_its_own_code(
    error: FourfoldError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "train: the work failed\n")


def test_an_unexpected_exception_is_one_line_with_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyError("a\nb"))) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "KeyError" in err
    assert "--verbose" in err


def test_an_exception_without_words_still_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError())) == 1
    assert re.search(r"ValueError: no reason given", capsys.readouterr().err)


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError("a fault")), verbose=True) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("train: ValueError: a fault\n")


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "train: interrupted\n"


@pytest.mark.parametrize("code", [None, "a sentence"])
def test_an_exit_that_a_users_module_asks_for_is_no_success(code: str | None) -> None:
    """`sys.exit()` and `sys.exit("a sentence")`: the model was not trained, and the code is a number."""
    assert run(raising(SystemExit(code))) == 1


def test_what_is_known_of_a_failed_run_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(DivergedError("the loss went off"), Told("diverged", {"status": "diverged"})))
    out, err = capsys.readouterr()
    assert re.search(r"status\s+diverged", out)
    assert err == "train: the loss went off\n"


@pytest.mark.parametrize(
    ("work", "code", "expected"),
    [
        (lambda config: Told(), 0, {"flow": "train", "status": "completed"}),
        (raising(DivergedError("off"), Told("diverged")), 1, {"flow": "train", "status": "diverged"}),
        (raising(KeyboardInterrupt(), Told("failed")), 130, {"flow": "train", "status": "failed"}),
        (raising(RequestError("no such file")), 2, {"flow": "train", "status": "failed", "reason": "no such file"}),
        (raising(KeyboardInterrupt()), 130, {"flow": "train", "status": "failed", "reason": "interrupted"}),
        (raising(SystemExit(143)), 143, {"flow": "train", "status": "failed", "reason": "interrupted"}),
    ],
    ids=["success", "failure with a result", "interrupt with a result", "refusal", "interrupt", "SIGTERM"],
)
def test_json_is_all_of_standard_output_however_the_work_ends(
    work: Callable[[TrainConfig], Any], code: int, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(work, as_json=True) == code
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == expected


def test_with_json_the_table_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(lambda config: Told(), as_json=True)
    assert re.search(r"y at 4\s+8", capsys.readouterr().err)


# A whole process, as a flow's file has it; WORK is what the flow does.
SCRIPT = """
import os, sys, time
from fourfold.configuration import TrainConfig
from fourfold.errors import DivergedError
from tasks import command_line

class Told:
    def as_json(self):
        return {"flow": "train", "status": "completed"}
    def rows(self):
        return {"status": "completed"}
    def tables(self):
        return ()

def work(config):
    WORK

request = command_line.read("train", TrainConfig, "Train a model.")
command_line.run(request, "train", work)
"""


def process(work: str, *arguments: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("WORK", work), *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("return Told()", 0),
        ("raise DivergedError('off')", 1),
        ("raise SystemError('a fault')", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_a_process_flushes_its_last_line_through_a_pipe_and_ends_with_its_code(work: str, code: int) -> None:
    """The process leaves without the interpreter's own clean-up, which would have flushed."""
    child = process(work, "--json")
    out, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert json.loads(out.splitlines()[-1])["flow"] == "train"
    assert "Traceback" not in err


def test_a_wrong_line_ends_a_process_with_2_and_one_line() -> None:
    child = process("return Told()", "--epochs", "0")
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err.count("\n")) == (2, "", 1)


def test_a_reader_that_left_early_is_no_fault_of_the_run() -> None:
    """As in `train_flow.py | head -1`."""
    read_end, write_end = os.pipe()
    child = process("sys.stdin.readline(); return Told()", stdout=write_end)
    os.close(write_end)
    os.close(read_end)
    _, err = child.communicate("go\n", timeout=60)
    assert child.returncode == 0
    assert "Traceback" not in err


def test_sigterm_ends_a_process_with_143_and_its_json() -> None:
    child = process("print('begun', flush=True); time.sleep(60)", "--json")
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["status"] == "failed"


def test_ctrl_c_ends_a_process_with_130_and_one_line() -> None:
    child = process("print('begun', flush=True); time.sleep(60)")
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "train: interrupted\n")


def test_ctrl_c_that_a_library_covers_ends_a_process_with_130_all_the_same() -> None:
    work = "try: signal.raise_signal(signal.SIGINT)\n    finally: raise ValueError('it was not open')"
    child = process(f"import signal\n    {work}")
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "train: interrupted\n")


def test_ctrl_c_during_the_imports_ends_with_130_and_one_line() -> None:
    script = (
        "import sys, time\n"
        "from fourfold.configuration import TrainConfig\n"
        "from tasks import command_line\n"
        "command_line.read('train', TrainConfig, '', [])\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "interrupted\n")


def test_a_fault_during_the_imports_shows_its_traceback() -> None:
    script = (
        "from fourfold.configuration import TrainConfig\n"
        "from tasks import command_line\n"
        "command_line.read('train', TrainConfig, '', [])\n"
        "import no_such_module\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in ended.stderr
