"""A training that was stopped and goes on: where its checkpoints lie, what it was asked for, and who holds it."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from fourfold.checkpoints import CheckpointFolder
from fourfold.configuration import TrainConfig
from fourfold.durable import write_whole
from fourfold.errors import DivergedError, ParityError, RequestError, first_line
from tasks import services
from tasks.command_line import option_of
from tasks.patience import store_name
from tasks.stopped import LOCK, REQUEST, can_go_on, checkpoints_of, held
from tasks.tracking import RunRecord, as_parameter, spell, store_client
from tasks.train import settle

SECONDS_TO_LOOK = 1  # in which another process may hold a lock only to see that it is free


class Place:
    """The folder of one training's checkpoints, held by one process as long as it lives."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._lock: FileLock | None = None

    @classmethod
    @contextmanager
    def of(cls, resumed: str | None) -> Iterator["Place"]:
        """Hold the place of a run that goes on; a new one has none until it is opened.

        A training that came to an end of its own leaves nothing: trained again, it would come to the same.

        Raises:
            RequestError: another process holds it.
        """
        place = cls()
        try:
            if resumed:
                place._hold(resumed)
                _request(resumed)  # whoever held it before may have brought it to its end
            yield place
        except (DivergedError, ParityError):
            place._leave(emptied=True)
            raise
        except BaseException:
            place._leave(emptied=False)
            raise
        place._leave(emptied=True)

    def open(self, config: TrainConfig, record: RunRecord) -> CheckpointFolder | None:
        """Keep what was asked for, and give the folder for the checkpoints; None where there are to be none."""
        if not config.checkpoint_seconds and not config.resume:
            return None
        if self._path is None:
            self._path = checkpoints_of(record.run_id)
            self._path.mkdir(parents=True)
            self._hold(record.run_id)
            write_whole(self._path / REQUEST, config.model_dump_json(indent=2).encode())
        return CheckpointFolder(self._path)

    def _hold(self, run_id: str) -> None:
        self._path = checkpoints_of(run_id)
        self._lock = FileLock(self._path / LOCK)
        try:
            self._lock.acquire(timeout=SECONDS_TO_LOOK)
        except Timeout:
            raise RequestError(f"--resume {run_id}: another process trains it") from None

    def _leave(self, *, emptied: bool) -> None:
        if self._path is not None and emptied:
            shutil.rmtree(self._path, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()


def asked_again(config: TrainConfig) -> TrainConfig:
    """Give what the run that is to go on was asked for; a request for a new run stays as it is.

    Raises:
        RequestError: there is no such run, it is finished or being trained, or an option differs.
    """
    if config.resume is None:
        return config
    run_id = _latest() if config.resume == "latest" else config.resume
    run = _stopped(run_id)
    before = _request(run_id)
    given = {name: getattr(config, name) for name in config.model_fields_set}
    now = settle(before.model_copy(update=given | {"resume": run_id}))
    for name, value in now.parameters.items():
        if value != before.parameters[name]:
            raise RequestError(
                f"--resume {run_id} was started with {_typed(name, before.parameters[name])}, and goes on with that; "
                f"{_typed(name, value)} was given"
            )
        if as_parameter(value) != run.data.params.get(name):
            raise RequestError(
                f"--resume {run_id}: MLflow remembers {_typed(name, run.data.params.get(name))}, but "
                f"{checkpoints_of(run_id) / REQUEST} says {_typed(name, value)}; one of them was changed"
            )
    return now


def _typed(name: str, value: Any) -> str:
    option = option_of(name)
    if value is None or value is False or value == ():
        return f"no {option}"
    return option if value is True else f"{option} {spell(value)}"


def _stopped(run_id: str) -> Run:
    """The run as MLflow knows it, if it can go on."""
    run = _known(run_id)
    if run is None:
        raise RequestError(f"--resume {run_id}: {store_name(services.tracking_uri())} knows no such run")
    tags = run.data.tags
    if run.info.status == "FINISHED":
        raise RequestError(f"--resume {run_id}: that run is finished" + _version(tags))
    if tags.get("outcome") in ("diverged", "parity"):
        raise RequestError(f"--resume {run_id}: that run came to its end: {tags.get('reason')}")
    if not can_go_on(run_id):
        raise RequestError(
            f"--resume {run_id}: there are no checkpoints at {checkpoints_of(run_id)}; the run was one of host "
            f"{tags.get('host')}, without checkpoints, or no training"
        )
    with held(run_id) as free:
        if not free:
            raise RequestError(f"--resume {run_id}: process {tags.get('process_id')} trains it now")
    return run


def _version(tags: Mapping[str, str]) -> str:
    return f": it made {tags['model.version']}" if "model.version" in tags else ""


def _known(run_id: str) -> Run | None:
    database = services.sqlite_file(services.tracking_uri())
    if database is not None and not database.is_file():  # and is not made
        return None
    try:
        run = store_client().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _request(run_id: str) -> TrainConfig:
    """What was asked for when the run was opened."""
    path = checkpoints_of(run_id) / REQUEST
    try:
        return TrainConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RequestError(f"--resume {run_id}: {path} is damaged: {first_line(error)}") from error


def _latest() -> str:
    """The run that was stopped last, of those that can go on here."""
    there = (services.runs_folder() / "checkpoints").glob(f"*/{REQUEST}")
    for path in sorted(there, key=lambda path: path.parent.stat().st_mtime, reverse=True):
        run_id = path.parent.name
        with contextlib.suppress(RequestError):
            _stopped(run_id)
            return run_id
    raise RequestError(f"--resume latest: no training that was stopped has checkpoints in {services.runs_folder()}")
