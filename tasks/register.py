"""Step 7: the verified file as a version of a registered model, and who is champion."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect.client.schemas.objects import State

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import FourfoldError, ParityError, RegistrationError, ServiceError, first_line
from fourfold.golden import FILE_NAME as GOLDEN
from fourfold.golden import prove_again, read_golden
from fourfold.onnx_file import ExportedModel, file_sha256, predictor
from fourfold.parity import Expectation, ParityReport, compare
from fourfold.structure import Refused
from tasks import flavor, services
from tasks.aliases import CHALLENGER, CHAMPION, NOT_THERE, Ruling, award, undecided
from tasks.evaluate import Evaluation, accuracy
from tasks.find_model import FILE_NAME, folder_of, lasting, locate
from tasks.patience import patiently, store_name
from tasks.steps import step
from tasks.tracking import ALREADY_EXISTS, RunRecord

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        uri: `models:/NAME/VERSION`.
        path: of the model file in the store, where the store is a folder of this machine; None where it is a server.
        decision: why it got its alias, with the numbers.
    """

    name: str
    version: str
    alias: str
    uri: str
    path: str | None
    sha256: str
    decision: str


def _may_pass_next_time(_task: object, _run: object, state: State) -> bool:
    """Whether a fault is of the store or the network: what the gate or the registry refused stays refused."""
    return not isinstance(state.result(raise_on_failure=False), FourfoldError)


@step(name="register", retries=2, retry_delay_seconds=1, retry_condition_fn=_may_pass_next_time)
def register(
    config: TrainConfig,
    data: Dataset,
    evaluation: Evaluation,
    exported: ExportedModel,
    parity: ParityReport,
    record: RunRecord,
) -> Registered:
    """Log the verified file as a model, make it a version, and let it be champion if it is the better one.

    The version is loaded back from the registry's address and proved again before any alias moves: what serves is
    what was proved. The present champion is judged anew, on the same rows, by onnxruntime. It keeps its place in a
    tie, and where the new one is not better by `min_improvement`.

    Repeated for the same run, by whichever process and wherever a first try ended, it goes on with what that left.

    Raises:
        ParityError: the file did not pass the gate, or is another one than did.
        RegistrationError: what the registry gives back is not what was proved; the version was taken back.
    """
    if not parity.passed or parity.sha256 != exported.sha256:
        raise ParityError("only the very file that passed the gate can be registered")
    client, name = record.client, config.model_name
    created = _version_of_run(record, name) or _log_and_register(config, data, exported, record)
    version, uri = str(created.version), f"models:/{name}/{created.version}"
    stored = folder_of(client, uri, record.run_id) / FILE_NAME
    if fault := _differs_from_proved(uri, stored, exported, data):
        _take_back(record, name, version)
        raise RegistrationError(f"{uri} is not what was verified: {fault}; it was taken back, no alias was moved")
    hashes = {"sha256": exported.sha256, "golden_sha256": file_sha256(stored.with_name(GOLDEN))}

    def judge(champion: ModelVersion | None) -> Ruling:
        return _decide(champion, version, stored, config.min_improvement, data, evaluation)

    ruling = award(client, name, version, judge, {"parity": "passed", "run": record.url, **hashes})
    record.tags({"model.version": uri, "model.alias": ruling.alias, "model.decision": ruling.decision})
    return Registered(name, version, ruling.alias, uri, lasting(stored), exported.sha256, ruling.decision)


def _version_of_run(record: RunRecord, name: str) -> ModelVersion | None:
    """The version that an earlier try of this step made already."""
    found = record.client.search_model_versions(f"name = '{name}' and run_id = '{record.run_id}'")
    return found[0] if found else None


def _differs_from_proved(uri: str, stored: Path, exported: ExportedModel, data: Dataset) -> str:
    """Say what is wrong with a version as the registry gives it back; empty where it is what was proved."""
    if file_sha256(stored) != exported.sha256:
        return "it holds other bytes"
    try:
        golden = read_golden(stored.with_name(GOLDEN))
    except Refused as refusal:
        return str(refusal)
    again = prove_again(stored, golden)
    if not again.passed:
        return again.reason
    try:
        served = flavor.load(stored.parent)
    except Refused as refusal:
        return str(refusal)

    def predict_served(x: np.ndarray) -> np.ndarray:
        prediction: np.ndarray = served.predict(pd.DataFrame(x, columns=list(data.features))).to_numpy()
        return prediction

    at_hand: list[Expectation] = [one for one in golden.expectations if one.at_hand]
    return next((case.reason for one in at_hand if (case := compare("MLflow", predict_served, one)).reason), "")


def _log_and_register(config: TrainConfig, data: Dataset, exported: ExportedModel, record: RunRecord) -> ModelVersion:
    client, name = record.client, config.model_name
    model = patiently(_here(), lambda: _model_of_run(record, name))
    with TemporaryDirectory(dir=exported.path.parent) as folder:  # whose name says whose it is, should this be killed
        written = Path(folder) / "model"
        flavor.save(
            exported.path,
            written,
            model=model,
            features=data.features,
            targets=data.targets,
            dtype=config.dtype,
            example=data.x[:EXAMPLE_ROWS].numpy(),
        )
        shutil.copy(exported.path.with_name(GOLDEN), written)
        client.log_model_artifacts(model.model_id, str(written))
    patiently(_here(), lambda: _tie_to_run(record, model))
    client.finalize_logged_model(model.model_id, "READY")
    try:
        client.create_registered_model(
            name,
            description=f"{config.model} on {config.data}, trained and verified by fourfold. The description of each "
            "version leads to its report and to that of its proof.",
        )
    except MlflowException as error:
        if error.error_code != ALREADY_EXISTS:
            raise
    return patiently(
        _here(),
        lambda: (
            _version_of_run(record, name)
            or client.create_model_version(
                name,
                source=model.model_uri,
                run_id=record.run_id,
                model_id=model.model_id,
                tags=undecided(),
                description=f"[The training's report]({record.url}/artifacts/report.html) and "
                f"[the report of its proof]({record.url}/artifacts/parity.html).",
            )
        ),
    )


