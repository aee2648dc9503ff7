"""Random requests, and the judge of how a flow's process ends on them.

Serves the suite and `benchmarks/wrong_requests.py`.

A case is run by a copy (fork) of a process that has imported everything already: it is a process of its own, with the
real `flows/*.py` as its main program, for a hundredth of the price. What it may not do is seen from outside.

The contract: exit code 0, 1 or 2, in time and without a signal. On 2 one line on standard error and nothing else
anywhere: no output, no file, no run. On 1 one line that begins with the flow's name, beside lines of progress, and a
reason that somebody foresaw. On 0 and 1 no run is left open. No traceback and no temporary file, ever.
"""

import contextlib
import gc
import inspect
import io
import json
import os
import re
import shutil
import sqlite3
import string
import subprocess
import sys
import tempfile
import types
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fourfold.configuration import (
    MODELS,
    CompareConfig,
    FlowConfig,
    PredictConfig,
    TrainConfig,
    TutorialConfig,
    VerifyConfig,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS: dict[str, type[FlowConfig]] = {
    "train": TrainConfig, "compare": CompareConfig, "tutorial": TutorialConfig, "predict": PredictConfig,
    "verify": VerifyConfig,
}  # fmt: skip
SECONDS = {False: 30, True: 90}  # a request that is only checked, and a whole run
MEMORY = 3 * 2**30  # bytes that a case may take beyond what the imports have; a machine's end, without its freezing
NOBODY_LISTENS = "http://127.0.0.1:9/api"
# ======================================================================================================== the process


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        files: by the name they get in the folder that the flow is started in.
        whole: run it to its end; else a sound request ends where it asks for Prefect's server, which does not answer.
        deployed: the configuration as a deployment of Prefect would hand it to the flow's function, without a command.
        encoding: of the standard streams.
    """

    flow: str
    arguments: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    whole: bool = False
    deployed: Mapping[str, Any] | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Ending:
    """How it ended, and what it left: `code` is None where it had to be stopped, negative after a signal."""

    code: int | None
    out: str
    err: str
    seconds: float
    created: tuple[str, ...]
    temporary: tuple[str, ...]
    open_runs: int
    runs: int


class Runner:
    """Runs cases, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": NOBODY_LISTENS,
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false", "COLUMNS": "120",
            "MPLCONFIGDIR": str(folder / "matplotlib"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip
        with (folder / "runner.err").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip
        self.empty_database = folder / "template.db"
        self._ask(action="tables", path=str(self.empty_database), folder=str(folder), seconds=120)

    def close(self) -> None:
        """End the process."""
        with self.process as process:
            assert process.stdin is not None, "it is a pipe"
            process.stdin.close()

    def run(self, case: Case) -> Ending:
        """Run a case in a folder of its own, which is gone afterwards."""
        self.number += 1
        place = self.folder / f"case {self.number}"
        try:
            return self._run(case, place)
        finally:
            shutil.rmtree(place)

    def _run(self, case: Case, place: Path) -> Ending:
        here, temporary = place / "here", place / "tmp"
        for folder in (here, temporary):
            folder.mkdir(parents=True)
        for name, content in case.files.items():
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_bytes(content)
        database = here / "mlflow.db"
        if case.whole or case.deployed is not None:
            shutil.copy(self.empty_database, database)
        before = set(_below(here))
        answer = self._ask(
            action="flow", flow=case.flow, arguments=case.arguments, deployed=case.deployed, whole=case.whole,
            encoding=case.encoding, folder=str(here), temporary=str(temporary), seconds=SECONDS[case.whole],
        )  # fmt: skip
        statuses = _statuses(database) if database.is_file() else []
        return Ending(
            answer["code"],
            *((place / name).read_bytes().decode(errors="backslashreplace") for name in ("out", "err")),
            answer["seconds"],
            tuple(sorted(set(_below(here)) - before)),
            tuple(sorted(_below(temporary))),
            sum(status in ("RUNNING", "SCHEDULED", "PENDING_REGISTRATION") for status in statuses),
            len(statuses),
        )

    def keep(self, case: Case, *names: str) -> dict[str, bytes]:
        """Run a case that is sound, and give some of the files that its run keeps."""
        place = self.folder / "kept"
        ending = self._run(case, place)
        assert ending.code == 0, ending.err
        found = {name: next((place / "here").rglob(name)).read_bytes() for name in names}
        shutil.rmtree(place)
        return found

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None, "it is a pipe"
        assert self.process.stdout is not None, "it is a pipe"
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, (self.folder / "runner.err").read_text()
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running() -> Iterator[Runner]:
    """A runner, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="requests-") as folder:
        runner = Runner(Path(folder))
        try:
            yield runner
        finally:
            runner.close()


def _below(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*"))


def _statuses(database: Path) -> list[str]:
    """Of runs, and of models that are still being registered."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [
            str(status)
            for table in ("runs", "model_versions")
            for (status,) in connection.execute(f"SELECT status FROM {table}")
        ]


def complaints(case: Case, ending: Ending) -> list[str]:
    """What of the contract was broken; empty where nothing was."""
    if ending.code is None:
        return [f"it did not end within {SECONDS[case.whole]} s"]
    lines, as_json = ending.err.splitlines(), "--json" in case.arguments
    reasons = [line for line in lines if line.startswith(f"{case.flow}: ")]
    others = [line for line in lines if line not in reasons and not _PROGRESS.match(line)]
    expected = {
        "exit code {}": ending.code in (0, 1, 2),
        "a traceback": "Traceback" not in ending.err + ending.out,
        "left {temporary} behind": not ending.temporary,
        "{open_runs} runs or models left open": not ending.open_runs,
        "an unforeseen fault: {reasons}": not any(line.endswith("; --verbose shows where") for line in reasons),
    }
    if ending.code == 2:
        expected |= {
            "not one line on standard error: {err}": len(lines) == 1 and bool(lines[0].strip()),
            "on standard output: {out}": not ending.out or (as_json and _is_json(ending.out)),
            "a wrong request created {created}": not ending.created,
            "a wrong request made {runs} runs": not ending.runs,
        }
    else:
        expected |= {
            "not one line of reason: {reasons}": len(reasons) == ending.code,
            "on standard error: {others}": not others or as_json,  # then the table for people is there as well
            "no JSON on the last line: {out}": not as_json or _is_json(ending.out) or "--help" in case.arguments,
        }
    shown = {**vars(ending), "reasons": reasons, "others": others}
    return [_spelled(complaint, ending, shown) for complaint, kept in expected.items() if not kept]


def _spelled(complaint: str, ending: Ending, shown: Mapping[str, Any]) -> str:
    return complaint.format(ending.code, **{name: f"{value!r:.300}" for name, value in shown.items()})


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads((text.splitlines() or [""])[-1]), dict)
    except ValueError:
        return False


