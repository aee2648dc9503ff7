"""Step 7: the verified file as a version of a registered model, and who is champion."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect.client.schemas.objects import State

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import FourfoldError, ParityError, RegistrationError, first_line
from fourfold.golden import FILE_NAME as GOLDEN
from fourfold.golden import prove_again, read_golden
from fourfold.onnx_file import ExportedModel, file_sha256, predict
from fourfold.parity import Expectation, ParityReport, compare
from fourfold.structure import Refused
from tasks import flavor
from tasks.evaluate import Accuracy, Evaluation, accuracy
from tasks.find_model import FILE_NAME
from tasks.steps import step
from tasks.tracking import ALREADY_EXISTS, RunRecord

CHAMPION, CHALLENGER = "champion", "challenger"
EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        uri: `models:/NAME/VERSION`.
        path: of the model file in the store, where the store is a folder of this machine.
        decision: why it got its alias, with the numbers.
    """

    name: str
    version: str
    alias: str
    uri: str
    path: str
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
    what was proved. The present champion is judged anew, on the same rows, by onnxruntime. A tie leaves it in its
    place.

    Raises:
        ParityError: the file did not pass the gate, or is another one than did.
        RegistrationError: what the registry gives back is not what was proved; the version was taken back.
    """
    if not parity.passed or parity.sha256 != exported.sha256:
        raise ParityError("only the very file that passed the gate can be registered")
    client, name = record.client, config.model_name
    created = _version_of_run(record, name) or _log_and_register(config, data, exported, record)
    version, uri = str(created.version), f"models:/{name}/{created.version}"
    stored = Path(mlflow.artifacts.download_artifacts(uri)) / FILE_NAME
    if fault := _differs_from_proved(uri, stored, exported, data):
        client.delete_model_version(name, version)
        raise RegistrationError(f"{uri} is not what was verified: {fault}; it was taken back, no alias was moved")
    alias, decision, numbers = _decide(record, name, version, data, evaluation)
    hashes = {"sha256": exported.sha256, "golden_sha256": file_sha256(stored.with_name(GOLDEN))}
    tags = {"decision": decision, "parity": "passed", "run": record.url, **hashes, **numbers}
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, alias, version)
    record.tags({"model.version": uri, "model.alias": alias, "model.decision": decision})
    return Registered(name, version, alias, uri, str(stored), exported.sha256, decision)


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
    served = mlflow.pyfunc.load_model(uri)

    def predict_served(x: np.ndarray) -> np.ndarray:
        prediction: np.ndarray = served.predict(pd.DataFrame(x, columns=list(data.features))).to_numpy()
        return prediction

    at_hand: list[Expectation] = [one for one in golden.expectations if one.at_hand]
    return next((case.reason for one in at_hand if (case := compare("MLflow", predict_served, one)).reason), "")


def _log_and_register(config: TrainConfig, data: Dataset, exported: ExportedModel, record: RunRecord) -> ModelVersion:
    # Made through the client, since Model.log would make it in the experiment of the active run: the default one.
    model = record.client.create_logged_model(
        record.experiment_id, name=config.model_name, source_run_id=record.run_id, model_type="onnx"
    )
    flavor.log(
        exported.path,
        model_id=model.model_id,
        run_id=record.run_id,
        features=data.features,
        targets=data.targets,
        dtype=config.dtype,
        example=data.x[:EXAMPLE_ROWS].numpy(),
    )
    record.client.log_model_artifact(model.model_id, str(exported.path.with_name(GOLDEN)))
    try:
        record.client.create_registered_model(
            config.model_name, description=f"{config.model} on {config.data}, trained and verified by fourfold"
        )
    except MlflowException as error:
        if error.error_code != ALREADY_EXISTS:
            raise
    return record.client.create_model_version(
        config.model_name, source=model.model_uri, run_id=record.run_id, model_id=model.model_id
    )


def _accuracy_of_file(path: Path, data: Dataset) -> Accuracy:
    """Judge a model file, by onnxruntime, on the rows that models are judged on."""
    pairs = ((predict(path, x.numpy()), y.numpy()) for part, x, y in data.chunks() if part == data.judged_on)
    return accuracy(pairs)


def _decide(
    record: RunRecord, name: str, version: str, data: Dataset, evaluation: Evaluation
) -> tuple[str, str, dict[str, str]]:
    """Give the alias, the reason, and the numbers behind it."""
    rmse, judged_on = evaluation.accuracy.rmse, evaluation.judged_on
    columns = {"features": json.dumps(data.features), "targets": json.dumps(data.targets)}
    numbers = {"rmse": f"{rmse:.9g}", "judged_on": judged_on, "data_sha256": data.sha256, **columns}
    # Asked for by the name's aliases first: of a missing alias MLflow speaks as of any other wrong request.
    if CHAMPION not in record.client.get_registered_model(name).aliases:
        return CHAMPION, "the first version", numbers
    champion = record.client.get_model_version_by_alias(name, CHAMPION)
    if str(champion.version) == version:  # an earlier try of this step came so far
        return CHAMPION, champion.tags["decision"], numbers
    other = [key for key, value in columns.items() if champion.tags.get(key) != value]
    if other:
        return CHALLENGER, f"version {champion.version} cannot predict these rows: its {other[0]} are others", numbers
    try:
        stored = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{champion.version}")) / FILE_NAME
        champions = _accuracy_of_file(stored, data).rmse
    except Exception as error:  # of MLflow, onnxruntime or the file system: whatever it is, nothing was compared
        return CHALLENGER, f"version {champion.version} cannot predict these rows: {first_line(error)}", numbers
    numbers |= {"champion_rmse": f"{champions:.9g}", "champion_version": str(champion.version)}
    better = math.isfinite(rmse) and not champions <= rmse  # also where the champion's is no number
    return (
        CHAMPION if better else CHALLENGER,
        f"RMSE {rmse:.6g} on the {judged_on} rows is {'' if better else 'not '}below the {champions:.6g} of version "
        f"{champion.version}",
        numbers,
    )
