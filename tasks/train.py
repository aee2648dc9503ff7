"""Step 3: the fit, and its curves in MLflow."""

from pathlib import Path

import numpy as np

from fourfold.configuration import TrainConfig
from fourfold.fitting import FitConfig, FitResult, Outcome, fit_batches
from fourfold.optimizers import OptimizerConfig, SchedulerConfig
from tasks.build_model import BuiltModel
from tasks.reporting import progress
from tasks.steps import step
from tasks.tracking import RunRecord


def fit_config(config: TrainConfig) -> FitConfig:
    """Read the part of a configuration that decides the fit; raises RequestError where a name or option is wrong."""
    return FitConfig(
        optimizer=OptimizerConfig.parse(config.optimizer, config.lr, config.option, config.lr_for),
        scheduler=SchedulerConfig.parse(config.scheduler, config.scheduler_option) if config.scheduler else None,
        epochs=config.epochs,
        batch_size=config.batch_size,
        loss=config.loss_name,
        seed=config.seed,
        budget=config.budget,
    )


@step(name="train")
def train(config: TrainConfig, built: BuiltModel, record: RunRecord, folder: Path) -> FitResult:
    """Fit the network, and keep its curves whether it converged or not."""
    with progress("training", config.epochs) as on_progress:
        plan = fit_config(config)
        result = fit_batches(built.core, built.batches(plan.batch_size, plan.seed), plan, on_progress)
    history = result.history
    # A network of the user's own may call a parameter as a curve of ours is called.
    ours = ("loss", "lr", "epoch", "gradient_evaluations")
    parameters = {f"parameter/{k}" if k in ours else k: curve for k, curve in built.curves(history).items()}
    lr = {"lr": history.lr} if config.scheduler else {}
    record.curves({"loss": history.loss, **parameters, **lr})
    record.table(
        {
            "epoch": np.arange(len(history.loss)),
            "gradient_evaluations": history.gradient_evaluations,
            "loss": history.loss,
            "lr": history.lr,
            **parameters,
        },
        folder / "history.parquet",
    )
    record.metrics(
        {
            "epochs": result.epochs,
            "gradient_evaluations": result.gradient_evaluations,
            "fit_seconds": result.seconds,
        }
    )
    record.tags({"fit": result.outcome.value, "fit.reason": result.reason or None})
    return result


def advice(config: TrainConfig, result: FitResult) -> str:
    """One sentence on a fit that diverged: what happened and what to try."""
    assert result.outcome is Outcome.DIVERGED, "only such a fit needs it"
    sums = " or --loss mse" if config.loss_name == "sse" and config.loss is None else ""
    return f"diverged: {result.reason}; try a smaller --lr than {config.lr:g}{sums}"
