"""A file's rows, predicted chunk by chunk. Workers import this: nothing here knows Prefect or MLflow."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from fourfold.drift import Drift, Range, drift
from fourfold.errors import RequestError, ServiceError
from fourfold.onnx_file import file_sha256
from fourfold.scoring import InputError, Scorer
from fourfold.tables import Part, TableFile, numbers

Kept = dict[str, pa.Array]


@dataclass(frozen=True)
class Seen:
    """What went by of some columns.

    Attributes:
        outside: (columns,) how many values are outside of the training's range; zeros where that is not known.
    """

    rows: int
    range: Range
    outside: np.ndarray

    @classmethod
    def none(cls, names: Sequence[str]) -> "Seen":
        """Of no rows."""
        return cls(0, Range.empty(len(names)), np.zeros(len(names)))

    @classmethod
    def of(cls, values: np.ndarray, names: Sequence[str], training: Mapping[str, Any] | None) -> "Seen":
        """Of (rows, columns), beside what the training had of those columns."""
        here, outside = Range.of(values), np.zeros(len(names))
        if training:
            low, high = (np.array([training[name][end] for name in names]) for end in ("low", "high"))
            for number in np.flatnonzero((here.low < low) | (here.high > high)):
                column = values[:, number]
                outside[number] = np.count_nonzero((column < low[number]) | (column > high[number]))
        return cls(len(values), here, outside)

    def joined(self, other: "Seen") -> "Seen":
        """Of the rows of both."""
        return Seen(self.rows + other.rows, self.range.joined(other.range), self.outside + other.outside)

    def drift(self, names: Sequence[str], training: Mapping[str, Any] | None) -> tuple[Drift, ...]:
        """Each column beside the training's; nothing where that is not known."""
        return tuple(drift(names, self.range, self.outside, training)) if training else ()


@dataclass(frozen=True)
class Scored:
    """A chunk of rows with its predictions.

    Attributes:
        kept: columns to write beside them.
        y: (rows, targets).
        inputs, outputs: what of the chunk is compared with the training's.
    """

    kept: Kept
    y: np.ndarray
    inputs: Seen
    outputs: Seen


def chunks_of(part: Part, scorer: Scorer, keep: Sequence[str]) -> Iterator[tuple[Kept, np.ndarray]]:
    """The columns to keep, and the model's input, some ten thousands of rows at a time."""
    first = part.first_row
    text = [name for name in keep if name not in scorer.features]
    for batch in part.file.chunks(scorer.features, text, part.groups):
        columns = {name: numbers(batch.column(name)) for name in scorer.features}
        yield {name: batch.column(name) for name in keep}, matrix(scorer, columns, str(part.file.path), first)
        first += batch.num_rows


def matrix(scorer: Scorer, columns: Mapping[str, np.ndarray], where: str, first_row: int) -> np.ndarray:
    """The model's input; what it cannot take is refused with where it is."""
    try:
        return scorer.matrix(columns, first_row)
    except InputError as error:
        raise RequestError(f"{where}: {error}") from error


def score(scorer: Scorer, kept: Kept, x: np.ndarray) -> Scored:
    """Predict a chunk."""
    y, training = scorer.predict(x), scorer.training
    return Scored(
        kept,
        y,
        Seen.of(x, scorer.features, training.get("features")),
        Seen.of(y, scorer.targets, training.get("targets")),
    )


def score_elsewhere(content: bytes, part: Part, mark: str, keep: Sequence[str]) -> list[Scored]:
    """Predict a part of a file, which must be here what it is where the work is handed out."""
    _check_same(part.file, mark)
    scorer = _scorer(content)
    return [score(scorer, kept, x) for kept, x in chunks_of(part, scorer, keep)]


def hash_elsewhere(file: TableFile, mark: str) -> str:
    """The SHA-256 of such a file."""
    _check_same(file, mark)
    return file_sha256(file.path)


def _check_same(file: TableFile, mark: str) -> None:
    try:
        found = file.mark
    except OSError as error:
        found = error.strerror or str(error)
    if found != mark:
        raise ServiceError(
            f"{file.path} on {socket.gethostname()} is not the file that the flow looked at ({found}); let all "
            "workers see the same folder under the same name"
        )


@lru_cache(maxsize=1)  # a worker predicts many parts by one model
def _scorer(content: bytes) -> Scorer:
    return Scorer(content, threads=1)