_PROGRESS = re.compile(r"(training|comparing|predicting|level .*): (epoch|training|row|step) \d+")
# ============================================================================================== what is inside of it


def _serve() -> None:
    """Import everything once, then run each request in a copy of this process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tasks import prefect_api, services

    services.prepare_environment()
    prefect_api.answers = _whole_runs_need_no_server
    import prefect

    # Prefect's engine would take a second a step. What it does to a request, validate it, stays.
    prefect.flow = _called_directly  # type: ignore[assignment]
    prefect.task = _called_directly  # type: ignore[assignment]
    import importlib

    for name in _IMPORTED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)  # a thread would not come along into the copy
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_in_a_copy(request)) + "\n")
        answers.flush()


_IMPORTED = (
    "flows.compare_flow", "flows.predict_flow", "flows.train_flow", "flows.tutorial_flow", "flows.verify_flow",
    "torch._dynamo", "torch.onnx", "onnxscript", "onnx.reference", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store", "mlflow.pyfunc", "matplotlib.pyplot", "rich.progress",
)  # fmt: skip


def _called_directly(function: Any = None, **options: Any) -> Any:
    if function is None:
        return lambda function: _called_directly(function, **options)
    if "flow_run_name" not in options:
        return function
    from pydantic import validate_call

    called: Any = validate_call(function)
    called.fn, called.name = function, options["name"]
    return called


def _whole_runs_need_no_server(url: str, seconds: float) -> bool:
    return os.environ.get("REQUEST_IS_WHOLE") == "1"


def _in_a_copy(request: dict[str, Any]) -> dict[str, Any]:
    import select
    import signal
    import time

    started = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            _become(request)
        finally:
            os._exit(70)  # nothing of the copy may go on reading requests
    descriptor = os.pidfd_open(child)
    in_time = bool(select.select([descriptor], [], [], request["seconds"])[0])
    os.close(descriptor)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it has started
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status) if in_time else None
    return {"code": code, "seconds": time.perf_counter() - started}


def _become(request: dict[str, Any]) -> None:
    import resource

    os.setsid()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    os.chdir(request["folder"])
    if request["action"] == "tables":
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{request['path']}").search_experiments()
        os._exit(0)
    os.environ |= {
        "TMPDIR": request["temporary"], "MLFLOW_TRACKING_URI": f"sqlite:///{request['folder']}/mlflow.db",
        "REQUEST_IS_WHOLE": str(int(request["whole"])),
    }  # fmt: skip
    tempfile.tempdir = None
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined] # anew, so that it runs before ours
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (  # as the interpreter opens them
        io.TextIOWrapper(
            open(number, "wb", closefd=False), request["encoding"], errors, line_buffering=number == 2  # noqa: SIM115 - the process is theirs
        )
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )  # fmt: skip
    code = 0
    try:
        if request["deployed"] is None:
            _main(request)
        else:
            code = _deployed(request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main(request: dict[str, Any]) -> None:
    import runpy

    script = str(ROOT / "flows" / f"{request['flow']}_flow.py")
    sys.argv = [script, *request["arguments"]]
    runpy.run_path(script, run_name="__main__")


def _deployed(request: dict[str, Any]) -> int:
    from importlib import import_module

    from pydantic import ValidationError

    from fourfold.errors import FourfoldError

    name = f"{request['flow']}_flow"
    try:
        getattr(import_module(f"flows.{name}"), name)(config=request["deployed"])
    except ValidationError:
        print("not a configuration", file=sys.stderr)
        return 2
    except Exception as error:
        # A deployment's run is there before anybody can look at the request: a refusal is a failed run.
        unforeseen = "" if isinstance(error, FourfoldError) else "; --verbose shows where"
        print(f"{request['flow']}: {type(error).__name__}: {' '.join(str(error).split())}{unforeseen}", file=sys.stderr)
        return 1
    return 0


# ========================================================================================================= strategies

NUMBERS = [
    "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e400", "-1e400", "1e-400", "1e308", "-1e308", "1e39", "5e-324",
    "0", "-0", "-0.0", "-1", "1", "2", "3", "1.5", "2.0", "1e5", "1_000", "0x10", "1e", ".", "+1", "00", "٣", "１",
    "½", "1,5", "1 000",
    *(str(2**power + more) for power in (15, 31, 32, 53, 62, 63, 64, 128) for more in (-1, 0)), str(-(2**63)),
    "10000000000", "9" * 400,
    "9" * 5000, "1" + "0" * 350 + ".5",
]  # fmt: skip
WORDS = [
    "", " ", "\t", "\n", "a\nb", "\r", "\x1b[31mred", "\x07", "\x7f", "\u202eabc", "\u2028", "é", "😀", "ı", "ß",
    "\udcff", "a\udc80b",
    "true", "false", "none", "None", "null", "[]", "[1]", "{}", "()", "[" * 500, "(" * 500, "[" * 100_000,
    "-" * 5000 + "1", "lambda: 1", "__import__('os')", "'", '"', "\\", "--", "-", "--lr",
    "-1.5", "--unknown", "=", "a=", "=1", "a=1", "a=b=c", ",", ",,,", "1,", ",1", "1,2,3", "a,b", ":", "a:b", "a:b:c",
    "..", "../x", "/", "/dev/null", "/nowhere/x.csv",
    "~", "*", "%s", "{0}", "${HOME}", "$(id)", "`id`", ";", "|", "&", "<b>", "'; DROP TABLE runs; --", "a" * 300,
    "a" * 5000,
    "é" * 300, "latest", "models:/", "models:/x/1", "models:/x@y", "models:/../x", "models:/x/99999999999999999999",
    "0" * 32,
    "rows.csv", "rows.parquet", ".csv", "x.csv", "x.parquet", "x.onnx", "SGD", "x", "y",
]  # fmt: skip
# Legitimate, and longer than anybody would wait for: how many times something is done.
REPETITIONS = {"epochs", "steps", "budget", "max_iter", "max_eval", "ns_steps", "seeds", "learning_rates", "workers"}
FEW = [str(number) for number in (-1, 0, 1, 2, 3)]
LENGTHS = [*FEW, "1.5", "nan", "inf", "-inf", "", "x", str(10**15), str(2**63 - 1), str(2**63), str(10**30), "9" * 5000]
GOOD: dict[str, list[str]] = {
    "data": ["line", "sine", "rows.csv", "rows.parquet", "semicolons.csv"],
    "target": ["y", "a", "a,y"], "features": ["a", "b", "a,b", "a,a"],
    "model": [
        *MODELS, "torch.nn:Linear", "torch.nn:Bilinear", "torch.nn:Identity", "torch.nn:LSTM", "torch.nn:LazyLinear",
        "torch.nn:Module", "math:sqrt", "nowhere:Net", "torch.nn:Nothing", "collections:OrderedDict", "...:x", ".:x",
        "torch.:x",
    ],
    "hidden": ["1", "32,32", "4,4,4", "10000000000", "100000,100000", "1000000", "0,3"],
    "at": ["4", "1,2", "nan", "1e300", "1e39"],
    "start": ["weight=1", "bias=0", "linear.weight=1", "w=1", "b=1e39", "*=0", "linear.bias=1,2"],
    "lr_for": ["bias=0.1", "*=0.1", "weight=nan", "bias=1e400", "bias=0", "weight=1e-400"],
    "optimizers": ["all", "SGD,Adam", "SGD:momentum=0.9,LBFGS", "SGD,SGD", "SGD:lr=1,Adam", "SGD:weight_decay=1,Adam"],
    "input": ["rows.csv", "rows.parquet", "line.csv"], "output": ["out.csv", "out.parquet", "rows.csv", "no/out.csv"],
    "keep": ["a", "y", "a,y", "predicted_y"], "promote": ["1", "models:/x/1", "0"],
    "registered_name": ["line", "a b", "é"],
}  # fmt: skip
PLAIN = string.digits + string.ascii_letters + "-=,.:/ "
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.text(PLAIN, max_size=8),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
)
_EDGES = st.sampled_from([number for number in NUMBERS if number[:1] in set("0123456789-.") and len(number) < 50])
VALUES = st.one_of(st.sampled_from(NUMBERS), TEXTS, st.floats().map(repr), st.integers().map(str))


@cache
def _torch_options(kind: str) -> dict[str, dict[str, Any]]:
    """Every optimizer, or scheduler, of torch with its options and their defaults."""
    from fourfold import optimizers

    classes: Mapping[str, type] = getattr(optimizers, f"{kind}_classes")()
    return {
        name: {one.name: one.default for one in [*inspect.signature(made).parameters.values()][1:] if one.name != "lr"}
        for name, made in classes.items()
    }


@st.composite
def assignments(draw: st.DrawFn, kind: str) -> list[str]:
    """An optimizer or a scheduler, and options that it has with values that nobody expects."""
    flag, option = {"optimizer": ("--optimizer", "--option"), "scheduler": ("--scheduler", "--scheduler-option")}[kind]
    name = draw(st.sampled_from(sorted(_torch_options(kind))))
    known = _torch_options(kind)[name]
    required = [one for one, default in known.items() if default is inspect.Parameter.empty]
    line = [flag, name]
    for one in [*required, *draw(st.lists(st.sampled_from([*known]), min_size=1, max_size=2))]:
        line += [option, f"{one}={draw(_setting(one, known[one]))}"]
    return line


def _setting(name: str, default: Any) -> SearchStrategy[str]:
    """A value for an option of torch: of its default's type more often than not, and then seldom a sensible one."""
    if name in REPETITIONS:
        return st.sampled_from(LENGTHS)
    number = st.one_of(st.sampled_from(["0", "1", "2", "3", "0.5", "0.999", "-1"]), _EDGES, st.floats(-2, 2).map(repr))
    if isinstance(default, bool) or default is None:
        likely = st.one_of(st.sampled_from(["true", "false"]), number)
    elif isinstance(default, tuple):
        likely = st.lists(number, min_size=len(default), max_size=len(default)).map(",".join)
    else:
        likely = st.one_of(number, number, st.lists(number, min_size=2, max_size=3).map(",".join))
    return _mostly(likely, VALUES)


