import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from workplaces import ROOT

from fourfold.errors import RequestError
from fourfold.onnx_file import ExportedModel
from tasks.find_model import find_model
from tasks.tracking import RunRecord, recorded_run

LinearFile = Callable[..., ExportedModel]


@pytest.fixture
def folder(linear_file: LinearFile) -> Path:
    return linear_file([[2.0]], [0.5], name="model/model.onnx").path.parent


@pytest.fixture
def version(store: MlflowClient, folder: Path) -> str:
    """A registered version, made without any code of ours but the files."""
    store.create_registered_model("line")
    made = store.create_model_version("line", str(folder), tags={"sha256": "a" * 64, "golden_sha256": "b" * 64})
    store.set_registered_model_alias("line", "champion", made.version)
    return str(made.version)


@pytest.mark.parametrize("address", ["models:/line@champion", "models:/line/1"])
def test_a_registered_model_is_found_with_what_the_registry_remembers(address: str, version: str, folder: Path) -> None:
    found = find_model(address)
    assert found.name == f"models:/line/{version}"
    assert found.path.read_bytes() == (folder / "model.onnx").read_bytes()
    assert (found.sha256, found.golden_sha256) == ("a" * 64, "b" * 64)


def test_the_model_of_a_run_is_found(record: RunRecord, folder: Path) -> None:
    for name in ("model.onnx", "golden.parquet"):
        record.file(folder / name)
    record.tags({"model.sha256": "a" * 64, "golden.sha256": "b" * 64})
    found = find_model(record.run_id)
    assert found.path.read_bytes() == (folder / "model.onnx").read_bytes()
    assert (found.sha256, found.golden_sha256, found.run_id) == ("a" * 64, "b" * 64, record.run_id)


FETCH = """
import atexit, pathlib, sys
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from tasks import find_model

class Elsewhere(ArtifactRepository):
    log_artifact = log_artifacts = list_artifacts = _download_file = None

find_model.get_artifact_repository = lambda address: Elsewhere(address)

def download(address, dst_path):
    (pathlib.Path(dst_path) / "model.onnx").write_text("fetched")
    return dst_path

find_model.mlflow.artifacts.download_artifacts = download
path = find_model.folder_of(None, "models:/line/1", None) / "model.onnx"
assert path.read_text() == "fetched"
assert find_model.lasting(path) is None
assert find_model.lasting(pathlib.Path("model.onnx")) == "model.onnx"
print(path)
"""


def test_what_is_fetched_from_a_server_goes_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    told = subprocess.run(
        [sys.executable, "-c", FETCH], cwd=ROOT, text=True, capture_output=True, check=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    path = Path(told.stdout.strip())
    assert path.is_relative_to(tmp_path / "temporary")
    assert path.parts[-3].startswith("fourfold-"), "a name by which it is removed where the process was killed"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_is_taken_as_it_is_and_needs_no_store(folder: Path, tmp_path: Path) -> None:
    found = find_model(str(folder))
    assert (found.path, found.sha256) == (folder / "model.onnx", None)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("models:/line@nobody", "alias nobody not found"),
        ("models:/line/99", "version=99"),
        ("models:/plane@champion", "plane"),
        ("f" * 32, "not found"),
        ("no/such/folder", "no such folder; give models:/NAME@ALIAS"),
        ("models:/line", "no such folder; give models:/NAME@ALIAS"),
    ],
)
def test_an_address_of_nothing_is_refused_in_one_line(address: str, said: str, version: str) -> None:
    with pytest.raises(RequestError, match=said) as refusal:
        find_model(address)
    assert address in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "said"), [("model.onnx", "there is no model.onnx there"), ("golden.parquet", "no golden predictions")]
)
def test_a_folder_without_one_of_the_two_files_is_refused(name: str, said: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(RequestError, match=said):
        find_model(str(folder))


def test_a_run_that_kept_no_model_is_refused(store: MlflowClient) -> None:
    with recorded_run("train", "a run", {}, {}) as record:
        pass
    with pytest.raises(RequestError, match="that run kept no verified model"):
        find_model(record.run_id)


def test_a_version_that_was_never_proved_is_refused(store: MlflowClient, folder: Path) -> None:
    (folder / "golden.parquet").unlink()
    store.create_registered_model("foreign")
    store.create_model_version("foreign", str(folder))
    with pytest.raises(RequestError, match="no golden predictions were kept with it"):
        find_model("models:/foreign/1")


def test_asking_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing was ever recorded at sqlite:"):
        find_model("models:/line@champion")
    assert not (tmp_path / "mlflow.db").exists()