def _model_of_run(record: RunRecord, name: str) -> LoggedModel:
    """The logged model that an earlier try made, however far that came, or a new one.

    Made through the client, each call by itself: `Model.log` would make it in the experiment of the active run, and
    cannot be repeated, since MLflow refuses an output that a run has already.
    """
    found = record.client.search_logged_models([record.experiment_id], f"source_run_id = '{record.run_id}'")
    earlier = [model for model in found if model.name == name]
    if earlier:
        return earlier[0]
    return record.client.create_logged_model(
        record.experiment_id, name=name, source_run_id=record.run_id, model_type="onnx"
    )


def _tie_to_run(record: RunRecord, model: LoggedModel) -> None:
    """Make a logged model an output of its run, with the run's single values as its own."""
    run = record.client.get_run(record.run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        record.client.log_outputs(record.run_id, [LoggedModelOutput(model.model_id, step=0)])
    histories = [record.client.get_metric_history(record.run_id, key) for key in run.data.metrics]
    record.client.log_batch(
        record.run_id,
        [
            Metric(one.key, one.value, one.timestamp, one.step, model_id=model.model_id, run_id=record.run_id)
            for one, *more in histories
            if not more
        ],
    )


def _take_back(record: RunRecord, name: str, version: str) -> None:
    try:
        record.client.delete_model_version(name, version)
    except MlflowException as error:
        if error.error_code != NOT_THERE:  # an earlier try came through, and was not answered
            raise


def _here() -> str:
    return store_name(services.tracking_uri())


def _decide(
    champion: ModelVersion | None, version: str, stored: Path, asked: float, data: Dataset, evaluation: Evaluation
) -> Ruling:
    """Rule between a version, of the file `stored`, and the champion: both by onnxruntime, on the same rows.

    torch's RMSE of the very same weights differs from onnxruntime's in the eighth digit: beside it, a tie would not
    be one.
    """
    columns = {"features": json.dumps(data.features), "targets": json.dumps(data.targets)}
    numbers = {"rmse": f"{evaluation.accuracy.rmse:.9g}", "judged_on": evaluation.judged_on}
    numbers |= {"data_sha256": data.sha256, "min_improvement": f"{asked:.9g}", **columns}
    if champion is None:
        return Ruling(CHAMPION, "the first version", numbers)
    if str(champion.version) == version:  # an earlier try of this step came so far, or a person promoted it
        return Ruling(CHAMPION, champion.tags.get("decision", "it is champion already"), numbers | champion.tags)
    other = [key for key, value in columns.items() if champion.tags.get(key) != value]
    if other:
        decision = f"version {champion.version} cannot predict these rows: its {other[0]} are others"
        return Ruling(CHALLENGER, decision, numbers)
    try:
        present = locate(f"models:/{champion.name}/{champion.version}")
        present.read()
        champions = _rmse(present.path, data)
    except ServiceError:
        raise
    except Exception as error:  # of MLflow, onnxruntime or the file system: whatever it is, nothing was compared
        decision = f"version {champion.version} cannot predict these rows: {first_line(error)}"
        return Ruling(CHALLENGER, decision, numbers)
    rmse = _rmse(stored, data)
    found = improvement(rmse, champions)
    wins = found > 0 and found >= asked  # a tie never moves the alias
    numbers |= {"rmse": f"{rmse:.9g}", "improvement": f"{found:.9g}"}
    numbers |= {"champion_rmse": f"{champions:.9g}", "champion_version": str(champion.version)}
    below = "below" if wins else "not enough below" if found > 0 else "not below"
    share = f": improvement {found:.6g}, asked for {asked:g}" if math.isfinite(found) else ""
    return Ruling(
        CHAMPION if wins else CHALLENGER,
        f"RMSE {rmse:.6g} on the {evaluation.judged_on} rows is {below} the {champions:.6g} of version "
        f"{champion.version}{share}",
        numbers,
    )


def improvement(rmse: float, champions: float) -> float:
    """The share by which an RMSE is below the champion's, at most 1; negative where it is above.

    >>> improvement(0.75, 1.0), improvement(1.0, 1.0), improvement(1.5, 1.0)
    (0.25, 0.0, -0.5)

    Any finite number is wholly below one that is not finite, nothing finite is below 0 but what ties with it, and
    what is not finite itself is below nothing:

    >>> improvement(1.0, math.nan), improvement(0.0, 0.0), improvement(1.0, 0.0), improvement(math.nan, math.nan)
    (1.0, 0.0, -inf, -inf)
    """
    if not math.isfinite(rmse):
        return -math.inf
    if not math.isfinite(champions):
        return 1.0
    if champions == 0:
        return 0.0 if rmse == 0 else -math.inf
    return 1 - rmse / champions


def _rmse(path: Path, data: Dataset) -> float:
    """Judge a model file on the rows that decide."""
    predict = predictor(path)
    pairs = ((predict(x.numpy()), y.numpy()) for part, x, y in data.chunks() if part == data.judged_on)
    return accuracy(pairs).rmse
