"""What the gate notices, beside what others do, and what it costs: `python benchmarks/gate.py`.

Each mutant of an exported file (tests/mutants.py) is judged three times: by fourfold's gate; by the comparison of
`torch.onnx.export(verify=True)`, which logs and lets pass, so that a warning counts as noticed here; and by
`numpy.testing.assert_allclose(rtol=1e-3, atol=1e-5)` on the training rows under onnxruntime, as tutorials do it.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mutants import MUTANTS, SUBJECTS, Faithful, Subject  # noqa: E402

from fourfold.gate import expect, find_randomness, verify  # noqa: E402
from fourfold.onnx_export import export  # noqa: E402
from fourfold.onnx_file import open_session  # noqa: E402
from models.linear import LinearRegression  # noqa: E402
from models.mlp import MultilayerPerceptron  # noqa: E402

Judge = Callable[[bytes], bool]

LINE_REPEATS = 7
LARGE_ROWS, LARGE_FEATURES = 10_000_000, 20
# Where torch.onnx.export(verify=True) warns: torch/onnx/_internal/exporter/_core.py, step 6.
MOST_ABSOLUTE, MOST_RELATIVE = 5e-3, 1e-1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", choices=("table", "speed"), help="of the two parts")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.measure:
        MEASURED[arguments.measure]()
        return
    packages = ("torch", "onnx", "onnxruntime")
    print(f"Python {platform.python_version()},", *(f"{package} {version(package)}" for package in packages))
    if arguments.only != "table":
        for name in MEASURED:
            subprocess.run([sys.executable, __file__, "--measure", name], check=True)
    if arguments.only != "speed":
        with _quiet_stderr():
            _print_table()


# The kill table.


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hold back what onnxruntime's C++ says of each broken file, while nothing raises."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _print_table() -> None:
    killed: dict[str, list[tuple[bool, ...]]] = {mutant.name: [] for mutant in MUTANTS}
    alarms = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for subject in SUBJECTS:
            faithful = Faithful.of(subject, folder)
            judges = (_torch_verify(subject), _allclose(subject))
            content = faithful.exported.path.read_bytes()
            report = verify(subject.network, faithful.exported, faithful.expectations)
            alarms.append((not report.passed, *(_notices(judge, content) for judge in judges)))
            for mutant in (mutant for mutant in MUTANTS if mutant.applies(subject)):
                mutated = faithful.mutated(mutant, folder)
                report = verify(subject.network, mutated, faithful.expectations)
                content = mutated.path.read_bytes()
                killed[mutant.name].append((not report.passed, *(_notices(judge, content) for judge in judges)))
    print("\n| mutant | fourfold | torch `verify=True` | `assert_allclose` |\n|---|---:|---:|---:|")
    print(_row("(the file as exported)", alarms))
    for name, verdicts in killed.items():
        print(_row(name, verdicts))
    print(_row("**all mutants**", [verdict for verdicts in killed.values() for verdict in verdicts]))


def _row(name: str, verdicts: list[tuple[bool, ...]]) -> str:
    shares = (f"{sum(column)}/{len(column)}" for column in zip(*verdicts, strict=True))
    return f"| {name} | {' | '.join(shares)} |"


def _notices(judge: Judge, content: bytes) -> bool:
    """Whether a judge objects; one that raises does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return not judge(content)
    except Exception:  # of every library that reads the file
        return True


def _torch_verify(subject: Subject) -> Judge:
    """The steps of torch's own check, by its own functions, on the example rows of the export."""
    import onnx_ir
    from torch.onnx._internal._lazy_import import onnxscript_apis
    from torch.onnx._internal.exporter import _onnx_program, _verification

    batch = torch.export.Dim("batch")
    program = torch.export.export(subject.network.eval(), (subject.rows[:2],), dynamic_shapes=({0: batch},))

    def judge(content: bytes) -> bool:
        model: Any = onnx_ir.serde.deserialize_model(onnx.load_model_from_string(content))
        onnxscript_apis.check_model(model)
        onnx_program = _onnx_program.ONNXProgram(model, program)
        results = _verification.verify_onnx_program(onnx_program)
        onnx_program.release()
        return not any(r.max_abs_diff >= MOST_ABSOLUTE or r.max_rel_diff >= MOST_RELATIVE for r in results)

    return judge


def _allclose(subject: Subject) -> Judge:
    with torch.no_grad():
        expected = subject.network(subject.rows).numpy()

    def judge(content: bytes) -> bool:
        session = open_session(content)
        actual = session.run(None, {session.get_inputs()[0].name: subject.rows.numpy()})[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
        return True

    return judge


# The cost.


def _gate(network: torch.nn.Module, rows: torch.Tensor, folder: Path) -> dict[str, float]:
    """Seconds of each part, for a network that passes."""
    exported = export(network, rows, folder / "model.onnx", {})
    clock = [time.perf_counter()]
    assert not find_randomness(network, rows)
    clock.append(time.perf_counter())
    expectations = expect(network, {"training rows": rows})
    clock.append(time.perf_counter())
    report = verify(network, exported, expectations)
    clock.append(time.perf_counter())
    assert report.passed, report.reason
    names = ("find_randomness", "expect", "verify")
    return {name: clock[index + 1] - clock[index] for index, name in enumerate(names)}


def _spelled(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()):.2f} s (" + ", ".join(f"{name} {took:.2f}" for name, took in parts.items()) + ")"


def _measure_line() -> None:
    """The default run's model: what the gate costs a process the first time, and then again."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = torch.tensor([[1.0], [2.0], [3.0]])
        first, *others = [_gate(LinearRegression(1), rows, Path(folder)) for _ in range(1 + LINE_REPEATS)]
    again = {name: statistics.median(other[name] for other in others) for name in first}
    print(f"three points and a line: {_spelled(first)} in a new process, then {_spelled(again)}; at most 0.5 s")


def _measure_large() -> None:
    """Ten million rows; the memory is what the peak grows by, beyond the rows themselves."""
    torch.manual_seed(0)
    network = MultilayerPerceptron(LARGE_FEATURES)
    with tempfile.TemporaryDirectory() as folder:
        _gate(network, torch.randn(8, LARGE_FEATURES), Path(folder))  # libraries are loaded, and an export was made
        rows = torch.empty(LARGE_ROWS, LARGE_FEATURES).normal_()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took = _gate(network, rows, Path(folder))
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    print(
        f"{LARGE_ROWS:,} rows of {LARGE_FEATURES} features and a perceptron: {_spelled(took)}, at most 5 s; "
        f"{added:.0f} MB more memory at the peak, at most 500 MB"
    )


MEASURED: dict[str, Callable[[], None]] = {"line": _measure_line, "large": _measure_large}


if __name__ == "__main__":
    main()
