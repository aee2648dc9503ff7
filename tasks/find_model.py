"""Where a model lies that somebody names: in the registry, in a run, or on disk."""

import atexit
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from fourfold.errors import ParityError, RequestError, first_line
from fourfold.golden import FILE_NAME as GOLDEN
from fourfold.processes import temporary_folder
from fourfold.structure import form_of, read_model
from fourfold.tables import is_file, is_folder
from tasks import services
from tasks.patience import patiently, store_name
from tasks.tracking import store_client

FILE_NAME = "model.onnx"
_fetched: list[Path] = []  # at most one


@dataclass(frozen=True)
class FoundModel:
    """A model as a file of this machine, where it can be proved again with golden predictions beside it.

    Attributes:
        name: what the model is, for people: `models:/line-linear/3`, a run, a folder.
        path: of the model file.
        sha256, golden_sha256: as the registry or the run remembers them, apart from the files; None where nothing does.
        run_id: of the run that made it, where that is known.
    """

    name: str
    path: Path
    sha256: str | None = None
    golden_sha256: str | None = None
    run_id: str | None = None

    def read(self) -> tuple[bytes, str]:
        """The file's bytes and their SHA-256, where they are what was registered and their structure is sound.

        Raises:
            OSError: the file cannot be read.
            ParityError: it has another SHA-256 than the registry remembers.
            Refused: it is no model that may be loaded.
        """
        content = self.path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, sha256):
            raise ParityError(f"{self.name} is not what was registered: its file has another SHA-256")
        read_model(content, form_of(content))
        return content, sha256


def find_model(address: str) -> FoundModel:
    """Find a model that can be proved again.

    Raises:
        RequestError: as `locate` does, or no golden predictions were ever kept with it.
    """
    found = locate(address)
    golden = found.path.with_name(GOLDEN)
    if found.golden_sha256 is None and not golden.is_file():
        raise RequestError(f"{address}: no golden predictions were kept with it, so it cannot be proved again")
    return found


def locate(address: str) -> FoundModel:
    """Find what an address names, and fetch it where it lies elsewhere.

    Args:
        address: models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, a folder, or an .onnx file.

    Raises:
        RequestError: there is no such model.
    """
    registered = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    run = re.fullmatch(r"[0-9a-f]{32}", address)
    if not registered and not run:
        return _on_disk(address)
    client = _client(address)
    try:
        if run:
            tags: Mapping[str, str] = client.get_run(address).data.tags
            names = {artifact.path for artifact in client.list_artifacts(address)}
            if not {FILE_NAME, GOLDEN} & names and "golden.sha256" not in tags:
                raise RequestError(f"{address}: that run kept no verified model")
            folder = folder_of(client, client.get_run(address).info.artifact_uri, address)
            return FoundModel(
                f"run {address}", folder / FILE_NAME, tags.get("model.sha256"), tags.get("golden.sha256"), address
            )
        assert registered is not None, "it is one of the two"
        name, alias, number = registered.groups()
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        uri = f"models:/{name}/{version.version}"
        folder = folder_of(client, uri, version.run_id)
    except (MlflowException, OSError) as error:
        raise RequestError(f"{address} cannot be found: {first_line(error)}") from error
    tags = version.tags
    return FoundModel(uri, folder / FILE_NAME, tags.get("sha256"), tags.get("golden_sha256"), version.run_id)


def folder_of(client: MlflowClient, address: str, run_id: str | None) -> Path:
    """The folder of a run's or a version's files; fetched where it is elsewhere, else where it lies.

    A folder of this machine is looked up and not fetched: MLflow would write a file into it, through a link if one of
    that name lies there. It must be in the store: beside a SQLite database, or where the run's experiment keeps files.

    Args:
        address: as MLflow takes it: models:/NAME/VERSION, or a run's artifact address.
        run_id: of the run that made them, where that is known.

    Raises:
        RequestError: it is somewhere else, or one of its two files is a link, a device or the like.
        MlflowException: there is no such address.
    """
    here = store_name(services.tracking_uri())
    repository = patiently(here, lambda: get_artifact_repository(address))  # by a client of MLflow's own
    while isinstance(repository, (ModelsArtifactRepository, RunsArtifactRepository)):
        repository = repository.repo
    if not isinstance(repository, LocalArtifactRepository):
        into = str(_to_fetch_into())
        return Path(patiently(here, lambda: mlflow.artifacts.download_artifacts(address, dst_path=into)))
    folder = Path(repository.artifact_dir).resolve()
    if not any(folder.is_relative_to(home) for home in _homes(client, run_id)):
        raise RequestError(f"{address} lies in {folder}, outside of the store; give that folder itself if you trust it")
    for path in (folder / FILE_NAME, folder / GOLDEN):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RequestError(f"{address}: {path} is no regular file, as a model's are; it was not opened")
    return folder


def lasting(path: Path) -> str | None:
    """The path of a file, for later; None where it was fetched, and goes with the process."""
    return None if any(path.is_relative_to(folder) for folder in _fetched) else str(path)


def _to_fetch_into() -> Path:
    """A new folder that goes with the process, in one by whose name that of a killed process is found and removed."""
    if not _fetched:
        _fetched.append(temporary_folder())
        atexit.register(shutil.rmtree, _fetched[0], ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=_fetched[0]))


def _homes(client: MlflowClient, run_id: str | None) -> list[Path]:
    """The folders that the store keeps files in."""
    homes = []
    database = services.sqlite_file(services.tracking_uri())
    if database is not None:
        homes += [database.parent.resolve(), (database.parent / "mlruns").resolve()]
    if run_id:
        experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
        kept = get_artifact_repository(experiment.artifact_location)
        if isinstance(kept, LocalArtifactRepository):
            homes.append(Path(kept.artifact_dir).resolve())
    return homes


def _client(address: str) -> MlflowClient:
    """A client of the store; a store that is not there yet holds no model, and is not made."""
    uri = services.tracking_uri()
    database = services.sqlite_file(uri)
    if database is not None and not database.is_file():
        raise RequestError(f"{address} cannot be found: nothing was ever recorded at {uri}")
    return store_client()


def _on_disk(address: str) -> FoundModel:
    path = Path(address)
    if is_folder(path):
        path = path / FILE_NAME
    elif path.suffix != ".onnx":
        raise RequestError(
            f"{address}: no such folder; give models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, an "
            f".onnx file, or a folder with {FILE_NAME}"
        )
    if not is_file(path):
        raise RequestError(f"{address}: there is no {path.name} there")
    return FoundModel(address, path)
