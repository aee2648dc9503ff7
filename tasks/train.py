"""Step 3: the fit, and its curves in MLflow."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from fourfold.checkpoints import CheckpointFolder, Keeper
from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.fitting import FitConfig, FitResult, Outcome, fit_batches
from fourfold.optimizers import OptimizerConfig, SchedulerConfig
from tasks.build_model import BuiltModel
from tasks.reporting import progress
from tasks.steps import step
from tasks.tracking import RunRecord

SECONDS_TO_STOP = 3  # for the step that is being made, and its checkpoint


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


def settle(config: TrainConfig) -> TrainConfig:
    """Give the same configuration with names as torch spells them; raises RequestError where there is no such name."""
    plan = fit_config(config)
    scheduler = plan.scheduler.name if plan.scheduler else None
    return config.model_copy(update={"optimizer": plan.optimizer.name, "scheduler": scheduler})


@step(name="train")
def train(
    config: TrainConfig,
    built: BuiltModel,
    data: Dataset,
    record: RunRecord,
    folder: Path,
    checkpoints: CheckpointFolder | None = None,
) -> FitResult:
    """Fit the network, from its last checkpoint where there is one; keep its curves whether it converged or not."""
    plan, keeper = fit_config(config), None
    if checkpoints:
        identity = {"data": data.sha256, "torch": torch.__version__, "device": built.x.device.type}
        keeper = Keeper(checkpoints, config.checkpoint_seconds or math.inf, identity)
    with progress("training", config.epochs) as on_progress, stopped_between_steps(keeper):
        result = fit_batches(built.core, built.batches(plan.batch_size, plan.seed), plan, on_progress, keeper)
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


@contextmanager
def stopped_between_steps(keeper: Keeper | None) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a fit where its state is whole and kept; a second one, or three seconds, at once."""
    if keeper is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(handler := signal.getsignal(number)):  # else it is ignored, or ends the process by itself
            handlers[number] = handler

    def put_back() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        def end(*_: object) -> None:
            put_back()
            handlers[signal.Signals(number)](number, frame)  # which raises

        put_back()
        keeper.stop = end
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_STOP)

    for number in handlers:
        signal.signal(number, ask)
    try:
        yield
    finally:
        put_back()


def advice(config: TrainConfig, result: FitResult) -> str:
    """One sentence on a fit that diverged: what happened and what to try."""
    assert result.outcome is Outcome.DIVERGED, "only such a fit needs it"
    sums = " or --loss mse" if config.loss_name == "sse" and config.loss is None else ""
    return f"diverged: {result.reason}; try a smaller --lr than {config.lr:g}{sums}"