def _mostly(likely: SearchStrategy[Any], wild: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.integers(0, 4).flatmap(lambda number: likely if number else wild)


def _values(name: str, annotation: Any) -> SearchStrategy[str]:
    """What may be typed for an option: good more often than wild, so that the wild one beside it is reached."""
    if name in REPETITIONS:
        return st.sampled_from(LENGTHS)
    if name in ("option", "scheduler_option"):
        return st.builds("{}={}".format, st.sampled_from(["momentum", "lr", "foreach", "gamma", "step_size"]), VALUES)
    good = GOOD.get(name) or list(_likely(annotation))
    if name in ("optimizer", "scheduler"):
        good = [*_torch_options(name)]
    likely: SearchStrategy[str] = st.sampled_from(good) if good else TEXTS
    if {"0", "1"} & set(good):
        likely = st.one_of(likely, _EDGES)
    return _mostly(likely, VALUES)


def _likely(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        yield from map(str, arguments)
    elif origin is typing.Annotated:
        yield from _likely(arguments[0])
    elif origin in (typing.Union, types.UnionType, tuple):
        for argument in arguments:
            yield from _likely(argument)
    elif annotation is int:
        yield from ("0", "1", "2", "7")
    elif annotation is float:
        yield from ("0", "0.5", "0.01", "1", "5")


def spelling(name: str, config: type[FlowConfig]) -> str:
    """An option as it is typed."""
    named = (one.name[0] for one in config.model_fields[name].metadata if isinstance(one, Parameter) and one.name)
    return next(named, f"--{name.replace('_', '-')}")


@st.composite
def one_option(draw: st.DrawFn, flow: str) -> list[str]:
    """One option of a flow, with a value where it takes one."""
    config = CONFIGS[flow]
    name = draw(st.sampled_from(sorted(config.model_fields)))
    option, annotation = spelling(name, config), config.model_fields[name].annotation
    if annotation is bool and draw(st.integers(0, 3)):
        return [draw(st.sampled_from([option, f"--no-{option[2:]}"]))]
    value = draw(_values(name, annotation))
    return draw(st.sampled_from([[option, value], [option, value], [f"{option}={value}"], [option]]))


LINES_FILES = {
    "rows.csv": b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (i, i * i % 7, 3 * i + i % 3) for i in range(12)),
    "semicolons.csv": b"a;b;y\n1,5;2;3\n2,5;1;4\n3;7;9,5\n",
    "line.csv": b"x\n1\n2\n",
}
SHORT = {
    "train": ("--epochs", "2"),
    "compare": ("--budget", "2", "--seeds", "2", "--learning-rates", "2", "--workers", "1", "--optimizers", "SGD,Adam"),
    "tutorial": ("--steps", "2"), "predict": (), "verify": (),
}  # fmt: skip
ENCODINGS = st.sampled_from(["utf-8"] * 6 + ["ascii", "latin-1"])


def _names(line: tuple[str, ...] | list[str]) -> set[str]:
    return {one.partition("=")[0] for one in line if one.startswith("--")}


@st.composite
def command_lines(draw: st.DrawFn, flow: str, *, whole: bool = False, model: bytes = b"", table: bytes = b"") -> Case:
    """Options alone, in pairs and repeated, and now and then what is no option at all."""
    line: list[str] = []
    if flow == "predict" and draw(st.integers(0, 7)):
        line += ["--model", "line.onnx"]
        line += draw(st.sampled_from([["--at", "4"], ["--input", "line.csv", "--output", "out.csv"]]))
    if flow == "verify" and draw(st.integers(0, 3)):
        line += ["--model", draw(st.sampled_from([".", "line.onnx", "models:/x@champion"]))]
    if flow == "train" and draw(st.booleans()):
        line += draw(st.sampled_from([
            ["--data", "rows.csv", "--target", "y"], ["--data", "rows.parquet", "--target", "y"],
            ["--data", "rows.csv", "--target", "y", "--stream", "--batch-size", "3"],
        ]))  # fmt: skip
    for _ in range(draw(st.sampled_from([1, 1, 2, 2, 2, 3]))):
        line += draw(one_option(flow))
    if flow == "train" and not draw(st.integers(0, 3)):
        line += draw(st.one_of(assignments("optimizer"), assignments("scheduler")))
    if not draw(st.integers(0, 9)):
        line.insert(draw(st.integers(0, len(line))), draw(VALUES))
    line += draw(st.sampled_from([[], [], [], ["--json"], ["--help"] if not draw(st.integers(0, 5)) else []]))
    bounded = SHORT[flow]
    for option, value in zip(bounded[::2], bounded[1::2], strict=True):
        if option not in _names(line):
            line += [option, value]
    files = {**LINES_FILES, "line.onnx": model, "rows.parquet": table or _parquet({"a": [1.0, 2, 4], "y": [1, 3, 8]})}
    return Case(flow, tuple(line), files, whole, encoding=draw(ENCODINGS))


def _parquet(columns: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    sink = io.BytesIO()
    pa.parquet.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()


# What JSON can hold, which is how a deployment's parameters travel.
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(WORDS), st.sampled_from(NUMBERS),
    st.sampled_from([2**63, 10**400, -1, 0, 1e308, float("nan"), float("inf"), "\0", "\ud800"]),
)  # fmt: skip
_ROWS = st.lists(_VALUES, max_size=3)
_JSON = st.one_of(_VALUES, _ROWS, st.lists(_ROWS, max_size=2), st.fixed_dictionaries({"lr": _VALUES}))


@st.composite
def deployments(draw: st.DrawFn, flow: str, *, model: bytes = b"") -> Case:
    """A configuration as a dictionary."""
    fields = CONFIGS[flow].model_fields
    configuration: dict[str, Any] = {}
    if flow == "predict":
        configuration |= {"model": "line.onnx", "at": [[4]]}
    for name in draw(st.lists(st.sampled_from([*sorted(fields), "unknown"]), min_size=1, max_size=2, unique=True)):
        typed = _values(name, fields[name].annotation) if name in fields else VALUES
        configuration[name] = draw(st.sampled_from(LENGTHS) if name in REPETITIONS else st.one_of(typed, _JSON))
    for option, value in zip(SHORT[flow][::2], SHORT[flow][1::2], strict=True):
        configuration.setdefault(option[2:].replace("-", "_"), value.split(",") if "," in value else value)
    return Case(flow, (), {**LINES_FILES, "line.onnx": model}, whole=True, deployed=configuration)


# ------------------------------------------------------------------------------------------------------------- bytes


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Real bytes with up to four faults: cut, flipped, replaced, doubled, put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 40))
        match draw(st.sampled_from(["cut", "flip", "replace", "double", "insert", "truncate"])):
            case "cut":
                del data[at : at + length]
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "double":
                data[at:at] = data[at : at + length]
            case "insert":
                data[at:at] = draw(st.one_of(st.binary(max_size=12), st.sampled_from(_PIECES)))
            case "truncate" if not draw(st.integers(0, 3)):
                del data[at:]
    return bytes(data)


