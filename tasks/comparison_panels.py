"""The pictures of a comparison."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fourfold.batches import loss_of_the_mean
from fourfold.comparison import Spread, Standing, best_of
from fourfold.datasets import Dataset
from fourfold.fitting import History
from fourfold.losses import LOSSES
from models.standardize import Standardized
from tasks.compare import Posed
from tasks.panels import Contour, Curve, Panel, style

# Losses above so many times the constant mean's say no more than that it went wrong.
TOP_OF_PICTURE = 100
CONTOUR_SIDE, MOST_CONTOUR_ROWS, CONTOUR_LEVELS = 80, 1000, 12
MOST_PATH_POINTS, FARTHEST = 400, 1e9


def panels(
    standings: Sequence[Standing], posed: Posed, data: Dataset, histories: Mapping[str, History], unit: str
) -> tuple[Panel, ...]:
    """Make the panels of a comparison.

    Args:
        standings: in the order of the legend.
        posed, data: the problem.
        histories: of the winners that were trained alone, by label; with two parameters their paths are drawn.
        unit: what the loss is called on an axis.
    """
    styles = {one.label: style(number) for number, one in enumerate(standings)}
    starts = np.array([one.members.curve[0, :, 0] for one in standings])
    constant = loss_of_the_mean(posed.problem.y, posed.problem.loss)
    top = TOP_OF_PICTURE * max(constant, *starts[np.isfinite(starts)].tolist(), posed.floor)

    def shown(losses: np.ndarray) -> np.ndarray:
        """What a logarithmic axis can show: rounding instead of zero, nothing instead of infinity."""
        return np.where(losses <= top, np.maximum(losses, posed.floor), np.nan)

    points = posed.problem.curve_points()
    loss, sensitivity, search = [], [], []
    for one in standings:
        look = styles[one.label]
        spreads = [Spread.of(column) for column in one.members.curve[one.tuned_row].T]
        median, low, high = (np.array([getattr(s, key) for s in spreads])[1:] for key in ("median", "q1", "q3"))
        loss.append(Curve(one.label, *look, points[1:].astype(float), shown(median), shown(low), shown(high)))
        rates, choosing = one.members.learning_rates[one.on_grid], one.choosing[one.on_grid]
        best = float(one.choosing[one.tuned_row])
        mark = (one.tuned.lr, max(best, posed.floor)) if best <= top else None
        sensitivity.append(Curve(one.label, *look, rates, shown(choosing), mark=mark))
        best_so_far = shown(best_of(choosing))
        search.append(Curve(one.label, *look, np.arange(1.0, len(rates) + 1), best_so_far))
    chosen_on = "validation" if len(data.x_validation) else "training"
    found = [
        Panel(
            "loss",
            "Loss against gradient evaluations",
            "gradient evaluations",
            f"training {unit}",
            True,
            True,
            "Each at its best learning rate: the median over the seeds, and the band between the quartiles.",
            tuple(loss),
        ),
        Panel(
            "sensitivity",
            "What the learning rate decides",
            "learning rate",
            f"final {chosen_on} {unit}",
            True,
            True,
            "The median over the seeds. A line ends where trainings diverge; the mark is the learning rate chosen.",
            tuple(sensitivity),
        ),
        Panel(
            "search",
            "Best so far, by learning rates tried",
            "learning rates tried",
            f"best {chosen_on} {unit}",
            False,
            True,
            "The median over all orders of trying: how much tuning an optimizer needs.",
            tuple(search),
        ),
    ]
    if posed.built.is_line and histories:
        found.append(_paths(standings, posed, data, histories, styles, unit))
    return tuple(found)


def _paths(
    standings: Sequence[Standing],
    posed: Posed,
    data: Dataset,
    histories: Mapping[str, History],
    styles: Mapping[str, tuple[str, str]],
    unit: str,
) -> Panel:
    curves = []
    for one in standings:
        if one.label in histories:
            path = posed.built.curves(histories[one.label])
            rows = np.unique(np.geomspace(1, len(path["w"]), MOST_PATH_POINTS).astype(int) - 1)
            w, b = path["w"][rows], path["b"][rows]
            end = (float(w[-1]), float(b[-1]))
            curves.append(Curve(one.label, *styles[one.label], w, b, mark=end))
    # The middle 98 % of all points: one path that shoots far out must not make the others a dot.
    w_range, b_range = (_around(np.concatenate([getattr(curve, axis) for curve in curves])) for axis in ("x", "y"))
    w, b = (np.linspace(*limits, CONTOUR_SIDE) for limits in (w_range, b_range))
    return Panel(
        "paths",
        "Paths of w and b over the loss",
        "w",
        "b",
        False,
        False,
        f"The winners from the first seed, over lines of equal training {unit}, evenly spaced in its logarithm.",
        tuple(curves),
        _contour(w, b, posed, data),
    )


def _around(values: np.ndarray) -> tuple[float, float]:
    seen = values[np.abs(values) < FARTHEST]  # neither NaN nor infinity is
    low, high = np.quantile(seen, [0.01, 0.99]) if len(seen) else (0.0, 0.0)
    margin = 0.15 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _contour(w: np.ndarray, b: np.ndarray, posed: Posed, data: Dataset) -> Contour:
    rows = torch.linspace(0, len(data.x) - 1, min(len(data.x), MOST_CONTOUR_ROWS)).long()
    x, y, network = data.x[rows].double(), posed.built.y[rows].double(), posed.built.network
    seen = network.scale_targets if isinstance(network, Standardized) else lambda prediction: prediction
    loss = LOSSES[posed.problem.loss]
    z = np.array([[float(loss(seen(x * slope + shift), y)) for slope in w] for shift in b])
    lowest, highest = max(float(z.min()), posed.floor), float(z.max())
    return Contour(w, b, z, np.geomspace(max(lowest, highest * 1e-6), highest, CONTOUR_LEVELS))
