"""Pictures as plain values, for whatever draws them. Light to import: a process that draws needs nothing else."""

from dataclasses import dataclass

import numpy as np

# Okabe and Ito's colours, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color); black is left out
# since it cannot be seen on a dark page.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#888888")
DASHES = ("solid", "dashed", "dotted", "dashdot")


def style(number: int) -> tuple[str, str]:
    """Colour and dash of a curve among others, another one for each of 32; neighbours show where they coincide.

    >>> style(0), style(9)
    (('#0072b2', 'solid'), ('#e69f00', 'dotted'))
    """
    return COLORS[number % len(COLORS)], DASHES[(number + number // len(COLORS)) % len(DASHES)]


@dataclass(frozen=True)
class Curve:
    """One line in a panel, or one set of points.

    Attributes:
        dash: how the line is drawn; empty where the points stand alone.
        x, y: (points,); NaN where there is nothing to draw.
        low, high: (points,) the edges of a band, or None.
        mark: the point that was chosen, or None.
    """

    label: str
    color: str
    dash: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    mark: tuple[float, float] | None = None

    def sample(self, most: int) -> list[tuple[float, float]]:
        """Some of the points that are there, evenly along the curve, both ends included."""
        there = (np.isfinite(self.x) & np.isfinite(self.y)).nonzero()[0]
        chosen = there[np.unique(np.linspace(0, max(len(there) - 1, 0), min(most, len(there))).astype(int))]
        return [(float(self.x[i]), float(self.y[i])) for i in chosen]


@dataclass(frozen=True)
class Contour:
    """Heights over a grid: x (columns,), y (rows,), z (rows, columns), and where lines are drawn."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    levels: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One picture: what is on its axes, which of them are logarithmic, and a sentence on how to read it."""

    name: str
    title: str
    x_label: str
    y_label: str
    x_log: bool
    y_log: bool
    note: str
    curves: tuple[Curve, ...]
    contour: Contour | None = None