_PIECES = [
    b'"', b'""', b'"\n', b"\n\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b",", b";", b"\t",
    b",,,,", b"\x80", b"\xc3",
    b"1e400", b"-1e400", b"1e39", b"nan", b"inf", b"1,5", b"9" * 400, b"\xe2\x80\xa8", b"\x1a", b"\xff" * 9,
    b"\x08\x80\x80\x80\x80\x80",
]  # fmt: skip
COLUMNS = [
    "x", "y", "a", "loss", "lr", "epoch", "gradient_evaluations", "w", "b", "w/a", "final_loss", "a/b", "", " ", " a",
    "a.b", "../x", "é", "😀",
    "a\tb", "a\nb", "a,b", 'a"b', "<b>", "set", "predicted_y", "seconds", "c" * 300, "c" * 5000, "\x1b[31m", "1",
    "nan", "a=b", "a;b", "--lr",
]  # fmt: skip
CELLS = [
    "1", "2", "3.5", "-4", "0", "1e3", "", "nan", "NA", "null", "inf", "-inf", "1e400", "1e39", "-1e39", "1e300",
    "1e-320", "1,5", "1.000,5", "true", "false", "text",
    "2024-01-01", "12:30", "٣", "0x1F", "1e", "9" * 30, "9" * 400, '"', "'", " 1", "1 ", "\t", "9223372036854775808",
    "😀", "1" * 70_000,
]  # fmt: skip
_columns = st.lists(st.one_of(st.sampled_from(["a", "x", "y"]), st.sampled_from(COLUMNS)), min_size=1, max_size=4)
_numbers = st.one_of(st.integers(-9, 9).map(str), st.floats(-1e6, 1e6).map(repr))


