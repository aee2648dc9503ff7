"""CSV and Parquet files, read in chunks, and what of them a model can take. Needs no torch."""

import csv
import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
_SNIFFED = _END = 64 * 2**10
# A number as CSV spells it; what does not match is counted and shown when a column is refused as text.
_NUMBER = r"(?i)^\s*[-+]?(\d+\.?\d*(e[-+]?\d+)?|\.\d+(e[-+]?\d+)?|inf|infinity|nan)\s*$"
_WITH_COMMA = re.compile(r"\s*[-+]?\d*,\d+(e[-+]?\d+)?\s*", re.IGNORECASE)
_MOST_NAMED = 20
_LARGEST = 1e150  # float64 can still add up the squares of very many

Item = TypeVar("Item")


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is spelled."""

    encoding: str
    delimiter: str
    decimal_point: str

    def open(self, path: Path, *, threads: bool = True, **convert: object) -> pa.csv.CSVStreamingReader:
        """Read the file block by block; without threads a fault is told with its line."""
        return pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(encoding=self.encoding, block_size=_CSV_BLOCK, use_threads=threads),
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

    @property
    def mark(self) -> str:
        """Tells the file from others without reading all of it: its size, and a hash of its end.

        There a Parquet file has the places and the statistics of all its columns.
        """
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END))
            return f"{size}-{hashlib.sha256(file.read()).hexdigest()}"

    def parts(self, rows: int) -> Iterator["Part"]:
        """Cut the file into parts of at least that many rows: which rows are in which is the file's alone."""
        if self.csv:
            yield Part(self, None, 1)
            return
        with self.reading(), open_parquet(self.path) as file:
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        groups: list[int] = []
        first, size = 1, 0
        for number, more in enumerate(sizes):
            groups.append(number)
            size += more
            if size >= rows or number == len(sizes) - 1:
                yield Part(self, tuple(groups), first)
                first, size, groups = first + size, 0, []

    def chunks(
        self, names: Sequence[str], text: Sequence[str] = (), groups: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The named columns, in that order, some ten thousands of rows at a time.

        Args:
            names: numeric columns; of a CSV file all but booleans come as float64.
            text: further columns, which of a CSV file come exactly as they are written.
            groups: numbers of the row groups that are read of a Parquet file; None for all.

        Raises:
            RequestError: the file cannot be read to its end.
        """
        wanted = list(dict.fromkeys((*names, *text)))
        with self.reading():
            if self.csv is None:
                with open_parquet(self.path) as file:
                    yield from file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=wanted)
                return
            types = {name: pa.string() if name in text else self._type_read(name) for name in wanted}
            with self.csv.open(self.path, include_columns=wanted, column_types=types) as reader:
                yield from (batch for batch in reader if batch.num_rows)

    def _type_read(self, name: str) -> pa.DataType:
        """Numbers of any kind as float64: whole ones in the first block may be others further down."""
        kind = self.schema.field(name).type
        return pa.float64() if is_numeric(kind) and not pa.types.is_boolean(kind) else kind

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make what pyarrow raises while the file is read a RequestError that says where the fault is."""
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            fault = re.search(r"In CSV column #(\d+): CSV conversion error to (double|bool|string)", str(error))
            name = self.schema.names[int(fault[1])] if fault else ""
            if fault and fault[2] == "string":
                raise RequestError(f"column {name!r} of {self.path} is not UTF-8; save the file as UTF-8") from error
            if fault:
                raise RequestError(f"{self.why_not_numbers(name)}; mend them, or leave the column out") from error
            reason = self._with_its_line(error) if self.csv else error
            raise RequestError(f"{self.option} {self.path} cannot be read: {first_line(reason)}") from error

    def _with_its_line(self, error: Exception) -> Exception:
        assert self.csv is not None, "others have no lines"
        try:
            with self.csv.open(self.path, threads=False, include_columns=self.schema.names[:1]) as reader:
                for _ in reader:
                    pass
        except (pa.ArrowException, OSError) as again:
            return again
        return error

    def why_not_numbers(self, name: str) -> str:
        """Say what a column holds, with the count and the first row of what is no number."""
        kind = self.schema.field(name).type
        if self.csv and pa.types.is_binary(kind):
            return f"column {name!r} of {self.path} is not UTF-8"
        if not (_is_text(kind) or (self.csv and is_numeric(kind))):
            return f"column {name!r} of {self.path} holds {kind}, not numbers"
        spelled, number, what = pa.csv.ConvertOptions(), _NUMBER, "text"
        if self.csv and self.csv.decimal_point == ",":
            number, what = number.replace(r"\.", ","), "no numbers with decimal commas"
        if pa.types.is_boolean(kind):
            number = rf"^({'|'.join((*spelled.true_values, *spelled.false_values))})$"
            what = "neither true nor false"
        missing = pa.array(spelled.null_values if self.csv else [], pa.large_string())
        rows, there, wrong, first = 0, 0, 0, ""
        for batch in self.chunks((), text=(name,)):
            column = batch.column(0).cast(pa.large_string())
            values = pc.and_not(pc.is_valid(column), pc.is_in(column, missing))
            faulty = pc.and_not(values, pc.fill_null(pc.match_substring_regex(column, number), False))
            if not wrong and (at := pc.index(faulty, True).as_py()) >= 0:
                first = f"row {rows + at + 1} ({column[at].as_py()!r})"
            rows, there, wrong = rows + len(column), there + values.true_count, wrong + faulty.true_count
        if wrong:
            return f"column {name!r} of {self.path}: {wrong} of {rows} values are {what}, first in {first}"
        held = "numbers stored as text; store them as numbers" if there else "text, though no value is there"
        return f"column {name!r} of {self.path} holds {held}"


@dataclass(frozen=True)
class Part:
    """Rows of a file that are read together.

    Attributes:
        groups: row groups of a Parquet file, one after another; None for all of a CSV file.
        first_row: its number in the file, from 1.
    """

    file: TableFile
    groups: tuple[int, ...] | None
    first_row: int

    @property
    def name(self) -> str:
        """For people."""
        if self.groups is None:
            return str(self.file.path)
        return f"{self.file.path}, row groups {self.groups[0]} to {self.groups[-1]},"


def open_tables(path: Path, option: str) -> tuple[TableFile, ...]:
    """Look at a file, or at all .parquet files of a folder in the order of their names, which have the same columns.

    Raises:
        RequestError: no file there, one that `open_table` refuses, one whose columns are others than the first's.
    """
    if not is_folder(path):
        return (open_table(path, option),)
    names = [one for one in path.iterdir() if one.suffix.lower() in (".parquet", ".pq") and one.name[0] not in "._"]
    if not names:
        raise RequestError(f"{option} {path} is a folder without .parquet files; name a file, or put some there")
    files = tuple(open_table(one, option) for one in sorted(names))
    for file in files[1:]:
        if not file.schema.equals(files[0].schema):
            columns = [{f"{one.name} ({one.type})" for one in each.schema} for each in (files[0], file)]
            other = listed(sorted(columns[0] ^ columns[1])) if columns[0] != columns[1] else "their order"
            raise RequestError(f"{file.path} has other columns than {files[0].path}: {other}; give all files the same")
    return files


def open_table(path: Path, option: str = "--data") -> TableFile:
    """Look at a .csv or .parquet file.

    A CSV file is UTF-8 or UTF-16 with a byte-order mark; its delimiter is one of comma, semicolon, tab and bar, and
    decimal commas are taken where the delimiter is another.

    Raises:
        RequestError: no such file, empty, another format, unreadable, columns of the same name.
    """
    if not is_file(path):
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
            with form.open(path, threads=False) as reader:
                file = TableFile(path, option, reader.schema, csv=form)
        else:
            with open_parquet(path) as parquet:
                file = TableFile(path, option, parquet.schema_arrow, rows=parquet.metadata.num_rows)
        columns = file.schema.names  # decoded only when asked for
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"{option} {path} cannot be read: {first_line(error)}") from error
    if repeated := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise RequestError(f"{path} has more than one column named {listed(repeated)}; give each its own name")
    return file


