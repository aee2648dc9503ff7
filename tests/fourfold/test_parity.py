"""The comparison of what a file predicts with what was expected of it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import fourfold.parity
from fourfold.parity import (
    BATCHES,
    REFERENCE,
    RUNTIME,
    UNOPTIMISED,
    Case,
    Expectation,
    ParityReport,
    compare,
    failed,
    prove,
)

NAN, INF = math.nan, math.inf
LARGEST = float(np.finfo(np.float32).max)


def expected(
    predicted: object,
    *,
    truth: object = None,
    allowed: float = 1e-3,
    undecided: object = None,
    dtype: type = np.float32,
) -> Expectation:
    """One target; the rows are numbered from 0, in two features."""
    column = np.array(predicted, dtype)[:, None]
    return Expectation(
        "made",
        np.arange(2 * len(column), dtype=dtype).reshape(-1, 2),
        column,
        column.astype(np.float64) if truth is None else np.array(truth, np.float64)[:, None],
        np.full(column.shape, allowed),
        np.zeros(len(column), bool) if undecided is None else np.array(undecided),
    )


def judged(actual: object, one: Expectation) -> Case:
    column = np.array(actual, one.predicted.dtype)[:, None]
    case = compare("a runtime", lambda x: column, one)
    assert bool(case.reason) == (case.worst_ratio > 1)
    assert "\n" not in case.reason
    return case


# The verdict on each element.


@pytest.mark.parametrize(
    ("torchs", "actual"),
    [
        (1.0, 1.0),
        (1.0, 1.0005),
        (NAN, NAN),
        (INF, INF),
        (-INF, -INF),
        (0.0, -0.0),
        (LARGEST, LARGEST),
    ],
)
def test_the_same_or_nearly_so_passes(torchs: float, actual: float) -> None:
    assert judged([1.0, actual], expected([1.0, torchs])).reason == ""


@pytest.mark.parametrize(
    ("torchs", "actual"),
    [
        (1.0, 1.0015),
        (1.0, NAN),
        (1.0, INF),
        (NAN, 1.0),
        (NAN, INF),
        (INF, NAN),
        (INF, -INF),
        (INF, 1.0),
        (INF, LARGEST / 2),
        (-INF, 1.0),
        (LARGEST / 2, INF),
        (0.0, 1e-2),
    ],
)
def test_another_number_or_another_kind_of_one_fails(torchs: float, actual: float) -> None:
    """The truth of what has become infinite in float32 is far beyond it."""
    truth = [1.0, torchs * 1e200 if math.isinf(torchs) else torchs]
    case = judged([1.0, actual], expected([1.0, torchs], truth=truth))
    assert case.reason.startswith("row 1: a runtime predicts ")
    for special in (INF, 1e300):
        truth = [1.0, math.copysign(special, torchs) if math.isinf(torchs) else torchs]
        assert judged([1.0, actual], expected([1.0, torchs], truth=truth)).reason


@pytest.mark.parametrize(("torchs", "actual"), [(LARGEST, INF), (INF, LARGEST)])
def test_at_the_edge_of_the_range_rounding_decides(torchs: float, actual: float) -> None:
    truth = LARGEST * (1 + 1e-8)
    one = expected([torchs], truth=[truth], allowed=1e-7 * truth)
    assert judged([actual], one).reason == ""
    assert judged([-actual], one).reason, "of the other sign it is another number"
    assert judged([NAN], one).reason


def test_a_number_far_below_the_edge_is_not_excused_by_it() -> None:
    """A clip far out: torch overflows, and the file stays where it likes."""
    one = expected([INF], truth=[LARGEST * (1 + 1e-8)], allowed=1e-7 * LARGEST)
    assert judged([1e30], one).reason
    assert judged([1.0], one).reason


@pytest.mark.parametrize("truth", [NAN, INF])
@pytest.mark.parametrize("allowed", [1e-3, INF])
def test_a_truth_that_is_no_number_hides_nothing(truth: float, allowed: float) -> None:
    """Where torch gives a number all the same, as its own rounding may let it."""
    one = expected([1.0, 1.0, 2.0], truth=[truth, 1.0, 2.0])
    one.allowed[0] = allowed
    case = judged([1.5, 77.0, 2.0], one)
    assert case.reason
    assert case.worst_ratio > 1


def test_nothing_is_allowed_where_nothing_is_allowed() -> None:
    one = expected([1.0, 2.0], allowed=0.0)
    assert judged([1.0, 2.0], one).worst_ratio == 0
    assert judged([1.0, 2.0000002], one).reason


def test_an_undecided_row_is_not_judged_and_counted() -> None:
    one = expected([1.0, INF, 2.0], undecided=[False, True, False])
    assert judged([1.0, NAN, 2.0], one).reason == ""
    assert judged([1.0, -INF, 2.0], one).undecided == 1
    assert judged([1.0, NAN, 2.5], one).reason.startswith("row 2: ")


def test_the_share_is_of_the_distance_to_the_truth_not_to_torch() -> None:
    one = expected([1.0], truth=[1.0008], allowed=1e-3)
    assert judged([1.0016], one).reason == ""
    assert judged([0.9996], one).reason
    assert judged([1.0013], one).worst_ratio == pytest.approx(0.5, rel=1e-3)


# What a case says.


def test_the_worst_row_is_kept_with_both_predictions() -> None:
    """The worst by what is allowed, which is not the largest difference."""
    one = expected([1.0, 2.0, 3.0, 4.0])
    one.allowed[:, 0] = [1, 1, 1e-4, 1]
    case = judged([1.0, 2.5, 3.01, 4.0], one)
    assert (case.worst_row, case.worst_prediction, case.worst_expectation) == (
        (4.0, 5.0),
        (pytest.approx(3.01),),
        (3.0,),
    )
    assert case.worst_ratio == pytest.approx(100, rel=1e-3)
    assert case.max_abs_error == 0.5
    assert case.reason == "row 2: a runtime predicts 3.00999999, torch 3; 3 +- 1.0e-04 is allowed"


def test_differences_are_told_absolutely_relatively_and_in_last_places() -> None:
    torchs = [1.0] * 97 + [2.0, 0.0, 1024.0]
    actual = np.array(torchs, np.float32)
    actual[:60] += 2 * np.float32(2**-23)
    actual[98], actual[99] = 0.25, 1025
    case = judged(actual, expected(torchs, allowed=10.0))
    assert case.max_abs_error == 1.0
    assert case.max_rel_error == INF, "of zero, any difference is"
    assert case.ulp_median == 2
    assert case.ulp_p99 == 1 / np.spacing(np.float32(1024))
    assert case.max_ulp == math.ldexp(0.25, 149)
    assert judged([1.1, 20.0], expected([1.0, 20.0], allowed=1)).max_rel_error == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(("torchs", "actual"), [(INF, 1.0), (1.0, INF), (NAN, 1.0), (-INF, INF)])
def test_the_difference_between_a_number_and_none_is_infinite(torchs: float, actual: float) -> None:
    case = judged([actual], expected([torchs]))
    assert (case.max_abs_error, case.max_rel_error, case.max_ulp) == (INF, INF, INF)


def test_numbers_that_are_none_are_counted() -> None:
    assert judged([NAN, NAN, 1.0], expected([NAN, NAN, 1.0])).nan_count == 2


# What is no prediction at all.


@pytest.mark.parametrize(
    ("actual", "found"),
    [
        (np.zeros(2, np.float32), "float32(2,), torch float32(2, 1)"),
        (np.zeros((1, 1), np.float32), "float32(1, 1), torch float32(2, 1)"),
        (np.zeros((2, 2), np.float32), "float32(2, 2), torch float32(2, 1)"),
        (np.zeros((2, 1)), "float64(2, 1), torch float32(2, 1)"),
        (np.zeros((2, 1), np.float16), "float16(2, 1), torch float32(2, 1)"),
    ],
)
def test_another_shape_or_dtype_fails(actual: np.ndarray, found: str) -> None:
    case = compare("a runtime", lambda x: actual, expected([0.0, 0.0]))
    assert case.reason == f"a runtime gives {found}"
    assert case.worst_ratio == case.max_abs_error == INF


def test_a_runtime_that_raises_fails_in_one_line() -> None:
    def predict(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("not today\nnor tomorrow")

    case = compare("a runtime", predict, expected([0.0]))
    assert case.reason == "a runtime cannot run it: not today"
    assert case.worst_ratio == INF


def test_no_rows_are_no_difference() -> None:
    assert compare("a runtime", lambda x: x[:, :1], expected([])).reason == ""


# The proof.


def model(*nodes: onnx.NodeProto, **tensors: np.ndarray) -> ModelProto:
    """From x of two features to y of one target, made without any exporter."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


