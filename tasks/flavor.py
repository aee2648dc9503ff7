"""A verified model file as an MLflow model: MLflow's own onnx flavor, and a python_function that knows the columns."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

from fourfold import scoring

# What a served model imports.
PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime", "pandas")
_LOADER = "fourfold_scoring"  # not `fourfold`, which may be installed where the model is served


def log(
    path: Path, *, model_id: str, run_id: str, features: Sequence[str], targets: Sequence[str], dtype: str,
    example: np.ndarray,
) -> None:  # fmt: skip
    """Log a model file as an MLflow model that was created for it.

    The signature names the columns in order. It leaves their types to the model's own python_function, which takes
    whole numbers, booleans and others alike: MLflow itself would refuse int64 for double, and cut 2.5 for long.

    Args:
        example: some rows, (rows, features).
    """
    any_type = AnyType()  # type: ignore[no-untyped-call]
    Model.log(
        None,
        _Flavor,
        model_id=model_id,
        run_id=run_id,
        path_of_file=path,
        signature=ModelSignature(
            inputs=Schema([ColSpec(any_type, name, required=False) for name in features]),
            outputs=Schema([ColSpec("double" if dtype == "float64" else "float", name) for name in targets]),
        ),
        input_example=pd.DataFrame(example, columns=list(features)),
        pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
    )


class _Flavor:
    """What `Model.log` takes in place of a flavor's module."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, path_of_file: Path, **kwargs: Any) -> None:
        mlflow.onnx.save_model(
            onnx.load(path_of_file),
            path,
            mlflow_model=mlflow_model,
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
            **kwargs,
        )
        code = Path(path) / "code"
        code.mkdir()
        shutil.copy(scoring.__file__, code / f"{_LOADER}.py")
        mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME] |= {"loader_module": _LOADER, "code": code.name}
        mlflow_model.save(str(Path(path) / MLMODEL_FILE_NAME))
