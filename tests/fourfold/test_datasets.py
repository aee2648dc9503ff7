"""Rows and their refusals, from tables that are written here."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fourfold.datasets import Dataset, Table, line, make_dataset, sine
from fourfold.datasets import read_table as read_columns
from fourfold.errors import RequestError
from fourfold.tables import choose_columns, open_table

COLUMNS = {"area": [50.0, 70.5, 90.25], "rooms": [2.0, 3.0, 4.0], "price": [1.5, 2.5, -3.5e-7]}


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "rows.csv"
    path.write_text(text, encoding=encoding)
    return path


def parquet(folder: Path, columns: dict[str, Any]) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def as_csv(columns: dict[str, list[float]]) -> str:
    return "\n".join(map(",".join, [list(columns), *(map(repr, row) for row in zip(*columns.values(), strict=True))]))


def read_table(path: Path, targets: tuple[str, ...], features: tuple[str, ...] = (), missing: str = "error") -> Table:
    file = open_table(path)
    return read_columns(file, *choose_columns(file, targets, features), missing=missing)


def split(table: Table, fraction: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    return make_dataset("rows", table, test_fraction=fraction, seed=seed, dtype=dtype)


def numbered(rows: int) -> Table:
    """Rows that can be told apart, each target twice its feature."""
    x = np.arange(float(rows)).reshape(-1, 1)
    return Table(("x",), ("y",), x, 2 * x)


def test_the_line_is_the_exercises() -> None:
    table = line()
    assert (table.x.tolist(), table.y.tolist()) == ([[1], [2], [3]], [[2], [4], [6]])


def test_the_sine_is_the_tutorials() -> None:
    table = sine()
    x = torch.linspace(-torch.pi, torch.pi, 2000, dtype=torch.float64).reshape(-1, 1)
    assert torch.allclose(torch.from_numpy(table.x), x, rtol=0, atol=1e-14)
    assert torch.allclose(torch.from_numpy(table.y), torch.sin(x), rtol=0, atol=1e-14)
    assert (table.x[0, 0], table.x[-1, 0]) == (-np.pi, np.pi)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_gives_its_numbers_in_order(tmp_path: Path, kind: str) -> None:
    path = csv(tmp_path, as_csv(COLUMNS)) if kind == "csv" else parquet(tmp_path, COLUMNS)
    table = read_table(path, ("price",))
    assert (table.features, table.targets) == (("area", "rooms"), ("price",))
    assert np.array_equal(table.x, np.column_stack([COLUMNS["area"], COLUMNS["rooms"]]))
    assert np.array_equal(table.y[:, 0], COLUMNS["price"])
    assert table.x.dtype == table.y.dtype == np.float64


def test_features_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    table = read_table(parquet(tmp_path, COLUMNS), ("price",), ("rooms", "area"))
    assert table.features == ("rooms", "area")
    assert np.array_equal(table.x, np.column_stack([COLUMNS["rooms"], COLUMNS["area"]]))


def test_there_may_be_several_targets(tmp_path: Path) -> None:
    table = read_table(parquet(tmp_path, COLUMNS), ("price", "area"))
    assert table.features == ("rooms",)
    assert np.array_equal(table.y, np.column_stack([COLUMNS["price"], COLUMNS["area"]]))


@pytest.mark.parametrize("ending", [".CSV", ".PQ", ".Parquet"])
def test_an_ending_counts_in_any_letter_case(tmp_path: Path, ending: str) -> None:
    made = csv(tmp_path, as_csv(COLUMNS)) if ending == ".CSV" else parquet(tmp_path, COLUMNS)
    assert read_table(made.rename(tmp_path / f"other{ending}"), ("price",)).x.shape == (3, 2)


def test_columns_that_are_not_numeric_are_refused_with_the_option_that_leaves_them_out(tmp_path: Path) -> None:
    text = "street,built,area,rooms,price\nHigh,2001-01-01,50,2,1\nLow,2002-02-02,60,3,2\n"
    refused = r"column 'street' .*: 2 of 2 values are text, .* \(and built\); leave it out: --features area,rooms$"
    with pytest.raises(RequestError, match=refused):
        read_table(csv(tmp_path, text), ("price",))
    assert read_table(csv(tmp_path, text), ("price",), ("area", "rooms")).features == ("area", "rooms")


def test_a_boolean_column_is_zero_and_one(tmp_path: Path) -> None:
    table = read_table(csv(tmp_path, "garden,price\ntrue,1\nfalse,2\n"), ("price",))
    assert table.x.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2], pa.uint8()),
        pa.array([1, 2], pa.int64()),
        pa.array(np.array([1, 2], dtype=np.float16)),
        pa.array([1, 2], pa.float32()),
        pa.array([Decimal("1.0"), Decimal("2.0")]),
    ],
    ids=lambda column: str(column.type),
)
def test_every_type_of_number_is_read(tmp_path: Path, column: pa.Array) -> None:
    assert read_table(parquet(tmp_path, {"x": column, "y": [1.0, 2.0]}), ("y",)).x.tolist() == [[1.0], [2.0]]


def test_a_whole_number_beyond_a_double_becomes_the_nearest(tmp_path: Path) -> None:
    table = read_table(csv(tmp_path, f"id,y\n{2**53 + 1},1\n-{2**62 + 1},2\n"), ("y",))
    assert table.x.tolist() == [[float(2**53 + 1)], [-float(2**62 + 1)]]


@pytest.mark.parametrize(
    ("text", "targets", "features", "reason"),
    [
        ("", ("y",), (), "is empty"),
        ("\n", ("y",), (), "cannot be read: .*Empty CSV"),
        ("x,y\n", ("y",), (), "has no rows; at least two are needed"),
        ("x,y\n1,2,3\n", ("y",), (), "cannot be read: .*Expected 2 columns, got 3"),
        ("x,y\n1,2\n", (), (), r"needs --target COLUMN; its columns are x, y"),
        ("x,y\n1,2\n", ("z",), (), "--target z: .* has no such column; it has x, y"),
        ("x,y\n1,2\n", ("y",), ("z",), "--features z: .* has no such column; it has x, y"),
        ("x,x,y\n1,1,2\n", ("y",), (), "more than one column named x; give each its own name"),
        ("x,y\n1,2\n", ("y", "y"), (), "--target y is given twice"),
        ("x,y\n1,2\n", ("y",), ("x", "x"), "--features x is given twice"),
        ("x,y\n1,2\n", ("y",), ("x", "y"), "y cannot be a feature and the target"),
        ("y\n1\n2\n", ("y",), (), "has no numeric column besides the target; it has y"),
        ("x,y\na,1\nb,2\n", ("y",), (), "has no numeric column besides the target; it has x, y"),
        ("x,y\n1,1\ntwo,2\n3,3\nfour,4\n", ("y",), ("x",), r"'x' .*: 2 of 4 values are text, first in row 2 \('two'\)"),
        ("x,y\n1,1\n2,many\n", ("y",), (), r"'y' .*: 1 of 2 values are text, first in row 2 \('many'\)"),
        ("x,y\n1,1\n,2\n,3\n", ("y",), (), r"missing values: x 2 of 3 rows, first in row 2; .*--missing drop"),
        ("x,y\n1,1\n2,\n", ("y",), (), r"missing values: y 1 of 2 rows, first in row 2"),
        ("x,y\n1,1\nnan,2\n", ("y",), (), r"missing values: x 1 of 2 rows, first in row 2"),
        ("x,y\n1,1\n-inf,2\n", ("y",), (), r"not finite: x 1 of 2 rows, first in row 2"),
        ("x,y\n,1\n,2\n", ("y",), ("x",), r"missing values: x 2 of 2 rows, first in row 1"),
        ("b,y\ntrue,1\n,2\n", ("y",), (), r"missing values: b 1 of 2 rows, first in row 2"),
        ("d,y\n2024-01-01,1\n2024-01-02,2\n", ("y",), ("d",), r"'d' .* holds date32\[day\], not numbers"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, targets: tuple[str, ...], features: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        read_table(csv(tmp_path, text), targets, features)


@pytest.mark.parametrize(
    ("columns", "features", "reason"),
    [
        ({"x": [1.0, float("inf")]}, (), r"not finite: x 1 of 2 rows, first in row 2"),
        ({"x": [None, 1.0]}, (), r"missing values: x 1 of 2 rows, first in row 1"),
        ({"x": ["a", "b"]}, ("x",), r"'x' .*: 2 of 2 values are text, first in row 1 \('a'\)"),
        ({"x": [datetime.date(2024, 1, 1)] * 2}, ("x",), r"'x' .* holds date32\[day\], not numbers"),
        ({"x": [[1.0], [2.0]]}, ("x",), r"'x' .* holds list<.*>, not numbers"),
        ({"x": [1.0, 2.0], "y": ["a", "b"]}, (), r"'y' .*: 2 of 2 values are text, first in row 1 \('a'\)"),
        ({"x": pa.array([], pa.float64()), "y": pa.array([], pa.float64())}, (), "has no rows"),
    ],
)
def test_a_parquet_file_that_cannot_be_used_is_refused(
    tmp_path: Path, columns: dict[str, Any], features: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        read_table(parquet(tmp_path, {"y": [1.0, 2.0]} | columns), ("y",), features)


def test_numbers_that_are_stored_as_text_are_refused_with_a_true_count(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"x": ["1", "2"], "y": [1.0, 2.0]})
    with pytest.raises(RequestError, match=r"column 'x' of .*\btext\b") as refusal:
        read_table(path, ("y",), ("x",))
    assert "0 of 2" not in str(refusal.value)


@pytest.mark.parametrize("kept", [4, 100, -1], ids=["its start", "100 bytes", "all but one byte"])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = parquet(tmp_path, COLUMNS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RequestError, match=r"rows\.parquet cannot be read: .*Parquet"):
        read_table(path, ("price",))


def test_a_csv_header_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"rows\.csv.*(?i:utf-?8)"):
        read_table(csv(tmp_path, "größe,preis\n1,2\n3,4\n", encoding="latin-1"), ("preis",))


def test_a_missing_file_is_refused_with_what_could_be_given(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere\.csv: no such file; give line, sine, or the path"):
        read_table(tmp_path / "nowhere.csv", ("y",))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        read_table(tmp_path, ("y",))


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.txt", "rows"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("x,y\n1,2\n")
    with pytest.raises(RequestError, match=r"unknown ending '.*'; \.csv and \.parquet are read"):
        read_table(path, ("y",))


def test_a_wide_table_is_listed_in_part(tmp_path: Path) -> None:
    path = parquet(tmp_path, {f"c{column}": [1.0, 2.0] for column in range(25)})
    with pytest.raises(RequestError, match=r"it has c0, c1, .*, c19 and 5 more$"):
        read_table(path, ("y",))


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"), [(100, 0.2, 20), (100, 0.25, 25), (7, 0.5, 4), (10, 0.04, 0), (10, 0.8, 8)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_is_a_partition(rows: int, fraction: float, held_out: int, seed: int) -> None:
    data = split(numbered(rows), fraction, seed)
    assert (len(data.x), len(data.x_test), data.rows) == (rows - held_out, held_out, rows)
    assert torch.cat([data.x, data.x_test]).flatten().sort().values.tolist() == list(range(rows))
    assert torch.equal(data.y, 2 * data.x)
    assert torch.equal(data.y_test, 2 * data.x_test)


def test_the_seed_decides_the_split() -> None:
    first, again, other = (split(numbered(100), 0.2, seed) for seed in (3, 3, 4))
    assert torch.equal(first.x_test, again.x_test)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x_test, other.x_test)


def test_a_split_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    split(numbered(100), 0.2)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_split_the_rows_keep_their_order() -> None:
    data = split(numbered(10))
    assert data.x.flatten().tolist() == list(range(10))
    assert data.x_test.shape == data.y_test.shape == (0, 1)


def test_a_model_is_judged_on_the_held_out_rows_where_there_are_any() -> None:
    data = split(numbered(10), 0.2)
    assert (data.judged_on, data.count) == ("held-out", {"training": 8, "validation": 0, "held-out": 2})
    data = split(numbered(10))
    assert (data.judged_on, data.count) == ("training", {"training": 10, "validation": 0, "held-out": 0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_have_the_dtype_asked_for(dtype: torch.dtype) -> None:
    data = split(sine(), 0.2, dtype=dtype)
    assert {tensor.dtype for tensor in (data.x, data.y, data.x_test, data.y_test)} == {dtype}


@pytest.mark.parametrize(("rows", "fraction"), [(2, 0.5), (3, 0.5), (10, 0.9), (100, 0.999)])
def test_a_split_that_leaves_fewer_than_two_rows_is_refused(rows: int, fraction: float) -> None:
    with pytest.raises(RequestError, match=rf"--test-fraction {fraction:g} leaves [01] of {rows} rows to train on"):
        split(numbered(rows), fraction)


def test_one_row_is_too_few() -> None:
    with pytest.raises(RequestError, match="rows has 1 row; at least two are needed"):
        split(numbered(1))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("column", ["x", "y"])
def test_a_value_beyond_float32_is_refused(column: str, fraction: float) -> None:
    table = numbered(10)
    getattr(table, column)[4] = 1e39
    with pytest.raises(RequestError, match=r"values beyond the range of torch\.float32; use --dtype float64"):
        split(table, fraction, dtype=torch.float32)
    assert 1e39 in getattr(split(table), column)


def test_the_hash_is_that_of_the_numbers_and_not_of_the_format(tmp_path: Path) -> None:
    from_csv, from_parquet = csv(tmp_path, as_csv(COLUMNS)), parquet(tmp_path, COLUMNS)
    hashes = {split(read_table(path, ("price",))).sha256 for path in (from_csv, from_parquet)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_the_hash_is_taken_before_the_split() -> None:
    hashes = {
        split(sine(), fraction, seed, dtype).sha256
        for fraction in (0.0, 0.2)
        for seed in (0, 1)
        for dtype in (torch.float32, torch.float64)
    }
    assert len(hashes) == 1


def test_the_hash_changes_with_any_value() -> None:
    hashes = {split(line()).sha256}
    for column in ("x", "y"):
        for row in range(3):
            table = line()
            values = getattr(table, column)
            values[row] = np.nextafter(values[row], np.inf)
            hashes.add(split(table).sha256)
    assert len(hashes) == 7


def test_the_hash_changes_with_names_and_roles() -> None:
    x, y = line().x, line().y
    tables = [
        Table(("x",), ("y",), x, y),
        Table(("z",), ("y",), x, y),
        Table(("x",), ("z",), x, y),
        Table(("x", "y"), ("z",), np.hstack([x, y]), x),
        Table(("x",), ("y", "z"), x, np.hstack([y, x])),
    ]
    assert len({split(table).sha256 for table in tables}) == len(tables)
