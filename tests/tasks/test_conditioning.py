"""The warning about columns that a dtype cannot tell apart."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from tasks.build_model import build
from tasks.conditioning import conditioning, warn
from tasks.make_data import load


@pytest.fixture
def columns(dataset: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """Two columns that differ by so much of their size, around a mean."""

    def make(difference: float, mean: float = 0.0, dtype: torch.dtype = torch.float64) -> Dataset:
        random = np.random.default_rng(0)
        a, b = random.normal(size=(2, 100))
        x = np.column_stack([a, a + difference * b]) + mean
        return dataset(x, x.sum(axis=1, keepdims=True), dtype=dtype)

    return make


def warned(data: Dataset, **options: Any) -> str:
    config = TrainConfig(dtype=str(data.x.dtype).removeprefix("torch."), **options)  # type: ignore[arg-type]
    return conditioning(config, build(config, data))


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2.9e3), (torch.float64, 6.7e7)], ids=["float32", "float64"]
)
def test_it_comes_beyond_what_the_dtype_resolves(
    dtype: torch.dtype, bound: float, columns: Callable[..., Dataset]
) -> None:
    for difference, comes in ((20 / bound, False), (0.1 / bound, True)):
        data = columns(difference, dtype=dtype)
        said = warned(data)
        assert bool(said) is comes
        if comes:
            (number,) = re.findall(r"condition number (\S+), ", said)
            design = np.column_stack([data.x.double().numpy(), np.ones(100)])
            assert float(number) == pytest.approx(np.linalg.cond(design), rel=0.06)
            assert f"resolves up to {bound:.2g}" in said
            assert "\n" not in said


def test_a_column_far_from_zero_is_mended_by_standardising(columns: Callable[..., Dataset]) -> None:
    data = columns(1.0, mean=1e3, dtype=torch.float32)
    assert "--dtype float64, --standardize" in warned(data)
    assert warned(data, standardize=True) == ""


def test_through_the_origin_there_is_no_column_of_ones(dataset: Callable[..., Dataset]) -> None:
    x = np.linspace(1, 1 + 1e-5, 50).reshape(-1, 1)
    data = dataset(x, 2 * x)
    assert build(TrainConfig(dtype="float64"), data).condition_number() > 1e5
    assert build(TrainConfig(dtype="float64", intercept=False), data).condition_number() == pytest.approx(1.0)


def test_collinear_columns_are_mended_by_decorrelating_also_where_one_is_a_copy(
    columns: Callable[..., Dataset],
) -> None:
    for difference in (1e-5, 0.0):
        data = columns(difference, dtype=torch.float32)
        assert "--decorrelate" in warned(data, standardize=True)
        assert warned(data, standardize=True, decorrelate=True) == ""


def test_a_constant_column_decides_nothing(columns: Callable[..., Dataset], dataset: Callable[..., Dataset]) -> None:
    x = np.column_stack([np.arange(9.0), np.full(9, 5.0)])
    data = dataset(x, x[:, :1])
    assert "condition number inf, " in warned(data, standardize=True)
    assert warned(data, standardize=True, decorrelate=True) == ""


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"degree": 12}, "try --dtype float64, --standardize, --basis chebyshev, or fewer columns"),
        ({"degree": 12, "basis": "chebyshev"}, ""),
        ({"degree": 12, "standardize": True, "dtype": "float64"}, ""),
    ],
    ids=str,
)
def test_high_powers_are_told(options: dict[str, Any], remedy: str) -> None:
    config = TrainConfig(data="sine", model="polynomial", **options)
    said = conditioning(config, build(config, load(config)))
    assert said.endswith(remedy)
    assert bool(said) is bool(remedy)


@pytest.mark.parametrize("options", [{}, {"data": "sine", "model": "polynomial"}, {"model": "mlp"}], ids=str)
def test_the_usual_runs_have_none(options: dict[str, Any], notes: Any) -> None:
    config = TrainConfig(**options)
    assert warn(config, build(config, load(config)), notes) == ()
    assert notes.noted_tags == {"warning": None}


def test_the_run_keeps_it_as_a_tag(columns: Callable[..., Dataset], notes: Any) -> None:
    data = columns(1e-6, dtype=torch.float32)
    config = TrainConfig()
    (said,) = warn(config, build(config, data), notes)
    assert notes.noted_tags == {"warning": said}
