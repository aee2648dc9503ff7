"""Step 6: the gate. What does not pass here is not registered."""

from pathlib import Path

from torch import Tensor, nn

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.gate import expect, verify
from fourfold.golden import write_golden
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import ParityReport
from fourfold.probes import TRAINING
from tasks.build_model import BuiltModel
from tasks.evaluate import points
from tasks.parity_page import keep_report
from tasks.steps import step
from tasks.tracking import RunRecord


@step(name="verify with onnxruntime")
def verify_onnx(
    config: TrainConfig, built: BuiltModel, data: Dataset, exported: ExportedModel, record: RunRecord, folder: Path
) -> ParityReport:
    """Judge the trained network's file."""
    return prove_onnx(built.network, exported, data, points(config, data), config.title, record, folder)


def prove_onnx(
    network: nn.Module,
    exported: ExportedModel,
    data: Dataset,
    asked: Tensor,
    title: str,
    record: RunRecord,
    folder: Path,
) -> ParityReport:
    """Judge the file on disk, and keep the report whatever the verdict.

    A file that passed is kept in the run, and golden predictions beside it, by which it can be proved again.
    """
    rows = {TRAINING: data.x, "held-out rows": data.x_test, "points asked for": asked}
    expectations = expect(network, rows)
    report = verify(network, exported, expectations)
    keep_report(report, title, record, folder)
    if report.passed:
        golden = write_golden(exported, expectations, data.features, data.targets)
        record.tags({"golden.sha256": file_sha256(golden)})
        for path in (exported.path, golden):
            record.file(path)
    return report
