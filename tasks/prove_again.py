"""A model that was proved once, proved again: its golden predictions, today, on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.configuration import VerifyConfig
from fourfold.golden import FILE_NAME as GOLDEN
from fourfold.golden import prove_again, read_golden
from fourfold.onnx_file import file_sha256
from fourfold.parity import ParityReport, failed
from fourfold.structure import Refused
from tasks.aliases import Promotion
from tasks.find_model import FoundModel, lasting
from tasks.parity_page import keep_report
from tasks.results import FlowResult
from tasks.steps import step
from tasks.tracking import RunRecord, json_ready


@dataclass
class VerifyResult(FlowResult):
    """Filled in as the steps end.

    Attributes:
        status: running, verified, promoted, rejected or failed.
        promotion: where one was asked for; also that of a version that is champion already.
    """

    flow = "verify"
    about = "A model proved again by its golden predictions: `parity.html` among the artifacts tells how."
    config: VerifyConfig
    found: FoundModel | None = None
    parity: ParityReport | None = None
    promotion: Promotion | None = None

    @property
    def done(self) -> str:
        """The status of a run that came to its end."""
        return "promoted" if self.promotion and self.promotion.time else "verified"

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result; null where the run did not come so far."""
        found, parity = self.found, self.parity
        model = found and {"name": found.name, "path": lasting(found.path), "sha256": parity and parity.sha256}
        result = {
            **self.ids(), "seconds": round(self.seconds, 3), "model": model, "parity": parity and parity.summary(),
            "promotion": self.promotion and self.promotion.as_json(),
        }  # fmt: skip
        ready: dict[str, Any] = json_ready(result)
        return ready

    def rows(self) -> dict[str, str]:
        """The result for a person, by name."""
        rows = {"status": self.status, "model": self.found.name if self.found else self.config.address}
        if self.parity:
            rows["file"] = f"{self.parity.bytes} bytes, SHA-256 {self.parity.sha256 or 'not read'}"
            rows["parity"] = self.parity.in_words()
        if self.promotion:
            rows["champion"] = self.promotion.in_words()
        return rows | {"seconds": f"{self.seconds:.1f}"}


@step(name="prove again")
def prove(found: FoundModel, title: str, record: RunRecord, folder: Path) -> ParityReport:
    """Judge the file by its golden predictions, and both by what the registry remembers; keep the report."""
    report = _judge(found)
    keep_report(report, title, record, folder)
    record.tags({"model": found.name, "model.run_id": found.run_id})
    return report


def _judge(found: FoundModel) -> ParityReport:
    golden = found.path.with_name(GOLDEN)
    try:
        if found.golden_sha256 not in (None, file_sha256(golden)):
            return failed(f"{golden.name} was changed since the model was registered")
    except OSError as error:
        return failed(f"{golden.name} cannot be read: {error.strerror or error}")
    try:
        proved = read_golden(golden)
    except Refused as refusal:
        return failed(str(refusal))
    if found.sha256 not in (None, proved.sha256):
        return failed(f"{golden.name} belongs to another model file: {proved.sha256}, not {found.sha256}")
    return prove_again(found.path, proved)
