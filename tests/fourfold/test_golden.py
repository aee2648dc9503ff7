"""Golden predictions: kept beside a model, and proved again without torch."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest
from onnx import TensorProto, helper, numpy_helper

import fourfold.parity
from fourfold.golden import FILE_NAME, Golden, prove_again, read_golden, write_golden
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import ARRAYS, Expectation
from fourfold.structure import Refused

WEIGHT = np.array([[2.0, -1.0]])


def made(path: Path, dtype: type = np.float32, weight: np.ndarray = WEIGHT) -> ExportedModel:
    """2 a - b as a file, without any exporter; it says of itself which letter it is."""
    kind = TensorProto.DOUBLE if dtype is np.float64 else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "line",
        [helper.make_tensor_value_info("x", kind, ["batch", 2])],
        [helper.make_tensor_value_info("y", kind, ["batch", 1])],
        [numpy_helper.from_array(weight.astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"letter": "A"})
    path.write_bytes(model.SerializeToString())
    return ExportedModel(path, file_sha256(path))


def expectation(x: np.ndarray, name: str = "training rows", *, at_hand: bool = True) -> Expectation:
    with np.errstate(all="ignore"):
        truth = 2 * x[:, :1].astype(np.float64) - x[:, 1:]
        predicted = truth.astype(x.dtype)
    return Expectation(
        name, x, predicted, truth, 1e-6 * (1 + np.abs(truth)), np.zeros(len(x), bool), "by hand", at_hand
    )


def whole_numbers(count: int = 200, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).integers(-50, 50, (count, 2)).astype(dtype)


def special(dtype: type) -> Expectation:
    """Rows of numbers that are easily lost on the way to a file and back."""
    limits = np.finfo(dtype)
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, limits.max, limits.tiny, limits.smallest_subnormal, 1 / 3]
    column = np.array(values, dtype)[:, None]
    return Expectation(
        "special", np.hstack([column, column[::-1]]), column, column.astype(np.float64) * (1 - 1e-12),
        np.abs(column.astype(np.float64)) / 3, np.arange(len(column)) % 3 == 0, "by hand",
    )  # fmt: skip


@pytest.fixture
def exported(tmp_path: Path) -> ExportedModel:
    return made(tmp_path / "model.onnx")


@pytest.fixture
def golden(exported: ExportedModel) -> Golden:
    x = whole_numbers()
    given = [expectation(x), expectation(x[:3], "zeros", at_hand=False)]
    return read_golden(write_golden(exported, given, ["a", "b"], ["y"]))


# To the file and back.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_read_is_what_was_written_bit_for_bit(dtype: type, tmp_path: Path) -> None:
    given = [expectation(whole_numbers(20, dtype)), special(dtype)]
    exported = made(tmp_path / "model.onnx", dtype)
    path = write_golden(exported, given, ["größe", "b"], ["y"])
    assert path == tmp_path / FILE_NAME
    found = read_golden(path)
    assert (found.sha256, found.bytes) == (exported.sha256, exported.path.stat().st_size)
    assert (found.features, found.targets) == (("größe", "b"), ("y",))
    assert found.versions["onnxruntime"] == onnxruntime.__version__
    for before, after in zip(given, found.expectations, strict=True):
        assert (after.name, after.at_hand, after.basis) == (before.name, before.at_hand, "by hand")
        for key in ARRAYS:
            written, read = getattr(before, key), getattr(after, key)
            assert (read.shape, read.dtype) == (written.shape, written.dtype), key
            assert read.tobytes() == written.tobytes(), key


def test_of_many_rows_128_are_kept_from_the_first_to_the_last(golden: Golden) -> None:
    first, other = golden.expectations
    x = whole_numbers()
    assert (len(first.x), len(other.x)) == (128, 3)
    assert first.x[0].tolist() == x[0].tolist()
    assert first.x[-1].tolist() == x[-1].tolist()


def test_several_targets_are_kept_apart(exported: ExportedModel) -> None:
    one = expectation(whole_numbers(5))
    wide = {key: np.hstack([getattr(one, key)] * 3) for key in ("predicted", "truth", "allowed")}
    found = read_golden(write_golden(exported, [replace(one, **wide)], ["a", "b"], ["p", "q", "r"]))
    assert found.expectations[0].predicted.shape == (5, 3)


def other_columns(path: Path) -> None:
    pa.parquet.write_table(pa.table({"x": [1.0], "y": [2.0]}), path)


def other_notes(path: Path) -> None:
    table = pa.parquet.ParquetFile(path).read()
    pa.parquet.write_table(table.replace_schema_metadata({b"fourfold": json.dumps({"sha256": ""})}), path)


def a_number_as_its_hash(path: Path) -> None:
    table = pa.parquet.ParquetFile(path).read()
    about = json.loads(table.schema.metadata[b"fourfold"]) | {"sha256": 0.5}
    pa.parquet.write_table(table.replace_schema_metadata({b"fourfold": json.dumps(about)}), path)


def no_rows(path: Path) -> None:
    table = pa.parquet.ParquetFile(path).read()
    pa.parquet.write_table(table.slice(0, 0), path)


def one_column_less(path: Path) -> None:
    table = pa.parquet.ParquetFile(path).read()
    pa.parquet.write_table(table.drop_columns(["allowed"]), path)


def columns_of_another_type(path: Path) -> None:
    table = pa.parquet.ParquetFile(path).read()
    number = table.column_names.index("undecided")
    pa.parquet.write_table(table.set_column(number, "undecided", pa.array(["x"] * table.num_rows)), path)


def rows_without_width(path: Path) -> None:
    table = pa.parquet.ParquetFile(path).read()
    number = table.column_names.index("x")
    pa.parquet.write_table(table.set_column(number, "x", pa.array([1.0] * table.num_rows)), path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes()[:500]),
        lambda path: path.write_text("a,b\n1,2\n"),
        other_columns,
        other_notes,
        a_number_as_its_hash,
        no_rows,
        one_column_less,
        columns_of_another_type,
        rows_without_width,
    ],
    ids=[
        "gone",
        "empty",
        "end cut off",
        "start alone",
        "text",
        "columns",
        "notes",
        "hash",
        "no rows",
        "a column less",
        "types",
        "no width",
    ],
)
def test_a_file_that_is_something_else_is_refused_in_one_line(spoil: object, exported: ExportedModel) -> None:
    path = write_golden(exported, [expectation(whole_numbers(9))], ["a", "b"], ["y"])
    assert callable(spoil)
    spoil(path)
    with pytest.raises(Refused, match=r"^golden\.parquet holds no golden predictions: .+") as refusal:
        read_golden(path)
    assert "\n" not in str(refusal.value)


# The proof.


def test_the_file_that_was_proved_passes_again(exported: ExportedModel, golden: Golden) -> None:
    report = prove_again(exported.path, golden)
    assert report.passed, report.reason
    assert report.sha256 == exported.sha256
    assert {case.name for case in report.cases} >= {"training rows", "zeros", "batch of 0", "each row alone"}
    assert [case.at_hand for case in report.cases if case.name == "zeros"] == [False] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float64_file_is_held_to_its_own_form(dtype: type, tmp_path: Path) -> None:
    exported = made(tmp_path / "model.onnx", dtype)
    golden = read_golden(write_golden(exported, [expectation(whole_numbers(9, dtype))], ["a", "b"], ["y"]))
    assert prove_again(exported.path, golden).passed


def test_a_missing_file_fails(exported: ExportedModel, golden: Golden) -> None:
    exported.path.unlink()
    assert prove_again(exported.path, golden).reason == "the file cannot be read: No such file or directory"


def test_a_file_of_another_size_is_not_read(
    exported: ExportedModel, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exported.path.open("r+b") as file:
        file.truncate(10**10)  # sparse: takes no room
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    report = prove_again(exported.path, golden)
    assert (report.verdict, report.reason) == ("failed", f"the file has 10000000000 bytes; {golden.bytes} were proved")


def test_a_change_that_predicts_the_same_fails_and_shows_that_it_does(exported: ExportedModel, golden: Golden) -> None:
    """One letter of what the file says of itself."""
    content = exported.path.read_bytes()
    exported.path.write_bytes(content.replace(b"letter\x12\x01A", b"letter\x12\x01B"))
    report = prove_again(exported.path, golden)
    assert report.sha256 != golden.sha256
    assert not report.passed
    assert report.reason == f"the file's SHA-256 is {report.sha256[:12]}...; {golden.sha256[:12]}... was proved"
    assert report.cases
    assert all(case.reason == "" for case in report.cases)


def test_another_version_that_predicts_the_same_passes(exported: ExportedModel, golden: Golden) -> None:
    report = prove_again(exported.path, replace(golden, versions={"onnxruntime": "1.2.3"}))
    assert (report.verdict, report.reason) == ("passed", "")


def test_a_changed_weight_fails_by_its_predictions(exported: ExportedModel, golden: Golden) -> None:
    made(exported.path, weight=WEIGHT * (1 + 1e-5))
    report = prove_again(exported.path, replace(golden, versions={"onnxruntime": "1.2.3"}))
    assert report.bytes == golden.bytes
    assert report.reason.startswith("training rows: row ")
    assert "onnxruntime predicts" in report.reason
    assert "1.2.3" not in report.reason, "the file is another: the library is not to blame"


def test_a_file_of_another_form_fails_before_it_is_loaded(
    exported: ExportedModel, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported.path)
    model.opset_import[0].version = 19
    exported.path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(fourfold.parity, "open_session", lambda *given, **more: pytest.fail("it was loaded"))
    report = prove_again(exported.path, golden)
    assert report.reason == "the file's opset is ai.onnx 19; ai.onnx 20 was asked for"
    assert report.sha256 == file_sha256(exported.path)


def test_a_library_that_predicts_otherwise_fails(
    exported: ExportedModel, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same, bit for bit; what runs it is not."""

    class Another:
        def run(self, names: object, values: dict[str, np.ndarray]) -> list[np.ndarray]:
            x = values["x"]
            return [(2 * x[:, :1] - x[:, 1:]) * np.float32(1 + 1e-5)]

    monkeypatch.setattr(fourfold.parity, "open_session", lambda *given, **more: Another())
    report = prove_again(exported.path, golden)
    assert report.sha256 == golden.sha256
    assert report.reason.startswith("training rows: row ")
    assert "was proved" not in report.reason, "of the same version there is nothing to tell"
    assert report.summary()["worst_ratio"] > 1
    older = prove_again(exported.path, replace(golden, versions={"onnxruntime": "1.2.3"}))
    told = f"; the file is the one that was proved, under onnxruntime 1.2.3, and this is {onnxruntime.__version__}"
    assert older.reason == report.reason + told


def test_nothing_of_it_needs_torch(exported: ExportedModel, golden: Golden) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "import fourfold.golden, fourfold.onnx_file, fourfold.parity, fourfold.structure\n"
        "path = Path(sys.argv[1])\n"
        "golden = fourfold.golden.read_golden(path.with_name('golden.parquet'))\n"
        "print(fourfold.golden.prove_again(path, golden).verdict, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported.path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "passed False\n", done.stderr
