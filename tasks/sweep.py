"""What a process left open that was killed is closed at the next start of any flow: in MLflow, Prefect, on the disk."""

import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.logging import get_logger
from prefect.runtime import flow_run as own_flow_run
from prefect.states import Completed, Crashed, Failed

from fourfold.errors import first_line
from fourfold.processes import ProcessIdentity, remove_left_folders
from tasks import services
from tasks.prefect_client import MARK
from tasks.stopped import can_go_on, held
from tasks.tracking import store_client

FLOWS = ("train", "compare", "tutorial", "predict", "verify")
GONE = "its process was gone"
OPEN_STATES = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def sweep(own: str | None = None) -> None:
    """Close what this host's killed processes left, and say so; a fault of it is a warning, and stops no run.

    Args:
        own: the run that this process goes on in, whose checkpoints it holds.
    """
    closed: list[str] = []
    try:
        remove_left_folders()
        with ExitStack() as stack:
            closed += _sweep_services(_client(stack), own)
    except Exception as error:
        get_logger("fourfold").warning("what killed runs left open was not closed: %s", error)
        print(f"warning: what killed runs left open was not closed: {first_line(error)}", file=sys.stderr)
    if closed:
        print(f"closed, because {GONE}: {', '.join(closed)}", file=sys.stderr)


def _client(stack: ExitStack) -> MlflowClient | None:
    """MLflow's client, and in a local store no other start beside this one; None where nothing was kept yet.

    Another start could continue a run that this one has just found to be left; and it could be making MLflow's tables.
    """
    database = services.sqlite_file(services.tracking_uri())
    if database and not database.exists():
        return None
    client = store_client()
    stack.enter_context(services.store_lock("runs"))
    return client


def _sweep_services(client: MlflowClient | None, own: str | None) -> list[str]:
    closed: list[Run] = []
    experiments: list[str] = []
    if client:
        experiments = [one.experiment_id for one in client.search_experiments() if one.name in FLOWS]
        here = f"tags.host = '{socket.gethostname()}'"
        closed = [run for run in _runs(client, experiments, here) if _close(client, run, own)]
        _remove_checkpoints_of_finished(client)
    named = {run.data.tags["flow_run_id"] for run in closed if "flow_run_id" in run.data.tags}
    told = [_spell(run) for run in closed if "mlflow.parentRunId" not in run.data.tags]
    if own_flow_run.id:  # outside a flow there is no Prefect
        told += [f"flow run {one}" for one in _sweep_prefect(client, experiments, named)]
    return told


def _runs(client: MlflowClient, experiments: list[str], condition: str) -> Iterator[Run]:
    token = None
    while experiments:
        page = client.search_runs(
            experiments, f"attributes.status = 'RUNNING' AND {condition}", max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _close(client: MlflowClient, run: Run, own: str | None) -> bool:
    """Close a run whose process is gone, and that no other process here goes on in: a server's store has no lock."""
    owner = ProcessIdentity.of_tags(run.data.tags)
    if owner is None or not owner.is_gone():
        return False
    if run.info.run_id == own:
        return _close_held(client, run, owner)
    with held(run.info.run_id) as free:
        return free and _close_held(client, run, owner)


def _close_held(client: MlflowClient, run: Run, owner: ProcessIdentity) -> bool:
    run = client.get_run(run.info.run_id)  # somebody may have closed or continued it meanwhile
    if run.info.status != "RUNNING" or ProcessIdentity.of_tags(run.data.tags) != owner:
        return False
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if model.status == LoggedModelStatus.PENDING:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
    client.set_tag(run.info.run_id, "outcome", "killed")
    client.set_tag(run.info.run_id, "reason", GONE)
    client.set_terminated(run.info.run_id, "KILLED")
    return True


def _remove_checkpoints_of_finished(client: MlflowClient) -> None:
    """Remove what a process left that was killed after its run was finished, and before it had tidied up."""
    for folder in (services.runs_folder() / "checkpoints").glob("*"):
        with suppress(MlflowException):  # of another store
            if client.get_run(folder.name).info.status == "FINISHED":
                shutil.rmtree(folder, ignore_errors=True)


def _spell(run: Run) -> str:
    """A run for a person, with the way to go on where there is one."""
    run_id = run.info.run_id
    return f"run {run_id} (--resume {run_id} continues it)" if can_go_on(run_id) else f"run {run_id}"


def _sweep_prefect(client: MlflowClient | None, experiments: list[str], named: set[str]) -> Iterator[str]:
    """Give every flow run whose process is gone its end."""
    prefect = get_client(sync_client=True)
    still_open = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN_STATES)))
    of_ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    for one in prefect.read_flow_runs(flow_filter=of_ours, flow_run_filter=still_open):
        if str(one.id) in named or _is_marked_as_gone(one):
            state = _end_of(one, client, experiments)
            if state is not None:
                prefect.set_flow_run_state(one.id, state, force=True)
                yield str(one.id)


def _is_marked_as_gone(run: FlowRun) -> bool:
    owners = [ProcessIdentity.read(tag.removeprefix(MARK)) for tag in run.tags if tag.startswith(MARK)]
    return bool(owners) and all(owner is not None and owner.is_gone() for owner in owners)


def _end_of(run: FlowRun, client: MlflowClient | None, experiments: list[str]) -> State | None:
    """How it ended, by its run in MLflow; None where another process has taken it over."""
    found = client.search_runs(experiments, f"tags.flow_run_id = '{run.id}'") if client and experiments else []
    status = {one.info.status for one in found if "mlflow.parentRunId" not in one.data.tags}
    if "RUNNING" in status:
        return None
    if status == {"FINISHED"}:
        return Completed(message="told late: Prefect's server was away when it ended")
    if status == {"FAILED"}:
        return Failed(message="told late: Prefect's server was away when it ended")
    return Crashed(message=GONE)
