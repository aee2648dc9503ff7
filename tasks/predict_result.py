"""What is known of a run that predicts, from its start to its end, for machines and for people."""

from dataclasses import dataclass
from typing import Any

from fourfold.configuration import PredictConfig
from fourfold.drift import Drift
from tasks import services
from tasks.find_model import lasting
from tasks.predict import Predicted, Ready
from tasks.reporting import Table
from tasks.results import FlowResult
from tasks.tracking import json_ready, spell

MOST_POINTS_SHOWN = 16
# A column is pointed out from here on: more values outside of the training's range, or a mean further away.
NOTABLE_OUTSIDE, NOTABLE_SHIFT = 0.01, 0.5


@dataclass
class PredictResult(FlowResult):
    """Filled in as the steps end.

    Attributes:
        status: running, predicted or failed.
    """

    flow = "predict"
    about = (
        "Predictions by a model; the metrics `outside/` and `shift/` compare each column with what the model was "
        "trained on."
    )
    config: PredictConfig
    ready: Ready | None = None
    predicted: Predicted | None = None

    @property
    def done(self) -> str:
        """The status of a run that came to its end."""
        return "predicted"

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result; null where the run did not come so far."""
        ready, predicted = self.ready, self.predicted
        result = {
            **self.ids(),
            "seconds": round(self.seconds, 3),
            "model": ready and {"name": ready.found.name, "path": lasting(ready.found.path), "sha256": ready.sha256},
            "rows": predicted and predicted.rows,
            "output": self.config.output if predicted else None,
            "predictions": [{"x": x, "y": y} for x, y in predicted.points] if predicted else [],
            "drift": predicted
            and {"inputs": list(map(vars, predicted.inputs)), "outputs": list(map(vars, predicted.outputs))},
        }
        plain: dict[str, Any] = json_ready(result)
        return plain

    def rows(self) -> dict[str, str]:
        """The result for a person, by name."""
        rows = {"status": self.status, "model": self.ready.found.name if self.ready else self.config.model}
        if self.predicted:
            for x, y in self.predicted.points[:MOST_POINTS_SHOWN]:
                rows[f"y at {', '.join(map(spell, x))}"] = ", ".join(f"{value:.9g}" for value in y)
            rows["rows"] = str(self.predicted.rows)
            if self.config.output:
                rows["output"] = self.config.output
            if self.config.input and self.predicted.inputs:
                moved = [one.column for one in self.predicted.inputs if _is_notable(one)]
                rows["drift"] = f"see {', '.join(moved)}" if moved else "none: the inputs are like the training's"
        rows["seconds"] = f"{self.seconds:.1f}"
        if self.run_id:
            rows["runs"] = services.ui_command()
        return rows

    def tables(self) -> tuple[Table, ...]:
        """The columns beside the training's, for a file."""
        if not self.config.input or not self.predicted or not self.predicted.inputs:
            return ()
        drifts = [*self.predicted.inputs, *self.predicted.outputs]
        names = [one.column for one in self.predicted.inputs]
        names += [f"predicted {one.column}" for one in self.predicted.outputs]
        return (Table("drift", _HEADER, tuple(map(_row, names, drifts))),)


_HEADER = ("column", "training range", "range here", "training mean", "mean here", "outside", "shift of the mean")


def _row(name: str, one: Drift) -> tuple[str, ...]:
    return (
        name,
        _range(one.training_low, one.training_high),
        _range(one.low, one.high),
        f"{one.training_mean:.4g}",
        f"{one.mean:.4g}",
        f"{one.outside:.2%}",
        f"{one.shift:+.2f} deviations",
    )


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _is_notable(one: Drift) -> bool:
    return one.outside > NOTABLE_OUTSIDE or abs(one.shift) > NOTABLE_SHIFT
