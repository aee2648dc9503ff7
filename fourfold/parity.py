"""Whether a model file predicts what was expected of it: the comparison itself, without torch."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from fourfold.errors import first_line
from fourfold.onnx_file import INPUT, OUTPUT, open_session
from fourfold.structure import Form, widened

BATCHES = (0, 1, 2, 3, 7, 64)
MOST_SINGLE_ROWS = 64
MOST_REFERENCE_ROWS = 1000
RUNTIME, UNOPTIMISED, REFERENCE = "onnxruntime", "onnxruntime without optimisation", "onnx.reference"
IN_FLOAT64 = "onnx.reference in float64"

ARRAYS = ("x", "predicted", "truth", "allowed", "undecided")  # of an expectation, a row each

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Expectation:
    """What torch predicted for one set of rows, and how far a runtime may be from the truth.

    Attributes:
        x: (rows, features) in the model's dtype.
        predicted: (rows, targets) in the model's dtype, by torch.
        truth: the same in float64.
        allowed: (rows, targets) float64, largest |prediction - truth|, in target units.
        undecided: (rows,) bool: a sum inside overflows in one order of its terms and not in another; such a row is not
            judged.
        basis: where the allowance comes from, in words.
        at_hand: whether these are rows of the data or asked for, and not made to be difficult.
        in_float64: of a float32 model, what the same steps with the same numbers give in float64, for some of the rows:
            a step too many, or a number that is another, shows there where float32's rounding would cover it.
    """

    name: str
    x: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    allowed: np.ndarray
    undecided: np.ndarray
    basis: str = ""
    at_hand: bool = False
    in_float64: "Expectation | None" = None

    @property
    def form(self) -> Form:
        """What a file must promise to predict these rows."""
        return Form(self.x.shape[1], self.predicted.shape[1], str(self.x.dtype))

    def rows(self, chosen: np.ndarray | slice, name: str = "") -> "Expectation":
        """Some of the rows, in the order given."""
        arrays = {key: getattr(self, key)[chosen] for key in ARRAYS}
        return replace(self, name=name or self.name, **arrays)


@dataclass(frozen=True)
class Case:
    """One set of rows, predicted by one runtime.

    Attributes:
        rows: how many.
        max_abs_error: largest |runtime - torch|, in target units; infinity where only one of them is finite.
        max_rel_error: the same as a share of |torch|.
        ulp_median, ulp_p99, max_ulp: the same in units in the last place of torch's value.
        nan_count: predictions of the runtime that are no number.
        undecided: rows that are not judged, since the order of a sum inside decides whether it overflows.
        worst_ratio: the largest share used of what is allowed; above 1 the case failed.
        worst_row: the row, as its feature values, where that was; worst_prediction and worst_expectation are of it.
        reason: what failed, else empty.
    """

    name: str
    runtime: str
    rows: int
    at_hand: bool = False
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    ulp_median: float = 0.0
    ulp_p99: float = 0.0
    max_ulp: float = 0.0
    nan_count: int = 0
    undecided: int = 0
    worst_ratio: float = 0.0
    worst_row: tuple[float, ...] = ()
    worst_prediction: tuple[float, ...] = ()
    worst_expectation: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ParityReport:
    """The verdict and what it rests on.

    Attributes:
        verdict: "passed" or "failed".
        reason: why it failed, in one sentence.
        allowance: what the allowed differences were derived from.
        operators: of the file, in order.
        weights: what became of each tensor of the network.
        notes: what could not be compared, and why.
    """

    verdict: str
    reason: str = ""
    sha256: str = ""
    bytes: int = 0
    onnxruntime: str = str(onnxruntime.__version__)
    onnx: str = str(onnx.__version__)
    allowance: str = ""
    operators: tuple[str, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the model may be registered."""
        return self.verdict == "passed"

    def summary(self) -> dict[str, Any]:
        """The machine-readable short form: differences from torch over the rows at hand, the worst share over all."""
        at_hand = [case for case in self.cases if case.at_hand]
        return {
            "verdict": self.verdict,
            "cases": len(self.cases),
            "max_abs_error": max((case.max_abs_error for case in at_hand), default=0.0),
            "max_ulp": max((case.max_ulp for case in at_hand), default=0.0),
            "worst_ratio": max((case.worst_ratio for case in self.cases), default=0.0),
            "reason": self.reason,
        }

    def in_words(self) -> str:
        """The same for a person."""
        if not self.cases:
            return f"{self.verdict} before any prediction"
        found = self.summary()
        return (
            f"{self.verdict}, {found['cases']} cases, largest difference {found['max_abs_error']:.2g} "
            f"({found['max_ulp']:.0f} units in the last place)"
        )

    def full(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def failed(reason: str, content: bytes = b"") -> ParityReport:
    """The report on a file that was refused before anything predicted with it."""
    return ParityReport("failed", reason, hashlib.sha256(content).hexdigest() if content else "", len(content))


def prove(content: bytes, model: ModelProto, expectations: Sequence[Expectation]) -> ParityReport:
    """Predict every set of rows with every runtime, and compare.

    onnxruntime as it serves, onnxruntime without graph optimisation, and onnx's reference implementation as a third
    opinion. The first set is predicted in batches of several sizes, row by row, and in another order as well.

    Args:
        content: the file's bytes.
        model: the same, parsed and held to its form.
        expectations: at least one with rows.
    """
    operators = tuple(node.op_type for node in model.graph.node)
    known = ParityReport("failed", sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), operators=operators)
    try:
        runtimes = {RUNTIME: _onnxruntime(content, True), UNOPTIMISED: _onnxruntime(content, False)}
    except Exception as error:  # onnxruntime's errors share no base class
        return replace(known, reason=f"onnxruntime cannot load the file: {first_line(error)}")
    cases = [compare(name, predict, case) for name, predict in runtimes.items() for case in expectations]
    cases += [compare(RUNTIME, predict, case) for predict, case in _rearranged(runtimes[RUNTIME], expectations[0])]
    notes: tuple[str, ...] = ()
    try:
        reference = _reference(model)
        reference(expectations[0].x[:1])
    except Exception as error:  # it does not have every operator
        notes = (f"{REFERENCE} cannot run this model: {first_line(error)}",)
    else:
        cases += [compare(REFERENCE, reference, case.rows(slice(MOST_REFERENCE_ROWS))) for case in expectations]
        wide = _reference(widened(model))
        cases += [compare(IN_FLOAT64, wide, case.in_float64) for case in expectations if case.in_float64]
    reason = next((f"{case.name}: {case.reason}" for case in cases if case.reason), "")
    return replace(
        known, verdict="failed" if reason else "passed", reason=reason, cases=tuple(cases), notes=notes,
        allowance=expectations[0].basis,
    )  # fmt: skip


