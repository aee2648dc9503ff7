"""Predictions for the rows of files, chunk by chunk and in order, by onnxruntime alone."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fourfold.configuration import PredictConfig
from fourfold.drift import Drift
from fourfold.durable import put_in_place
from fourfold.errors import RequestError
from fourfold.onnx_file import file_sha256
from fourfold.processes import part_of, remove_left_parts
from fourfold.scoring import InputError, Scorer
from fourfold.structure import Refused
from fourfold.tables import (
    Part,
    TableFile,
    ahead,
    check_points,
    is_file,
    is_folder,
    is_numeric,
    listed,
    open_tables,
)
from tasks.find_model import FoundModel, locate
from tasks.predict_chunks import Kept, Scored, Seen, chunks_of, hash_elsewhere, matrix, score, score_elsewhere
from tasks.reporting import progress
from tasks.steps import step
from tasks.tracking import RunRecord
from tasks.workers import Job, Needs, check_workers, workers

PREDICTED = "predicted_"
# Of a part, which one worker predicts at a time: a quarter of a second's work, beside which handing it out is little.
PART_ROWS = 2**20
NEEDS = Needs(("onnxruntime", "numpy", "pyarrow"))


@dataclass(frozen=True)
class Ready:
    """A request whose parts fit together.

    Attributes:
        content, sha256: of the model file.
        files: of the rows, none where points are asked for.
        keep: columns to write beside the predictions.
        output: where to write, None for nowhere.
    """

    config: PredictConfig
    found: FoundModel
    content: bytes
    sha256: str
    scorer: Scorer
    files: tuple[TableFile, ...]
    points: np.ndarray
    keep: tuple[str, ...]
    output: Path | None

    @property
    def rows(self) -> int | None:
        """How many there are; None where only reading tells."""
        counts = [file.rows for file in self.files]
        return None if None in counts else sum(filter(None, counts)) or len(self.points)

    def parts(self) -> Iterator[Part]:
        """All rows of the files, in order."""
        return chain.from_iterable(file.parts(PART_ROWS) for file in self.files)


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
    scorer, content, sha256 = _open(found)
    files = open_tables(Path(config.input), "--input") if config.input else ()
    if config.workers is not None and not (files and files[0].csv is None):
        raise RequestError(
            f"--workers {config.workers} needs a .parquet --input, whose row groups can be read apart; leave it out"
        )
    check_workers(config.workers, NEEDS)
    check_points(config.at, scorer.features)
    keep = config.keep if files else scorer.features
    ready = Ready(config, found, content, sha256, scorer, files, np.array(config.at), keep, output)
    if files:
        _check_columns(files[0], scorer, keep)
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


def _open(found: FoundModel) -> tuple[Scorer, bytes, str]:
    """Load a model that is what it was registered as, and sound; gives its bytes and SHA-256 as well."""
    try:
        content, sha256 = found.read()
        return Scorer(content), content, sha256
    except OSError as error:
        raise RequestError(f"{found.name} cannot be read: {error.strerror or error}") from error
    except (Refused, InputError) as error:
        raise RequestError(f"{found.name}: {error}") from error


@step(name="predict")
def predict(ready: Ready, record: RunRecord, folder: Path) -> Predicted:
    """Predict all rows, write them beside their keys, and record what was seen."""
    scorer, training = ready.scorer, ready.scorer.training
    inputs = Seen.none(scorer.features)
    outputs = Seen.none(scorer.targets)
    points: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    started = time.perf_counter()
    hashes: list[str] = []
    with (
        _writer(ready.output) as write,
        progress("predicting", ready.rows, "row") as report,
    ):
        for scored in _scored(ready, hashes):
            y = scored.y
            inputs, outputs = inputs.joined(scored.inputs), outputs.joined(scored.outputs)
            write(
                scored.kept
                | {f"{PREDICTED}{name}": pa.array(y[:, number]) for number, name in enumerate(scorer.targets)}
            )
            if not ready.files:
                x = ready.points.astype(scorer.dtype)
                points += [(tuple(row), tuple(answer)) for row, answer in zip(x.tolist(), y.tolist(), strict=True)]
            report(outputs.rows)
        record.tags({"input.sha256": _sha256(hashes, ready.files)})
    record.metrics({"rows": outputs.rows, "seconds": time.perf_counter() - started})
    drifts = (
        inputs.drift(scorer.features, training.get("features")),
        outputs.drift(scorer.targets, training.get("targets")),
    )
    predicted = Predicted(outputs.rows, tuple(points), *drifts)
    _record(ready, predicted, record, folder)
    return predicted


def _scored(ready: Ready, hashes: list[str]) -> Iterator[Scored]:
    """All chunks, in order; the hash of each file is added to a list.

    They are predicted here, each read while the one before is predicted, or part by part elsewhere.
    """
    if ready.config.workers is None:
        with ThreadPoolExecutor(1) as beside:
            known = beside.submit(lambda: [file_sha256(file.path) for file in ready.files])
            for kept, x in ahead(lambda: _chunks(ready)):
                yield score(ready.scorer, kept, x)
            hashes += known.result()
        return
    jobs = list(_jobs(ready))
    with workers(ready.config.workers, len(jobs), NEEDS) as pool:
        for _, result in pool.results(jobs, in_order=True):
            if isinstance(result, str):
                hashes.append(result)
            else:
                yield from result


def _jobs(ready: Ready) -> Iterator[Job[str | list[Scored]]]:
    """What workers do; they hash the files as well, since one process could not read what many predict."""
    for file in ready.files:
        mark = file.mark
        yield Job(f"the hash of {file.path.name}", partial(hash_elsewhere, file, mark))
        for part in file.parts(PART_ROWS):
            yield Job(f"the prediction of {part.name}", partial(score_elsewhere, ready.content, part, mark, ready.keep))


def _chunks(ready: Ready) -> Iterator[tuple[Kept, np.ndarray]]:
    """The columns to keep, and the model's input, some ten thousands of rows at a time."""
    scorer = ready.scorer
    if not ready.files:
        columns = dict(zip(scorer.features, ready.points.T, strict=True))
        yield {name: pa.array(column) for name, column in columns.items()}, matrix(scorer, columns, "--at", 1)
    for part in ready.parts():
        yield from chunks_of(part, scorer, ready.keep)


def _sha256(hashes: Sequence[str], files: Sequence[TableFile]) -> str | None:
    """Of a file's bytes; of a folder's files, that of the lines which `sha256sum` prints for them; None for none."""
    if len(hashes) < 2:
        return next(iter(hashes), None)
    lines = (f"{one}  {file.path.name}\n" for one, file in zip(hashes, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
    if config.input and is_folder(Path(config.input)) and path.parent.samefile(config.input):
        raise RequestError(
            f"--output {path} lies among the files of --input, and would be one of them; give it another folder"
        )
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
            "input": ready.config.input,
            "output": str(ready.output) if ready.output else None,
        }
    )
    drifts = {"inputs": predicted.inputs, "outputs": predicted.outputs}
    if predicted.inputs:
        record.document({kind: [vars(one) for one in some] for kind, some in drifts.items()}, folder / "drift.json")
        everything = (*predicted.inputs, *predicted.outputs)
        record.metrics({f"outside/{one.column}": one.outside for one in everything})
        record.metrics({f"shift/{one.column}": one.shift for one in everything if np.isfinite(one.shift)})
