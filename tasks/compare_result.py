"""What is known of a comparison, from its start to its end, for machines and for people."""

import math
from dataclasses import dataclass, field
from typing import Any

from fourfold.comparison import SAME_LOSS, SIGNIFICANCE, AtRate, Place, Standing, as_numbers, fewest_seeds
from fourfold.configuration import CompareConfig
from fourfold.datasets import Dataset
from tasks import services
from tasks.compare import Posed
from tasks.reporting import Table
from tasks.results import FlowResult
from tasks.tracking import json_ready, spell
from tasks.train_result import TrainResult

MOST_PARAMETERS_SHOWN = 4


@dataclass
class CompareResult(FlowResult):
    """Filled in as the steps end.

    Attributes:
        status: running, compared or failed.
        standings: of every optimizer.
        controls: the standings of those whose place is known beforehand.
        places: by label, best first.
        winners: by label, each optimizer at its best learning rate, trained once more alone from the first seed.
    """

    flow = "compare"
    about = (
        "A comparison of optimizers: `comparison.html` among the artifacts ranks them, `comparison.parquet` holds each "
        "training."
    )
    config: CompareConfig
    data: Dataset | None = None
    posed: Posed | None = None
    standings: list[Standing] = field(default_factory=list)
    controls: list[Standing] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    winners: dict[str, TrainResult] = field(default_factory=dict)

    @property
    def done(self) -> str:
        """The status of a run that came to its end."""
        return "compared"

    @property
    def ranked(self) -> list[Standing]:
        """Best first."""
        order = list(self.places)
        return sorted(self.standings, key=lambda one: order.index(one.label)) if order else self.standings

    @property
    def unit(self) -> str:
        """What the loss is called: its name, and that it is of a standardised target where it is."""
        return f"{self.config.loss_name}{', target standardised' if self.config.standardizes else ''}"

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result; null where nothing reached the target or the run did not come so far."""
        config, data = self.config, self.data
        result = {
            **self.ids(),
            "problem": {
                "data": data.name if data else config.data,
                "model": config.model,
                "loss": config.loss_name,
                "training_rows": data and len(data.x),
                "validation_rows": data and len(data.x_validation),
                "test_rows": data and len(data.x_test),
                "target_loss": self.posed and self.posed.problem.goal,
            },
            "budget": config.budget,
            "learning_rates": config.learning_rates,
            "seeds": config.seeds,
            "seconds": round(self.seconds, 3),
            "results": [self._as_json(one) for one in self.ranked],
        }
        ready: dict[str, Any] = json_ready(result)
        return ready

    def _as_json(self, one: Standing) -> dict[str, Any]:
        winner = self.winners.get(one.label)
        place = self.places.get(one.label)
        alone = {
            "seconds": winner.fit.seconds if winner and winner.fit else None,
            "seconds_to_target": self._seconds_to_target(one),
            "parameters": winner.parameters if winner else {},
            "predictions": winner.as_json()["predictions"] if winner else [],
            "run_id": winner and winner.run_id,
            "status": winner and winner.status,
            "parity": winner and winner.parity and winner.parity.verdict,
            "difference_alone": self.difference_alone(one),
        }
        return {
            "optimizer": one.label,
            "default": as_numbers(one.default),
            "same_lr": as_numbers(one.same_lr),
            "tuned": {**as_numbers(one.tuned), **alone, "on_grid_edge": one.on_grid_edge},
            "averaged_loss": one.averaged,
            "diverged_on_grid": one.diverged,
            "stacked": not one.why_alone,
            "rank": place and place.rank,
            "beats": place and list(place.beats),
            "not_told_from": place and list(place.tied),
        }

    def tables(self) -> tuple[Table, ...]:
        """The ranking, and what the winners are."""
        if not self.places:
            return ()
        header: tuple[str, ...] = (
            "rank", "optimizer", "own lr", "loss", f"loss at {self.config.lr:g}", "best lr", "tuned loss", "quartiles",
            "diverged", "to target", "beats",
        )  # fmt: skip
        ranking = Table("ranking", header, tuple(self._ranked_row(one) for one in self.ranked))
        # Of a large network there are norms, which say nothing about the optimizer.
        names = [name for winner in self.winners.values() for name in winner.parameters if "norm/" not in name]
        shown = list(dict.fromkeys(names))[:MOST_PARAMETERS_SHOWN]
        points = [x for winner in self.winners.values() if winner.evaluation for x, _ in winner.evaluation.predictions]
        asked = [f"y at {', '.join(map(spell, x))}" for x in dict.fromkeys(points)]
        after = (*asked, "fit seconds", "to target", "parity", "off stack", "status")
        # A network of the user's own may call a parameter as a column is called.
        named = (f"parameter {name}" if name in ("optimizer", *after) else name for name in shown)
        header = ("optimizer", *named, *after)
        return ranking, Table("winners", header, tuple(self._winner_row(one, shown, asked) for one in self.ranked))

    def _ranked_row(self, one: Standing) -> tuple[str, ...]:
        place, tuned = self.places[one.label], one.tuned
        return (
            str(place.rank),
            one.label,
            f"{one.default.lr:g}",
            _loss(one.default),
            _loss(one.same_lr),
            f"{tuned.lr:.3g}{' (edge)' if one.on_grid_edge else ''}",
            _loss(tuned),
            f"{_number(tuned.loss.q1)} to {_number(tuned.loss.q3)}",
            f"{one.diverged:.0%}",
            _count(tuned.evaluations_to_goal),
            f"{len(place.beats)} of {len(self.places) - 1}",
        )

    def _winner_row(self, one: Standing, shown: list[str], asked: list[str]) -> tuple[str, ...]:
        winner = self.winners.get(one.label)
        if winner is None:
            return (one.label, *("" for _ in (*shown, *asked)), "", "", "", "", "not trained alone")
        predictions = dict(winner.evaluation.predictions if winner.evaluation else ())  # a point may be asked twice
        to_target = self._seconds_to_target(one)
        difference = self.difference_alone(one)
        return (
            one.label,
            *(f"{winner.parameters[name]:.6g}" if name in winner.parameters else "" for name in shown),
            *(", ".join(f"{value:.6g}" for value in y) for y in predictions.values()),
            *("" for _ in asked[len(predictions) :]),
            f"{winner.fit.seconds:.3f}" if winner.fit else "",
            "never" if to_target is None else f"{to_target:.3f}",
            winner.parity.verdict if winner.parity else "",
            "" if difference is None else f"{difference:.1g}",
            winner.status,
        )

    def rows(self) -> dict[str, str]:
        """The rest for a person, by name."""
        rows = {"status": self.status, **self.facts(), "seconds": f"{self.seconds:.1f}"}
        return rows | ({"runs": services.ui_command()} if self.run_id else {})

    def facts(self) -> dict[str, str]:
        """What was compared, and what there is to know beside the tables."""
        config, data, posed = self.config, self.data, self.posed
        rows = {}
        if data:
            aside = "".join(
                f", {len(part)} {name}" for name, part in (("validation", data.x_validation), ("test", data.x_test))
                if len(part)
            )  # fmt: skip
            rows["data"] = f"{data.name}, {len(data.x)} training{aside} rows"
        rows["model"] = f"{config.model}, loss {self.unit}"
        rows["each optimizer"] = (
            f"{config.learning_rates} learning rates over {config.decades:g} decades, {config.seeds} seeds, "
            f"{config.budget} gradient evaluations"
        )
        if posed:
            rows["target"] = f"loss {posed.problem.goal:.4g}"
        return rows | (self._remarks() if self.standings else {})

    def _remarks(self) -> dict[str, str]:
        remarks = {}
        edge = [one.label for one in self.standings if one.on_grid_edge]
        if edge:
            remarks["edge of grid"] = f"{', '.join(edge)}: a better learning rate may lie outside; give more --decades"
        alone = [one.label for one in self.standings if one.why_alone]
        if alone:
            reasons = sorted({one.why_alone for one in self.standings if one.why_alone})
            remarks["one by one"] = f"{', '.join(alone)} ({'; '.join(reasons)})"
        for one in self.standings:
            if one.averaged is not None:
                remarks[f"{one.label} averaged"] = f"loss {_number(one.averaged)} with its averaged weights"
        if self.controls:
            known = ", ".join(f"{one.label.removeprefix('control: ')} {_loss(one.tuned)}" for one in self.controls)
            remarks["controls"] = f"tuned losses: {known}"
        if self.config.seeds < fewest_seeds():
            remarks["seeds"] = f"too few to tell any two optimizers apart; {fewest_seeds()} are the fewest"
        return remarks

    def differences(self) -> dict[str, str]:
        """What may be said of each optimizer against the others."""
        said = {}
        for label, place in self.places.items():
            parts = [f"{verb} {', '.join(others)}" for verb, others in (
                ("beats", place.beats), ("not told from", place.tied)) if others]  # fmt: skip
            said[label] = "; ".join(parts) or "beaten by all others"
        return said

    def rules(self) -> list[str]:
        """How it was compared, a sentence each."""
        config, data = self.config, self.data
        chosen = "validation" if data and len(data.x_validation) else "training"
        judged = "test" if data and len(data.x_test) else "training"
        return [
            f"Seeds {config.seed} to {config.seed + config.seeds - 1}: from each, every optimizer starts with the same "
            "weights and sees the rows in the same order.",
            f"Each training may compute {config.budget} gradients, however many steps that are.",
            f"Each optimizer has {config.learning_rates} learning rates over {config.decades:g} decades around its own "
            "default; no scheduler; weight decay 0 for all.",
            f"The learning rate is chosen by the median loss of the {chosen} rows and reported on the {judged} rows; "
            "a training that diverged counts as infinity.",
            "Quartiles and ranks are over the seeds: one optimizer beats another where a sign test over the seeds says "
            f"so at {SIGNIFICANCE:.0%}; losses within {SAME_LOSS:.1%}, or below what rounding leaves, are the same.",
        ]

    def difference_alone(self, one: Standing) -> float | None:
        """Relative difference of the winner's training loss, trained alone, from the same member's."""
        winner = self.winners.get(one.label)
        if winner is None or winner.fit is None or self.posed is None:
            return None
        alone, member = winner.fit.loss, float(one.members.loss[one.tuned_row, 0])
        if alone == member or not (math.isfinite(alone) or math.isfinite(member)):
            return 0.0
        if not (math.isfinite(alone) and math.isfinite(member)):
            return math.inf
        return abs(alone - member) / max(abs(alone), abs(member), self.posed.floor)

    def _seconds_to_target(self, one: Standing) -> float | None:
        """Of the winner trained alone, in proportion to its gradients; None where it did not come there."""
        winner, posed = self.winners.get(one.label), self.posed
        if winner is None or winner.fit is None or posed is None:
            return None
        history = winner.fit.history
        there = (history.loss <= posed.problem.goal).nonzero()[0]
        if not len(there):
            return None
        return float(winner.fit.seconds * history.gradient_evaluations[there[0]] / winner.fit.gradient_evaluations)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "diverged"


def _loss(at: AtRate) -> str:
    return _number(at.loss.median)


def _count(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "never"
