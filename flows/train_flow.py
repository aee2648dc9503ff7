"""Train a model on data, prove that onnxruntime predicts what torch predicts, and register it."""

from fourfold.configuration import TrainConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    # The request is read, and Prefect's server boots on the other core, before the seconds of imports below.
    request = command_line.read("train", TrainConfig, __doc__)
    services.prepare_environment()
    server = prefect_api.PrefectServer.begin()

from prefect import flow

from fourfold.errors import DivergedError, ParityError
from fourfold.fitting import Outcome
from tasks.build_model import build_model
from tasks.conditioning import warn
from tasks.evaluate import evaluate
from tasks.export_onnx import export_onnx
from tasks.make_data import make_data
from tasks.picture import drawing
from tasks.register import register
from tasks.report_page import reporting
from tasks.request import check, check_optimizer
from tasks.resume import Place, asked_again
from tasks.start import prepared, typed
from tasks.tracking import RunRecord
from tasks.train import advice, settle, train
from tasks.train_result import TrainResult
from tasks.verify_onnx import verify_onnx


@flow(name="train", flow_run_name="{config.title}")
@prepared(check, check_optimizer)
def train_flow(config: TrainConfig = TrainConfig()) -> TrainResult:
    """Train, evaluate, export, verify and register one model; each run is recorded in MLflow."""
    return train_into(TrainResult(settle(asked_again(config))))


def train_into(result: TrainResult, parent: RunRecord | None = None) -> TrainResult:
    """Fill in the result of one training, below the run of another flow where it is a part of that."""
    config = result.config
    with Place.of(config.resume) as place, result.recorded(parent) as (record, folder):
        checkpoints = place.open(config, record)
        result.data = data = make_data(config)
        record.dataset(data)
        built = build_model(config, data)
        result.warnings = warn(config, built, record)
        result.fit = fitted = train(config, built, data, record, folder, checkpoints)
        result.parameters = built.parameters(fitted.history)
        with reporting(result, record, folder), drawing(built, data, fitted, record, folder) as result.picture:
            if fitted.outcome is Outcome.DIVERGED:
                raise DivergedError(advice(config, fitted))
            result.evaluation = evaluation = evaluate(config, built, data, record)
            exported = export_onnx(config, built, data, record, folder)
            result.parity = parity = verify_onnx(config, built, data, exported, record, folder)
            if not parity.passed:
                raise ParityError(
                    f"onnxruntime does not predict what torch does: {parity.reason}; nothing was registered"
                )
            if not config.no_register:
                result.registered = register(config, data, evaluation, exported, parity, record)
    return result


if __name__ == "__main__":
    typed(request, train_flow, server)
