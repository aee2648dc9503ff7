"""What is kept of a parity report: numbers and verdict in MLflow, the whole as JSON, and a page for people."""

from pathlib import Path
from typing import Any

from fourfold.parity import Case, ParityReport
from tasks.pages import page
from tasks.tracking import RunRecord

MOST_FEATURES_SHOWN = 6
HEADER = (
    "rows", "predicted by", "count", "verdict", "share", "max absolute", "max relative", "ULP median", "ULP 99 %",
    "ULP max", "NaN", "not judged", "worst row",
)  # fmt: skip


def keep_report(report: ParityReport, title: str, record: RunRecord, folder: Path) -> None:
    """Keep `parity.json` and `parity.html` in the run, the `parity.` metrics, the verdict and the hash as tags."""
    record.document(report.full(), folder / "parity.json")
    written = folder / "parity.html"
    written.write_text(parity_page(report, title), encoding="utf-8")
    record.file(written)
    summary = report.summary()
    record.metrics({f"parity.{key}": summary[key] for key in ("cases", "max_abs_error", "max_ulp", "worst_ratio")})
    tags = {"parity": report.verdict, "parity.reason": report.reason or None, "parity.sha256": report.sha256 or None}
    record.tags(tags)


def parity_page(report: ParityReport, title: str) -> str:
    """One HTML page that needs nothing else: the verdict, what it rests on, and every case."""
    rows = {
        "file": f"{report.bytes} bytes, SHA-256 {report.sha256 or 'not read'}",
        "operators": ", ".join(report.operators) or "not read",
        "allowed difference": report.allowance or "nothing was compared",
        "runtimes": f"onnxruntime {report.onnxruntime}, onnx {report.onnx}",
    }
    if report.notes:
        rows["notes"] = "; ".join(report.notes)
    cases = map(_row, sorted(report.cases, key=lambda case: -case.worst_ratio))
    return page("parity.html", {"report": report, "title": title, "rows": rows, "header": HEADER, "cases": list(cases)})


def _row(case: Case) -> tuple[str, ...]:
    measured: tuple[Any, ...] = (
        case.worst_ratio, case.max_abs_error, case.max_rel_error, case.ulp_median, case.ulp_p99, case.max_ulp,
    )  # fmt: skip
    more = ", ..." if len(case.worst_row) > MOST_FEATURES_SHOWN else ""
    return (
        case.name,
        case.runtime,
        str(case.rows),
        f"failed: {case.reason}" if case.reason else "passed",
        *map(_number, measured),
        str(case.nan_count),
        str(case.undecided),
        ", ".join(map(_number, case.worst_row[:MOST_FEATURES_SHOWN])) + more,
    )


def _number(value: float) -> str:
    return f"{value:.3g}"
