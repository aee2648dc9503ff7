"""Predictions for the rows of a file, chunk by chunk, by onnxruntime alone."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fourfold.configuration import PredictConfig
from fourfold.drift import Drift, Range, drift
from fourfold.durable import put_in_place
from fourfold.errors import RequestError
from fourfold.onnx_file import file_sha256
from fourfold.processes import part_of, remove_left_parts
from fourfold.scoring import InputError, Scorer
from fourfold.structure import Refused
from fourfold.tables import TableFile, ahead, check_points, is_file, is_folder, is_numeric, listed, numbers, open_table
from tasks.find_model import FoundModel, locate
from tasks.reporting import progress
from tasks.steps import step
from tasks.tracking import RunRecord

PREDICTED = "predicted_"
Kept = dict[str, pa.Array]


@dataclass(frozen=True)
class Ready:
    """A request whose parts fit together.

    Attributes:
        sha256: of the model file.
        file: of the rows, None where points are asked for.
        keep: columns to write beside the predictions.
        output: where to write, None for nowhere.
    """

    found: FoundModel
    sha256: str
    scorer: Scorer
    file: TableFile | None
    points: np.ndarray
    keep: tuple[str, ...]
    output: Path | None


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Attributes:
        points: (x, y) of each point asked for.
        inputs, outputs: each column beside the training's, empty where the model file does not know its training.
    """

    rows: int
    points: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    inputs: tuple[Drift, ...]
    outputs: tuple[Drift, ...]


def prepare(config: PredictConfig) -> Ready:
    """Find the model and look at the input's first rows; nothing is created.

    Raises:
        RequestError: with the first fault of the request.
        ParityError: the model file is not the one that was registered.
    """
    output = _check_output(Path(config.output), config) if config.output else None
    found = locate(config.model)
    scorer, sha256 = _open(found)
    file = open_table(Path(config.input), "--input") if config.input else None
    check_points(config.at, scorer.features)
    keep = config.keep if file else scorer.features
    ready = Ready(found, sha256, scorer, file, np.array(config.at), keep, output)
    if file:
        _check_columns(file, scorer, keep)
    first = next(_chunks(ready), None)
    if first is None:
        raise RequestError(f"--input {config.input} has no rows")
    kept, x = first
    try:
        scorer.predict(x[:1])
    except InputError as error:
        raise RequestError(f"{found.name}: {error}") from error
    if output:
        _check_kept(kept, output)
    return ready


def _open(found: FoundModel) -> tuple[Scorer, str]:
    """Load a model that is what it was registered as, and whose structure is sound; gives its SHA-256 as well."""
    try:
        content, sha256 = found.read()
        return Scorer(content), sha256
    except OSError as error:
        raise RequestError(f"{found.name} cannot be read: {error.strerror or error}") from error
    except (Refused, InputError) as error:
        raise RequestError(f"{found.name}: {error}") from error


@step(name="predict")
def predict(ready: Ready, record: RunRecord, folder: Path) -> Predicted:
    """Predict all rows, write them beside their keys, and record what was seen."""
    scorer, training = ready.scorer, ready.scorer.training
    inputs = _Seen(scorer.features, training.get("features"))
    outputs = _Seen(scorer.targets, training.get("targets"))
    points: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    started = time.perf_counter()
    with (
        ThreadPoolExecutor(1) as beside,
        _writer(ready.output) as write,
        progress("predicting", ready.file.rows if ready.file else len(ready.points), "row") as report,
    ):
        digest = beside.submit(file_sha256, ready.file.path) if ready.file else None
        for kept, x in ahead(lambda: _chunks(ready)):
            y = scorer.predict(x)
            inputs.add(x)
            outputs.add(y)
            write(kept | {f"{PREDICTED}{name}": pa.array(y[:, number]) for number, name in enumerate(scorer.targets)})
            if not ready.file:
                points += [(tuple(row), tuple(answer)) for row, answer in zip(x.tolist(), y.tolist(), strict=True)]
            report(outputs.rows)
        record.tags({"input.sha256": digest.result() if digest else None})
    record.metrics({"rows": outputs.rows, "seconds": time.perf_counter() - started})
    predicted = Predicted(outputs.rows, tuple(points), inputs.drift(), outputs.drift())
    _record(ready, predicted, record, folder)
    return predicted


class _Seen:
    """What went by, beside what the training had."""

    def __init__(self, names: Sequence[str], training: Mapping[str, Any] | None) -> None:
        self.names, self.training, self.rows = names, training, 0
        self.range = Range.empty(len(names))
        self.outside = np.zeros(len(names))
        if training:
            self.low, self.high = (np.array([training[name][end] for name in names]) for end in ("low", "high"))

    def add(self, values: np.ndarray) -> None:
        here = Range.of(values)
        self.rows += len(values)
        self.range = self.range.joined(here)
        if self.training:
            for number in np.flatnonzero((here.low < self.low) | (here.high > self.high)):
                column = values[:, number]
                self.outside[number] += np.count_nonzero((column < self.low[number]) | (column > self.high[number]))

    def drift(self) -> tuple[Drift, ...]:
        return tuple(drift(self.names, self.range, self.outside, self.training)) if self.training else ()


