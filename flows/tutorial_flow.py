"""Fit a cubic to sin(x) at the eight levels of PyTorch's own tutorial, and check them against each other."""

from fourfold.configuration import TutorialConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    # The request is read, and Prefect's server boots on the other core, before the seconds of imports below.
    request = command_line.read("tutorial", TutorialConfig, __doc__)
    services.prepare_environment()
    server = prefect_api.PrefectServer.begin()

from prefect import flow

from fourfold.configuration import TrainConfig
from models.levels import LEVELS
from tasks.make_data import make_data
from tasks.run_level import refusal, run_level
from tasks.start import prepared, typed
from tasks.tutorial_result import TutorialResult, draw_levels


@flow(name="tutorial", flow_run_name="{config.title}")
@prepared(lambda config: None)  # each that can be typed is sound
def tutorial_flow(config: TutorialConfig = TutorialConfig()) -> TutorialResult:
    """Run the eight levels on the same rows; each is recorded in MLflow, and each network goes through the gate."""
    result = TutorialResult(config)
    with result.recorded() as (record, folder):
        result.data = data = make_data(TrainConfig(data="sine", dtype=config.dtype))
        record.dataset(data)
        for level in LEVELS:
            result.levels.append(run_level(level, config, data, record, folder))
        result.refusal = refusal(result.levels[-1], data, record, folder)
        result.picture = draw_levels(result, data, record, folder)
        result.check_agreement()
    return result


if __name__ == "__main__":
    typed(request, tutorial_flow, server)