WEIGHT = np.float32([[2.0], [-1.0]])
PLANE = model(helper.make_node("MatMul", ["x", "w"], ["y"]), w=WEIGHT)


def plane(count: int = 9, *, name: str = "rows", seed: int = 0) -> Expectation:
    """2 a - b, in whole numbers: exact in any order."""
    x = np.random.default_rng(seed).integers(-50, 50, (count, 2)).astype(np.float32)
    y = (2 * x[:, :1].astype(np.float64) - x[:, 1:]).astype(np.float64)
    return Expectation(name, x, y.astype(np.float32), y, np.full_like(y, 1e-6), np.zeros(count, bool), "by hand", True)


def proof(made: ModelProto, *expectations: Expectation) -> ParityReport:
    return prove(made.SerializeToString(), made, expectations)


def test_a_true_file_passes_with_every_runtime_and_in_every_company() -> None:
    report = proof(PLANE, plane(), plane(5, name="others", seed=1))
    assert (report.verdict, report.reason, report.notes) == ("passed", "", ())
    assert report.passed
    made = {(case.runtime, case.name, case.rows) for case in report.cases}
    for runtime in (RUNTIME, UNOPTIMISED, REFERENCE):
        assert {(runtime, "rows", 9), (runtime, "others", 5)} <= made
    assert {(RUNTIME, f"batch of {size}", size) for size in (0, 1, 2, 3, 7, 64)} <= made
    assert {(RUNTIME, "each row alone", 9), (RUNTIME, "rows in another order", 9)} <= made
    assert len(report.cases) == 6 + len(BATCHES) + 2
    assert report.allowance == "by hand"
    assert report.operators == ("MatMul",)


