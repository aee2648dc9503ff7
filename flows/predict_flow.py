"""Predict the rows of a file with a registered model: onnxruntime alone, without torch."""

from fourfold.configuration import PredictConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    # The request is read, and Prefect's server boots on the other core, before the seconds of imports below.
    request = command_line.read("predict", PredictConfig, __doc__)
    services.prepare_environment()
    server = prefect_api.PrefectServer.begin()

from prefect import flow

from tasks.predict import predict, prepare
from tasks.predict_result import PredictResult
from tasks.start import prepared, typed


@flow(name="predict", flow_run_name="{config.title}")
@prepared(prepare)
def predict_flow(config: PredictConfig) -> PredictResult:
    """Predict rows or points, write them, and compare them with the training's; each run is recorded in MLflow."""
    result = PredictResult(config)
    with result.recorded() as (record, folder):
        result.ready = ready = prepare(config)
        result.predicted = predict(ready, record, folder)
    return result


if __name__ == "__main__":
    typed(request, predict_flow, server)
