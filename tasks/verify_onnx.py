"""Step 6: the gate. What does not pass here is not registered."""

from pathlib import Path

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.onnx_file import ExportedModel
from fourfold.parity import ParityReport, verify
from tasks.build_model import BuiltModel
from tasks.evaluate import points
from tasks.steps import step
from tasks.tracking import RunRecord


@step(name="verify with onnxruntime")
def verify_onnx(
    config: TrainConfig, built: BuiltModel, data: Dataset, exported: ExportedModel, record: RunRecord, folder: Path
) -> ParityReport:
    """Compare the file on disk with torch, and keep the report whatever the verdict."""
    rows = {"training": data.x, "held-out": data.x_test, "points asked for": points(config, data)}
    report = verify(built.network, exported, rows)
    record.document(report.full(), folder / "parity.json")
    summary = report.summary()
    record.metrics({f"parity/{key}": summary[key] for key in ("cases", "max_abs_error", "max_ulp", "worst_ratio")})
    record.tags({"parity": report.verdict, "parity.reason": report.reason or None})
    return report