def _chunks(ready: Ready) -> Iterator[tuple[Kept, np.ndarray]]:
    """The columns to keep, and the model's input, some ten thousands of rows at a time."""
    scorer, file = ready.scorer, ready.file
    if file is None:
        columns = dict(zip(scorer.features, ready.points.T, strict=True))
        yield {name: pa.array(column) for name, column in columns.items()}, _matrix(scorer, columns, "--at", 1)
        return
    done = 0
    text = [name for name in ready.keep if name not in scorer.features]
    for batch in file.chunks(scorer.features, text):
        columns = {name: numbers(batch.column(name)) for name in scorer.features}
        yield {name: batch.column(name) for name in ready.keep}, _matrix(scorer, columns, str(file.path), done + 1)
        done += batch.num_rows


def _matrix(scorer: Scorer, columns: Mapping[str, np.ndarray], where: str, first_row: int) -> np.ndarray:
    try:
        return scorer.matrix(columns, first_row)
    except InputError as error:
        raise RequestError(f"{where}: {error}") from error


def _check_columns(file: TableFile, scorer: Scorer, keep: Sequence[str]) -> None:
    there = file.schema.names
    for name in scorer.features:
        if name not in there:
            raise RequestError(
                f"--input {file.path} has no column {name!r}; the model takes {listed(scorer.features)}, the file has "
                f"{listed(there)}"
            )
        if not is_numeric(file.schema.field(name).type):
            raise RequestError(f"{file.why_not_numbers(name)}; the model takes numbers")
    for name in keep:
        if name not in there:
            raise RequestError(f"--keep {name}: {file.path} has no such column; it has {listed(there)}")
        if keep.count(name) > 1:
            raise RequestError(f"--keep {name} is given twice; once is enough")
        if name in {f"{PREDICTED}{target}" for target in scorer.targets}:
            raise RequestError(f"--keep {name}: the predictions themselves are called so; rename that column")


def _check_kept(kept: Kept, output: Path) -> None:
    for name, column in kept.items():
        row = pa.record_batch({name: column[:1]})
        try:
            with _kind_of_writer(output)(pa.BufferOutputStream(), row.schema) as writer:
                writer.write_batch(row)
        except pa.ArrowException as error:
            raise RequestError(
                f"--keep {name}: a {output.suffix} file cannot hold {column.type}; leave it out, or choose an --output "
                "of the other kind"
            ) from error


def _kind_of_writer(path: Path) -> Any:
    return pa.csv.CSVWriter if path.suffix.lower() == ".csv" else pa.parquet.ParquetWriter


def _check_output(path: Path, config: PredictConfig) -> Path:
    if path.suffix.lower() not in (".csv", ".parquet", ".pq"):
        raise RequestError(f"--output {path}: unknown ending {path.suffix!r}; .csv and .parquet are written")
    if not is_folder(path.parent):
        raise RequestError(f"--output {path}: there is no folder {path.parent}")
    try:
        os.stat(path)  # noqa: PTH116 - pathlib's own hides that a name holds NUL
        exists = True
    except FileNotFoundError:
        exists = False
    except (OSError, ValueError) as error:
        raise RequestError(f"--output {path}: {getattr(error, 'strerror', None) or error}") from error
    if exists and not (path.is_file() and config.overwrite):
        raise RequestError(f"--output {path} exists; --overwrite replaces a file")
    if exists and config.input and is_file(Path(config.input)) and path.samefile(config.input):
        raise RequestError(f"--output {path} is the file of --input; give it another name")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"--output {path}: the folder {path.parent} cannot be written to")
    return path


@contextmanager
def _writer(path: Path | None) -> Iterator[Callable[[Mapping[str, pa.Array]], None]]:
    """Write chunks of columns under a temporary name; the file gets its own when it is whole."""
    if path is None:
        yield lambda columns: None
        return
    existed = path.exists()
    remove_left_parts(path)
    part = part_of(path)
    opened: list[Any] = []

    def write(columns: Mapping[str, pa.Array]) -> None:
        batch = pa.record_batch(dict(columns))
        if not opened:
            part.touch(exist_ok=False)  # never through a link that lies there
            opened.append(_kind_of_writer(path)(str(part), batch.schema))
        opened[0].write_batch(batch)

    try:
        try:
            yield write
        finally:
            for writer in opened:
                writer.close()
        if path.exists() and not existed:
            raise RequestError(f"--output {path} was made by somebody else meanwhile; it was left as it is")
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def _record(ready: Ready, predicted: Predicted, record: RunRecord, folder: Path) -> None:
    found = ready.found
    record.tags(
        {
            "model": found.name,
            "model.run_id": found.run_id,
            "model.sha256": ready.sha256,
            "input": str(ready.file.path) if ready.file else None,
            "output": str(ready.output) if ready.output else None,
        }
    )
    drifts = {"inputs": predicted.inputs, "outputs": predicted.outputs}
    if predicted.inputs:
        record.document({kind: [vars(one) for one in some] for kind, some in drifts.items()}, folder / "drift.json")
        everything = (*predicted.inputs, *predicted.outputs)
        record.metrics({f"outside/{one.column}": one.outside for one in everything})
        record.metrics({f"shift/{one.column}": one.shift for one in everything if np.isfinite(one.shift)})
