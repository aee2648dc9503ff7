"""What is known of a training run, from its start to its end, for machines and for people."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.fitting import FitResult
from fourfold.parity import ParityReport
from fourfold.streams import HELD_OUT, TRAINING
from tasks import services
from tasks.evaluate import Evaluation
from tasks.register import Registered
from tasks.results import FlowResult
from tasks.stopped import can_go_on
from tasks.tracking import json_ready, spell

MOST_PARAMETERS_SHOWN = 16


@dataclass
class TrainResult(FlowResult):
    """Filled in as the steps end, so that a run that stops early tells how far it came.

    Attributes:
        status: running, registered, completed (not to be registered), rejected, diverged or failed.
        warnings: what a person should know before trusting the numbers, a sentence each.
        parameters: the trained ones by name (`BuiltModel.curves` names them), in the user's units.
        report: where the page of the run is: its path, or its address where a server keeps it.
    """

    flow = "train"
    about = "A training: `report.html` among the artifacts tells all of it, `parity.html` how its file was proved."
    config: TrainConfig
    data: Dataset | None = None
    warnings: tuple[str, ...] = ()
    fit: FitResult | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    parity: ParityReport | None = None
    registered: Registered | None = None
    report: str | None = None

    @property
    def resumed(self) -> str | None:
        """The id of the run that goes on, None for a new one."""
        return self.config.resume

    @property
    def done(self) -> str:
        """The status of a run that came to its end."""
        return "registered" if self.registered else "completed"

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result; null where the run did not come so far."""
        fit, evaluation, registered = self.fit, self.evaluation, self.registered
        result = {
            **self.ids(),
            "warnings": list(self.warnings),
            "optimizer": self.config.optimizer,
            "epochs": fit and fit.epochs,
            "gradient_evaluations": fit and fit.gradient_evaluations,
            "seconds": round(self.seconds, 3),
            "loss": evaluation.loss if evaluation else fit.loss if fit else None,
            "parameters": self.parameters,
            "predictions": [{"x": x, "y": y} for x, y in evaluation.predictions] if evaluation else [],
            "held_out": asdict(evaluation.accuracy) if evaluation and evaluation.judged_on == "held-out" else None,
            "least_squares": asdict(evaluation.least_squares) if evaluation and evaluation.least_squares else None,
            "parity": self.parity and self.parity.summary(),
            "report": self.report,
            "model": registered and {k: v for k, v in asdict(registered).items() if k != "decision"},
        }
        ready: dict[str, Any] = json_ready(result)
        return ready

    def links(self) -> dict[str, str]:
        """The run's page in MLflow, and its report there."""
        report = {"The report": f"{self.url}/artifacts/report.html"} if self.report else {}
        return super().links() | report

    def rows(self) -> dict[str, str]:
        """The same for a person."""
        config, evaluation, parity = self.config, self.evaluation, self.parity
        rows = {"status": self.status}
        if self.warnings:
            rows["warning"] = "; ".join(self.warnings)
        if self.data:
            count = self.data.count
            held_out = f" and {count[HELD_OUT]} held out" if count[HELD_OUT] else ""
            streamed = ", read anew for each epoch" if self.data.stream else ""
            rows["data"] = f"{self.data.name}, {count[TRAINING]} training rows{held_out}{streamed}"
        rows["model"] = config.model
        rows["optimizer"] = f"{config.optimizer}, lr {config.lr:g}"
        if self.fit:
            rows["optimizer"] += f", {self.fit.epochs} epochs, {self.fit.gradient_evaluations} gradient evaluations"
        if evaluation:
            rows["loss"] = f"{evaluation.loss:.6g} ({config.loss_name})"
            if evaluation.judged_on == "held-out":
                judged = evaluation.accuracy
                rows["held-out rows"] = f"RMSE {judged.rmse:.6g}, MAE {judged.mae:.6g}, R2 {judged.r2:.6g}"
        after: dict[str, str] = {}
        if evaluation:
            for x, y in evaluation.predictions:
                after[f"y at {', '.join(map(spell, x))}"] = ", ".join(f"{value:.9g}" for value in y)
            if evaluation.least_squares:
                after["least squares"] = (
                    f"distance {evaluation.least_squares.distance:.3g}, its loss {evaluation.least_squares.loss:.3g}"
                )
        if parity:
            after["parity"] = parity.in_words()
        if self.registered:
            after["registered"] = f"{self.registered.uri} as {self.registered.alias}: {self.registered.decision}"
        if self.status == "failed" and self.run_id and can_go_on(self.run_id):
            after["to go on"] = f"python flows/train_flow.py --resume {self.run_id}"
        after["seconds"] = f"{self.seconds:.1f}"
        if self.report:
            after["report"] = self.report
        if self.run_id:
            after["runs"] = services.ui_command()
        # A network of the user's own may call a parameter as a row is called.
        parameters = {
            f"parameter {name}" if name in rows | after else name: f"{value:.9g}"
            for name, value in list(self.parameters.items())[:MOST_PARAMETERS_SHOWN]
        }
        return rows | parameters | after
