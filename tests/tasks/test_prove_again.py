import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fourfold.configuration import VerifyConfig
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import ParityReport
from tasks.aliases import Promotion
from tasks.find_model import FoundModel
from tasks.prove_again import VerifyResult, prove

LinearFile = Callable[..., ExportedModel]


@pytest.fixture
def found(linear_file: LinearFile) -> FoundModel:
    exported = linear_file([[2.0]], [0.5], name="model/model.onnx")
    golden = exported.path.with_name("golden.parquet")
    return FoundModel("models:/line/1", exported.path, exported.sha256, file_sha256(golden), "f" * 32)


@pytest.fixture
def judge(notes: Any, tmp_path: Path) -> Callable[[FoundModel], ParityReport]:
    return lambda found: prove.fn(found, "verify models:/line/1", notes, tmp_path)


def test_what_was_proved_is_proved_again_and_recorded(
    found: FoundModel, judge: Callable[[FoundModel], ParityReport], notes: Any
) -> None:
    report = judge(found)
    assert report.passed, report.reason
    assert notes.files == ["parity.json", "parity.html"]
    assert (notes.noted_tags["parity"], notes.noted_tags["model"]) == ("passed", "models:/line/1")
    assert notes.noted_tags["model.run_id"] == "f" * 32


def change_weight(found: FoundModel, linear_file: LinearFile) -> None:
    model = onnx.load(found.path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.00001), weight.name))
    onnx.save(model, found.path)


def cut_short(found: FoundModel, linear_file: LinearFile) -> None:
    found.path.write_bytes(found.path.read_bytes()[:-1])


def delete_model(found: FoundModel, linear_file: LinearFile) -> None:
    found.path.unlink()


def delete_golden(found: FoundModel, linear_file: LinearFile) -> None:
    found.path.with_name("golden.parquet").unlink()


def exchange_both(found: FoundModel, linear_file: LinearFile) -> None:
    """A forger who makes the predictions fit the file: the registry remembers the hash."""
    linear_file([[2.5]], [0.5], name="model/model.onnx")


def spoil_golden(found: FoundModel, linear_file: LinearFile) -> None:
    found.path.with_name("golden.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (change_weight, "onnxruntime predicts"),
        (cut_short, "the file has .* bytes; .* were proved"),
        (delete_model, "the file cannot be read: No such file"),
        (delete_golden, "golden.parquet cannot be read: No such file"),
        (exchange_both, "golden.parquet was changed since"),
        (spoil_golden, "golden.parquet was changed since"),
    ],
)
def test_what_was_changed_since_is_found(
    harm: Callable[[FoundModel, LinearFile], None],
    reason: str,
    found: FoundModel,
    linear_file: LinearFile,
    judge: Callable[[FoundModel], ParityReport],
) -> None:
    harm(found, linear_file)
    report = judge(found)
    assert not report.passed
    assert re.search(reason, report.reason), report.reason


def test_predictions_of_another_file_are_found_by_what_the_registry_remembers(
    found: FoundModel, linear_file: LinearFile, judge: Callable[[FoundModel], ParityReport]
) -> None:
    linear_file([[2.5]], [0.5], name="model/model.onnx")
    forged = FoundModel(found.name, found.path, found.sha256, None)
    assert "belongs to another model file" in judge(forged).reason


class TestResult:
    def test_it_tells_machines_and_people(self, found: FoundModel, judge: Callable[[FoundModel], ParityReport]) -> None:
        result = VerifyResult(VerifyConfig(model="models:/line@champion"), run_id="a-run", flow_run_id="a-flow-run")
        result.found, result.parity = found, judge(found)
        with result.followed():
            pass
        told = result.as_json()
        assert (told["flow"], told["status"], told["reason"]) == ("verify", "verified", None)
        assert told["model"] == {"name": "models:/line/1", "path": str(found.path), "sha256": found.sha256}
        assert told["parity"]["verdict"] == "passed"
        rows = result.rows()
        assert (rows["status"], rows["model"]) == ("verified", "models:/line/1")
        assert str(found.sha256) in rows["file"]

    def test_a_run_that_only_began_has_the_same_keys(self) -> None:
        told = VerifyResult(VerifyConfig(model="models:/line@champion")).as_json()
        assert (told["status"], told["model"], told["parity"]) == ("running", None, None)
        assert told["promotion"] is None

    @pytest.mark.parametrize(
        ("promotion", "status", "said"),
        [
            (
                Promotion("line", "3", "1", "2026-11-27T12:00:00+00:00"),
                "promoted",
                "from version 3, now challenger, to",
            ),
            (Promotion("line", "1", "1", None), "verified", "version 1 of line, which was champion already"),
        ],
    )
    def test_it_tells_from_which_version_to_which(self, promotion: Promotion, status: str, said: str) -> None:
        result = VerifyResult(VerifyConfig(promote="models:/line/1"), promotion=promotion)
        with result.followed():
            pass
        told = result.as_json()
        assert told["status"] == status
        assert told["promotion"] == {
            "model": "line", "from": promotion.former, "to": "1", "time": promotion.time
        }  # fmt: skip
        assert said in result.rows()["champion"]
        assert result.rows()["model"] == "models:/line/1"
