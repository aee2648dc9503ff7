"""What is kept of a parity report: numbers and verdict in MLflow, the whole as JSON, and a page for people."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fourfold.parity import ParityReport
from tasks.tracking import RunRecord

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


def keep_report(report: ParityReport, title: str, record: RunRecord, folder: Path) -> None:
    """Keep `parity.json` and `parity.html` in the run, the `parity.` metrics, the verdict and the hash as tags."""
    record.document(report.full(), folder / "parity.json")
    page = folder / "parity.html"
    page.write_text(parity_page(report, title), encoding="utf-8")
    record.file(page)
    summary = report.summary()
    record.metrics({f"parity.{key}": summary[key] for key in ("cases", "max_abs_error", "max_ulp", "worst_ratio")})
    tags = {"parity": report.verdict, "parity.reason": report.reason or None, "parity.sha256": report.sha256 or None}
    record.tags(tags)


def parity_page(report: ParityReport, title: str) -> str:
    """One HTML page that needs nothing else: the verdict, what it rests on, and every case."""
    return TEMPLATES.get_template("parity.html").render(report=report, title=title, number=_number)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
