"""What a person sees of a run: its progress, its plots, and its page in Prefect."""

import base64
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    if picture is not None and picture.exists():
        encoded = base64.b64encode(picture.read_bytes()).decode()
        lines += ["", f"![loss and fit](data:image/png;base64,{encoded})"]
    try:
        create_markdown_artifact("\n".join(lines), key="train", description=title)
    except Exception as error:
        get_run_logger().warning("the result is not on this page: %s", error)


@contextmanager
def drawing(built: BuiltModel, data: Dataset, fitted: FitResult, record: RunRecord, folder: Path) -> Iterator[Path]:
    """Draw the fit, as `tasks.draw` says, while the block runs; at its end the picture is kept in MLflow."""
    source, picture = folder / "drawn.npz", folder / "fit.png"
    np.savez(source, **_drawn(built, data, fitted))
    command = [sys.executable, "-m", "tasks.draw", str(source), str(picture)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE) as process:
        try:
            try:
                yield picture
            except Exception:
                _keep(process, picture, record)
                raise
            _keep(process, picture, record)
        except BaseException:  # where the run was interrupted, nobody waits for a picture
            process.kill()
            raise


def _drawn(built: BuiltModel, data: Dataset, fitted: FitResult) -> dict[str, Any]:
    scaled = ", target standardised" if built.network is not built.core else ""
    arrays = {
        "loss": fitted.history.loss,
        "loss_label": np.array(f"training loss{scaled}"),
        "features": np.array(data.features),
        "targets": np.array(data.targets),
    }
    if fitted.outcome is Outcome.COMPLETED:
        for kind, x, y in (("training", data.x, data.y), ("held_out", data.x_test, data.y_test)):
            chosen = torch.linspace(0, max(len(x) - 1, 0), min(len(x), MOST_POINTS_DRAWN)).long()
            rows = {"x": x[chosen], "y": y[chosen], "prediction": predict(built.network, x[chosen])}
            arrays |= {f"{kind}_{name}": values.numpy() for name, values in rows.items()}
    return arrays


def _keep(process: "subprocess.Popen[bytes]", picture: Path, record: RunRecord) -> None:
    """Keep the picture; a run whose picture failed is still a run, and says so."""
    _, complaint = process.communicate()
    if process.returncode == 0:
        record.file(picture)
    else:
        record.tags({"picture": f"failed: {complaint.decode(errors='replace').strip().splitlines()[-1:]}"})
