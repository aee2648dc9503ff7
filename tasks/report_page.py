"""A training as one HTML page that needs nothing else: what was learned from what, how well, and how to use it."""

import json
import platform
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from fourfold.datasets import Dataset
from fourfold.errors import DivergedError, ParityError, RegistrationError
from fourfold.parity import ParityReport
from fourfold.profile import Profile
from fourfold.streams import HELD_OUT, VALIDATION
from tasks.find_model import FILE_NAME
from tasks.pages import NO_PLOTS, Plots, page
from tasks.picture import PLOTS
from tasks.tracking import RunRecord, spell
from tasks.train_result import TrainResult

NAME = "report.html"
MOST_COLUMNS = 50  # of the data, and parameters
PACKAGES = ("fourfold", "torch", "onnx", "onnxscript", "onnxruntime", "mlflow", "prefect", "numpy")
Rows = list[tuple[str, ...]]


@contextmanager
def reporting(result: TrainResult, record: RunRecord, folder: Path) -> Iterator[None]:
    """Keep `report.html` at the end of the block, also where the fit diverged or the model was refused."""
    try:
        yield
    except (DivergedError, ParityError, RegistrationError) as error:
        _keep(result, error.status, str(error), record, folder)
        raise
    _keep(result, result.done, "", record, folder)


def _keep(result: TrainResult, status: str, reason: str, record: RunRecord, folder: Path) -> None:
    drawn = folder / PLOTS
    plots = Plots.read(drawn) if drawn.exists() else NO_PLOTS
    written = folder / NAME
    written.write_text(report_page(result, status, reason, record.origin, plots), encoding="utf-8")
    record.file(written)
    result.report = _address(record)


def _address(record: RunRecord) -> str:
    """Where the page is kept: its path as seen from here, or its address on the server."""
    if not is_local_uri(record.artifact_uri):  # type: ignore[no-untyped-call]
        return f"{record.url}/artifacts/{NAME}"
    path = Path(local_file_uri_to_path(record.artifact_uri)) / NAME  # type: ignore[no-untyped-call]
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def report_page(
    result: TrainResult, status: str, reason: str = "", origin: dict[str, str] | None = None, plots: Plots = NO_PLOTS
) -> str:
    """Write the page, as far as the run came.

    Args:
        result: of a run that has its data.
        status: how it ended; the result itself does not know it yet.
        reason: why it did not come to its end.
        origin: what `RunRecord` says of where the run comes from.
        plots: of its fit.
    """
    data = result.data
    assert data is not None, "the rows come first"
    passed = result.parity is not None and result.parity.passed
    return page(
        "report.html",
        {
            "title": result.config.title,
            "status": status,
            "reason": reason,
            "good": status in ("registered", "completed"),
            "summary": _summary(result),
            "data": _data(data),
            "columns": _columns(data),
            "model": _model(result),
            "request": {name: spell(value) for name, value in result.config.parameters.items() if value is not None},
            "coefficients": _coefficients(result),
            "evaluation": _evaluation(result),
            "parity": _parity(result.parity) if result.parity else {},
            "limits": _limits(result, data),
            "use": _use(data, result) if passed else "",
            "serve": _serve(data, result),
            "provenance": _provenance(result, data, origin or {}),
        },
        plots,
    )


def _summary(result: TrainResult) -> dict[str, str]:
    rows = result.rows()
    shown = ("loss", "held-out rows", "least squares", "parity", "registered")
    return {name: rows[name] for name in rows if name in shown or name.startswith("y at ")}


def _data(data: Dataset) -> dict[str, str]:
    count = data.count
    where = "read anew from disk for each epoch" if data.stream else "in memory"
    return {
        "name": data.name,
        "rows": ", ".join(f"{rows:,} {part}" for part, rows in count.items() if rows) + f"; {where}",
        "missing values": "features are filled with their mean, inside the network"
        if data.missing == "mean"
        else "none",
        "SHA-256": data.sha256,
    }


def _columns(data: Dataset) -> Rows:
    """Of the training rows: name, role, lowest, highest, mean, deviation."""
    found: Rows = []
    for role, names, profile in zip(("feature", "target"), (data.features, data.targets), data.profile, strict=True):
        found += [(name, role, *_moments(profile, number)) for number, name in enumerate(names[:MOST_COLUMNS])]
        if len(names) > MOST_COLUMNS:
            found.append((f"and {len(names) - MOST_COLUMNS} more", role, "", "", "", ""))
    return found


def _moments(profile: Profile, number: int) -> tuple[str, ...]:
    moments = (profile.low, profile.high, profile.mean, profile.deviation)
    return tuple(f"{float(values[number]):.6g}" for values in moments)


