"""Models that would run code of somebody else's: nothing here runs it, and what serves is what was written."""

import importlib.util
import json
import marshal
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fourfold.configuration import PredictConfig, TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RegistrationError
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import ParityReport
from fourfold.structure import Refused
from tasks import flavor
from tasks import register as step
from tasks.evaluate import Accuracy, Evaluation
from tasks.find_model import find_model
from tasks.make_data import load
from tasks.predict import predict, prepare
from tasks.prove_again import prove
from tasks.register import Registered, register
from tasks.tracking import RunRecord, recorded_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

LinearFile = Callable[..., ExportedModel]
SWITCH = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What is there once foreign code has run; imported modules and the path are put back."""
    path, modules = sys.path, set(sys.modules)
    yield tmp_path / "exploded"
    sys.path = path
    for name in set(sys.modules) - modules:
        if name in ("evil", "fourfold_scoring"):
            del sys.modules[name]


def with_a_pickle(folder: Path, mark: Path) -> None:
    """As MLflow keeps a python model of a user's."""
    (folder / "python_model.pkl").write_bytes(cloudpickle.dumps(Bomb(mark)))
    python = {
        "loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl",
        "cloudpickle_version": cloudpickle.__version__, "python_version": "3.11.0",
    }  # fmt: skip
    (folder / "MLmodel").write_text(yaml.dump({"flavors": {"python_function": python}}))


def with_code(folder: Path, mark: Path) -> None:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    python = {"loader_module": "evil", "code": "code", "data": "model.onnx"}
    (folder / "MLmodel").write_text(yaml.dump({"flavors": {"python_function": python}}))


WAYS = pytest.mark.parametrize("arm", [with_a_pickle, with_code])


@pytest.fixture
def armed(linear_file: LinearFile, store: MlflowClient) -> Callable[[Callable[[Path, Path], None], Path], Path]:
    """Register a sound model file as champion of line-linear, in a folder that MLflow would run code from."""

    def make(arm: Callable[[Path, Path], None], mark: Path) -> Path:
        exported = linear_file([[1.5]], [0.0], name="champion/model.onnx")
        folder = exported.path.parent
        arm(folder, mark)
        store.create_registered_model("line-linear")
        tags = {
            "sha256": exported.sha256, "golden_sha256": file_sha256(folder / "golden.parquet"),
            "features": json.dumps(["x"]), "targets": json.dumps(["y"]),
        }  # fmt: skip
        version = store.create_model_version("line-linear", str(folder), tags=tags)
        store.set_registered_model_alias("line-linear", "champion", version.version)
        return folder

    return make


def registered(linear_file: LinearFile, w: float = 1.9) -> Registered:
    """Register y = w x in a run of its own."""
    data: Dataset = load(TrainConfig())
    exported = linear_file([[w]], [0.0], name=f"new-{w}/model.onnx")
    evaluation = Evaluation(1.0, "training", Accuracy(0.216, 0.2, 0.9), (), None)
    with recorded_run("train", "a run", {}, {}) as record:
        passed = ParityReport("passed", sha256=exported.sha256)
        return register.fn(TrainConfig(), data, evaluation, exported, passed, record)


@WAYS
def test_the_bomb_is_alive(arm: Any, armed: Any, mark: Path) -> None:
    """MLflow's own loader sets it off: what follows would otherwise show nothing."""
    folder = armed(arm, mark)
    with pytest.raises(Exception):  # noqa: B017, PT011 - after the bang, whatever it says
        mlflow.pyfunc.load_model(str(folder))
    assert mark.exists()


@WAYS
def test_predicting_and_proving_read_the_model_file_alone(
    arm: Any, armed: Any, mark: Path, record: RunRecord, tmp_path: Path
) -> None:
    armed(arm, mark)
    address = "models:/line-linear@champion"
    made = predict.fn(prepare(PredictConfig(model=address, at="4")), record, tmp_path)
    assert made.points == (((4.0,), (6.0,)),)
    assert prove.fn(find_model(address), "a title", record, tmp_path).passed
    assert not mark.exists()
    assert "evil" not in sys.modules


