"""Rows that stay on disk: a file too large for memory, split, looked at, and read in another order each epoch."""

import hashlib
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from fourfold.batches import Rows
from fourfold.errors import RequestError, first_line
from fourfold.processes import temporary_folder
from fourfold.profile import Profile
from fourfold.tables import CHUNK_ROWS, Faults, TableFile, ahead, matrix, open_parquet

TRAINING, VALIDATION, HELD_OUT = "training", "validation", "held-out"
SAMPLE_ROWS = 10_000  # of each part, held for what needs rows at hand
POOL = 128 * 2**20  # bytes that are shuffled at once
_CODES = {TRAINING: 0, VALIDATION: 1, HELD_OUT: 2}
_DROPPED = 255


@dataclass(frozen=True)
class Stream:
    """The rows of a Parquet file, which are never all in memory.

    Attributes:
        file: read again for each pass.
        names: columns, the features first.
        width: how many of them are features.
        parts: (rows,) uint8, the code of each row's part.
        profile: of the training rows' features and targets.
        samples: at most 10,000 rows of each part.
        sha256: of the columns' names and the bytes of the file that was named.
    """

    file: TableFile
    names: tuple[str, ...]
    width: int
    dtype: torch.dtype
    parts: np.ndarray
    profile: tuple[Profile, Profile]
    samples: Mapping[str, Rows]
    sha256: str

    def count(self, part: str) -> int:
        """How many rows a part has."""
        return int(np.count_nonzero(self.parts == _CODES[part]))

    def chunks(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every row once, in the file's order, with the part that it belongs to."""
        first = 0
        for values in ahead(lambda: (_tensor(batch, self.names, self.dtype) for batch in self.file.chunks(self.names))):
            parts = self.parts[first : first + len(values)]
            first += len(values)
            for part, code in _CODES.items():
                if len(chosen := np.flatnonzero(parts == code)):
                    yield part, *_split(_rows(values, chosen), self.width)

    def shuffled(self, generator: torch.Generator) -> Iterator[Rows]:
        """Every training row once: row groups in random order, and in random order the rows of each 128 MiB of them."""
        yield from ahead(lambda: self._pools(generator))

    def _pools(self, generator: torch.Generator) -> Iterator[Rows]:
        with self.file.reading(), open_parquet(self.file.path) as file:
            chosen = np.split(self.parts == _CODES[TRAINING], np.cumsum(_group_sizes(file))[:-1])
            counts = [int(np.count_nonzero(of_group)) for of_group in chosen]
            order = torch.randperm(len(counts), generator=generator).tolist()
            for groups in _packed(order, counts, _pool_rows(self.names, self.dtype)):
                places = torch.randperm(sum(counts[group] for group in groups), generator=generator)
                if len(places):
                    yield self._pool(file, groups, np.concatenate([chosen[group] for group in groups]), places)

    def _pool(self, file: pa.parquet.ParquetFile, groups: list[int], chosen: np.ndarray, places: Tensor) -> Rows:
        """The chosen rows of some row groups, each put where it belongs at once: no row is held twice."""
        x, y = (
            torch.empty(len(places), width, dtype=self.dtype) for width in (self.width, len(self.names) - self.width)
        )
        first = done = 0
        for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=list(self.names)):
            here = np.flatnonzero(chosen[first : first + batch.num_rows])
            values = _rows(_tensor(batch, self.names, self.dtype), here)
            place = places[done : done + len(here)]
            x[place], y[place] = values[:, : self.width], values[:, self.width :]
            first, done = first + batch.num_rows, done + len(here)
        return x, y


def open_stream(
    file: TableFile,
    features: tuple[str, ...],
    targets: tuple[str, ...],
    *,
    missing: str,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    dtype: torch.dtype,
) -> Stream:
    """Look at every row of a file that stays on disk, and choose its parts as `choose_parts` does.

    A CSV file is copied into a temporary Parquet file first, which can be read in any order; and so is a Parquet file
    with a row group too large to be shuffled as a whole. The copy goes when nothing holds the stream any more.

    Raises:
        RequestError: what `Faults` and `choose_parts` find.
    """
    names = (*features, *targets)
    with ThreadPoolExecutor(1) as beside, ExitStack() as undo:
        digest = beside.submit(_sha256, file.path, names)
        source = file
        if file.csv or _largest_group(file) > _pool_rows(names, dtype):
            folder = temporary_folder()
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            source = _as_parquet(file, names, dtype, folder / "rows.parquet")
        faults = Faults(file, features, targets, missing)
        parts = np.full(source.rows or 0, _DROPPED, dtype=np.uint8)
        kept = None
        if missing == "drop":  # which rows stay must be known before the parts are chosen among them
            looks = [faults.keep(_matrix(batch, names, dtype)) for batch in source.chunks(names)]
            faults.judge()
            kept = np.flatnonzero(np.concatenate(looks))
        shares = {HELD_OUT: test_fraction, VALIDATION: validation_fraction}
        for part, chosen in choose_parts(file.path.name, len(parts if kept is None else kept), shares, seed).items():
            parts[chosen if kept is None else kept[chosen]] = _CODES[part]
        profile, samples = _survey(source, names, parts, dtype, faults if missing != "drop" else None)
        faults.judge()
        stream = Stream(
            source,
            names,
            len(features),
            dtype,
            parts,
            (profile.of_columns(slice(len(features))), profile.of_columns(slice(len(features), None))),
            {part: _split(rows, len(features)) for part, rows in samples.items()},
            digest.result(),
        )
        weakref.finalize(stream, undo.pop_all().close)
        return stream


