"""Where a model lies that somebody names: in the registry, in a run, or in a folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fourfold.errors import RequestError, first_line
from fourfold.golden import FILE_NAME as GOLDEN
from tasks import services

FILE_NAME = "model.onnx"


@dataclass(frozen=True)
class FoundModel:
    """A model and its golden predictions, as files of this machine.

    Attributes:
        name: what the model is, for people: `models:/line-linear/3`, a run, a folder.
        path: of the model file; golden predictions lie beside it.
        sha256, golden_sha256: as the registry or the run remembers them, apart from the files; None where nothing does.
        run_id: of the run that made it, where that is known.
    """

    name: str
    path: Path
    sha256: str | None = None
    golden_sha256: str | None = None
    run_id: str | None = None


def find_model(address: str) -> FoundModel:
    """Find what an address names, and fetch it where it lies elsewhere.

    Args:
        address: models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, or a folder.

    Raises:
        RequestError: there is no such model, or no golden predictions were ever kept with it.
    """
    registered = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    run = re.fullmatch(r"[0-9a-f]{32}", address)
    if not registered and not run:
        return _in_folder(address)
    client = _client(address)
    try:
        if run:
            tags: Mapping[str, str] = client.get_run(address).data.tags
            names = {artifact.path for artifact in client.list_artifacts(address)}
            if not {FILE_NAME, GOLDEN} & names and "golden.sha256" not in tags:
                raise RequestError(f"--model {address}: that run kept no verified model")
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
    path = Path(folder) / FILE_NAME
    if "golden_sha256" not in version.tags and not path.with_name(GOLDEN).is_file():
        raise RequestError(f"{address}: no golden predictions were kept with it, so it cannot be proved again")
    return FoundModel(uri, path, version.tags.get("sha256"), version.tags.get("golden_sha256"), version.run_id)


def _client(address: str) -> MlflowClient:
    """A client of the store; a store that is not there yet holds no model, and is not made."""
    uri = services.tracking_uri()
    database = services.sqlite_file(uri)
    if database is not None and not database.is_file():
        raise RequestError(f"{address} cannot be found: nothing was ever recorded at {uri}")
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _in_folder(address: str) -> FoundModel:
    folder = Path(address)
    if not folder.is_dir():
        raise RequestError(
            f"--model {address}: no such folder; give models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, or a "
            f"folder with {FILE_NAME} and {GOLDEN}"
        )
    for name in (FILE_NAME, GOLDEN):
        if not (folder / name).is_file():
            raise RequestError(f"--model {address}: there is no {name} in that folder")
    return FoundModel(str(folder), folder / FILE_NAME)
