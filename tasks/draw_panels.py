"""A comparison's panels as one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.panels import Panel


def draw_panels(panels: Sequence[Panel], title: str, picture: Path) -> None:
    """Draw all panels, two in a row, with one legend below."""
    figure = Figure(figsize=(12, 4.6 * -(-len(panels) // 2) + 1), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
    for one, panel in zip(axes, panels, strict=False):
        _draw(one, panel)
    for empty in axes[len(panels) :]:
        empty.remove()
    figure.suptitle(title, parse_math=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 8 if max(map(len, labels)) < 10 else 4)
    )
    figure.savefig(picture, dpi=110)


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.contour:
        lines = panel.contour
        axes.contour(lines.x, lines.y, lines.z, levels=lines.levels, colors="#bbbbbb", linewidths=0.7)
        axes.set(xlim=(lines.x[0], lines.x[-1]), ylim=(lines.y[0], lines.y[-1]))
    for curve in panel.curves:
        axes.plot(curve.x, curve.y, color=curve.color, linestyle=curve.dash, label=curve.label)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.15, linewidth=0)
        if curve.mark:
            axes.plot(*curve.mark, "o", color=curve.color)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    drawn = [curve for curve in panel.curves if np.isfinite(curve.y).any()]
    if panel.x_log and drawn:
        axes.set_xscale("log")
    if panel.y_log and drawn:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
