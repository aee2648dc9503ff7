"""What is known of a tutorial's run, from its start to its end, for machines and for people."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.configuration import TutorialConfig
from fourfold.datasets import Dataset
from fourfold.errors import AgreementError
from tasks import services
from tasks.draw_panels import draw_panels
from tasks.panels import Curve, Panel, style
from tasks.reporting import Table
from tasks.results import FlowResult
from tasks.run_level import LevelRun
from tasks.steps import step
from tasks.tracking import RunRecord, json_ready

# How far apart the coefficients of levels that are one algorithm may end. Measured from 8 seeds, after 20, 200 and
# 2,000 steps: at most 1.2e-7 and 2.3e-16; every step draws them together again, so that roundings do not add up.
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}
MOST_POINTS_DRAWN = 400


@dataclass
class TutorialResult(FlowResult):
    """Filled in as the levels end.

    Attributes:
        status: running, completed or failed.
        levels: those that have run.
        refusal: why the gate refused the last level's network while it was random.
    """

    flow = "tutorial"
    about = "One problem at eight levels of PyTorch, each a run below this one."
    config: TutorialConfig
    data: Dataset | None = None
    levels: list[LevelRun] = field(default_factory=list)
    refusal: str = ""

    @property
    def done(self) -> str:
        """The status of a run that came to its end."""
        return "completed"

    @property
    def tolerance(self) -> float:
        """How far levels that are one algorithm may end from each other."""
        return TOLERANCES[self.config.dtype]

    def gap(self, one: LevelRun) -> float | None:
        """How far a level ended from the first; None where it is another algorithm, or the first itself."""
        return one.gap(self.levels[0]) if one.level.same_as_first and one is not self.levels[0] else None

    def check_agreement(self) -> None:
        """Raise AgreementError where levels that are one algorithm ended apart."""
        apart = [
            f"level {one.level.number} ended {gap:.1g} from level 1"
            for one in self.levels
            if (gap := self.gap(one)) is not None and not gap <= self.tolerance
        ]
        if apart:
            raise AgreementError(f"{'; '.join(apart)}, where {self.tolerance:g} is allowed in {self.config.dtype}")

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result."""
        levels = [
            {
                "level": one.level.number,
                "name": one.level.name,
                "steps": len(one.learned.losses),
                "coefficients": one.learned.coefficients,
                "loss": one.loss,
                "distance": one.distance,
                "seconds": one.seconds,
                "microseconds_per_step": one.microseconds,
                "difference_from_level_1": self.gap(one),
                "parity": one.parity and one.parity.summary(),
                "run_id": one.run_id,
            }
            for one in self.levels
        ]
        result = {**self.ids(), "seconds": round(self.seconds, 3), "tolerance": self.tolerance, "levels": levels}
        ready: dict[str, Any] = json_ready(result | {"refused_while_random": self.refusal or None})
        return ready

    def tables(self) -> tuple[Table, ...]:
        """The levels, one a row."""
        header = ("level", "what it adds", "coefficients a, b, c, ...", "loss", "distance", "µs", "level 1?", "gate")
        return (Table("levels", header, tuple(map(self._row, self.levels))),) if self.levels else ()

    def _row(self, one: LevelRun) -> tuple[str, ...]:
        gap = self.gap(one)
        agrees = "" if gap is None else f"{'yes' if gap <= self.tolerance else 'NO'} {gap:.0e}"
        return (
            f"{one.level.number} {one.level.name}",
            one.level.adds,
            " ".join(f"{value:.4f}" for value in one.learned.coefficients.values()),
            f"{one.loss:.6g}",
            f"{one.distance:.2g}",
            f"{one.microseconds:.0f}",
            agrees,
            one.parity.verdict if one.parity else "",
        )

    def rows(self) -> dict[str, str]:
        """The rest for a person, by name."""
        rows = {"status": self.status}
        if self.data:
            rows["data"] = f"{self.data.name}, {len(self.data.x)} rows; the loss is squared error, summed"
        if len(self.levels) > 1:
            rows["distance"] = "of the coefficients of 1, x, x^2, ... from those of the cubic's least squares"
            rows["µs"] = "microseconds a step"
            rows["level 1?"] = f"whether the coefficients are those of level 1, to {self.tolerance:g}, and how far off"
        if self.refusal:
            rows["level 8 while random"] = f"refused: {self.refusal}"
        rows["seconds"] = f"{self.seconds:.1f}"
        return rows | ({"runs": services.ui_command()} if self.run_id else {})


@step(name="draw the levels")
def draw_levels(result: TutorialResult, data: Dataset, record: RunRecord, folder: Path) -> Path:
    """Keep one picture: all fits over the rows, and all losses."""
    picture = folder / "levels.png"
    draw_panels(level_panels(result.levels, data), result.config.title, picture)
    record.file(picture)
    return picture


def level_panels(levels: list[LevelRun], data: Dataset) -> tuple[Panel, Panel]:
    """The fits over the rows, and the loss before each step."""
    chosen = np.linspace(0, len(data.x) - 1, MOST_POINTS_DRAWN).astype(int)
    x, y = data.x.double().numpy()[chosen, 0], data.y.double().numpy()[chosen, 0]
    fits, losses = [Curve("sin(x)", "#333333", "solid", x, y)], []
    for one in levels:
        look = (f"{one.level.number} {one.level.name}", *style(one.level.number - 1))
        fits.append(Curve(*look, x, np.polynomial.polynomial.polyval(x, one.polynomial)))
        steps = np.unique(np.geomspace(1, len(one.learned.losses), MOST_POINTS_DRAWN).astype(int))
        losses.append(Curve(*look, steps, np.array(one.learned.losses)[steps - 1]))
    note = "Levels 1, 2, 3, 5 and 7 are one algorithm, and lie on each other."
    return (
        Panel("fits", "Fits over sin(x)", "x", "y", False, False, note, tuple(fits)),
        Panel("losses", "Loss before each step", "step", "squared error, summed", True, True, note, tuple(losses)),
    )
