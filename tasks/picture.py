"""The pictures of a fit, drawn by a process of its own beside the run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourfold.datasets import Dataset
from fourfold.fitting import FitResult, Outcome
from tasks.build_model import BuiltModel
from tasks.evaluate import predict
from tasks.tracking import RunRecord

MOST_POINTS_DRAWN, MOST_EPOCHS_DRAWN = 2000, 400
PLOTS = "plots.json"  # in the folder of the run, for its report


@contextmanager
def drawing(built: BuiltModel, data: Dataset, fitted: FitResult, record: RunRecord, folder: Path) -> Iterator[Path]:
    """Draw the fit, as `tasks.draw` says, while the block runs; at its end the picture is kept in MLflow."""
    source, picture = folder / "drawn.npz", folder / "fit.png"
    np.savez(source, **_drawn(built, data, fitted))
    command = [sys.executable, "-m", "tasks.draw", str(source), str(picture), str(folder / PLOTS)]
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
    epochs = _some(len(fitted.history.loss))
    curves = built.curves(replace(fitted.history, values=fitted.history.values[epochs]))
    arrays = {
        "loss": fitted.history.loss,
        "loss_label": np.array(f"training loss{scaled}"),
        "epochs": epochs,
        "parameter_names": np.array(list(curves)),
        "parameters": np.column_stack(list(curves.values())),
        "features": np.array(data.features),
        "targets": np.array(data.targets),
    }
    if fitted.outcome is Outcome.COMPLETED:
        for kind, x, y in (("training", data.x, data.y), ("held_out", data.x_test, data.y_test)):
            chosen = torch.linspace(0, max(len(x) - 1, 0), min(len(x), MOST_POINTS_DRAWN)).long()
            rows = {"x": x[chosen], "y": y[chosen], "prediction": predict(built.network, x[chosen])}
            arrays |= {f"{kind}_{name}": values.numpy() for name, values in rows.items()}
    return arrays


def _some(rows: int) -> np.ndarray:
    """Epochs to draw, both ends among them: evenly, and closer at the start, where most happens."""
    evenly, early = np.linspace(0, rows - 1, MOST_EPOCHS_DRAWN), np.geomspace(1, rows, MOST_EPOCHS_DRAWN) - 1
    return np.unique(np.concatenate([evenly, early]).round().astype(int))


def _keep(process: "subprocess.Popen[bytes]", picture: Path, record: RunRecord) -> None:
    """Keep the picture; a run whose picture failed is still a run, and says so."""
    _, complaint = process.communicate()
    if process.returncode == 0:
        record.file(picture)
    else:
        record.tags({"picture": f"failed: {complaint.decode(errors='replace').strip().splitlines()[-1:]}"})
