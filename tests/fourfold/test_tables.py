"""Files as others write them: what is read of them, and what is said of those that cannot be."""

import codecs
import datetime
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fourfold import tables
from fourfold.datasets import Table, read_table
from fourfold.errors import RequestError
from fourfold.tables import Faults, ahead, choose_columns, matrix, open_table

BLOCK = 4096


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make some kilobytes a file of many blocks."""
    monkeypatch.setattr(tables, "_CSV_BLOCK", BLOCK)


def read(
    path: Path, targets: tuple[str, ...] = ("y",), features: tuple[str, ...] = (), missing: str = "error"
) -> Table:
    file = open_table(path)
    return read_table(file, *choose_columns(file, targets, features), missing=missing)


def refusal(path: Path, **options: Any) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(RequestError) as caught:
        read(path, **options)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert path.name in line
    return line


def csv(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(folder: Path, columns: Any, **options: Any) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


class TestSpellingsOfCsv:
    ROWS = "x{0}y\n1{0}2\n3{0}4\n"

    @pytest.mark.parametrize("delimiter", list(",;\t|"))
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_delimiters_and_line_ends(self, delimiter: str, end: str, tmp_path: Path) -> None:
        table = read(csv(tmp_path, self.ROWS.format(delimiter).replace("\n", end)))
        assert (table.features, table.x.tolist(), table.y.tolist()) == (("x",), [[1], [3]], [[2], [4]])

    @pytest.mark.parametrize(
        ("mark", "encoding"),
        [
            (codecs.BOM_UTF8, "utf-8"),
            (codecs.BOM_UTF16_LE, "utf-16-le"),
            (codecs.BOM_UTF16_BE, "utf-16-be"),
        ],
    )
    @pytest.mark.usefixtures("small_blocks")
    def test_a_byte_order_mark_is_no_part_of_a_name(self, mark: bytes, encoding: str, tmp_path: Path) -> None:
        rows = 3 * BLOCK
        text = "größe,y\n" + "".join(f"{row},{-row}\n" for row in range(rows))
        table = read(csv(tmp_path, mark + text.encode(encoding)))
        assert table.features == ("größe",)
        assert np.array_equal(table.x[:, 0], np.arange(rows))
        assert np.array_equal(table.y[:, 0], -np.arange(rows))

    def test_a_quoted_field_may_hold_delimiters_quotes_and_newlines(self, tmp_path: Path) -> None:
        text = 'x,"note; of, all\tsorts","y"\n1,"a\nb,""c"";",2\n"3",d,"4"\n5,"\n\n",6\n'
        table = read(csv(tmp_path, text), features=("x",))
        assert (table.x.tolist(), table.y.tolist()) == ([[1], [3], [5]], [[2], [4], [6]])

    @pytest.mark.parametrize("text", ["x,y\n\n1,2\n\n\n3,4\n\n", "\n\nx,y\n1,2\n3,4", "x,y\n1,2\n\r\n3,4\n"])
    def test_empty_lines_are_no_rows(self, text: str, tmp_path: Path) -> None:
        assert read(csv(tmp_path, text)).x.tolist() == [[1], [3]]

    @pytest.mark.parametrize("delimiter", list(";\t|"))
    def test_decimal_commas_are_taken_beside_another_delimiter(self, delimiter: str, tmp_path: Path) -> None:
        text = "x;y\n1,5;2\n-,25;4\n2,5e3;-1,75E-2\n".replace(";", delimiter)
        table = read(csv(tmp_path, text))
        assert table.x[:, 0].tolist() == [1.5, -0.25, 2500]
        assert table.y[:, 0].tolist() == [2, 4, -0.0175]

    @pytest.mark.parametrize("more", range(4))
    def test_the_delimiter_is_the_one_that_all_lines_have(self, more: int, tmp_path: Path) -> None:
        """More commas are in the first line, and what is looked at ends within a line."""
        name = "price, in EUR, net" + more * "."
        table = read(csv(tmp_path, f"{name};y\n" + "1;2\n2;3\n" * 10_000))
        assert (table.features, table.x.shape) == ((name,), (20_000, 1))

    def test_decimal_commas_may_come_after_many_whole_numbers(self, tmp_path: Path) -> None:
        assert read(csv(tmp_path, "x;y\n" + "1;2\n" * 5000 + "1,5;3\n")).x[-1] == 1.5

    def test_a_comma_in_a_name_is_no_decimal_comma(self, tmp_path: Path) -> None:
        table = read(csv(tmp_path, 'x;"1,5";y\n1.5;1;2\n2.5;3;4\n'))
        assert (table.features, table.x.tolist()) == (("x", "1,5"), [[1.5, 1], [2.5, 3]])

    @pytest.mark.parametrize("spelling", ["", "NA", "N/A", "NaN", "null", "nan"])
    def test_what_is_missing_has_many_spellings(self, spelling: str, tmp_path: Path) -> None:
        path = csv(tmp_path, f"x,y\n1,1\n{spelling},2\n3,4\n")
        assert np.array_equal(read(path, missing="mean").x, [[1], [np.nan], [3]], equal_nan=True)
        assert read(path, missing="drop").y.tolist() == [[1], [4]]

    def test_numbers_are_what_python_reads(self, tmp_path: Path) -> None:
        spelled = ["1", "+1", "-1.", ".5", "1e3", "1E-3", "0.1", "1.7976931348623157e149", "5e-324", "-0.0", "1e22"]
        table = read(csv(tmp_path, "x,y\n" + "".join(f"{one},{number}\n" for number, one in enumerate(spelled))))
        assert table.x[:, 0].tobytes() == np.array([float(one) for one in spelled]).tobytes()

    def test_a_table_that_pandas_wrote_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        frame = pd.DataFrame(random.normal(size=(500, 3)) * 10.0 ** random.integers(-9, 9, (500, 3)), columns=[*"aby"])
        frame["whole"], frame["yes"] = np.arange(500), random.random(500) < 0.5
        frame.to_csv(tmp_path / "rows.csv", index=False)
        table = read(tmp_path / "rows.csv")
        assert table.features == ("a", "b", "whole", "yes")
        assert np.array_equal(table.x, frame.drop(columns="y").to_numpy(dtype=np.float64))
        assert np.array_equal(table.y, frame[["y"]])


class TestCsvThatCannotBeRead:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("x,y\n1,2\n3\n5,6\n", "Row #3: Expected 2 columns, got 1: 3"),
            ("x,y\n1,2\n3,4,5\n5,6\n", "Row #3: Expected 2 columns, got 3: 3,4,5"),
            ('x,y\n1,2\n"3,4\n5,6\n', "Expected 2 columns, got 1"),
            ("größe,y\n1,2\n".encode("latin-1"), "is not UTF-8: byte 0xf6 at offset 2"),
            (b"\x89PNG\r\n\x1a\n", "is not UTF-8: byte 0x89 at offset 0"),
            ("x,y\n1,2\n3,4\n".encode("utf-16-le"), "has NUL bytes"),
            ("\ufeffx,y\n1,2\n3,4\n".encode("utf-32-le"), "has NUL bytes"),
            (bytes(1000), "has NUL bytes"),
            ("x,y\n1,2\n3\0,4\n", "has NUL bytes"),
            ("x\0,y\n1,2\n3,4\n", "has NUL bytes"),
            ("x,y", "has no rows; at least two are needed"),
            ("x,y\n", "has no rows; at least two are needed"),
            ("\ufeffx,y\r\n\r\n", "has no rows; at least two are needed"),
            (",,y\n1,2,3\n2,3,4\n", "more than one column named ''"),
            ("x,y,\n1,2,\n3,4,\n", "missing values: '' 2 of 2 rows"),
        ],
    )
    def test_the_reason_is_told(self, content: str | bytes, reason: str, tmp_path: Path) -> None:
        assert reason in refusal(csv(tmp_path, content))

    @pytest.mark.parametrize(
        ("column", "reason"),
        [
            (["1", "-", "?"], "2 of 3 values are text, first in row 2 ('-')"),
            (["1", "", "two"], "1 of 3 values are text, first in row 3 ('two')"),
            (["1,000", "2", "3"], "1 of 3 values are text, first in row 1 ('1,000')"),
            (["1%", "2%", "3%"], "3 of 3 values are text, first in row 1 ('1%')"),
            (["0x10", "2", "3"], "1 of 3 values are text, first in row 1 ('0x10')"),
            (["true", "false", "2"], "2 of 3 values are text, first in row 1 ('true')"),
            (["12:30:00", "12:31:00", "12:32:00"], "holds time32[s], not numbers"),
            (["2020-01-01 00:00:00"] * 3, "holds timestamp[s], not numbers"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("features", [(), ("x",)], ids=["all", "asked for"])
    @pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
    def test_a_column_of_anything_else_is_named_with_what_it_holds(
        self, column: list[str], reason: str, features: tuple[str, ...], beside: bool, tmp_path: Path
    ) -> None:
        """Whether it is asked for or just there, and whether or not another column could be learned from."""
        head, tail = ("x,z,y", ",5") if beside else ("x,y", "")
        rows = [f'"{value}"{tail},{row}' for row, value in enumerate(column)]
        line = refusal(csv(tmp_path, "\n".join([head, *rows])), features=features)
        assert f"column 'x' of {tmp_path}/rows.csv" in line
        assert reason in line

    def test_where_commas_are_decimal_a_point_is_named(self, tmp_path: Path) -> None:
        line = refusal(csv(tmp_path, "x;y\n1,5;2\n3;2.5\n"))
        assert "'y'" in line
        assert "1 of 2 values are no numbers with decimal commas, first in row 2 ('2.5')" in line

    def test_a_text_column_in_another_encoding_is_named(self, tmp_path: Path) -> None:
        """Far behind what is looked at for the encoding; where it is left out nobody minds."""
        path = csv(tmp_path, ("x,town,y\n" + "1,Ulm,2\n" * 20_000 + "3,Köln,4\n").encode("latin-1"))
        line = refusal(path)
        assert "column 'town'" in line
        assert "is not UTF-8" in line
        assert len(read(path, features=("x",)).x) == 20_001


@pytest.mark.usefixtures("small_blocks")
class TestTypesThatChange:
    """The first block of a CSV file is not what the others are."""

    def far(self, folder: Path, first: str, then: str) -> Path:
        return csv(folder, "a,x,b,y\n" + f"0,{first},0,1\n1,{first},1,2\n" * BLOCK + f"2,{then},2,3\n")

    ROWS = 2 * BLOCK + 1

    @pytest.mark.parametrize("then", ["2.5", "-1e3", "99999999999999999999999"])
    def test_whole_numbers_may_become_others(self, then: str, tmp_path: Path) -> None:
        table = read(self.far(tmp_path, "1", then))
        assert (len(table.x), table.x[-1].tolist()) == (self.ROWS, [2, float(then), 2])

    def test_a_column_that_begins_with_nothing_may_hold_numbers(self, tmp_path: Path) -> None:
        path = csv(tmp_path, "x,y\n" + ",1\n" * BLOCK + "2.5,2\n3,3\n")
        assert read(path, missing="drop").x.tolist() == [[2.5], [3]]

    @pytest.mark.parametrize(
        ("first", "then", "reason"),
        [
            ("1", "many", "1 of 8193 values are text, first in row 8193 ('many')"),
            ("1.5", "2020-01-01", "1 of 8193 values are text, first in row 8193 ('2020-01-01')"),
            ("1", "true", "1 of 8193 values are text, first in row 8193 ('true')"),
            ("", "many", "1 of 8193 values are text, first in row 8193 ('many')"),
            ("true", "2", "1 of 8193 values are neither true nor false, first in row 8193 ('2')"),
            ("true", "maybe", "1 of 8193 values are neither true nor false, first in row 8193 ('maybe')"),
        ],
    )
    @pytest.mark.parametrize("features", [(), ("b", "x")], ids=["all", "in another order"])
    def test_what_is_no_number_is_counted(
        self, first: str, then: str, reason: str, features: tuple[str, ...], tmp_path: Path
    ) -> None:
        line = refusal(self.far(tmp_path, first, then), features=features, missing="mean")
        assert f"column 'x' of {tmp_path}/rows.csv: {reason}" in line

    def test_a_ragged_line_is_told_by_its_number(self, tmp_path: Path) -> None:
        assert f"Row #{self.ROWS + 1}: Expected 4 columns, got 5" in refusal(self.far(tmp_path, "1", "1,1"))

    def test_decimal_commas_that_come_late_are_named(self, tmp_path: Path) -> None:
        path = csv(tmp_path, "x;y\n" + "1;1\n2;2\n" * 20_000 + "2,5;3\n")
        assert "1 of 40001 values are text, first in row 40001 ('2,5')" in refusal(path)


def test_the_types_of_a_real_first_block_are_those_of_8_mib(tmp_path: Path) -> None:
    rows = 8 * 2**20 // 10 + 1000
    path = csv(tmp_path, "x,y\n" + "1234567,1\n" * rows + "1.5,2\n")
    table = read(path)
    assert (len(table.x), table.x[-1, 0], table.y[-1, 0]) == (rows + 1, 1.5, 2)


class TestNames:
    NAMES = ("living area", 'said "large"', "it's", "🏠", "<b>rooms</b>", "a\tb", "größe", "-x", "w/b", "$HOME", "a.b")

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_any_name_will_do(self, kind: str, tmp_path: Path) -> None:
        frame = pd.DataFrame(np.arange(2.0 * len(self.NAMES)).reshape(2, -1) ** 2, columns=list(self.NAMES))
        path = tmp_path / f"rows.{kind}"
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
        table = read(path, targets=("🏠",))
        assert table.features == tuple(name for name in self.NAMES if name != "🏠")
        assert np.array_equal(table.x, frame[list(table.features)])
        assert np.array_equal(table.y, frame[["🏠"]])

    def test_a_message_stays_one_line_and_shows_what_cannot_be_seen(self, tmp_path: Path) -> None:
        path = parquet(tmp_path, {"a\nb": [1.0, 2.0], "\x1b[31mred": [1.0, 2.0], " y": [1.0, 2.0], "": [1.0, 2.0]})
        assert refusal(path).endswith(r"it has 'a\nb', '\x1b[31mred', ' y', ''")

    def test_the_advice_can_be_pasted_into_a_shell(self, tmp_path: Path) -> None:
        columns = {"note": ["a", "b"], "living area": [1.0, 2.0], "it's": [1.0, 2.0], "y": [1.0, 2.0]}
        line = refusal(parquet(tmp_path, columns))
        assert line.endswith("""leave it out: --features 'living area,it'"'"'s'""")

    def test_a_field_of_a_struct_is_not_taken_for_a_column_with_a_dot(self, tmp_path: Path) -> None:
        path = parquet(tmp_path, {"a.b": [1.0, 2.0], "a": [{"b": 7.0}, {"b": 8.0}], "y": [1.0, 2.0]})
        assert read(path, features=("a.b",)).x.tolist() == [[1], [2]]
        assert "column 'a'" in refusal(path)


class TestTypesOfParquet:
    @pytest.mark.parametrize(
        "column",
        [
            pa.array([1, None, 3], pa.int8()),
            pa.array([1, None, 3], pa.uint32()),
            pa.array([1, None, 3], pa.uint64()),
            pa.array([1.0, None, 3.0], pa.float32()),
            pa.array([1.0, None, 3.0], pa.float64()),
            pa.array([np.float16(1), None, np.float16(3)], pa.float16()),
            pa.array([Decimal("1.00"), None, Decimal("3.00")]),
            pa.array([Decimal("1"), None, Decimal("3")], pa.decimal256(60, 10)),
            pa.array([1.0, None, 3.0]).dictionary_encode(),
            pa.array([1, None, 3], pa.int64()).dictionary_encode(),
        ],
        ids=lambda column: str(column.type),
    )
    def test_columns_that_may_be_missing(self, column: pa.Array, tmp_path: Path) -> None:
        path = parquet(tmp_path, {"x": column, "y": [1.0, 2.0, 3.0]})
        assert np.array_equal(read(path, missing="mean").x, [[1], [np.nan], [3]], equal_nan=True)
        assert read(path, missing="drop").x.tolist() == [[1], [3]]
        assert "missing values: x 1 of 3 rows, first in row 2; mend them, or take --missing drop" in refusal(path)

    def test_a_boolean_that_may_be_missing(self, tmp_path: Path) -> None:
        path = parquet(tmp_path, {"x": [True, None, False], "y": [1.0, 2.0, 3.0]})
        assert np.array_equal(read(path, missing="mean").x, [[1], [np.nan], [0]], equal_nan=True)

    @pytest.mark.parametrize(
        ("kind", "values"),
        [
            (pa.int64(), [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]),
            (pa.uint64(), [2**64 - 1, 2**63, 2**53 + 1, 0]),
            (pa.int64(), [2**53 + 3, None, 1, 2]),
            (pa.decimal128(38, 2), [Decimal(2**100), Decimal("0.07"), Decimal("-1e20"), Decimal(0)]),
        ],
        ids=str,
    )
    def test_what_no_double_holds_becomes_the_nearest(
        self, kind: pa.DataType, values: list[Any], tmp_path: Path
    ) -> None:
        path = parquet(tmp_path, {"x": pa.array(values, kind), "y": [1.0, 2.0, 3.0, 4.0]})
        nearest = [[np.nan if value is None else float(value)] for value in values]
        assert np.array_equal(read(path, missing="mean").x, nearest, equal_nan=True)

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
    @pytest.mark.parametrize("encoded", [False, True], ids=["plain", "categories"])
    def test_text_of_any_kind_is_counted(self, kind: pa.DataType, encoded: bool, tmp_path: Path) -> None:
        column = pa.array(["1", None, "high", "low"], pa.string() if encoded else kind)
        path = parquet(tmp_path, {"x": column.dictionary_encode() if encoded else column, "y": [1.0, 2.0, 3.0, 4.0]})
        line = refusal(path, missing="mean")
        assert "column 'x' of" in line
        assert "2 of 4 values are text, first in row 3 ('high')" in line

    @pytest.mark.parametrize(
        ("column", "held"),
        [
            (pa.array([datetime.datetime(2024, 1, day) for day in (1, 2)]), "timestamp[us]"),
            (pa.array([datetime.timedelta(day) for day in (1, 2)]), "duration[us]"),
            (pa.array([datetime.time(1), datetime.time(2)]), "time64[us]"),
            (pa.array([b"a\xff", b"b"]), "binary"),
            (pa.array([b"aa", b"bb"], pa.binary(2)), "fixed_size_binary[2]"),
            (pa.array([{"a": 1}, {"a": 2}]), "struct<a: int64>"),
            (pa.array([None, None], pa.string()), "text, though no value is there"),
            (pa.array(["1", None], pa.string()), "numbers stored as text"),
        ],
        ids=lambda value: str(value) if isinstance(value, str) else "",
    )
    def test_other_types_are_named(self, column: pa.Array, held: str, tmp_path: Path) -> None:
        path = parquet(tmp_path, {"x": column, "z": [1.0, 2.0], "y": [1.0, 2.0]})
        line = refusal(path)
        assert f"column 'x' of {path} holds {held}" in line
        assert line.endswith("leave it out: --features z")

    def test_a_column_of_type_null_has_no_value(self, tmp_path: Path) -> None:
        path = parquet(tmp_path, {"x": pa.nulls(3), "z": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]})
        assert "missing values: x 3 of 3 rows" in refusal(path, missing="mean")
        assert "--missing drop leaves none of the 3 rows" in refusal(path, missing="drop")

    def test_a_table_of_the_target_alone_has_nothing_to_learn_from(self, tmp_path: Path) -> None:
        assert refusal(parquet(tmp_path, {"y": [1.0, 2.0]})).endswith("no numeric column besides the target; it has y")

    def test_a_table_without_columns_has_no_target(self, tmp_path: Path) -> None:
        assert refusal(parquet(tmp_path, {})).endswith("has no such column; it has none")


class TestRowGroups:
    def test_small_large_and_empty_ones_make_one_table(self, tmp_path: Path) -> None:
        sizes = [0, 1, 70_000, 0, 3, 0]
        x = np.random.default_rng(0).normal(size=(sum(sizes), 2))
        schema = pa.schema([("x", pa.float64()), ("y", pa.float64())])
        ends = np.cumsum([0, *sizes])
        with pq.ParquetWriter(tmp_path / "rows.parquet", schema) as writer:
            for start, end in pairwise(ends):
                writer.write_table(pa.table(dict(zip("xy", x[start:end].T, strict=True)), schema=schema))
        assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == len(sizes)
        table = read(tmp_path / "rows.parquet")
        assert np.array_equal(np.hstack([table.x, table.y]), x)

    def test_thousands_of_small_ones(self, tmp_path: Path) -> None:
        x = np.arange(9000.0)
        table = read(parquet(tmp_path, {"x": x, "y": 2 * x}, row_group_size=3))
        assert np.array_equal(table.x[:, 0], x)

    def test_no_row_group_at_all_has_no_rows(self, tmp_path: Path) -> None:
        pq.ParquetWriter(tmp_path / "rows.parquet", pa.schema([("x", pa.float64()), ("y", pa.float64())])).close()
        assert refusal(tmp_path / "rows.parquet").endswith("has no rows; at least two are needed")

    def test_one_huge_one_is_read_in_chunks(self, tmp_path: Path) -> None:
        x = np.arange(200_000.0)
        file = open_table(parquet(tmp_path, {"x": x, "y": x}, row_group_size=len(x)))
        sizes = [batch.num_rows for batch in file.chunks(("y", "x"))]
        assert max(sizes) <= tables.CHUNK_ROWS
        assert sum(sizes) == len(x)


def test_rows_are_copied_once_on_their_way_to_memory(tmp_path: Path) -> None:
    """As chunks, and as the table; tracemalloc counts what is asked for, though its pages come as chunks go."""
    rows, width = 600_000, 8
    column = np.arange(float(rows))
    path = parquet(tmp_path, {f"c{number}": column + number for number in range(width)})
    file = open_table(path)
    names = choose_columns(file, ("c0",))
    tracemalloc.start()
    try:
        table = read_table(file, *names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(table.x[:, -1], column + width - 1)
    assert peak < 2.5 * rows * width * 8


class TestDamagedParquet:
    @pytest.fixture
    def content(self, tmp_path: Path) -> bytearray:
        random = np.random.default_rng(0)
        columns = {"x": random.normal(size=20_000), "y": random.normal(size=20_000)}
        return bytearray(parquet(tmp_path, columns, write_page_checksum=True).read_bytes())

    def damaged(self, folder: Path, content: bytes) -> str:
        path = folder / "damaged.parquet"
        path.write_bytes(content)
        line = refusal(path)
        assert "cannot be read: " in line
        return line

    def footer(self, content: bytes) -> int:
        return int.from_bytes(content[-8:-4], "little") + 8

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_pages_that_are_cut_short_before_a_whole_footer(
        self, share: float, content: bytearray, tmp_path: Path
    ) -> None:
        footer = self.footer(content)
        self.damaged(tmp_path, content[: int(share * (len(content) - footer))] + content[-footer:])

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_pages_that_were_overwritten(self, share: float, content: bytearray, tmp_path: Path) -> None:
        """As where a download was resumed in the wrong place: the numbers would be others, and nobody would know."""
        start = int(share * len(content))
        content[start : start + 16] = bytes(16)
        self.damaged(tmp_path, content)

    def test_a_footer_that_was_overwritten(self, content: bytearray, tmp_path: Path) -> None:
        footer = self.footer(content)
        content[-footer:-8] = bytes(footer - 8)
        self.damaged(tmp_path, content)

    @pytest.mark.parametrize("other", [b"x,y\n1,2\n3,4\n", b"PAR1 nothing PAR1"])
    def test_a_file_that_is_none(self, other: bytes, tmp_path: Path) -> None:
        self.damaged(tmp_path, other)

    def test_a_folder_with_the_ending_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "rows.parquet").mkdir()
        assert "no such file" in refusal(tmp_path / "rows.parquet")


class TestFaults:
    def faults(self, path: Path, missing: str) -> Faults:
        return Faults(open_table(path), ("a", "b"), ("y",), missing)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return csv(tmp_path, "a,b,y\n1,1,1\n")

    def judged(self, path: Path, rows: Any, missing: str = "error", size: int = 2) -> str:
        faults, values = self.faults(path, missing), np.array(rows, dtype=np.float64)
        for start in range(0, len(values), size):
            faults.keep(values[start : start + size])
        with pytest.raises(RequestError) as refused:
            faults.judge()
        return str(refused.value)

    NAN, INF = np.nan, np.inf

    @pytest.mark.parametrize("size", [1, 2, 3, 10])
    def test_counts_and_the_first_row_do_not_depend_on_the_chunks(self, size: int, path: Path) -> None:
        rows = [[1, 2, 3], [2, self.NAN, 4], [self.NAN, self.NAN, 5], [3, 3, 6], [self.NAN, 1, 7]]
        assert "missing values: a 2, b 2 of 5 rows, first in row 2;" in self.judged(path, rows, size=size)

    def test_where_features_are_filled_the_first_row_is_the_targets(self, path: Path) -> None:
        rows = [[self.NAN, 1, 1], [1, self.NAN, 2], [3, 2, self.NAN], [4, 3, 3], [5, 4, self.NAN]]
        line = self.judged(path, rows, "mean")
        assert "missing values: y 2 of 5 rows, first in row 3; mend them, a target cannot be filled" in line

    def test_a_feature_without_any_value_cannot_be_filled(self, path: Path) -> None:
        assert "missing values: b 3 of 3 rows, first in row 1" in self.judged(
            path, [[n, self.NAN, n] for n in "123"], "mean"
        )

    def test_infinite_values_come_before_missing_ones(self, path: Path) -> None:
        rows = [[self.NAN, 1, 1], [1, 2, 2], [2, -self.INF, self.INF], [3, self.INF, 3]]
        for missing in ("error", "drop", "mean"):
            line = self.judged(path, rows, missing)
            assert "not finite: b 2, y 1 of 4 rows, first in row 3" in line

    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    def test_what_is_constant_where_it_is_used(self, missing: str, path: Path) -> None:
        rows = [[7, n, n] for n in range(4)]
        rows += [] if missing == "error" else [[7, 9, 9], [self.NAN, 8, 8]]
        rows += [[8, self.NAN, 1]] if missing == "drop" else []
        line = self.judged(path, rows, missing)
        assert "column 'a'" in line
        assert line.endswith("is the same in every row; leave it out: --features b")

    def test_a_constant_target_is_not_told_to_be_left_out(self, path: Path) -> None:
        line = self.judged(path, [[1, n, 5] for n in range(3)])
        assert "the target 'y'" in line
        assert line.endswith("there is nothing to learn")

    def test_rows_that_stay_are_those_without_a_missing_value(self, path: Path) -> None:
        values = np.array([[1, 2, 3], [self.NAN, 2, 3], [1, self.NAN, 3], [2, 2, self.NAN], [4, 5, 6]])
        assert self.faults(path, "drop").keep(values).tolist() == [True, False, False, False, True]
        assert self.faults(path, "mean").keep(values).all()

    def test_chunks_without_any_row_change_nothing(self, path: Path) -> None:
        faults = self.faults(path, "drop")
        for values in (np.empty((0, 3)), np.full((2, 3), self.NAN), np.array([[1.0, 2, 3], [2, 3, 4]])):
            faults.keep(values)
        faults.judge()
        assert (faults.rows, faults.kept) == (4, 2)


class TestMatrix:
    def test_columns_come_in_the_order_asked_for_each_in_one_piece(self) -> None:
        batch = pa.record_batch({"a": [1, 2], "b": [True, None], "c": [0.5, 0.25]})
        values = matrix(batch, ("c", "a", "b"), np.float32)
        assert np.array_equal(values, np.array([[0.5, 1, 1], [0.25, 2, np.nan]], dtype=np.float32), equal_nan=True)
        assert values.dtype == np.float32
        assert values.flags.f_contiguous

    def test_beyond_float32_is_infinite_without_a_warning(self) -> None:
        assert matrix(pa.record_batch({"a": [1e39, -1e39]}), ("a",), np.float32).tolist() == [[np.inf], [-np.inf]]

    def test_a_slice_of_a_column_is_that_slice(self) -> None:
        """Of booleans and of what may be missing the bits of a slice begin within a byte."""
        batch = pa.record_batch({"a": [True, None, False, True] * 9, "b": [1, None, 3, 4] * 9})
        whole = matrix(batch, ("a", "b"), np.float64)
        assert np.array_equal(matrix(batch.slice(5, 13), ("a", "b"), np.float64), whole[5:18], equal_nan=True)


class TestAhead:
    def test_everything_comes_once_and_in_order(self) -> None:
        assert list(ahead(lambda: iter(range(1, 100)))) == list(range(1, 100))
        assert list(ahead(lambda: iter(()))) == []

    def test_the_next_is_made_while_one_is_used(self) -> None:
        made = threading.Event()

        def produce() -> Iterator[int]:
            yield 1
            made.set()
            yield 2

        items = ahead(produce)
        assert next(items) == 1
        assert made.wait(timeout=10)
        assert list(items) == [2]

    def test_a_fault_comes_where_it_was(self) -> None:
        def produce() -> Iterator[int]:
            yield 1
            raise RequestError("broken")

        items = ahead(produce)
        assert next(items) == 1
        with pytest.raises(RequestError, match="broken"):
            next(items)

    def test_no_more_than_two_are_held(self) -> None:
        """One in use, and one that is made ready beside it."""

        def produce() -> Iterator[np.ndarray]:
            for _ in range(20):
                yield np.ones(2**20)

        tracemalloc.start()
        try:
            for item in ahead(produce):
                assert item[0] == 1
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3.5 * 8 * 2**20

    @pytest.mark.parametrize("taken", [0, 1, 3])
    def test_what_is_left_half_way_is_closed(self, taken: int, threads_end: Callable[[], bool]) -> None:
        closed = []

        def produce() -> Iterator[int]:
            try:
                yield from range(1, 10)
            finally:
                closed.append(True)

        items = ahead(produce)
        for _ in range(taken):
            next(items)
        items.close()  # type: ignore[attr-defined]
        del items
        assert closed == [True] * (taken > 0)
        assert threads_end()
