"""Rows to learn from: the two built-in sets of the exercise, and CSV and Parquet files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from fourfold.errors import RequestError, first_line

# A decimal number as CSV spells it; what does not match is counted and shown when a column is refused as text.
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Dataset:
    """Training rows, validation rows and held-out rows, raw, in the dtype of the training.

    Attributes:
        name: the data's short name.
        features, targets: the columns' names, in order.
        x, y: training rows, (rows, features) and (rows, targets).
        x_test, y_test: held-out rows, the same widths; no rows where nothing is held out.
        x_validation, y_validation: rows to choose between trainings by; no rows where none are kept aside.
        sha256: of the columns' names and all values as float64, before the split.
        left_out: columns of a file that are not numeric and were therefore not used.
    """

    name: str
    features: tuple[str, ...]
    targets: tuple[str, ...]
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    x_validation: Tensor
    y_validation: Tensor
    sha256: str
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Training, validation and held-out rows together."""
        return len(self.x) + len(self.x_validation) + len(self.x_test)

    @property
    def evaluation_rows(self) -> tuple[str, Tensor, Tensor]:
        """The rows a model is judged on: the held-out ones where there are any, else the training rows."""
        if len(self.x_test):
            return "held-out", self.x_test, self.y_test
        return "training", self.x, self.y


@dataclass(frozen=True)
class Table:
    """Columns of numbers, (rows, columns) float64, every value finite."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    left_out: tuple[str, ...] = ()


def line() -> Table:
    """The exercise's three points of y = 2 x: x = 1, 2, 3."""
    x = np.array([[1.0], [2.0], [3.0]])
    return Table(("x",), ("y",), x, 2 * x)


def sine() -> Table:
    """The tutorial's y = sin(x) at 2,000 points evenly from -pi to pi, both ends included."""
    x = np.linspace(-np.pi, np.pi, 2000).reshape(-1, 1)
    return Table(("x",), ("y",), x, np.sin(x))


def read_table(path: Path, targets: tuple[str, ...], features: tuple[str, ...] = ()) -> Table:
    """Read the chosen columns of a .csv or .parquet file.

    Args:
        path: the file.
        targets: columns to predict, at least one.
        features: columns to predict from; none means all other numeric or boolean ones.

    Raises:
        RequestError: no such file, another format, unreadable, no rows, a column that is not there, a chosen
            column that holds text, nothing, or a value that is not finite.
    """
    table = _read_arrow(path)
    columns = table.column_names
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise RequestError(f"{path} has more than one column named {_listed(repeated)}; give each its own name")
    if table.num_rows == 0:
        raise RequestError(f"{path} has no rows; at least two are needed")
    if not targets:
        raise RequestError(f"--data {path} needs --target COLUMN; its columns are {_listed(columns)}")
    for option, names in (("--target", targets), ("--features", features)):
        for name in names:
            if name not in columns:
                raise RequestError(f"{option} {name}: {path} has no such column; it has {_listed(columns)}")
            if names.count(name) > 1:
                raise RequestError(f"{option} {name} is given twice; once is enough")
    both = [name for name in features if name in targets]
    if both:
        raise RequestError(f"{_listed(both)} cannot be a feature and the target; take it out of one of the two")
    others = [name for name in columns if name not in targets]
    numeric = [name for name in others if _is_numeric(table.schema.field(name).type)]
    chosen = features or tuple(numeric)
    if not chosen:
        raise RequestError(f"{path} has no numeric column besides the target; it has {_listed(columns)}")
    left_out = () if features else tuple(name for name in others if name not in numeric)
    return Table(
        chosen,
        targets,
        np.column_stack([_numbers(table, name, path) for name in chosen]),
        np.column_stack([_numbers(table, name, path) for name in targets]),
        left_out,
    )


