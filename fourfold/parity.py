"""The gate: onnxruntime, from the file on disk, must predict what the torch network predicts."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fourfold.errors import first_line
from fourfold.onnx_file import INPUT, OUTPUT, ExportedModel

# Allowed difference, in units of the dtype's epsilon at the scale of a case's outputs. Two runtimes that sum
# the same few hundred products in another order stay well below; a weight that is off by 1e-5 does not.
ALLOWED_EPSILONS = 32
BATCHES = (0, 1, 2, 3)
GRID_ROWS = 65


@dataclass(frozen=True)
class Case:
    """One set of rows that was predicted twice.

    Attributes:
        rows: how many.
        max_abs_error: largest |onnxruntime - torch|, in target units; infinity where only one of them is finite.
        max_ulp: the same in units in the last place of torch's value.
        worst_ratio: the largest share used of what is allowed; above 1 the case failed.
        worst_row: the row, as its feature values, where that was.
        reason: what failed, else empty.
    """

    name: str
    rows: int
    max_abs_error: float
    max_ulp: float
    worst_ratio: float
    worst_row: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ParityReport:
    """The verdict and what it rests on."""

    verdict: str
    reason: str
    sha256: str
    onnxruntime: str
    cases: tuple[Case, ...]

    @property
    def passed(self) -> bool:
        """Whether the model may be registered."""
        return self.verdict == "passed"

    def summary(self) -> dict[str, Any]:
        """The machine-readable short form."""
        return {
            "verdict": self.verdict,
            "cases": len(self.cases),
            "max_abs_error": max((case.max_abs_error for case in self.cases), default=0.0),
            "max_ulp": max((case.max_ulp for case in self.cases), default=0.0),
            "worst_ratio": max((case.worst_ratio for case in self.cases), default=0.0),
            "reason": self.reason,
        }

    def full(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def verify(network: nn.Module, exported: ExportedModel, rows: Mapping[str, Tensor]) -> ParityReport:
    """Compare a fresh onnxruntime session on the file's bytes with the torch network in evaluation mode.

    The session runs at onnxruntime's default optimisation, as it does wherever the file is served. The rows
    are the given ones, and made from them: zeros, a grid over the range of the training rows, one ten times
    as wide, and batches of 0, 1, 2 and 3.

    Args:
        network: the original, not the exporter's program.
        exported: read again from disk.
        rows: named (rows, features) tensors; "training" is one of them and decides the grids.
    """
    content = exported.path.read_bytes()
    network = network.cpu().eval()
    cases: list[Case] = []
    try:
        reason = _weights_differ(onnx.load_from_string(content), network)
    except Exception as error:  # protobuf raises its own, and onnx others
        reason = f"the file cannot be read as ONNX: {first_line(error)}"
    if not reason:
        try:
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            reason = f"onnxruntime cannot load the file: {first_line(error)}"
        else:
            with torch.no_grad():
                scale = _magnitude(network(rows["training"].cpu()).numpy())
            cases = [_compare(session, network, name, x, scale) for name, x in _cases(rows)]
            reason = next((f"{case.name}: {case.reason}" for case in cases if case.reason), "")
    return ParityReport(
        "failed" if reason else "passed",
        reason,
        hashlib.sha256(content).hexdigest(),
        str(onnxruntime.__version__),
        tuple(cases),
    )


def _cases(rows: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, x in rows.items():
        if len(x):
            yield name, x.cpu()
    training = rows["training"].cpu()
    yield "zeros", torch.zeros_like(training[:1])
    low, high = training.min(dim=0).values, training.max(dim=0).values
    middle, half = (low + high) / 2, (high - low).clamp_min(1.0) / 2
    steps = torch.linspace(-1, 1, GRID_ROWS, dtype=training.dtype).unsqueeze(1)
    yield "grid inside the training range", middle + steps * half
    yield "grid ten times as wide", middle + 10 * steps * half
    for size in BATCHES:
        yield f"batch of {size}", training.repeat(size // len(training) + 1, 1)[:size]


def _compare(
    session: onnxruntime.InferenceSession, network: nn.Module, name: str, x: Tensor, scale: np.ndarray
) -> Case:
    with torch.no_grad():
        expected = network(x).numpy()
    try:
        actual = session.run([OUTPUT], {INPUT: x.numpy()})[0]
    except Exception as error:  # onnxruntime's errors share no base class
        failure = f"onnxruntime cannot run it: {first_line(error)}"
        return Case(name, len(x), math.inf, math.inf, math.inf, reason=failure)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        failure = f"onnxruntime gives {actual.dtype}{actual.shape}, torch {expected.dtype}{expected.shape}"
        return Case(name, len(x), math.inf, math.inf, math.inf, reason=failure)
    if not expected.size:
        return Case(name, len(x), 0.0, 0.0, 0.0)
    gap = _absolute_error(actual, expected)
    # Where the terms of a sum cancel, the error is that of the terms: the scale is that of the outputs over
    # the training rows, or over this case's where they are larger; never that of a single small output.
    allowed = ALLOWED_EPSILONS * np.finfo(expected.dtype).eps * np.maximum(scale, _magnitude(expected))
    ratio = np.divide(gap, allowed, out=np.where(gap > 0, np.inf, 0.0), where=allowed > 0)
    worst = int(ratio.max(axis=1).argmax())
    worst_ratio = float(ratio.max())
    if worst_ratio <= 1:
        reason = ""
    else:
        column = int(ratio[worst].argmax())
        reason = (
            f"row {worst}: onnxruntime predicts {actual[worst, column]:.9g}, torch {expected[worst, column]:.9g}; "
            f"they may differ by {allowed[0, column]:.1e}"
        )
    spacing = np.spacing(np.abs(np.where(np.isfinite(expected), expected, 1))).astype(np.float64)
    return Case(
        name,
        len(x),
        float(gap.max()),
        float((gap / spacing).max()),
        worst_ratio,
        tuple(x[worst].tolist()),
        reason,
    )


def _magnitude(outputs: np.ndarray) -> np.ndarray:
    """The largest finite |output| of each target, (1, targets) float64."""
    finite: np.ndarray = np.where(np.isfinite(outputs), np.abs(outputs), 0).astype(np.float64)
    largest: np.ndarray = np.max(finite, axis=0, keepdims=True, initial=0.0)
    return largest


def _absolute_error(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|actual - expected| in float64; 0 for the same NaN or infinity, infinite where only one of them is finite."""
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    comparable = np.isfinite(actual) & np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    return np.where(same, 0.0, np.where(comparable, difference, np.inf))


def _weights_differ(model: onnx.ModelProto, network: nn.Module) -> str:
    """Say which tensor of the network is not, bit for bit, in the file; empty where all are."""
    stored = {initializer.name: numpy_helper.to_array(initializer) for initializer in model.graph.initializer}
    contents = {(values.shape, values.dtype.str, values.tobytes()) for values in stored.values()}
    contents |= {(values.T.shape, values.dtype.str, values.T.tobytes()) for values in stored.values()}
    for name, tensor in network.state_dict().items():
        values = tensor.detach().cpu().numpy()
        if (values.shape, values.dtype.str, values.tobytes()) not in contents:
            return f"the file does not hold {name} {tuple(values.shape)} as torch has it"
    return ""