def _onnxruntime(content: bytes, optimized: bool) -> Predict:
    session = open_session(content, optimized=optimized)
    return lambda x: session.run([OUTPUT], {INPUT: x})[0]


def _reference(model: ModelProto) -> Predict:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)

    def predict(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(next(iter(evaluator.run([OUTPUT], {INPUT: x}))))

    return predict


def _rearranged(predict: Predict, expected: Expectation) -> Iterator[tuple[Predict, Expectation]]:
    """The same rows in other company: what is predicted for a row must not depend on its neighbours."""
    for size in BATCHES:
        yield predict, expected.rows(np.arange(size) % len(expected.x), f"batch of {size}")
    alone = expected.rows(slice(MOST_SINGLE_ROWS), "each row alone")
    yield (lambda x: np.concatenate([predict(row[None]) for row in x])), alone
    order = np.random.default_rng(0).permutation(len(expected.x))
    yield predict, expected.rows(order, "rows in another order")


def compare(runtime: str, predict: Predict, expected: Expectation) -> Case:
    """Let a runtime predict one set of rows, and say how far it is from what is expected."""
    made = Case(expected.name, runtime, len(expected.x), expected.at_hand)
    broken = replace(made, max_abs_error=math.inf, max_rel_error=math.inf, max_ulp=math.inf, worst_ratio=math.inf)
    try:
        actual = predict(expected.x)
    except Exception as error:  # a runtime's errors share no base class
        return replace(broken, reason=f"{runtime} cannot run it: {first_line(error)}")
    torchs = expected.predicted
    if actual.shape != torchs.shape or actual.dtype != torchs.dtype:
        found = f"{actual.dtype}{actual.shape}, torch {torchs.dtype}{torchs.shape}"
        return replace(broken, reason=f"{runtime} gives {found}")
    if not torchs.size:
        return made
    shares = _shares(actual, expected)
    gap = _difference(actual, torchs)
    with np.errstate(all="ignore"):
        ulps = gap / np.spacing(np.abs(np.where(np.isfinite(torchs), torchs, 1))).astype(np.float64)
        relative = np.divide(gap, np.abs(torchs.astype(np.float64)), out=gap.copy(), where=(gap > 0) & np.isfinite(gap))
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    reason = ""
    if shares[row, column] > 1:
        reason = (
            f"row {row}: {runtime} predicts {actual[row, column]:.9g}, torch {torchs[row, column]:.9g}; "
            f"{expected.truth[row, column]:.9g} +- {expected.allowed[row, column]:.1e} is allowed"
        )
    return replace(
        made,
        max_abs_error=float(gap.max()),
        max_rel_error=float(relative.max()),
        ulp_median=float(np.quantile(ulps, 0.5, method="nearest")),
        ulp_p99=float(np.quantile(ulps, 0.99, method="nearest")),
        max_ulp=float(ulps.max()),
        nan_count=int(np.isnan(actual).sum()),
        undecided=int(expected.undecided.sum()),
        worst_ratio=float(shares[row, column]),
        worst_row=tuple(expected.x[row].tolist()),
        worst_prediction=tuple(actual[row].tolist()),
        worst_expectation=tuple(torchs[row].tolist()),
        reason=reason,
    )


def _shares(actual: np.ndarray, expected: Expectation) -> np.ndarray:
    """How much of what is allowed each prediction uses: above 1 too much, infinite where it is of another kind.

    What is the same as torch's, bit for bit, uses nothing. A NaN or an infinity must be the same one, unless the
    truth lies so close to the largest number that rounding decides, or the order of a sum does. What cannot be judged
    (a truth that is no number, where both predict one) is too much.
    """
    torchs, truth = expected.predicted, expected.truth
    largest = float(np.finfo(torchs.dtype).max)
    same, comparable = _same(actual, torchs), np.isfinite(actual) & np.isfinite(torchs)
    with np.errstate(all="ignore"):
        away = np.abs(actual.astype(np.float64) - truth)
        used = np.where(expected.allowed > 0, away / expected.allowed, np.where(away > 0, np.inf, 0.0))
        # Rounding decides between the largest number and infinity for what lies about there, and for nothing else.
        reached = np.where(np.isfinite(actual), away, np.abs(largest - np.abs(truth)))
        at_the_edge = (np.abs(truth) + expected.allowed > largest) & (reached <= expected.allowed)
        at_the_edge &= np.isfinite(truth) & (np.sign(actual) == np.sign(truth))
    shares = np.where(same, 0.0, np.where(comparable, used, np.where(at_the_edge, 0.0, np.inf)))
    shares[np.isnan(shares)] = np.inf
    shares[expected.undecided] = 0.0
    return shares


def _difference(actual: np.ndarray, torchs: np.ndarray) -> np.ndarray:
    """|actual - torchs| in float64; 0 for the same NaN or infinity, infinite where only one of them is finite."""
    same, comparable = _same(actual, torchs), np.isfinite(actual) & np.isfinite(torchs)
    with np.errstate(all="ignore"):
        gap = np.abs(actual.astype(np.float64) - torchs.astype(np.float64))
    return np.where(same, 0.0, np.where(comparable, gap, np.inf))


def _same(actual: np.ndarray, torchs: np.ndarray) -> np.ndarray:
    """Where both are the same number, infinity or NaN."""
    same: np.ndarray = (actual == torchs) | (np.isnan(actual) & np.isnan(torchs))
    return same
