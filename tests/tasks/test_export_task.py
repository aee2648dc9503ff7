import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from fourfold.configuration import TrainConfig
from fourfold.onnx_file import file_sha256
from tasks.build_model import build
from tasks.export_onnx import export_onnx
from tasks.make_data import load


def described(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return about


def test_the_file_predicts_says_where_it_comes_from_and_is_hashed(tmp_path: Path, notes: Any) -> None:
    config = TrainConfig(lr=0.05, epochs=7, seed=3)
    data = load(config)
    built = build(config, data)
    exported = export_onnx.fn(config, built, data, notes, tmp_path)
    assert exported.path == tmp_path / "model.onnx"
    assert exported.sha256 == file_sha256(exported.path)
    assert notes.noted_tags == {"model.sha256": exported.sha256}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "no second file for the weights"

    about = described(exported.path)
    assert about["mlflow_run_id"] == notes.origin["mlflow_run_id"]
    assert (about["data"], about["data_sha256"]) == ("line", data.sha256)
    assert (json.loads(about["features"]), json.loads(about["targets"])) == (["x"], ["y"])
    assert (about["model"], about["optimizer"]) == ("linear", "SGD")
    assert (about["lr"], about["epochs"], about["seed"]) == ("0.05", "7", "3")
    for name in ("fourfold", "torch", "onnx", "onnxscript", "onnxruntime"):
        assert about[f"version.{name}"] == version(name)

    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (prediction,) = session.run(["y"], {"x": data.x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(prediction, built.network(data.x).numpy(), rtol=1e-6)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_the_same_request_and_run_give_the_same_bytes(model: str, tmp_path: Path, notes: Any) -> None:
    config = TrainConfig(model=model, standardize=True)
    data = load(config)
    hashes = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        hashes.add(export_onnx.fn(config, build(config, data), data, notes, tmp_path / name).sha256)
    assert len(hashes) == 1


def test_the_learning_rate_keeps_every_digit(tmp_path: Path, notes: Any) -> None:
    config = TrainConfig(lr=0.0123456789)
    data = load(config)
    exported = export_onnx.fn(config, build(config, data), data, notes, tmp_path)
    assert float(described(exported.path)["lr"]) == 0.0123456789


def test_names_that_are_not_ascii_survive(tmp_path: Path, notes: Any) -> None:
    (tmp_path / "Häuser.csv").write_text("Fläche,Höhe\n1,2\n2,4\n3,7\n", encoding="utf-8")
    config = TrainConfig(data=str(tmp_path / "Häuser.csv"), target="Höhe", test_fraction=0)
    data = load(config)
    exported = export_onnx.fn(config, build(config, data), data, notes, tmp_path)
    about = described(exported.path)
    assert (about["data"], json.loads(about["features"]), json.loads(about["targets"])) == (
        "Häuser",
        ["Fläche"],
        ["Höhe"],
    )