def choose_parts(name: str, rows: int, shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Split row numbers into held-out, validation and training ones.

    Args:
        name: of the data, for messages.
        rows: how many there are.
        shares: of "held-out" and "validation", in [0, 1), rounded to whole rows; the rows are chosen by a permutation
            that the seed decides, the held-out ones first. Without any the training rows keep their order.
        seed: decides the permutation.

    Raises:
        RequestError: fewer than two rows, or fewer than two left to train on.
    """
    held_out = round(rows * shares[HELD_OUT])
    aside = held_out + round(rows * shares[VALIDATION])
    if rows < 2:
        raise RequestError(f"{name} has {rows} row; at least two are needed")
    if rows - aside < 2:
        both = f" and --validation-fraction {shares[VALIDATION]:g}" if aside > held_out else ""
        raise RequestError(
            f"--test-fraction {shares[HELD_OUT]:g}{both} leaves {max(rows - aside, 0)} of {rows} rows to train on; "
            "at least two are needed"
        )
    order = np.arange(rows)
    if aside:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()
    return {HELD_OUT: order[:held_out], VALIDATION: order[held_out:aside], TRAINING: order[aside:]}


def _survey(
    file: TableFile, names: Sequence[str], parts: np.ndarray, dtype: torch.dtype, faults: Faults | None
) -> tuple[Profile, dict[str, Tensor]]:
    """One pass over all rows: the training rows' profile, and a sample of each part, evenly spread over the file."""
    wanted, samples = {}, {}
    for part, code in _CODES.items():
        numbers = np.flatnonzero(parts == code)
        wanted[part] = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), SAMPLE_ROWS)).astype(int)]
        samples[part] = torch.empty(len(wanted[part]), len(names), dtype=dtype)
    profile, first = Profile.empty(len(names)), 0
    for values in ahead(lambda: (_matrix(batch, names, dtype) for batch in file.chunks(names))):
        if faults:
            faults.keep(values)
        last = first + len(values)
        training = np.flatnonzero(parts[first:last] == _CODES[TRAINING])
        with np.errstate(over="ignore", invalid="ignore"):  # where values are too large, which is told afterwards
            profile = profile.joined(Profile.of(values[training]))
        for part, rows in wanted.items():
            here = slice(*np.searchsorted(rows, (first, last)))
            samples[part][here] = torch.from_numpy(values[rows[here] - first])
        first = last
    return profile, samples


def _as_parquet(file: TableFile, names: tuple[str, ...], dtype: torch.dtype, path: Path) -> TableFile:
    schema = pa.schema([(name, pa.from_numpy_dtype(_numpy(dtype))) for name in names])
    rows, most = 0, min(CHUNK_ROWS, _pool_rows(names, dtype))
    chunks = ahead(lambda: (_matrix(batch, names, dtype) for batch in file.chunks(names)))
    try:
        with pa.parquet.ParquetWriter(path, schema) as writer:
            for values in chunks:
                columns = pa.record_batch([pa.array(column) for column in values.T], schema=schema)
                writer.write_batch(columns, row_group_size=most)
                rows += len(values)
    except OSError as error:
        raise RequestError(
            f"{file.path} cannot be copied to {path.parent} to be read in any order: {first_line(error)}; "
            "set TMPDIR to a folder with room"
        ) from error
    return TableFile(path, file.option, schema, rows)


def _matrix(batch: pa.RecordBatch, names: Sequence[str], dtype: torch.dtype) -> np.ndarray:
    return matrix(batch, names, _numpy(dtype))


def _group_sizes(file: pa.parquet.ParquetFile) -> list[int]:
    return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def _largest_group(file: TableFile) -> int:
    with file.reading(), open_parquet(file.path) as parquet:
        return max(_group_sizes(parquet), default=0)


def _packed(order: Sequence[int], counts: Sequence[int], most: int) -> Iterator[list[int]]:
    """Row groups in that order, as many together as have at most so many rows."""
    together: list[int] = []
    rows = 0
    for group in order:
        if together and rows + counts[group] > most:
            yield together
            together, rows = [], 0
        together.append(group)
        rows += counts[group]
    if together:
        yield together


def _pool_rows(names: Sequence[str], dtype: torch.dtype) -> int:
    """How many rows are shuffled at once."""
    return max(POOL // (len(names) * dtype.itemsize), 1)


def _numpy(dtype: torch.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype is torch.float64 else np.float32)


def _tensor(batch: pa.RecordBatch, names: Sequence[str], dtype: torch.dtype) -> Tensor:
    """The same with each row in one piece: choosing among them is three times as fast then."""
    return torch.from_numpy(_matrix(batch, names, dtype)).contiguous()


def _rows(values: Tensor, chosen: np.ndarray) -> Tensor:
    return values if len(chosen) == len(values) else values.index_select(0, torch.from_numpy(chosen))


def _split(values: Tensor, width: int) -> Rows:
    return values[:, :width].contiguous(), values[:, width:].contiguous()


def _sha256(path: Path, names: tuple[str, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256("\0".join(names).encode())).hexdigest()
