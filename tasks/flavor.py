"""A verified model file as an MLflow model: MLflow's own onnx flavor, and a python_function that knows the columns."""

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

from fourfold import scoring
from fourfold.structure import Refused
from tasks.find_model import FILE_NAME

# What a served model imports.
PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")
_LOADER = "fourfold_scoring"  # not `fourfold`, which may be installed where the model is served
_CODE = "code"
_SWITCH = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_LOADING = threading.Lock()


def save(
    path: Path, folder: Path, *, model: LoggedModel, features: Sequence[str], targets: Sequence[str], dtype: str,
    example: np.ndarray,
) -> None:  # fmt: skip
    """Write a model file as the folder of an MLflow model.

    The signature names the columns in order. It leaves their types to the model's own python_function, which takes
    whole numbers, booleans and others alike: MLflow itself would refuse int64 for double, and cut 2.5 for long.

    Args:
        folder: where to; it must not exist.
        model: what the store knows of it already.
        example: some rows, (rows, features).
    """
    any_type = AnyType()  # type: ignore[no-untyped-call]
    described = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
    )
    with _nothing_foreign():  # MLflow may load it, for the example
        mlflow.onnx.save_model(
            onnx.load(path),
            str(folder),
            mlflow_model=described,
            signature=ModelSignature(
                inputs=Schema([ColSpec(any_type, name, required=False) for name in features]),
                outputs=Schema([ColSpec("double" if dtype == "float64" else "float", name) for name in targets]),
            ),
            input_example=pd.DataFrame(example, columns=list(features)),
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    code = folder / _CODE
    code.mkdir()
    shutil.copy(scoring.__file__, code / f"{_LOADER}.py")
    described.flavors[mlflow.pyfunc.FLAVOR_NAME] |= {"loader_module": _LOADER, "code": code.name}
    described.save(str(folder / MLMODEL_FILE_NAME))


def load(folder: Path) -> Any:
    """Load what `save` wrote, as MLflow serves it.

    Such a folder holds code, and its MLmodel file names what to import. It must be the code that was written, and no
    other file is imported even so: this process's own copy of the same text is. Pickles are refused.

    Raises:
        Refused: the folder names or holds other code.
    """
    named = Model.load(str(folder)).flavors.get(mlflow.pyfunc.FLAVOR_NAME, {})
    expected = {"loader_module": _LOADER, "code": _CODE, "data": FILE_NAME}
    if other := {key: named.get(key) for key, value in expected.items() if named.get(key) != value}:
        raise Refused(f"its MLmodel names {other}, not what was written")
    if (folder / _CODE / f"{_LOADER}.py").read_bytes() != Path(scoring.__file__).read_bytes():
        raise Refused(f"its {_CODE}/{_LOADER}.py is not what was written")
    with _nothing_foreign():
        return mlflow.pyfunc.load_model(str(folder))


@contextmanager
def _nothing_foreign() -> Iterator[None]:
    """Let MLflow import our own scoring, unpickle nothing, and leave the path to modules as it was."""
    with _LOADING:
        path, module, switch = sys.path, sys.modules.get(_LOADER), os.environ.get(_SWITCH)
        sys.modules[_LOADER] = scoring
        os.environ[_SWITCH] = "false"
        try:
            yield
        finally:
            sys.path = path  # MLflow puts the folder in front
            _put_back(sys.modules, _LOADER, module)
            _put_back(os.environ, _SWITCH, switch)


def _put_back(where: Any, key: str, value: Any) -> None:
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value
