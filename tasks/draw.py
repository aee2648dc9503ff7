"""Draw a finished fit in a process of its own: `python -m tasks.draw ARRAYS.npz PICTURE.png PLOTS.json`.

The picture is a PNG; the plots are those of the report's page. It runs on the other core while the model is exported:
in the flow's own process the drawing libraries and their first pictures would take two seconds and 60 MB.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fourfold.errors import visible
from tasks.fit_panels import fit_panels
from tasks.page_plots import plots

LONGEST_LABEL = 60


def draw(arrays: dict[str, np.ndarray], picture: Path) -> None:
    """Draw the loss over the epochs, and beside it the fit over the rows.

    With one feature the prediction is drawn over it, else against the actual values; of several targets the
    first. Without rows there is only the loss.

    Args:
        arrays: `loss` (rows,), its `loss_label`, the names `features` and `targets`, and where the fit completed, for
            each KIND of "training" and "held_out": `KIND_x`, `KIND_y` and `KIND_prediction`, (rows, columns) each.
        picture: the PNG file.
    """
    completed = "training_x" in arrays
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2 if completed else 1, squeeze=False)[0]
    _draw_loss(axes[0], arrays["loss"], str(arrays["loss_label"]))
    if completed:
        _draw_rows(axes[1], arrays)
    figure.savefig(picture, dpi=110)


def _draw_loss(axes: Axes, loss: np.ndarray, label: str) -> None:
    finite = np.where(np.isfinite(loss), loss, np.nan)
    axes.plot(finite, color="tab:blue")
    axes.set(xlabel="epoch", ylabel=label, title="Loss")
    if np.isfinite(loss).any() and np.nanmin(finite) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _draw_rows(axes: Axes, arrays: dict[str, np.ndarray]) -> None:
    feature, target = str(arrays["features"][0]), str(arrays["targets"][0])
    over_feature = len(arrays["features"]) == 1
    for kind, color in (("training", "tab:blue"), ("held_out", "tab:orange")):
        x, actual, predicted = arrays[f"{kind}_x"], arrays[f"{kind}_y"][:, 0], arrays[f"{kind}_prediction"][:, 0]
        if not len(x):
            continue
        across, up = (x[:, 0], actual) if over_feature else (actual, predicted)
        axes.plot(across, up, ".", color=color, alpha=0.6, label=kind.replace("_", "-"))
        if kind == "training" and over_feature:
            order = x[:, 0].argsort()
            axes.plot(x[order, 0], predicted[order], color="black", linewidth=1, label="fit")
    if over_feature:
        _label(axes, feature, target, title="Fit")
    else:
        axes.axline((float(arrays["training_y"][0, 0]),) * 2, slope=1, color="black", linewidth=1)
        _label(axes, f"actual {target}", f"predicted {target}", title="Predicted against actual")
    axes.legend()
    axes.grid(alpha=0.3)


def _label(axes: Axes, x: str, y: str, **others: Any) -> None:
    """Name the axes after columns as they are: a dollar sign begins no formula, and a long name is cut."""
    axes.set(**others)
    for name, put in ((x, axes.set_xlabel), (y, axes.set_ylabel)):
        short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 3]}..."
        put(visible(short), parse_math=False)


if __name__ == "__main__":
    with np.load(sys.argv[1], allow_pickle=False) as stored:
        arrays = dict(stored)
    draw(arrays, Path(sys.argv[2]))
    plots(fit_panels(arrays)).write(Path(sys.argv[3]))
