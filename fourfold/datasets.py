"""Rows to learn from: the two built-in sets of the exercise, and CSV and Parquet files."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fourfold.batches import Rows
from fourfold.errors import RequestError
from fourfold.profile import Profile
from fourfold.streams import HELD_OUT, TRAINING, VALIDATION, Stream, choose_parts
from fourfold.tables import Faults, TableFile, listed, matrix


@dataclass(frozen=True)
class Dataset:
    """Training rows, validation rows and held-out rows, raw, in the dtype of the training.

    Attributes:
        name: the data's short name.
        features, targets: the columns' names, in order.
        x, y: training rows, (rows, features) and (rows, targets).
        x_test, y_test: held-out rows, the same widths; no rows where nothing is held out.
        x_validation, y_validation: rows to choose between trainings by; no rows where none are kept aside.
        sha256: of the columns' names and all values as float64, before the split; of a stream, of its file's bytes.
        missing: "mean" where features that are missing, NaN here, are filled inside the network.
        stream: where the rows stay on disk; the tensors above are then samples of at most 10,000 rows each.
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
    missing: str = "error"
    stream: Stream | None = None

    @cached_property
    def count(self) -> dict[str, int]:
        """Rows of each part: training, validation, held-out."""
        return {part: self.stream.count(part) if self.stream else len(x) for part, (x, _) in self.at_hand.items()}

    @property
    def rows(self) -> int:
        """Training, validation and held-out rows together."""
        return sum(self.count.values())

    @property
    def at_hand(self) -> dict[str, Rows]:
        """The rows in memory by part: all of them, or samples of a stream."""
        return {
            TRAINING: (self.x, self.y),
            VALIDATION: (self.x_validation, self.y_validation),
            HELD_OUT: (self.x_test, self.y_test),
        }

    @property
    def judged_on(self) -> str:
        """The part that a model is judged on: the held-out rows where there are any, else the training rows."""
        return HELD_OUT if self.count[HELD_OUT] else TRAINING

    @cached_property
    def profile(self) -> tuple[Profile, Profile]:
        """Range and moments of the training rows' features and targets."""
        if self.stream:
            return self.stream.profile
        return Profile.of(self.x.cpu().numpy()), Profile.of(self.y.cpu().numpy())

    def covariance(self) -> Tensor:
        """Of the training rows' features, (features, features) float64; a missing one stands at its mean."""
        mean = torch.from_numpy(self.profile[0].mean)
        total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part, x, _ in self.chunks():
            if part == TRAINING:
                apart = (x.cpu().double() - mean).nan_to_num()
                total += apart.T @ apart
        return total / self.count[TRAINING]

    def chunks(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every row once, with the part that it belongs to."""
        if self.stream:
            yield from self.stream.chunks()
            return
        yield from ((part, x, y) for part, (x, y) in self.at_hand.items() if len(x))


@dataclass(frozen=True)
class Table:
    """Columns of numbers, (rows, columns) float64, every value finite but for features that are to be filled."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray


def line() -> Table:
    """The exercise's three points of y = 2 x: x = 1, 2, 3."""
    x = np.array([[1.0], [2.0], [3.0]])
    return Table(("x",), ("y",), x, 2 * x)


def sine() -> Table:
    """The tutorial's y = sin(x) at 2,000 points evenly from -pi to pi, both ends included."""
    x = np.linspace(-np.pi, np.pi, 2000).reshape(-1, 1)
    return Table(("x",), ("y",), x, np.sin(x))


def read_table(file: TableFile, features: Sequence[str], targets: Sequence[str], *, missing: str = "error") -> Table:
    """Read columns of numbers into memory.

    Args:
        file: the file.
        features, targets: names of its columns.
        missing: "error"; "drop", which leaves out rows with a missing value; "mean", which keeps NaN in features.

    Raises:
        RequestError: no rows, or values that are missing, infinite, or all the same.
    """
    names = (*features, *targets)
    faults = Faults(file, features, targets, missing)
    parts: deque[np.ndarray] = deque()
    for batch in file.chunks(names):
        values = matrix(batch, names, np.float64)
        parts.append(values[faults.keep(values)])
    faults.judge()
    x, y = (np.empty((faults.kept, len(columns))) for columns in (features, targets))
    first = 0
    while parts:  # each goes as it is copied: the rows are not held twice
        values = parts.popleft()
        last = first + len(values)
        x[first:last], y[first:last] = values[:, : len(features)], values[:, len(features) :]
        first = last
    return Table(tuple(features), tuple(targets), x, y)


def make_dataset(
    name: str,
    table: Table,
    *,
    test_fraction: float,
    seed: int,
    dtype: torch.dtype,
    validation_fraction: float = 0.0,
    missing: str = "error",
) -> Dataset:
    """Split a table into training, validation and held-out rows, as `choose_parts` says.

    Args:
        name: the data's short name.
        table: at least two rows.
        test_fraction: share of the rows that is held out.
        seed: decides the split.
        dtype: of the tensors.
        validation_fraction: share of all rows that is kept aside; which rows are held out does not depend on it.
        missing: "mean" where the table's features may hold NaN.

    Raises:
        RequestError: fewer than two rows, or fewer than two left to train on, or values beyond the dtype, or a feature
            that is to be filled and has no value in the training rows.
    """
    chosen = choose_parts(name, len(table.x), {HELD_OUT: test_fraction, VALIDATION: validation_fraction}, seed)

    def tensor(values: np.ndarray, part: str) -> Tensor:
        converted = torch.from_numpy(values[chosen[part]]).to(dtype)
        if torch.isinf(converted).any():
            raise RequestError(f"{name} has values beyond the range of {dtype}; use --dtype float64")
        return converted

    data = Dataset(
        name,
        table.features,
        table.targets,
        x=tensor(table.x, TRAINING),
        y=tensor(table.y, TRAINING),
        x_test=tensor(table.x, HELD_OUT),
        y_test=tensor(table.y, HELD_OUT),
        x_validation=tensor(table.x, VALIDATION),
        y_validation=tensor(table.y, VALIDATION),
        sha256=_sha256(table),
        missing=missing,
    )
    _check_means(data)
    return data


def streamed_dataset(name: str, stream: Stream, *, missing: str = "error") -> Dataset:
    """The dataset whose rows a stream reads, with its samples at hand.

    Raises:
        RequestError: a feature that is to be filled has no value in the training rows.
    """
    (x, y), (x_test, y_test), (x_validation, y_validation) = (
        stream.samples[part] for part in (TRAINING, HELD_OUT, VALIDATION)
    )
    features, targets = stream.names[: stream.width], stream.names[stream.width :]
    data = Dataset(
        name, features, targets, x, y, x_test, y_test, x_validation, y_validation, stream.sha256, missing, stream
    )  # fmt: skip
    _check_means(data)
    return data


def _check_means(data: Dataset) -> None:
    if data.missing != "mean":
        return
    if empty := [name for name, count in zip(data.features, data.profile[0].count, strict=True) if not count]:
        raise RequestError(
            f"{data.name} has no value of {listed(empty)} in its training rows, so that there is no mean to fill in; "
            "leave it out by --features, or change --seed or --test-fraction, which decide the training rows"
        )


def _sha256(table: Table) -> str:
    digest = hashlib.sha256("\0".join((*table.features, "", *table.targets)).encode())
    for values in (table.x, table.y):
        digest.update(np.ascontiguousarray(values, dtype="<f8").data)
    return digest.hexdigest()