def make_dataset(
    name: str,
    table: Table,
    *,
    test_fraction: float,
    seed: int,
    dtype: torch.dtype,
    validation_fraction: float = 0.0,
) -> Dataset:
    """Split a table into training, validation and held-out rows.

    Args:
        name: the data's short name.
        table: at least two rows.
        test_fraction: share of the rows that is held out, in [0, 1), rounded to whole rows; the rows are
            chosen by a permutation that the seed decides. At 0 the training rows keep their order.
        seed: decides the split.
        dtype: of the tensors.
        validation_fraction: share of all rows that is kept aside, chosen as those are; which rows are held out
            does not depend on it.

    Raises:
        RequestError: fewer than two rows, or fewer than two left to train on.
    """
    rows = len(table.x)
    held_out = round(rows * test_fraction)
    if rows < 2:
        raise RequestError(f"{name} has {rows} row; at least two are needed")
    aside = held_out + round(rows * validation_fraction)
    if rows - aside < 2:
        both = f" and --validation-fraction {validation_fraction:g}" if aside > held_out else ""
        raise RequestError(
            f"--test-fraction {test_fraction:g}{both} leaves {max(rows - aside, 0)} of {rows} rows to train on; "
            "at least two are needed"
        )
    order = np.arange(rows)
    if aside:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()
    test, validation, train = order[:held_out], order[held_out:aside], order[aside:]

    def tensor(values: np.ndarray, chosen: np.ndarray) -> Tensor:
        converted = torch.from_numpy(values[chosen]).to(dtype)
        if not torch.isfinite(converted).all():
            raise RequestError(f"{name} has values beyond the range of {dtype}; use --dtype float64")
        return converted

    return Dataset(
        name,
        table.features,
        table.targets,
        x=tensor(table.x, train),
        y=tensor(table.y, train),
        x_test=tensor(table.x, test),
        y_test=tensor(table.y, test),
        x_validation=tensor(table.x, validation),
        y_validation=tensor(table.y, validation),
        sha256=_sha256(table),
        left_out=table.left_out,
    )


def _read_arrow(path: Path) -> pa.Table:
    if not path.is_file():
        raise RequestError(f"--data {path}: no such file; give line, sine, or the path of a .csv or .parquet file")
    if path.stat().st_size == 0:
        raise RequestError(f"--data {path} is empty; at least two rows are needed")
    try:
        if path.suffix.lower() == ".csv":
            table = pa.csv.read_csv(path)
            _ = table.column_names  # decoded only when asked for
            return table
        if path.suffix.lower() in (".parquet", ".pq"):
            return pa.parquet.ParquetFile(path).read()
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"--data {path} cannot be read: {first_line(error)}") from error
    raise RequestError(f"--data {path}: unknown ending {path.suffix!r}; .csv and .parquet are read")


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _numbers(table: pa.Table, name: str, path: Path) -> np.ndarray:
    """One column as (rows,) float64; refused, with the count and the first row, where a value is no number."""
    column = table.column(name)
    kind = column.type
    if _is_numeric(kind):
        values: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()  # a missing value becomes NaN
        faulty, fault = ~np.isfinite(values), "missing or not finite"
        if not faulty.any():
            return values
    elif pa.types.is_null(kind):
        faulty, fault = np.ones(len(column), dtype=bool), "missing"
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        matches = pc.fill_null(pc.match_substring_regex(column, _NUMBER), False)
        faulty, fault = ~matches.to_numpy().astype(bool), "text or missing"
        if not faulty.any():
            raise RequestError(f"column {name!r} of {path} holds numbers stored as text; store them as numbers")
    else:
        raise RequestError(f"column {name!r} of {path} holds {kind}, not numbers; leave it out by --features")
    first = int(np.argmax(faulty))
    raise RequestError(
        f"column {name!r} of {path}: {int(faulty.sum())} of {len(column)} values are {fault}, first in row "
        f"{first + 1} ({column[first].as_py()!r}); mend the rows, or choose other columns by --features"
    )


def _sha256(table: Table) -> str:
    digest = hashlib.sha256("\0".join((*table.features, "", *table.targets)).encode())
    for values in (table.x, table.y):
        digest.update(np.ascontiguousarray(values, dtype="<f8").data)
    return digest.hexdigest()


def _listed(names: list[str] | tuple[str, ...], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