def test_the_report_names_the_file_and_the_versions_and_is_plain() -> None:
    report = proof(PLANE, plane())
    content = PLANE.SerializeToString()
    assert (report.bytes, len(report.sha256)) == (len(content), 64)
    assert (report.onnxruntime, report.onnx) == (onnxruntime.__version__, onnx.__version__)
    assert json.loads(json.dumps(report.full()))["cases"][0]["name"] == "rows"


def test_a_false_weight_fails_with_its_worst_row() -> None:
    false = model(helper.make_node("MatMul", ["x", "w"], ["y"]), w=WEIGHT * np.float32(1.00001))
    report = proof(false, plane())
    worst = int(np.abs(plane().truth).argmax())
    assert not report.passed
    assert report.reason.startswith(f"rows: row {worst}: onnxruntime predicts ")
    assert report.cases[0].worst_row == tuple(plane().x[worst].tolist())
    assert report.summary()["worst_ratio"] > 1


MEAN_TAKEN_AWAY = model(
    helper.make_node("MatMul", ["x", "w"], ["p"]),
    helper.make_node("ReduceMean", ["p", "axes"], ["m"], keepdims=1),
    helper.make_node("Sub", ["p", "m"], ["q"]),
    helper.make_node("Add", ["q", "mean"], ["y"]),
    w=WEIGHT, axes=np.array([0]), mean=plane().truth.mean(axis=0).astype(np.float32),
)  # fmt: skip
FIXED_BATCH = model(
    helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"]),
    w=WEIGHT, shape=np.array([9, 2]),
)  # fmt: skip