@st.composite
def csv_files(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A CSV file, real but for some faults, or none at all, and the names of its columns."""
    names = draw(_mostly(st.permutations(["a", "b", "x", "y"]).map(lambda names: names[1:]), _columns))
    if not draw(st.integers(0, 9)):
        return draw(st.binary(max_size=200)), names
    width = len(names)
    strange = st.sampled_from(draw(st.lists(st.sampled_from(CELLS), min_size=1, max_size=2)))
    cells = draw(st.sampled_from([_numbers, _numbers, st.one_of(*[_numbers] * 6, strange)]))
    rows = draw(
        st.lists(
            st.lists(cells, min_size=width, max_size=width), min_size=draw(st.sampled_from([0, 4, 6, 6])), max_size=8
        )
    )
    if rows and not draw(st.integers(0, 5)):
        ragged = draw(st.sampled_from(rows))
        ragged += ["7"] * draw(st.integers(1, 2)) if draw(st.booleans()) else []
        del ragged[draw(st.integers(0, len(ragged))) :]
    sign = draw(st.sampled_from([",", ",", ",", ";", "\t", "|"]))
    newline = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\u2028"]))
    quoted: Callable[[str], str] = draw(st.sampled_from([_when_needed, _when_needed, _always, str]))
    text = newline.join(sign.join(quoted(cell) for cell in row) for row in [names, *rows])
    text += draw(st.sampled_from(["", newline, newline * 3, '"']))
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"]))
    content = text.encode(encoding, "replace")
    return (draw(mutated(content)) if content and not draw(st.integers(0, 2)) else content), names


def _always(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def _when_needed(cell: str) -> str:
    return _always(cell) if set(cell) & set(',;\t|"\r\n') else cell


@st.composite
def parquet_files(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A Parquet file of columns of any type, real or with faults, and the names of its columns."""
    import datetime
    import decimal

    rows = draw(st.sampled_from([0, 1, 4, 6, 8, 8, 8]))
    kinds: list[SearchStrategy[Any]] = [
        st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(-9, 9), st.floats(), st.integers(0, 2**63 - 1),
        st.booleans(),
        st.none(), st.text(max_size=3), st.just(datetime.date(2024, 1, 1)), st.just(decimal.Decimal("1.50")),
        st.binary(max_size=3),
        st.lists(st.integers(0, 3), max_size=2), st.fixed_dictionaries({"k": st.integers(0, 3)}), st.one_of(st.none(),
        st.floats(-9, 9)),
    ]  # fmt: skip
    columns: dict[str, Any] = {}
    for name in draw(
        _mostly(st.just(["a", "x", "y"]), st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True))
    ):
        kind = draw(st.sampled_from(kinds[:3] if draw(st.booleans()) else kinds))
        columns[name] = draw(st.lists(kind, min_size=rows, max_size=rows))
    content = _parquet(columns)
    return (draw(mutated(content)) if draw(st.booleans()) else content), list(columns)


