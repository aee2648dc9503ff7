"""What is known of columns of numbers without the numbers: range, mean, deviation. Needs numpy alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Profile:
    """Of each column the values that are there; NaN stands for a missing one. All arrays are (columns,) float64.

    Attributes:
        count: values that are there.
        low, high: smallest and largest, NaN where there is no value.
        mean: 0 where there is no value.
        squares: sum of squared differences from the mean.
    """

    count: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, columns: int) -> Self:
        """Of no rows."""
        none, nan = np.zeros(columns), np.full(columns, np.nan)
        return cls(none, nan, nan, none, none)

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of (rows, columns), in float64 whatever their dtype; fastest where each column lies in one piece."""
        if len(values) == 0:
            return cls.empty(values.shape[1])
        columns = [_of_column(values[:, number]) for number in range(values.shape[1])]
        return cls(*(np.array(part, dtype=np.float64) for part in zip(*columns, strict=True)))

    def joined(self, other: "Profile") -> "Profile":
        """Of the rows of both (T. F. Chan, G. H. Golub and R. J. LeVeque, Am. Statistician 37, 1983, 242-247)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return Profile(
            count,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
            self.mean + share * apart,
            self.squares + other.squares + self.count * share * apart**2,
        )

    def of_columns(self, chosen: slice) -> "Profile":
        """Of some of the columns."""
        return Profile(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @property
    def deviation(self) -> np.ndarray:
        """Root of the mean squared difference from the mean; 0 where all are the same, or there are none."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(self.low < self.high, deviation, 0.0)  # a mean is rounded, and would leave a trace

    def as_plain(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """By column name, as JSON can hold it."""
        parts = {"low": self.low, "high": self.high, "mean": self.mean, "deviation": self.deviation}
        return {
            name: {part: float(values[number]) for part, values in parts.items()} for number, name in enumerate(names)
        }


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
    names: Sequence[str], seen: Profile, outside: np.ndarray, training: Mapping[str, Mapping[str, Any]]
) -> list[Drift]:
    """Compare what was seen with the training's profile.

    Args:
        names: of the columns, in order.
        outside: (columns,) how many of the values are outside of the training's range.
        training: as `Profile.as_plain` gives it.
    """
    found = []
    for number, name in enumerate(names):
        before = training[name]
        moved, deviation = float(seen.mean[number]) - before["mean"], before["deviation"]
        found.append(
            Drift(
                name,
                float(seen.low[number]),
                float(seen.high[number]),
                float(seen.mean[number]),
                before["low"],
                before["high"],
                before["mean"],
                float(outside[number] / max(seen.count[number], 1)),
                moved / deviation if deviation else (0.0 if not moved else float(np.copysign(np.inf, moved))),
            )
        )
    return found


def _of_column(values: np.ndarray) -> tuple[float, float, float, float, float]:
    low = values.min()
    if np.isnan(low):
        values = values[~np.isnan(values)]
        if not len(values):
            return 0.0, np.nan, np.nan, 0.0, 0.0
        low = values.min()
    apart = values.astype(np.float64)
    mean = apart.mean()
    apart -= mean
    return len(values), low, values.max(), mean, float(np.dot(apart, apart))
