import numpy as np
import pytest

from fourfold.drift import Range, drift

TRAINING = {"a": {"low": -1.0, "high": 1.0, "mean": 0.5, "deviation": 0.25}}


def joined(values: np.ndarray, pieces: int) -> Range:
    seen = Range.empty(values.shape[1])
    for piece in np.array_split(values, pieces):
        seen = seen.joined(Range.of(piece))
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_it_is_what_numpy_finds_in_the_whole(dtype: type, pieces: int, missing: float) -> None:
    random = np.random.default_rng(3)
    values = (1e4 + random.normal(size=(500, 3))).astype(dtype)
    values[random.random(values.shape) < missing] = np.nan
    seen = joined(values, pieces)
    wide = values.astype(np.float64)
    assert seen.count.tolist() == np.count_nonzero(~np.isnan(wide), axis=0).tolist()
    np.testing.assert_array_equal([seen.low, seen.high], [np.nanmin(wide, axis=0), np.nanmax(wide, axis=0)])
    np.testing.assert_allclose(seen.total / seen.count, np.nanmean(wide, axis=0), rtol=10 * np.finfo(dtype).eps)


def test_sums_beyond_float32_are_no_infinity() -> None:
    seen = Range.of(np.full((10, 1), 3e38, dtype=np.float32))
    assert seen.total[0] == pytest.approx(3e39)


def test_a_column_without_any_value_has_no_range() -> None:
    seen = Range.of(np.array([[np.nan, 1.0], [np.nan, 2.0]]))
    assert seen.count.tolist() == [0, 2]
    assert np.isnan([seen.low[0], seen.high[0]]).all()
    (found,) = drift(["a"], Range.of(np.array([[np.nan]])), np.zeros(1), TRAINING)
    assert (found.outside, found.mean) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "deviation", "shift"), [(1.0, 0.25, 2.0), (0.5, 0.0, 0.0), (0.75, 0.0, np.inf), (0.25, 0.0, -np.inf)]
)
def test_a_shift_is_in_deviations_of_the_training(value: float, deviation: float, shift: float) -> None:
    training = {"a": TRAINING["a"] | {"deviation": deviation}}
    (found,) = drift(["a"], Range.of(np.array([[value]] * 4)), np.array([1.0]), training)
    assert (found.shift, found.outside) == (shift, 0.25)