@st.composite
def tables(draw: st.DrawFn, kind: str, *, whole: bool = False, flow: str = "train", model: bytes = b"") -> Case:
    """A file of rows to train on, or to predict."""
    content, names = draw(csv_files() if kind == "csv" else parquet_files())
    name = f"rows.{kind}"
    if flow == "predict":
        keep = [["--keep", names[0]]] if names[0] else []
        line = ["--model", "line.onnx", "--input", name, "--output", draw(st.sampled_from(["out.csv", "out.parquet"]))]
        return Case(flow, (*line, *draw(st.sampled_from([[], [], *keep]))), {name: content, "line.onnx": model}, whole)
    target = draw(st.sampled_from([names[-1], names[-1], names[-1], "y"]))
    line = ["--data", name, *SHORT["train"], f"--target={target}"]
    line += draw(st.sampled_from([
        [], [], ["--missing", "drop"], ["--missing", "mean"], ["--stream", "--batch-size", "2"], ["--dtype",
        "float64"], ["--model", "mlp"],
        ["--model", "polynomial"], [f"--features={names[0]}"], ["--no-standardize"], ["--test-fraction", "0"],
        ["--decorrelate"],
        ["--validation-fraction", "0.3"], ["--stream", "--missing", "mean", "--batch-size", "1"], ["--stream",
        "--missing", "drop", "--batch-size", "100"],
    ]))  # fmt: skip
    return Case("train", tuple(line), {name: content}, whole, encoding=draw(ENCODINGS))


