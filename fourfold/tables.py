"""CSV and Parquet files, read in chunks, and what of them a model can take. Needs no torch."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from fourfold.errors import RequestError, first_line

CHUNK_ROWS = 65_536
_CSV_BLOCK = 8 * 2**20  # bytes; the types of columns are judged by the first block
_SNIFFED = 64 * 2**10
_SNIFFED_LINES = 50
# A decimal number as CSV spells it; what does not match is counted and shown when a column is refused as text.
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_MOST_NAMED = 20

Item = TypeVar("Item")


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is spelled."""

    encoding: str
    delimiter: str
    decimal_point: str

    def open(self, path: Path, **convert: object) -> pa.csv.CSVStreamingReader:
        """Read the file block by block."""
        return pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(encoding=self.encoding, block_size=_CSV_BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter=self.delimiter),
            convert_options=pa.csv.ConvertOptions(decimal_point=self.decimal_point, **convert),
        )


@dataclass(frozen=True)
class TableFile:
    """A table on disk.

    Attributes:
        option: that named the file, for messages.
        schema: names and types of its columns; those of a CSV file as its first block has them.
        rows: None for a CSV file, where only reading tells.
        csv: how a CSV file is spelled, None for Parquet.
    """

    path: Path
    option: str
    schema: pa.Schema
    rows: int | None = None
    csv: CsvForm | None = None

    @property
    def numeric(self) -> tuple[str, ...]:
        """The columns that hold numbers or booleans, or nothing at all."""
        return tuple(field.name for field in self.schema if is_numeric(field.type))

    def chunks(self, names: Sequence[str], text: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """The named columns, in that order, some ten thousands of rows at a time.

        Args:
            names: numeric columns; of a CSV file all but booleans come as float64.
            text: further columns, which of a CSV file come exactly as they are written.

        Raises:
            RequestError: the file cannot be read to its end.
        """
        wanted = list(dict.fromkeys((*names, *text)))
        with self._reading():
            if self.csv is None:
                # Not buffered ahead: a row group of many columns would lie in memory twice.
                with pa.parquet.ParquetFile(self.path, pre_buffer=False) as file:
                    yield from file.iter_batches(CHUNK_ROWS, columns=wanted)
                return
            types = {name: pa.string() if name in text else self._type_read(name) for name in wanted}
            with self.csv.open(self.path, include_columns=wanted, column_types=types) as reader:
                yield from (batch for batch in reader if batch.num_rows)

    def _type_read(self, name: str) -> pa.DataType:
        """Numbers of any kind as float64: whole ones in the first block may be others further down."""
        kind = self.schema.field(name).type
        return pa.float64() if is_numeric(kind) and not pa.types.is_boolean(kind) else kind

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            fault = re.search(r"In CSV column #(\d+): CSV conversion error to double", str(error))
            if fault:
                raise RequestError(self.why_not_numbers(self.schema.names[int(fault[1])])) from error
            raise RequestError(f"{self.option} {self.path} cannot be read: {first_line(error)}") from error

    def why_not_numbers(self, name: str) -> str:
        """Say what a column holds, with the count and the first row of what is no number."""
        kind = self.schema.field(name).type
        if not any(a_text(kind) for a_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
            return f"column {name!r} of {self.path} holds {kind}, not numbers"
        rows, wrong, first = 0, 0, ""
        for batch in self.chunks((), text=(name,)):
            column = batch.column(0)
            faulty = ~pc.fill_null(pc.match_substring_regex(column, _NUMBER), False).to_numpy(zero_copy_only=False)
            if faulty.any() and not wrong:
                at = int(faulty.argmax())
                first = f"row {rows + at + 1} ({column[at].as_py()!r})"
            rows, wrong = rows + len(column), wrong + int(faulty.sum())
        if not wrong:
            return f"column {name!r} of {self.path} holds numbers stored as text; store them as numbers"
        return f"column {name!r} of {self.path}: {wrong} of {rows} values are text or missing, first in {first}"


def open_table(path: Path, option: str = "--data") -> TableFile:
    """Look at a .csv or .parquet file.

    A CSV file is UTF-8 or UTF-16 with a byte-order mark; its delimiter is one of comma, semicolon, tab and bar, and
    decimal commas are taken where the delimiter is another.

    Raises:
        RequestError: no such file, empty, another format, unreadable, columns of the same name.
    """
    if not path.is_file():
        others = "give line, sine, or the path of a" if option == "--data" else "give the path of a"
        raise RequestError(f"{option} {path}: no such file; {others} .csv or .parquet file")
    if path.stat().st_size == 0:
        raise RequestError(f"{option} {path} is empty")
    ending = path.suffix.lower()
    if ending not in (".csv", ".parquet", ".pq"):
        raise RequestError(f"{option} {path}: unknown ending {path.suffix!r}; .csv and .parquet are read")
    try:
        if ending == ".csv":
            form = _csv_form(path, option)
            with form.open(path) as reader:
                file = TableFile(path, option, reader.schema, csv=form)
        else:
            with pa.parquet.ParquetFile(path) as parquet:
                file = TableFile(path, option, parquet.schema_arrow, rows=parquet.metadata.num_rows)
        columns = file.schema.names  # decoded only when asked for
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"{option} {path} cannot be read: {first_line(error)}") from error
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise RequestError(f"{path} has more than one column named {listed(repeated)}; give each its own name")
    return file


def choose_columns(
    file: TableFile, targets: Sequence[str], features: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the features and the targets; without features all other columns are.

    Raises:
        RequestError: a column that is not there or given twice, or one that holds neither numbers nor booleans.
    """
    path, columns, numeric = file.path, file.schema.names, file.numeric
    if not targets:
        raise RequestError(f"--data {path} needs --target COLUMN; its columns are {listed(columns)}")
    for option, names in (("--target", targets), ("--features", features)):
        for name in names:
            if name not in columns:
                raise RequestError(f"{option} {name}: {path} has no such column; it has {listed(columns)}")
            if names.count(name) > 1:
                raise RequestError(f"{option} {name} is given twice; once is enough")
            if name not in numeric:
                raise RequestError(f"{file.why_not_numbers(name)}; mend it, or choose another by {option}")
    if both := [name for name in features if name in targets]:
        raise RequestError(f"{listed(both)} cannot be a feature and the target; take it out of one of the two")
    others = [name for name in columns if name not in targets]
    usable = [name for name in others if name in numeric]
    if not usable:
        raise RequestError(f"{path} has no numeric column besides the target; it has {listed(columns)}")
    if not features and (wrong := [name for name in others if name not in numeric]):
        more = f" (and {listed(wrong[1:])})" if wrong[1:] else ""
        raise RequestError(f"{file.why_not_numbers(wrong[0])}{more}; leave it out: --features {_spelled(usable)}")
    return tuple(features or usable), tuple(targets)


def matrix(batch: pa.RecordBatch, names: Sequence[str], dtype: type | np.dtype) -> np.ndarray:
    """Numeric columns as (rows, columns), each column in one piece; a missing value becomes NaN."""
    values = np.empty((len(names), batch.num_rows), dtype=dtype)
    with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, which is looked for afterwards
        for number, name in enumerate(names):
            column = batch.column(batch.schema.get_field_index(name))
            kind = column.type
            if not (pa.types.is_floating(kind) or (pa.types.is_integer(kind) and not column.null_count)):
                column = column.cast(pa.float64(), safe=False)
            values[number] = column.to_numpy(zero_copy_only=False)
    return values.T


def ahead(produce: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """What an iterator gives, each one made by another thread while the one before is used."""
    items = produce()
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = beside.submit(next, items, None)
            yield item


class Faults:
    """Counts, while chunks of a file go by, what cannot be learned from.

    Args:
        features, targets: names of the columns, in order.
        missing: "error", "drop" or "mean": what is done where a value is missing.
    """

    def __init__(self, file: TableFile, features: Sequence[str], targets: Sequence[str], missing: str) -> None:
        self.file, self.names, self.targets, self.missing = file, (*features, *targets), targets, missing
        self.rows = self.kept = 0
        self._missing, self._infinite = (np.zeros(len(self.names), dtype=np.int64) for _ in range(2))
        self._first: dict[str, int] = {}
        self._low, self._high = (np.full(len(self.names), np.nan) for _ in range(2))

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Look at (rows, columns); gives which rows stay, (rows,) bool."""
        keep = np.ones(len(values), dtype=bool)
        if not np.isfinite(values).all():
            for kind, counts, found in (
                ("missing", self._missing, np.isnan(values)),
                ("infinite", self._infinite, np.isinf(values)),
            ):
                counts += found.sum(axis=0)
                if found.any():
                    self._first.setdefault(kind, self.rows + int(found.any(axis=1).argmax()) + 1)
                if kind == "missing" and self.missing == "drop":
                    keep = ~found.any(axis=1)
        self.rows += len(values)
        self.kept += int(keep.sum())
        seen = values if keep.all() else values[keep]
        if len(seen):
            self._low = np.fmin(self._low, np.fmin.reduce(seen, axis=0))
            self._high = np.fmax(self._high, np.fmax.reduce(seen, axis=0))
        return keep

    def judge(self) -> None:
        """Raise RequestError with the first fault of the whole file, counts per column included."""
        path, names = self.file.path, np.array(self.names, dtype=object)
        if self.rows == 0:
            raise RequestError(f"{path} has no rows; at least two are needed")
        if self._infinite.any():
            counts = self._counts(self._infinite)
            raise RequestError(
                f"{path} has values that are not finite: {counts} of {self.rows} rows, first in row "
                f"{self._first['infinite']}; mend them, use --dtype float64 where they are beyond float32, or choose "
                "other columns by --features"
            )
        if self._missing.any() and self.missing != "drop":
            refused = self._missing.copy()
            advice = "or take --missing drop, or --missing mean, which fills them inside the network"
            if self.missing == "mean":
                refused[[name not in self.targets and count < self.rows for name, count in self._missing_of()]] = 0
                advice = (
                    "a target cannot be filled, nor a column without any value: take --missing drop, or leave it out"
                )
            if refused.any():
                raise RequestError(
                    f"{path} has missing values: {self._counts(refused)} of {self.rows} rows, first in row "
                    f"{self._first['missing']}; mend them, {advice}"
                )
        if self.kept == 0:
            raise RequestError(f"--missing drop leaves none of the {self.rows} rows of {path}; choose other columns")
        if self.kept > 1 and (constant := list(names[self._low == self._high])):
            kept = [name for name in names if name not in constant and name not in self.targets]
            target = next((name for name in constant if name in self.targets), None)
            if target:
                raise RequestError(
                    f"the target {target!r} of {path} is the same in every row: there is nothing to learn"
                )
            advice = f"leave it out: --features {_spelled(kept)}" if kept else "there is nothing to learn from"
            raise RequestError(f"column {constant[0]!r} of {path} is the same in every row; {advice}")

    def _missing_of(self) -> Iterator[tuple[str, int]]:
        return zip(self.names, self._missing.tolist(), strict=True)

    def _counts(self, counts: np.ndarray) -> str:
        return listed([f"{name} {count}" for name, count in zip(self.names, counts.tolist(), strict=True) if count])


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type can be used: numbers, booleans, or nothing but missing values."""
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many the first twenty."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _spelled(names: Sequence[str]) -> str:
    return ",".join(names) if len(names) <= _MOST_NAMED else f"{names[0]},{names[1]},..."


def _csv_form(path: Path, option: str) -> CsvForm:
    """Encoding, delimiter and decimal sign, from the beginning of the file."""
    with path.open("rb") as file:
        head = file.read(_SNIFFED)
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a letter is cut in two
            raise RequestError(
                f"{option} {path} is not UTF-8: byte {head[error.start]:#04x} at offset {error.start}; save it so"
            ) from error
        text = head[: error.start].decode(encoding)
    lines = text.lstrip("\ufeff").splitlines()[:_SNIFFED_LINES]
    try:
        tables = {sign: list(csv.reader(lines, delimiter=sign)) for sign in ",;\t|"}
    except csv.Error as error:
        raise RequestError(f"{option} {path} is no CSV file: {error}") from error
    delimiter = max(tables, key=lambda sign: _columns(tables[sign]))
    rows = tables[delimiter]
    commas = delimiter != "," and any(re.fullmatch(r"\s*[-+]?\d+,\d+\s*", cell) for row in rows for cell in row)
    return CsvForm(encoding, delimiter, "," if commas else ".")


def _columns(rows: list[list[str]]) -> tuple[bool, int]:
    """Whether all rows have the same number of columns, more than one, and how many the first has."""
    widths = [len(row) for row in rows if row] or [0]
    return len(set(widths)) == 1 and widths[0] > 1, widths[0]
