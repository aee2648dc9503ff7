import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from fourfold.configuration import TrainConfig
from fourfold.errors import ParityError
from fourfold.golden import read_golden
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import ParityReport
from tasks.build_model import BuiltModel, build
from tasks.export_onnx import export_onnx
from tasks.make_data import load
from tasks.verify_onnx import verify_onnx

CONFIG = TrainConfig(at=((4.0,), (5.0,)))


@pytest.fixture
def built() -> BuiltModel:
    return build(CONFIG, load(CONFIG))


@pytest.fixture
def exported(built: BuiltModel, notes: Any, tmp_path: Path) -> ExportedModel:
    return export_onnx.fn(CONFIG, built, load(CONFIG), notes, tmp_path)


@pytest.fixture
def verify(built: BuiltModel, notes: Any, tmp_path: Path) -> Callable[[ExportedModel], ParityReport]:
    return lambda exported: verify_onnx.fn(CONFIG, built, load(CONFIG), exported, notes, tmp_path)


def test_a_file_that_passes_is_kept_with_its_report_and_golden_predictions(
    exported: ExportedModel, verify: Callable[[ExportedModel], ParityReport], notes: Any
) -> None:
    report = verify(exported)
    assert report.passed, report.reason
    assert notes.files == ["parity.json", "parity.html", "model.onnx", "golden.parquet"]
    golden = exported.path.with_name("golden.parquet")
    told = {key: notes.noted_tags[key] for key in ("parity", "parity.reason", "parity.sha256", "golden.sha256")}
    assert told == {
        "parity": "passed",
        "parity.reason": None,
        "parity.sha256": exported.sha256,
        "golden.sha256": file_sha256(golden),
    }
    assert notes.noted_metrics["parity.cases"] == len(report.cases)
    assert notes.noted_metrics["parity.worst_ratio"] == report.summary()["worst_ratio"]
    names = [one.name for one in read_golden(golden).expectations]
    assert names[:2] == ["training rows", "points asked for"]


def test_a_file_that_fails_leaves_its_report_alone(
    exported: ExportedModel, verify: Callable[[ExportedModel], ParityReport], notes: Any, tmp_path: Path
) -> None:
    model = onnx.load(exported.path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    onnx.save(model, exported.path)
    report = verify(replace(exported, sha256=file_sha256(exported.path)))
    assert not report.passed
    assert notes.files == ["parity.json", "parity.html"]
    assert (notes.noted_tags["parity"], notes.noted_tags["parity.reason"]) == ("failed", report.reason)
    assert json.loads((tmp_path / "parity.json").read_text())["reason"] == report.reason


def enlarged(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1000 * path.stat().st_size + 2**23)


def fixed(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (enlarged, r"has \d+ bytes, for weights of 8"),
        (fixed, r"the file's input is x float32\(3, 1\); x float32\(batch, 1\) was promised"),
    ],
)
def test_a_file_that_is_not_what_was_exported_is_not_kept(
    harm: Callable[[Path], None], said: str,
    exported: ExportedModel, verify: Callable[[ExportedModel], ParityReport], notes: Any,
) -> None:  # fmt: skip
    harm(exported.path)
    report = verify(replace(exported, sha256=file_sha256(exported.path)))
    assert (report.verdict, report.passed) == ("failed", False)
    assert re.search(said, report.reason)
    assert "\n" not in report.reason
    assert notes.files == ["parity.json", "parity.html"]


class Noisy(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand_like(x)


def test_a_network_that_is_random_in_evaluation_mode_is_not_exported(
    built: BuiltModel, notes: Any, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=r"random in evaluation mode: .*; nothing was exported"):
        export_onnx.fn(CONFIG, replace(built, network=Noisy(1, 1)), load(CONFIG), notes, tmp_path)
    assert notes.noted_tags["parity"] == "failed"
    assert not any(tmp_path.iterdir())