def is_file(path: Path) -> bool:
    """Whether a path is that of a regular file; a name that no file can have, as one too long, is none's."""
    with suppress(OSError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether a path is that of a folder, in the same way."""
    with suppress(OSError):
        return path.is_dir()
    return False


def open_parquet(path: Path) -> pa.parquet.ParquetFile:
    """Open a Parquet file to read a bit at a time; pages that have a checksum are held to it."""
    # Not a row group's columns as a whole, and not ahead: a large one would lie in memory twice.
    return pa.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**16, page_checksum_verification=True)


def choose_columns(
    file: TableFile, targets: Sequence[str], features: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the features and the targets; without features all other columns are.

    Raises:
        RequestError: a column that is not there or given twice, or one that holds neither numbers nor booleans.
    """
    path, columns, numeric = file.path, file.schema.names, frozenset(file.numeric)
    if not targets:
        raise RequestError(f"--data {path} needs --target COLUMN; its columns are {listed(columns)}")
    there = frozenset(columns)  # of a hundred thousand columns, each looked up in a list is minutes
    for option, names in (("--target", targets), ("--features", features)):
        for name, count in Counter(names).items():
            if name not in there:
                raise RequestError(f"{option} {name}: {path} has no such column; it has {listed(columns)}")
            if count > 1:
                raise RequestError(f"{option} {name} is given twice; once is enough")
            if name not in numeric:
                raise RequestError(f"{file.why_not_numbers(name)}; mend it, or choose another by {option}")
    if both := [name for name in features if name in targets]:
        raise RequestError(f"{listed(both)} cannot be a feature and the target; take it out of one of the two")
    others = [name for name in columns if name not in targets]
    usable = [name for name in others if name in numeric]
    if not usable:
        first = f": {file.why_not_numbers(others[0])}" if others else ""
        raise RequestError(f"{path} has no numeric column besides the target; it has {listed(columns)}{first}")
    if not features and (wrong := [name for name in others if name not in numeric]):
        more = f" (and {listed(wrong[1:])})" if wrong[1:] else ""
        raise RequestError(f"{file.why_not_numbers(wrong[0])}{more}; leave it out: --features {_spelled(usable)}")
    return tuple(features or usable), tuple(targets)


def check_points(rows: Sequence[Sequence[float]], features: Sequence[str]) -> None:
    """Raise RequestError where a row that was typed has not one value for each feature."""
    for row in rows:
        if len(row) != len(features):
            raise RequestError(
                f"--at {','.join(f'{value:g}' for value in row)} has {len(row)} values; the model takes "
                f"{len(features)}: {listed(features)}"
            )


def matrix(batch: pa.RecordBatch, names: Sequence[str], dtype: type | np.dtype) -> np.ndarray:
    """Numeric columns as (rows, columns), each column in one piece; a missing value becomes NaN."""
    values = np.empty((len(names), batch.num_rows), dtype=dtype)
    with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, which is looked for afterwards
        for number, name in enumerate(names):
            values[number] = numbers(batch.column(batch.schema.get_field_index(name)))
    return values.T


def numbers(column: pa.Array) -> np.ndarray:
    """A numeric column as (rows,), not copied where that is possible; a missing value becomes NaN."""
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        column = column.cast(pa.float64(), safe=False)
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


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
        # Of each column how many, and the row of the first.
        self._missing, self._first_missing, self._infinite, self._first_infinite = (
            np.zeros(len(self.names), dtype=np.int64) for _ in range(4)
        )
        self._low, self._high = (np.full(len(self.names), np.nan) for _ in range(2))

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Look at (rows, columns); gives which rows stay, (rows,) bool."""
        keep = np.ones(len(values), dtype=bool)
        if not np.isfinite(values).all():
            missing = np.isnan(values)
            self._note(missing, self._missing, self._first_missing)
            self._note(np.isinf(values), self._infinite, self._first_infinite)
            if self.missing == "drop":
                keep = ~missing.any(axis=1)
        self.rows += len(values)
        self.kept += int(keep.sum())
        seen = values if keep.all() else values[keep]
        if len(seen):
            self._low = np.fmin(self._low, np.fmin.reduce(seen, axis=0))
            self._high = np.fmax(self._high, np.fmax.reduce(seen, axis=0))
        return keep

    def _note(self, found: np.ndarray, counts: np.ndarray, first: np.ndarray) -> None:
        new = (counts == 0) & found.any(axis=0)
        first[new] = self.rows + found[:, new].argmax(axis=0) + 1
        counts += found.sum(axis=0)

    def judge(self) -> None:
        """Raise RequestError with the first fault of the whole file, counts per column included."""
        path, names = self.file.path, np.array(self.names, dtype=object)
        if self.rows == 0:
            raise RequestError(f"{path} has no rows; at least two are needed")
        if self._infinite.any():
            counts = self._counts(self._infinite, self._first_infinite)
            raise RequestError(
                f"{path} has values that are not finite: {counts}; mend them, use --dtype float64 where they are "
                "beyond float32, or choose other columns by --features"
            )
        if self._missing.any() and self.missing != "drop":
            refused = self._missing.copy()
            advice = "or take --missing drop, or --missing mean, which fills them inside the network"
            if self.missing == "mean":
                is_feature = np.array([name not in self.targets for name in self.names])
                refused[is_feature & (self._missing < self.rows)] = 0
                advice = (
                    "a target cannot be filled, nor a column without any value: take --missing drop, or leave it out"
                )
            if refused.any():
                raise RequestError(
                    f"{path} has missing values: {self._counts(refused, self._first_missing)}; mend them, {advice}"
                )
        if self.kept == 0:
            raise RequestError(f"--missing drop leaves none of the {self.rows} rows of {path}; choose other columns")
        if beyond := list(names[np.fmax(-self._low, self._high) > _LARGEST]):
            raise RequestError(
                f"{path} has values beyond {_LARGEST:g}, whose squares cannot be added up, in {listed(beyond)}; give "
                "them in a larger unit, or choose other columns by --features"
            )
        if self.kept > 1 and (constant := list(names[self._low == self._high])):
            kept = [name for name in names if name not in constant and name not in self.targets]
            target = next((name for name in constant if name in self.targets), None)
            if target:
                raise RequestError(
                    f"the target {target!r} of {path} is the same in every row: there is nothing to learn"
                )
            advice = f"leave it out: --features {_spelled(kept)}" if kept else "there is nothing to learn from"
            raise RequestError(f"column {constant[0]!r} of {path} is the same in every row; {advice}")

    def _counts(self, counts: np.ndarray, first: np.ndarray) -> str:
        found = counts > 0
        each = [f"{_shown(name)} {count}" for name, count in zip(self.names, counts.tolist(), strict=True) if count]
        return f"{listed(each)} of {self.rows} rows, first in row {first[found].min()}"


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


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def listed(names: Sequence[str]) -> str:
    """Names for a message, in one line; of many the first twenty."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return (", ".join(map(_shown, names[:_MOST_NAMED])) or "none") + more


def _shown(name: str) -> str:
    """A name, in quotes where one would not see what it is otherwise."""
    return name if name.isprintable() and name and name == name.strip() else repr(name)


def _spelled(names: Sequence[str]) -> str:
    """Names as a shell takes them."""
    text = ",".join(names) if len(names) <= _MOST_NAMED else f"{names[0]},{names[1]},..."
    return shlex.quote(text) if text.isprintable() else repr(text)


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
                f"{option} {path} is not UTF-8: byte {head[error.start]:#04x} at offset {error.start}; save it as UTF-8"
            ) from error
        text = head[: error.start].decode(encoding)
    if "\0" in text:
        raise RequestError(f"{option} {path} has NUL bytes, as no text has; save it as UTF-8")
    lines = text.lstrip("\ufeff").splitlines()
    if len(head) == _SNIFFED:
        lines = lines[:-1] or lines  # the last is cut short
    elif sum(not line.isspace() and line != "" for line in lines) == 1:
        raise RequestError(f"{path} has no rows; at least two are needed")
    try:
        tables = {sign: list(csv.reader(lines, delimiter=sign)) for sign in ",;\t|"}
    except csv.Error as error:
        raise RequestError(f"{option} {path} is no CSV file: {error}") from error
    delimiter = max(tables, key=lambda sign: _columns(tables[sign]))
    rows = tables[delimiter]
    commas = delimiter != "," and any(_WITH_COMMA.fullmatch(cell) for row in rows[1:] for cell in row)
    return CsvForm(encoding, delimiter, "," if commas else ".")


def _columns(rows: list[list[str]]) -> tuple[bool, int]:
    """Whether all rows have the same number of columns, more than one, and how many the first has."""
    widths = [len(row) for row in rows if row] or [0]
    return len(set(widths)) == 1 and widths[0] > 1, widths[0]
