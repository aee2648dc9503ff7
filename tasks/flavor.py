"""A verified model file as an MLflow model: MLflow's own onnx flavor, and a python_function that knows the columns."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

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

# What a served model imports.
PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")
_LOADER = "fourfold_scoring"  # not `fourfold`, which may be installed where the model is served


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
    code = folder / "code"
    code.mkdir()
    shutil.copy(scoring.__file__, code / f"{_LOADER}.py")
    described.flavors[mlflow.pyfunc.FLAVOR_NAME] |= {"loader_module": _LOADER, "code": code.name}
    described.save(str(folder / MLMODEL_FILE_NAME))
