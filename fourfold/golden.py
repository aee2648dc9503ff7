"""Golden predictions: rows and what torch predicted for them, kept beside a model to prove it again without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from pydantic import TypeAdapter, ValidationError

from fourfold.errors import first_line
from fourfold.onnx_file import ExportedModel
from fourfold.parity import ARRAYS, Expectation, ParityReport, failed, prove
from fourfold.structure import Refused, read_model

FILE_NAME = "golden.parquet"
MOST_ROWS = 128  # of each set
_ABOUT = b"fourfold"


@dataclass(frozen=True)
class _About:
    """What the file says of itself."""

    sha256: str
    bytes: int
    features: list[str]
    targets: list[str]
    versions: dict[str, str]
    at_hand: list[str]
    basis: str


_ABOUT_READER = TypeAdapter(_About)


@dataclass(frozen=True)
class Golden:
    """What was proved once.

    Attributes:
        sha256, bytes: of the model file.
        features, targets: the columns' names, in order.
        versions: of the packages that made the predictions; a proof that fails today tells them from today's.
        expectations: as they were met then.
    """

    sha256: str
    bytes: int
    features: tuple[str, ...]
    targets: tuple[str, ...]
    versions: dict[str, str]
    expectations: tuple[Expectation, ...]


def write_golden(
    exported: ExportedModel, expectations: Sequence[Expectation], features: Sequence[str], targets: Sequence[str]
) -> Path:
    """Keep at most 128 rows of each set, evenly spread, as a Parquet file beside the model; gives its path."""
    kept = [one.rows(np.linspace(0, len(one.x) - 1, min(len(one.x), MOST_ROWS)).astype(int)) for one in expectations]
    columns = {key: list(np.concatenate([getattr(one, key) for one in kept])) for key in ARRAYS}
    columns["set"] = [one.name for one in kept for _ in one.x]
    about = {
        "sha256": exported.sha256,
        "bytes": exported.path.stat().st_size,
        "features": list(features),
        "targets": list(targets),
        "versions": {name: version(name) for name in ("torch", "onnxruntime")},
        "at_hand": [one.name for one in kept if one.at_hand],
        "basis": kept[0].basis,
    }
    table = pa.table({key: pa.array(values) for key, values in columns.items()})
    path = exported.path.with_name(FILE_NAME)
    pa.parquet.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about)}), path)
    return path


def read_golden(path: Path) -> Golden:
    """Read what `write_golden` wrote.

    Raises:
        Refused: the file is not there, or is something else.
    """
    try:
        table = pa.parquet.ParquetFile(path).read()
        about = _read_about(table.schema.metadata[_ABOUT])
        names = table["set"].to_pylist()
        arrays = {key: np.stack(table[key].to_numpy(zero_copy_only=False)) for key in ARRAYS}
        rows = {name: [number for number, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        expectations = []
        for name, chosen in rows.items():
            x, predicted, truth, allowed, undecided = (arrays[key][chosen] for key in ARRAYS)
            at_hand = name in about.at_hand
            expectations.append(Expectation(name, x, predicted, truth, allowed, undecided, about.basis, at_hand))
        _check(arrays, len(names))
        return Golden(
            about.sha256, about.bytes, tuple(about.features), tuple(about.targets), about.versions,
            tuple(expectations),
        )  # fmt: skip
    except Exception as error:  # pyarrow's, json's, and what a table of other columns raises
        raise Refused(f"{path.name} holds no golden predictions: {first_line(error)}") from error


def _read_about(text: bytes) -> _About:
    try:
        return _ABOUT_READER.validate_json(text, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "what it says of itself"
        raise ValueError(f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from error


def _check(arrays: Mapping[str, np.ndarray], rows: int) -> None:
    """Raise ValueError where columns are not rows of numbers of the widths and types that `write_golden` writes."""
    dtype = arrays["x"].dtype
    kinds = {"x": dtype, "predicted": dtype, "truth": np.float64, "allowed": np.float64, "undecided": np.bool_}
    width = arrays["truth"].shape[1:]
    for key, kind in kinds.items():
        shape = arrays[key].shape
        if not rows or dtype not in (np.float32, np.float64) or arrays[key].dtype != kind:
            raise ValueError(f"{rows} rows of {key} in {arrays[key].dtype}")
        if len(shape) != (1 if key == "undecided" else 2) or (key in ("predicted", "allowed") and shape[1:] != width):
            raise ValueError(f"rows of {key} are {shape[1:]}")


def prove_again(path: Path, golden: Golden) -> ParityReport:
    """Judge a model file by its golden predictions: size and hash, structure, and what it predicts here and now.

    Every part is looked at before the verdict where that is safe: a file with another hash is still compared, so
    that the report tells a harmless change from one of the predictions. One of another size is not read.
    """
    try:
        size = path.stat().st_size
        if size != golden.bytes:
            return failed(f"the file has {size} bytes; {golden.bytes} were proved")
        content = path.read_bytes()
    except OSError as error:
        return failed(f"the file cannot be read: {error.strerror or error}")
    try:
        model = read_model(content, golden.expectations[0].form)
    except Refused as refusal:
        return failed(str(refusal), content)
    report = prove(content, model, golden.expectations)
    if report.passed and report.sha256 != golden.sha256:
        reason = f"the file's SHA-256 is {report.sha256[:12]}...; {golden.sha256[:12]}... was proved"
        return replace(report, verdict="failed", reason=reason)
    before, now = golden.versions.get("onnxruntime"), version("onnxruntime")
    if not report.passed and report.sha256 == golden.sha256 and before not in (None, now):
        reason = f"{report.reason}; the file is the one that was proved, under onnxruntime {before}, and this is {now}"
        return replace(report, reason=reason)
    return report
