"""Where a model lies that somebody names: in the registry, in a run, or on disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fourfold.errors import RequestError, first_line
from fourfold.golden import FILE_NAME as GOLDEN
from fourfold.tables import looking
from tasks import services

FILE_NAME = "model.onnx"


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
            folder = mlflow.artifacts.download_artifacts(run_id=address)
            return FoundModel(
                f"run {address}", Path(folder) / FILE_NAME, tags.get("model.sha256"), tags.get("golden.sha256"), address
            )
        assert registered is not None, "it is one of the two"
        name, alias, number = registered.groups()
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        uri = f"models:/{name}/{version.version}"
        folder = mlflow.artifacts.download_artifacts(uri)
    except (MlflowException, OSError) as error:
        raise RequestError(f"{address} cannot be found: {first_line(error)}") from error
    tags = version.tags
    return FoundModel(uri, Path(folder) / FILE_NAME, tags.get("sha256"), tags.get("golden_sha256"), version.run_id)


def _client(address: str) -> MlflowClient:
    """A client of the store; a store that is not there yet holds no model, and is not made."""
    uri = services.tracking_uri()
    database = services.sqlite_file(uri)
    if database is not None and not database.is_file():
        raise RequestError(f"{address} cannot be found: nothing was ever recorded at {uri}")
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _on_disk(address: str) -> FoundModel:
    path = Path(address)
    with looking("--model", path):
        return _file_or_folder(address, path)


def _file_or_folder(address: str, path: Path) -> FoundModel:
    if path.is_dir():
        path = path / FILE_NAME
    elif path.suffix != ".onnx":
        raise RequestError(
            f"{address}: no such folder; give models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, an "
            f".onnx file, or a folder with {FILE_NAME}"
        )
    if not path.is_file():
        raise RequestError(f"{address}: there is no {path.name} there")
    return FoundModel(address, path)