_ABOUT = [
    "", "[]", "{}", "5", "null", "NaN", '"x"', "[1]", "[null]", '["x","x"]', '["a","b"]', '[["x"]]', '{"x":1}',
    "[" * 100_000, '{"features":{}}',
    '{"features":3,"targets":4}', '{"features":{"x":{"low":"a","high":null}},"targets":{}}',
    '{"features":{"x":{}},"targets":{"y":{}}}', '["\\ud800"]',
    '{"features":{"x":{"low":NaN,"high":1e999,"mean":[],"deviation":-1}},"targets":{"y":{}}}', "mean", "9" * 5000,
]  # fmt: skip


@st.composite
def onnx_files(draw: st.DrawFn, model: bytes) -> bytes:
    """A model file with faults in its bytes, or in what they say."""
    import onnx

    match draw(st.sampled_from(["bytes", "bytes", "noise", "about", "graph"])):
        case "bytes":
            return draw(mutated(model))
        case "noise":
            parts = st.lists(
                st.tuples(st.integers(0, 15), st.sampled_from([0, 1, 2, 5]), st.binary(max_size=8)), max_size=12
            )
            return b"".join(
                bytes([number << 3 | wire]) + (bytes([len(data)]) if wire == 2 else b"") + data
                for number, wire, data in draw(parts)
            )
        case "about":
            proto = onnx.load_model_from_string(model)
            for entry in proto.metadata_props:
                if entry.key in ("features", "targets", "training", "missing") and draw(st.booleans()):
                    entry.value = draw(st.sampled_from(_ABOUT))
            return bytes(proto.SerializeToString())
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    match draw(st.integers(0, 8)):
        case 0:
            graph.input[0].name = draw(st.sampled_from(["", "z", "y", "a\nb"]))
        case 1:
            graph.input[0].type.tensor_type.elem_type = draw(st.integers(0, 25))
        case 2:
            graph.output[0].type.tensor_type.shape.dim[1].dim_value = draw(st.sampled_from([0, -1, 2, 2**62]))
        case 3:
            draw(st.sampled_from(list(graph.node))).op_type = draw(
                st.sampled_from(["", "Nothing", "Relu", "RandomNormal", "Gemm", "MatMul", "If", "Loop"])
            )
        case 4 if graph.initializer:
            draw(st.sampled_from(list(graph.initializer))).raw_data = draw(st.binary(max_size=16))
        case 5 if graph.initializer:
            draw(st.sampled_from(list(graph.initializer))).dims.append(draw(st.sampled_from([0, 1, -1, 2**31, 2**62])))
        case 6:
            del graph.input[:]
        case 7:
            proto.ir_version = draw(st.sampled_from([0, 1, 99, 2**40]))
        case _:
            proto.opset_import[0].version = draw(st.sampled_from([0, 1, 19, 21, 99, -1, 2**40]))
    return bytes(proto.SerializeToString())


