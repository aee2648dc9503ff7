"""What a person sees of a run: its progress, its plots, and its page in Prefect."""

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fourfold.datasets import Dataset
from fourfold.fitting import FitResult, Outcome
from tasks.build_model import BuiltModel
from tasks.evaluate import predict
from tasks.tracking import RunRecord

SECONDS_BETWEEN_LINES = 5.0
MOST_POINTS_DRAWN = 2000


@contextmanager
def progress(what: str, epochs: int) -> Iterator[Callable[[int, float], None]]:
    """Show a bar on a terminal, elsewhere a line every five seconds; gives what a fit reports to."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=epochs, loss="")
            yield lambda epoch, loss: bar.update(task, completed=epoch, loss=f"{loss:.4g}")
        return
    last = time.monotonic()

    def line(epoch: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{what}: epoch {epoch} of {epochs}, loss {loss:.4g}")

    yield line


def publish(title: str, rows: Mapping[str, str], links: Mapping[str, str], picture: Path | None) -> None:
    """Put a table of names and values on the flow run's page in Prefect, with links above and the picture below.

    Outside a flow run there is no page. Where Prefect cannot take it, the run's own end is not changed.
    """
    if not flow_run.id:
        return

    def cell(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    lines = [f"[{cell(name)}]({address})" for name, address in links.items()]
    lines += ["", "| | |", "|---|---|", *(f"| {cell(name)} | {cell(value)} |" for name, value in rows.items())]
    if picture is not None:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        lines += ["", f"![loss and fit](data:image/png;base64,{encoded})"]
    try:
        create_markdown_artifact("\n".join(lines), key="train", description=title)
    except Exception as error:
        get_run_logger().warning("the result is not on this page: %s", error)


def draw_fit(built: BuiltModel, data: Dataset, fitted: FitResult, record: RunRecord, folder: Path) -> Path:
    """Draw the loss over the epochs, and beside it the fit over the rows, as one PNG, and keep it in MLflow.

    With one feature the prediction is drawn over it, else against the actual values; of several targets the
    first. After a fit that diverged there is only the loss.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    completed = fitted.outcome is Outcome.COMPLETED
    axes = figure.subplots(1, 2 if completed else 1, squeeze=False)[0]
    _draw_loss(axes[0], fitted.history.loss)
    if completed:
        _draw_rows(axes[1], built, data)
    path = folder / "fit.png"
    figure.savefig(path, dpi=110)
    record.file(path)
    return path


def _draw_loss(axes: Axes, loss: np.ndarray) -> None:
    finite = np.where(np.isfinite(loss), loss, np.nan)
    axes.plot(finite, color="tab:blue")
    axes.set(xlabel="epoch", ylabel="training loss", title="Loss")
    if np.nanmin(finite) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _draw_rows(axes: Axes, built: BuiltModel, data: Dataset) -> None:
    over_feature = len(data.features) == 1
    for label, x, y, color in (
        ("training", data.x, data.y, "tab:blue"),
        ("held-out", data.x_test, data.y_test, "tab:orange"),
    ):
        if not len(x):
            continue
        chosen = torch.linspace(0, len(x) - 1, min(len(x), MOST_POINTS_DRAWN)).long()
        rows, actual = x[chosen], y[chosen, 0].numpy()
        predicted = predict(built.network, rows)[:, 0].numpy()
        axes.plot(
            rows[:, 0] if over_feature else actual,
            actual if over_feature else predicted,
            ".",
            color=color,
            alpha=0.6,
            label=label,
        )
        if label == "training" and over_feature:
            order = rows[:, 0].argsort()
            axes.plot(rows[order, 0], predicted[order], color="black", linewidth=1, label="fit")
    if over_feature:
        axes.set(xlabel=data.features[0], ylabel=data.targets[0], title="Fit")
    else:
        axes.axline((float(data.y[0, 0]),) * 2, slope=1, color="black", linewidth=1)
        axes.set(
            xlabel=f"actual {data.targets[0]}", ylabel=f"predicted {data.targets[0]}", title="Predicted against actual"
        )
    axes.legend()
    axes.grid(alpha=0.3)
