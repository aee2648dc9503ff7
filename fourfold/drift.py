"""How far columns have moved from where a model was trained. Needs numpy alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Range:
    """The part of a `Profile` that predictions need, which may be infinite: of those there is no deviation.

    Attributes:
        count, low, high: as there.
        total: the sum of the values that are there.
    """

    count: np.ndarray
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray

    @classmethod
    def empty(cls, columns: int) -> Self:
        """Of no rows."""
        none, nan = np.zeros(columns), np.full(columns, np.nan)
        return cls(none, nan, nan, none)

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of (rows, columns); fastest where each column lies in one piece.

        Sums are of pairs in the values' own dtype, whose rounding no mean that people look at shows.
        """
        if len(values) == 0:
            return cls.empty(values.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum(axis=0)
        if np.isfinite(total).all():
            return cls(
                np.full(len(total), len(values)), values.min(axis=0), values.max(axis=0), total.astype(np.float64)
            )
        return cls(
            np.count_nonzero(~np.isnan(values), axis=0),
            np.fmin.reduce(values, axis=0),
            np.fmax.reduce(values, axis=0),
            np.asarray(np.nansum(values, axis=0, dtype=np.float64)),
        )

    def joined(self, other: "Range") -> "Range":
        """Of the rows of both."""
        return Range(
            self.count + other.count,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
            self.total + other.total,
        )


@dataclass(frozen=True)
class Drift:
    """How far a column's values are from those of the training.

    Attributes:
        outside: share of the values that are outside of the training's range.
        shift: of the mean, in deviations of the training; infinite where the training's was 0 and the mean moved.
    """

    column: str
    low: float
    high: float
    mean: float
    training_low: float
    training_high: float
    training_mean: float
    outside: float
    shift: float


def drift(
    names: Sequence[str], seen: Range, outside: np.ndarray, training: Mapping[str, Mapping[str, Any]]
) -> list[Drift]:
    """Compare what was seen with the training's profile.

    Args:
        names: of the columns, in order.
        outside: (columns,) how many of the values are outside of the training's range.
        training: as `Profile.as_plain` gives it.
    """
    found, mean = [], seen.total / np.maximum(seen.count, 1)
    for number, name in enumerate(names):
        before = training[name]
        moved, deviation = float(mean[number]) - before["mean"], before["deviation"]
        found.append(
            Drift(
                name,
                float(seen.low[number]),
                float(seen.high[number]),
                float(mean[number]),
                before["low"],
                before["high"],
                before["mean"],
                float(outside[number] / max(seen.count[number], 1)),
                moved / deviation if deviation else (0.0 if not moved else float(np.copysign(np.inf, moved))),
            )
        )
    return found
