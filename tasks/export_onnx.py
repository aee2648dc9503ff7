"""Step 5: the network as one ONNX file that says where it comes from."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import nn

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import ParityError
from fourfold.gate import find_randomness
from fourfold.onnx_export import export
from fourfold.onnx_file import ExportedModel
from tasks.build_model import BuiltModel
from tasks.find_model import FILE_NAME
from tasks.steps import step
from tasks.tracking import RunRecord


@step(name="export to ONNX")
def export_onnx(
    config: TrainConfig, built: BuiltModel, data: Dataset, record: RunRecord, folder: Path
) -> ExportedModel:
    """Write the trained network's file."""
    return write_onnx(built.network, data, _description(config), record, folder)


def write_onnx(
    network: nn.Module, data: Dataset, description: Mapping[str, str], record: RunRecord, folder: Path
) -> ExportedModel:
    """Write a network's file, with its origin inside and its hash in MLflow.

    Raises:
        ParityError: the network is random in evaluation mode, so that no file can predict what it does.
    """
    if reason := find_randomness(network, data.x):
        record.tags({"parity": "failed", "parity.reason": reason})
        raise ParityError(f"{reason}; nothing was exported")
    origin = record.origin | _origin(data) | dict(description)
    exported = export(network, data.x, folder / FILE_NAME, origin)
    record.tags({"model.sha256": exported.sha256})
    return exported


def _origin(data: Dataset) -> dict[str, str]:
    features, targets = data.profile
    versions = {name: version(name) for name in ("fourfold", "torch", "onnx", "onnxscript", "onnxruntime")}
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        "features": json.dumps(data.features),
        "targets": json.dumps(data.targets),
        "missing": "mean" if data.missing == "mean" else "error",
        "training": json.dumps(
            {"features": features.as_plain(data.features), "targets": targets.as_plain(data.targets)}
        ),
        **{f"version.{name}": number for name, number in versions.items()},
    }


def _description(config: TrainConfig) -> dict[str, str]:
    return {
        "model": config.model,
        "optimizer": config.optimizer,
        "lr": repr(config.lr),
        "epochs": str(config.epochs),
        "seed": str(config.seed),
    }
