"""What is known of columns without their numbers, against numpy and exact fractions."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fourfold.drift import Drift, Range, drift
from fourfold.profile import Profile


def rows(count: int = 997, dtype: Any = np.float64, missing: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(2)
    values = random.normal(size=(count, 3)) * [1.0, 1e-3, 1e6] + [0.0, 1e4, -3.0]
    values[random.random(values.shape) < missing] = np.nan
    return values.astype(dtype)


def assert_is_numpys(profile: Profile, values: np.ndarray) -> None:
    wide = values.astype(np.float64)
    assert profile.count.tolist() == np.isfinite(wide).sum(axis=0).tolist()
    assert profile.low.tolist() == np.nanmin(wide, axis=0).tolist()
    assert profile.high.tolist() == np.nanmax(wide, axis=0).tolist()
    assert profile.mean == pytest.approx(np.nanmean(wide, axis=0), rel=1e-13, abs=1e-12)
    assert profile.deviation == pytest.approx(np.nanstd(wide, axis=0), rel=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_it_is_what_numpy_computes(dtype: Any, order: Any, missing: float) -> None:
    values = np.asarray(rows(dtype=dtype, missing=missing), order=order)
    before = values.copy()
    assert_is_numpys(Profile.of(values), values)
    assert np.array_equal(values, before, equal_nan=True)


@pytest.mark.parametrize("size", [1, 2, 10, 333, 996, 997])
def test_pieces_joined_are_the_whole(size: int) -> None:
    values, joined = rows(), Profile.empty(3)
    for start in range(0, len(values), size):
        joined = joined.joined(Profile.of(values[start : start + size]))
    assert_is_numpys(joined, values)


def test_joining_does_not_depend_on_the_order() -> None:
    values = rows()
    first, second = Profile.of(values[:100]), Profile.of(values[100:])
    for mine, its in zip(vars(first.joined(second)).values(), vars(second.joined(first)).values(), strict=True):
        assert mine == pytest.approx(its, rel=1e-12)


def test_pieces_far_from_zero_keep_their_digits() -> None:
    """The textbook's sum of squares less the square of the sum would keep none."""
    values = 1e9 + np.arange(10_000.0).reshape(-1, 1) % 7 / 8
    exact = [Fraction(float(value)) for value in values[:, 0]]
    mean = sum(exact) / len(exact)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in exact) / len(exact))
    joined = Profile.empty(1)
    for start in range(0, len(values), 77):
        joined = joined.joined(Profile.of(values[start : start + 77]))
    assert joined.mean[0] == pytest.approx(float(mean), rel=1e-15)
    assert joined.deviation[0] == pytest.approx(deviation, rel=1e-7)


@pytest.mark.parametrize("value", [0.1, 1e30, -7.0, 0.0])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_constant_has_no_deviation_at_all(value: float, size: int) -> None:
    """A mean of tenths is no tenth: what is divided by such a trace would be noise."""
    values, joined = np.full((1000, 1), value), Profile.empty(1)
    for start in range(0, 1000, size):
        joined = joined.joined(Profile.of(values[start : start + size]))
    assert (joined.low[0], joined.high[0], joined.deviation[0]) == (value, value, 0.0)


def test_a_column_without_a_value_has_no_range() -> None:
    values = np.column_stack([np.full(5, np.nan), np.arange(5.0)])
    for profile in (Profile.of(values), Profile.of(values[:2]).joined(Profile.of(values[2:]))):
        assert profile.count.tolist() == [0, 5]
        assert np.isnan([profile.low[0], profile.high[0]]).all()
        assert (profile.mean[0], profile.deviation[0]) == (0, 0)
        assert (profile.low[1], profile.high[1], profile.mean[1], profile.deviation[1]) == (0, 4, 2, math.sqrt(2))


def test_a_column_whose_values_begin_late() -> None:
    values = np.array([[np.nan], [np.nan], [3.0], [5.0]])
    assert_is_numpys(Profile.of(values[:2]).joined(Profile.of(values[2:])), values)


@pytest.mark.parametrize("make", [lambda: Profile.empty(2), lambda: Profile.of(np.empty((0, 2)))], ids=["empty", "of"])
def test_no_rows_change_nothing(make: Any) -> None:
    values = np.array([[1.0, 2.0], [5.0, 2.0]])
    whole = Profile.of(values)
    for joined in (whole.joined(make()), make().joined(whole)):
        assert_is_numpys(joined, values)
    assert make().joined(make()).count.tolist() == [0, 0]


def test_some_of_the_columns() -> None:
    values = rows()
    assert_is_numpys(Profile.of(values).of_columns(slice(1, 3)), values[:, 1:])


def test_as_plain_it_goes_by_name() -> None:
    plain = Profile.of(np.array([[1.0, 5.0], [3.0, 5.0]])).as_plain(("a", "b"))
    assert plain == {
        "a": {"low": 1, "high": 3, "mean": 2, "deviation": 1},
        "b": {"low": 5, "high": 5, "mean": 5, "deviation": 0},
    }


BEFORE = {
    "a": {"low": 0.0, "high": 10.0, "mean": 5.0, "deviation": 2.0},
    "b": {"low": 1.0, "high": 1.0, "mean": 1.0, "deviation": 0.0},
}


class TestDrift:
    def of(self, values: Any, outside: Any) -> list[Drift]:
        return drift(("a", "b"), Range.of(np.array(values, dtype=float)), np.array(outside), BEFORE)

    def test_shift_and_shares(self) -> None:
        a, b = self.of([[9.0, 1.0], [11.0, 1.0], [13.0, 1.0], [np.nan, 1.0]], [2, 0])
        assert (a.column, a.low, a.high, a.mean) == ("a", 9, 13, 11)
        assert (a.training_low, a.training_high, a.training_mean) == (0, 10, 5)
        assert (a.outside, a.shift) == (pytest.approx(2 / 3), 3)
        assert (b.outside, b.shift) == (0, 0)

    @pytest.mark.parametrize(("value", "shift"), [(2.0, math.inf), (0.5, -math.inf), (1.0, 0.0)])
    def test_of_what_was_constant(self, value: float, shift: float) -> None:
        assert self.of([[5.0, value]], [0, 0])[1].shift == shift

    def test_without_rows_nothing_is_outside(self) -> None:
        assert [one.outside for one in self.of(np.empty((0, 2)), [0, 0])] == [0, 0]