@WAYS
def test_a_champion_is_judged_by_its_model_file_alone(
    arm: Any, armed: Any, mark: Path, linear_file: LinearFile, store: MlflowClient
) -> None:
    armed(arm, mark)
    made = registered(linear_file)
    assert made.alias == "champion"
    assert "is below the 1.08" in made.decision
    assert not mark.exists()


@pytest.mark.parametrize("harm", ["another file", "random", "outside"])
def test_a_champion_whose_file_is_not_what_was_registered_is_not_even_judged(
    harm: str, armed: Any, mark: Path, linear_file: LinearFile, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = armed(with_code, mark)
    linear_file([[2.0]], [0.0], name="champion/model.onnx")
    if harm != "another file":
        import onnx

        model = onnx.load(folder / "model.onnx")
        if harm == "random":
            model.graph.node.append(onnx.helper.make_node("RandomNormal", [], ["noise"], shape=[1]))
        else:
            weight = model.graph.initializer[0]
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value="/etc/passwd")
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        store.set_model_version_tag("line-linear", "1", "sha256", file_sha256(folder / "model.onnx"))
    opened: list[Path] = []
    judge = step.predictor
    monkeypatch.setattr(step, "predictor", lambda path: opened.append(path) or judge(path))
    made = registered(linear_file)
    said = {"another file": "another SHA-256", "random": "is random", "outside": "outside, in '/etc/passwd'"}
    assert said[harm] in made.decision
    assert made.alias == "challenger"
    assert folder / "model.onnx" not in opened


def spoil_code(folder: Path, mark: Path) -> None:
    code = folder / "code" / "fourfold_scoring.py"
    code.write_text(f"import os\nos.mkdir({str(mark)!r})\n{code.read_text()}")


def spoil_loader(folder: Path, mark: Path) -> None:
    with_code(folder, mark)


def point_elsewhere(folder: Path, mark: Path) -> None:
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["python_function"]["code"] = "../elsewhere"
    (folder / "MLmodel").write_text(yaml.dump(described))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_code, "code/fourfold_scoring.py is not what was written"),
        (spoil_loader, "its MLmodel names .*evil"),
        (with_a_pickle, "its MLmodel names .*mlflow.pyfunc.model"),
        (point_elsewhere, "its MLmodel names .*elsewhere"),
    ],
)
def test_a_version_that_was_changed_before_it_is_loaded_back_is_taken_back_and_never_run(
    spoil: Any, said: str, mark: Path, linear_file: LinearFile, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil_the_new_one(folder: Path) -> Any:
        spoil(folder, mark)
        return load_back(folder)

    load_back = flavor.load
    monkeypatch.setattr(flavor, "load", spoil_the_new_one)
    with pytest.raises(RegistrationError, match=said):
        registered(linear_file)
    assert list(store.search_model_versions("name = 'line-linear'")) == []
    assert not mark.exists()


def test_what_was_written_is_loaded_and_leaves_the_process_as_it_was(
    mark: Path, linear_file: LinearFile, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "true")
    folder = Path(registered(linear_file).path).parent
    # A forged compiled file beside the true text, with its time and size, is what Python itself would import.
    text = folder / "code" / "fourfold_scoring.py"
    forged = compile(f"import os\nos.mkdir({str(mark)!r})\n", str(text), "exec")
    state, compiled = text.stat(), Path(importlib.util.cache_from_source(str(text)))
    compiled.parent.mkdir(exist_ok=True)
    head = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(state.st_mtime), state.st_size)
    compiled.write_bytes(head + marshal.dumps(forged))
    path = list(sys.path)
    served = flavor.load(folder)
    assert np.allclose(served.predict({"x": np.array([4.0])})["y"], 7.6)
    assert sys.path == path
    assert os.environ[SWITCH] == "true"
    assert "fourfold_scoring" not in sys.modules
    assert not mark.exists()


def test_a_pickle_is_refused_by_mlflow_itself_where_we_load(armed: Any, mark: Path) -> None:
    """Should another part of MLflow want to unpickle in the middle of our loading."""
    folder = armed(with_a_pickle, mark)
    with flavor._nothing_foreign(), pytest.raises(MlflowException, match=SWITCH):
        mlflow.pyfunc.load_model(str(folder))
    assert not mark.exists()
    assert SWITCH not in os.environ
    with pytest.raises(Refused, match="names"):
        flavor.load(folder)
