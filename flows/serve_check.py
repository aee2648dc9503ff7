"""Say whether the deployments would fire: server, schedule, worker, next run, parameters, model and data."""

from fourfold.configuration import PreflightConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    request = command_line.read("serve_check", PreflightConfig, __doc__)
    services.prepare_environment()
    prefect_api.prefect_address()  # sets it before Prefect is imported, which reads it once

from flows.compare_flow import compare_flow
from flows.predict_flow import predict_flow
from flows.train_flow import train_flow
from flows.tutorial_flow import tutorial_flow
from flows.verify_flow import verify_flow
from tasks.schedule_check import preflight

if __name__ == "__main__":
    flows = {flow.name: flow for flow in (train_flow, compare_flow, tutorial_flow, predict_flow, verify_flow)}
    command_line.run(request, "serve_check", lambda config: preflight(config, flows))