@st.composite
def golden_files(draw: st.DrawFn, golden: bytes) -> bytes:
    """Golden predictions with faults in their bytes, or in what they say."""
    import pyarrow as pa
    import pyarrow.parquet

    if draw(st.booleans()):
        return draw(mutated(golden))
    table = pa.parquet.read_table(io.BytesIO(golden))
    about = json.loads(table.schema.metadata[b"fourfold"])
    for key in draw(st.lists(st.sampled_from(sorted(about)), max_size=2)):
        about[key] = draw(
            st.one_of(
                _JSON.filter(lambda value: "\\ud" not in json.dumps(value)), st.sampled_from([[], {}, 5, None, "x"])
            )
        )
    name = draw(st.sampled_from(table.column_names))
    match draw(st.integers(0, 5)):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.slice(0, draw(st.integers(0, 2)))
        case 2:
            number = table.column_names.index(name)
            strange: list[Any] = draw(
                st.sampled_from([[None], [1], ["x"], [[1.0]], [[1.0, 2.0]], [[float("nan")]], [[]], [True]])
            )
            table = table.set_column(number, name, pa.array(strange * table.num_rows))
    sink = io.BytesIO()
    pa.parquet.write_table(table.replace_schema_metadata({b"fourfold": json.dumps(about)}), sink)
    return sink.getvalue()


@st.composite
def model_folders(draw: st.DrawFn, model: bytes, golden: bytes) -> Case:
    """A model to prove again, with faults in it or in what was proved."""
    files = {"model.onnx": model, "golden.parquet": golden}
    if draw(st.booleans()):
        files["model.onnx"] = draw(onnx_files(model))
    if "model.onnx" not in files or draw(st.booleans()):
        files["golden.parquet"] = draw(golden_files(golden))
    return Case("verify", ("--model", "."), files, whole=True)


@st.composite
def model_files(draw: st.DrawFn, model: bytes, *, whole: bool = True) -> Case:
    """A model file with faults, to predict with."""
    line = draw(
        st.sampled_from(
            [
                ("--at", "4"),
                ("--at", "1,2"),
                ("--input", "line.csv", "--output", "out.csv"),
                ("--input", "rows.csv", "--output", "o.parquet"),
            ]
        )
    )
    return Case("predict", ("--model", "m.onnx", *line), {**LINES_FILES, "m.onnx": draw(onnx_files(model))}, whole)


@dataclass(frozen=True)
class Kind:
    """Cases of one sort, made of the bytes of a model and of its golden predictions, and how many of a hundred."""

    name: str
    share: int
    cases: Callable[[bytes, bytes], SearchStrategy[Case]]


KINDS = (
    Kind("train, checked", 24, lambda *_: command_lines("train")),
    Kind("optimizer's options, checked", 8, lambda *_: with_options("optimizer")),
    Kind("scheduler's options, checked", 8, lambda *_: with_options("scheduler")),
    Kind("train", 2, lambda *_: command_lines("train", whole=True)),
    Kind("optimizer's options", 1, lambda *_: with_options("optimizer", whole=True)),
    Kind("scheduler's options", 1, lambda *_: with_options("scheduler", whole=True)),
    Kind("compare, checked", 8, lambda *_: command_lines("compare")),
    Kind("tutorial, checked", 2, lambda *_: command_lines("tutorial")),
    Kind("predict", 6, lambda model, _: command_lines("predict", whole=True, model=model)),
    Kind("verify", 4, lambda model, _: command_lines("verify", whole=True, model=model)),
    Kind("CSV to train on, checked", 9, lambda *_: tables("csv")),
    Kind("CSV to train on", 1, lambda *_: tables("csv", whole=True)),
    Kind("CSV to predict", 4, lambda model, _: tables("csv", whole=True, flow="predict", model=model)),
    Kind("Parquet to train on, checked", 5, lambda *_: tables("parquet")),
    Kind("Parquet to train on", 1, lambda *_: tables("parquet", whole=True)),
    Kind("Parquet to predict", 2, lambda model, _: tables("parquet", whole=True, flow="predict", model=model)),
    Kind("ONNX to predict with", 5, lambda model, _: model_files(model)),
    Kind("ONNX and golden to prove", 4, model_folders),
    Kind("deployed train", 1, lambda *_: deployments("train")),
    Kind("deployed predict", 1, lambda model, _: deployments("predict", model=model)),
)


def trained(runner: Runner) -> tuple[bytes, bytes]:
    """A model file and its golden predictions, as a run keeps them."""
    kept = runner.keep(Case("train", ("--epochs", "2", "--no-register"), whole=True), "model.onnx", "golden.parquet")
    return kept["model.onnx"], kept["golden.parquet"]


def with_options(kind: str, *, whole: bool = False) -> SearchStrategy[Case]:
    """An optimizer or a scheduler with options, and nothing else."""
    return st.builds(lambda line: Case("train", (*line, *SHORT["train"]), whole=whole), assignments(kind))


if __name__ == "__main__":
    _serve()