def _model(result: TrainResult) -> dict[str, str]:
    config, fit = result.config, result.fit
    options = ", ".join((f"lr {config.lr:g}", *config.option))
    rows = {"model": config.model, "optimizer": f"{config.optimizer}, {options}"}
    if config.scheduler:
        rows["scheduler"] = ", ".join((config.scheduler, *config.scheduler_option))
    rows["loss"] = config.loss_name
    rows["batches"] = f"of {config.batch_size} rows" if config.batch_size else "all rows at once"
    rows["standardised"] = "features and target, inside the network" if config.standardizes else "no"
    rows["seed and numbers"] = f"{config.seed}, {config.dtype}"
    if fit:
        rows["fit"] = (
            f"{fit.outcome.value} after {fit.epochs} epochs, {fit.gradient_evaluations} gradient evaluations, "
            f"{fit.seconds:.2f} s"
        )
    return rows


def _coefficients(result: TrainResult) -> Rows:
    """Each parameter and, where there is one, least squares' own: name, fit, least squares, difference."""
    exact = result.evaluation.least_squares.parameters if result.evaluation and result.evaluation.least_squares else {}
    rows: Rows = []
    for name, value in list(result.parameters.items())[:MOST_COLUMNS]:
        beside = (f"{exact[name]:.9g}", f"{value - exact[name]:.2g}") if name in exact else ()
        rows.append((name, f"{value:.9g}", *beside))
    return rows


def _evaluation(result: TrainResult) -> dict[str, str]:
    evaluation = result.evaluation
    if evaluation is None:
        return {}
    judged = {f"{evaluation.judged_on} rows": evaluation.accuracy}
    if evaluation.validation:
        judged[f"{VALIDATION} rows"] = evaluation.validation
    rows = {"loss of the training rows": f"{evaluation.loss:.6g} ({result.config.loss_name})"}
    rows |= {part: f"RMSE {one.rmse:.6g}, MAE {one.mae:.6g}, R2 {one.r2:.6g}" for part, one in judged.items()}
    return rows


def _parity(report: ParityReport) -> dict[str, str]:
    rows = {"verdict": report.in_words()}
    if report.reason:
        rows["reason"] = report.reason
    if report.allowance:
        rows["allowed difference"] = report.allowance
    return rows | {"onnxruntime": report.onnxruntime}


def _limits(result: TrainResult, data: Dataset) -> list[str]:
    features = data.profile[0]
    ranges = [
        f"{name} from {features.low[number]:.6g} to {features.high[number]:.6g}"
        for number, name in enumerate(data.features[:MOST_COLUMNS])
    ]
    found = [
        f"It was trained on {', '.join(ranges)}{', ...' if len(data.features) > MOST_COLUMNS else ''}. Outside of that "
        "it extrapolates: parity says that onnxruntime predicts what torch would, not that either is right."
    ]
    if data.judged_on != HELD_OUT:
        found.append("It was judged on the rows that it was trained on: how it does on others is not known.")
    if data.missing != "mean":
        found.append("A missing value is no number to it: the prediction is none either.")
    return [*found, *(f"{warning[0].upper()}{warning[1:]}." for warning in result.warnings)]


def _example(data: Dataset) -> dict[str, float]:
    """A row that is as ordinary as can be."""
    return {name: float(f"{mean:.6g}") for name, mean in zip(data.features, data.profile[0].mean, strict=True)}


def _use(data: Dataset, result: TrainResult) -> str:
    return f"""import json, onnxruntime, pandas

session = onnxruntime.InferenceSession("{FILE_NAME}")
features = json.loads(session.get_modelmeta().custom_metadata_map["features"])
rows = pandas.DataFrame([{_example(data)!r}])
(predicted,) = session.run(None, {{"x": rows[features].to_numpy("{result.config.dtype}")}})
print(predicted)  # {", ".join(map(ascii, data.targets))}"""


def _serve(data: Dataset, result: TrainResult) -> str:
    if result.registered is None:
        return ""
    uri = shlex.quote(result.registered.uri)
    asked = shlex.quote(json.dumps({"dataframe_records": [_example(data)]}))
    return f"""mlflow models serve --model-uri {uri} --env-manager local --host 127.0.0.1 --port 5001
curl -H 'Content-Type: application/json' -d {asked} http://127.0.0.1:5001/invocations"""


def _provenance(result: TrainResult, data: Dataset, origin: dict[str, str]) -> dict[str, Any]:
    changed = ", with changes that are not committed" if origin.get("git_dirty") == "true" else ""
    rows: dict[str, Any] = {
        "MLflow run": result.run_id,
        "Prefect flow run": result.flow_run_id,
        "registered as": result.registered and f"{result.registered.uri}, {result.registered.alias}",
        "commit": origin.get("git_commit") and f"{origin['git_commit']}{changed}",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC on {platform.node()}, {platform.platform()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]),
        "data, SHA-256": data.sha256,
        "model file, SHA-256": result.parity and result.parity.sha256,
    }
    return {name: value for name, value in rows.items() if value}
