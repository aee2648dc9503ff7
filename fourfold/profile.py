"""What is known of columns of numbers without the numbers: range, mean, deviation. Needs numpy alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

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
