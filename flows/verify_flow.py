"""Prove again that a model still predicts what torch predicted: here, today, without torch and without its data.

With --promote the version that passes becomes champion.
"""

from fourfold.configuration import VerifyConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    # The request is read, and Prefect's server boots on the other core, before the seconds of imports below.
    request = command_line.read("verify", VerifyConfig, __doc__)
    services.prepare_environment()
    server = prefect_api.PrefectServer.begin()

from prefect import flow

from fourfold.errors import ParityError
from tasks.aliases import promote
from tasks.find_model import find_model
from tasks.prove_again import VerifyResult, prove
from tasks.start import prepared, typed


@flow(name="verify", flow_run_name="{config.title}")
@prepared(lambda config: find_model(config.address))
def verify_flow(config: VerifyConfig) -> VerifyResult:
    """Judge a registered model, a run's, or one in a folder by its golden predictions; recorded in MLflow."""
    result = VerifyResult(config)
    with result.recorded() as (record, folder):
        result.found = found = find_model(config.address)
        result.parity = parity = prove(found, config.title, record, folder)
        if not parity.passed:
            raise ParityError(f"{found.name} is not what was proved: {parity.reason}")
        if config.promoted:
            result.promotion = promote(*config.promoted, record)
    return result


if __name__ == "__main__":
    typed(request, verify_flow, server)
