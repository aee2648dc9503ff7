"""What is kept of a comparison: every training as a row, the pictures, the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fourfold.comparison import SAME_LOSS, Spread, Standing, failed_controls
from fourfold.datasets import Dataset
from fourfold.errors import ComparisonError
from tasks.compare import Posed, distances
from tasks.compare_result import CompareResult
from tasks.comparison_page import comparison_page
from tasks.comparison_panels import panels
from tasks.draw_panels import draw_panels
from tasks.steps import step
from tasks.tracking import RunRecord


@step(name="keep the table")
def keep_table(standings: Sequence[Standing], posed: Posed, data: Dataset, record: RunRecord, folder: Path) -> None:
    """Keep a row for every optimizer, learning rate and seed as Parquet."""
    columns: dict[str, list[np.ndarray]] = {}
    for one in standings:
        members = one.members
        rates, seeds = members.loss.shape
        distance = distances(posed, data, members)
        rows = {
            "optimizer": np.full((rates, seeds), one.label),
            "lr": np.repeat(members.learning_rates[:, None], seeds, 1),
            "on_grid": np.repeat(one.on_grid[:, None], seeds, 1),
            "seed": np.tile([start.seed for start in posed.problem.starts], (rates, 1)),
            "outcome": np.where(members.diverged, "diverged", "completed"),
            "loss": members.loss,
            "validation_loss": members.validation_loss,
            "test_loss": members.test_loss,
            "averaged_loss": members.averaged_loss,
            "distance_to_least_squares": np.full((rates, seeds), np.nan) if distance is None else distance,
            "evaluations": members.evaluations,
            "evaluations_to_target": members.evaluations_to_goal,
            "seconds": members.seconds,
            "stacked": np.full((rates, seeds), not one.why_alone),
        }
        for name, values in rows.items():
            columns.setdefault(name, []).append(values.ravel())
    record.table({name: np.concatenate(parts) for name, parts in columns.items()}, folder / "comparison.parquet")


@step(name="keep the pictures")
def keep_pictures(result: CompareResult, record: RunRecord, folder: Path) -> Path:
    """Keep ranks and losses as metrics, the panels as PNG, and all of it as a page; gives the PNG."""
    assert result.data is not None, "the rows come first"
    assert result.posed is not None, "and then the problem"
    for one in result.ranked:
        numbers = {"rank": result.places[one.label].rank, "loss": one.tuned.loss.median, "lr": one.tuned.lr}
        record.metrics({f"{one.label}/{name}": value for name, value in numbers.items()})
    record.tags({"ranking": ", ".join(f"{place.rank} {label}" for label, place in result.places.items())})
    histories = {label: winner.fit.history for label, winner in result.winners.items() if winner.fit}
    made = panels(result.ranked, result.posed, result.data, histories, result.unit)
    picture, page = folder / "comparison.png", folder / "comparison.html"
    draw_panels(made, result.config.title, picture)
    text = comparison_page(
        result.config.title, result.facts() | result.differences(), result.tables(), made, result.rules()
    )
    page.write_text(text, encoding="utf-8")
    record.file(picture)
    record.file(page)
    return picture


def check_result(result: CompareResult) -> None:
    """Raise ComparisonError where a control is in the wrong place, or a winner alone is not what the stack said.

    Batched products round otherwise, and a training may amplify that, but not beyond what another seed changes.
    """
    assert result.posed is not None, "it was compared"
    faults = failed_controls(result.controls, result.posed.floor) if result.controls else []
    for one in result.standings:
        difference = result.difference_alone(one)
        losses = one.members.loss[one.tuned_row]
        spread = Spread.of(np.where(np.isnan(losses), np.inf, losses))
        width = np.inf if np.isinf(spread.q3) else (spread.q3 - spread.q1) / spread.q3 if spread.q3 else 0.0
        if difference is not None and difference > max(SAME_LOSS, width):
            faults.append(f"{one.label} trained alone ended {difference:.1%} from the same training in the comparison")
    if faults:
        raise ComparisonError(f"this comparison cannot be trusted: {'; '.join(faults)}")