@pytest.mark.parametrize("made", [MEAN_TAKEN_AWAY, FIXED_BATCH], ids=["the batch's mean", "a fixed batch"])
def test_predictions_that_depend_on_the_neighbours_fail(made: ModelProto) -> None:
    """The rows at hand are predicted well; only other company shows it."""
    one = replace(plane(), allowed=np.full((9, 1), 1e-3))
    report = proof(made, one)
    assert report.cases[0].reason == report.cases[1].reason == ""
    assert not report.passed
    assert report.reason.startswith("batch of ")
    assert next(case for case in report.cases if case.name == "each row alone").reason


def test_predictions_that_depend_on_the_place_fail_in_another_order() -> None:
    """Each row by its number, whatever stands there: a file that has learnt the rows by heart."""
    one = plane(70)
    by_heart = model(
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Slice", ["known", "zero", "rows"], ["y"]),
        known=one.predicted,
    )
    report = proof(by_heart, one)
    failures = {case.name for case in report.cases if case.reason}
    assert report.cases[0].reason == ""
    assert {"each row alone", "rows in another order"} <= failures
    assert "batch of 64" not in failures


def test_a_file_that_onnxruntime_cannot_load_fails() -> None:
    made = model(helper.make_node("MatMul", ["x", "w"], ["y"]), w=np.ones((3, 1), np.float32))
    report = proof(made, plane())
    assert report.reason.startswith("onnxruntime cannot load the file: ")
    assert (report.verdict, report.cases) == ("failed", ())
    assert "\n" not in report.reason


def test_an_operator_that_the_reference_lacks_is_a_note_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lacking:
        def __init__(self, made: ModelProto) -> None:
            raise NotImplementedError("no MatMul here\nnor elsewhere")

    monkeypatch.setattr(onnx.reference, "ReferenceEvaluator", Lacking)
    report = proof(PLANE, plane())
    assert report.passed
    assert report.notes == ("onnx.reference cannot run this model: no MatMul here",)
    assert not [case for case in report.cases if case.runtime == REFERENCE]


Break = Callable[[pytest.MonkeyPatch], None]


def break_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    run = onnx.reference.ReferenceEvaluator.run
    monkeypatch.setattr(
        onnx.reference.ReferenceEvaluator, "run", lambda *given, **more: [run(*given, **more)[0] + np.float32(0.01)]
    )


def break_unoptimised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off:
        def run(self, names: object, values: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [values["x"] @ WEIGHT + np.float32(0.01)]

    opened = fourfold.parity.open_session
    monkeypatch.setattr(
        fourfold.parity, "open_session", lambda content, *, optimized: opened(content) if optimized else Off()
    )


@pytest.mark.parametrize(("change", "runtime"), [(break_reference, REFERENCE), (break_unoptimised, UNOPTIMISED)])
def test_each_of_the_runtimes_has_to_agree(change: Break, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch)
    report = proof(PLANE, plane())
    assert not report.passed
    assert {case.runtime for case in report.cases if case.reason} == {runtime}
    assert f"{runtime} predicts" in report.reason


# Reports.


def test_differences_are_summed_up_over_the_rows_at_hand() -> None:
    """On rows that are made to be difficult an absolute difference says nothing; the share of what is allowed does."""
    cases = (
        Case("data", "r", 3, at_hand=True, max_abs_error=1e-6, max_ulp=2, worst_ratio=0.1),
        Case("largest", "r", 3, max_abs_error=1e30, max_ulp=9, worst_ratio=0.4),
    )
    found = ParityReport("passed", cases=cases).summary()
    assert found == {
        "verdict": "passed", "cases": 2, "max_abs_error": 1e-6, "max_ulp": 2, "worst_ratio": 0.4, "reason": "",
    }  # fmt: skip
    assert ParityReport("passed", cases=cases).in_words() == (
        "passed, 2 cases, largest difference 1e-06 (2 units in the last place)"
    )


def test_a_file_that_was_refused_at_once_has_a_report_too() -> None:
    report = failed("the file is gone", b"abc")
    assert (report.passed, report.bytes) == (False, 3)
    assert report.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert report.summary()["worst_ratio"] == 0.0
    assert report.in_words() == "failed before any prediction"
    assert failed("the file is gone").sha256 == ""
