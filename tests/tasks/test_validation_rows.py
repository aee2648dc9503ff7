"""Rows kept aside to choose between trainings: which they are, and what a training tells of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourfold.configuration import CompareConfig, TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from tasks.build_model import build
from tasks.evaluate import evaluate
from tasks.make_data import load

ROWS = 53


@pytest.fixture
def numbered(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A file whose only feature is the number of its row."""
    path = tmp_path / "numbered.csv"
    path.write_text("\n".join(["row,y", *(f"{row},{3 * row + row % 5}" for row in range(ROWS))]))

    def configure(**options: Any) -> TrainConfig:
        return TrainConfig(**{"data": str(path), "target": "y"} | options)

    return configure


def parts(data: Dataset) -> tuple[list[int], list[int], list[int]]:
    return tuple([int(row) for row in x[:, 0]] for x in (data.x, data.x_validation, data.x_test))  # type: ignore


@pytest.mark.parametrize("test_fraction", [None, 0.0, 0.3])
@pytest.mark.parametrize("validation_fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", [0, 7])
def test_no_row_is_in_two_parts_and_none_is_lost(
    numbered: Callable[..., TrainConfig], test_fraction: float | None, validation_fraction: float, seed: int
) -> None:
    config = numbered(test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed)
    data = load(config)
    train, validation, test = parts(data)
    assert sorted(train + validation + test) == list(range(ROWS))
    assert len(validation) == round(validation_fraction * ROWS)
    assert len(test) == round((0.2 if test_fraction is None else test_fraction) * ROWS)
    assert data.rows == ROWS


@pytest.mark.parametrize("seed", [0, 7])
def test_the_held_out_rows_are_the_same_with_and_without(numbered: Callable[..., TrainConfig], seed: int) -> None:
    without = parts(load(numbered(seed=seed)))
    for fraction in (0.1, 0.2, 0.4):
        train, _, test = parts(load(numbered(seed=seed, validation_fraction=fraction)))
        assert test == without[2]
        assert set(train) < set(without[0])


def test_targets_stay_with_their_rows(numbered: Callable[..., TrainConfig]) -> None:
    data = load(numbered(validation_fraction=0.3))
    for x, y in ((data.x, data.y), (data.x_validation, data.y_validation), (data.x_test, data.y_test)):
        np.testing.assert_array_equal(y[:, 0], 3 * x[:, 0] + x[:, 0] % 5)


def test_which_rows_are_kept_aside_is_up_to_the_seed(numbered: Callable[..., TrainConfig]) -> None:
    chosen = [parts(load(numbered(validation_fraction=0.3, seed=seed)))[1] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


@pytest.mark.parametrize("given", [None, 0.0])
def test_a_training_keeps_none_aside_unless_asked(numbered: Callable[..., TrainConfig], given: float | None) -> None:
    data = load(numbered(validation_fraction=given))
    assert (tuple(data.x_validation.shape), tuple(data.y_validation.shape)) == ((0, 1), (0, 1))
    assert len(data.x) + len(data.x_test) == ROWS


@pytest.mark.parametrize(("given", "expected"), [(None, 0.2), (0.0, 0.0), (0.4, 0.4)])
def test_a_comparison_of_a_file_keeps_a_fifth_aside_unless_asked_otherwise(
    given: float | None, expected: float
) -> None:
    config = CompareConfig(data="rows.csv", target="y", validation_fraction=given)
    assert config.training().validation_share == expected
    assert CompareConfig(validation_fraction=given).training().validation_share == (given or 0.0)


def test_scaling_learns_nothing_of_the_rows_kept_aside(numbered: Callable[..., TrainConfig]) -> None:
    config = numbered(validation_fraction=0.3, dtype="float64")
    data = load(config)
    built = build(config, data)
    np.testing.assert_allclose(built.network.x_mean.numpy(), data.x.numpy().mean(axis=0), rtol=1e-12)
    assert len(built.x) == len(data.x)


def test_a_built_in_set_can_be_split_as_well() -> None:
    data = load(TrainConfig(data="sine", validation_fraction=0.1, test_fraction=0.2))
    assert [len(x) for x in (data.x, data.x_validation, data.x_test)] == [1400, 200, 400]
    everything = torch.cat([data.x, data.x_validation, data.x_test]).flatten().sort().values
    np.testing.assert_allclose(everything, np.linspace(-np.pi, np.pi, 2000), rtol=1e-6)


@pytest.mark.parametrize(("test", "validation", "left"), [(0.5, 0.5, 1), (0.6, 0.6, 0), (0.5, 0.49, 1), (0.0, 0.99, 1)])
def test_too_much_kept_aside_is_refused_with_both_fractions_and_what_is_left(
    numbered: Callable[..., TrainConfig], test: float, validation: float, left: int
) -> None:
    with pytest.raises(RequestError) as refused:
        load(numbered(test_fraction=test, validation_fraction=validation))
    said = str(refused.value)
    assert f"--test-fraction {test:g} and --validation-fraction {validation:g}" in said
    assert f"leaves {left} of {ROWS} rows" in said
    assert "\n" not in said


def test_the_same_file_has_the_same_hash_however_it_is_split(numbered: Callable[..., TrainConfig]) -> None:
    assert load(numbered()).sha256 == load(numbered(validation_fraction=0.4, seed=3)).sha256


class TestEvaluate:
    def test_the_validation_rows_have_metrics_of_their_own(
        self, numbered: Callable[..., TrainConfig], notes: Any
    ) -> None:
        config = numbered(validation_fraction=0.3, dtype="float64")
        data = load(config)
        built = build(config, data)
        evaluation = evaluate.fn(config, built, data, notes)
        with torch.no_grad():
            predicted = built.network.eval()(data.x_validation).numpy()
        y = data.y_validation.numpy()
        off = predicted - y
        expected = {
            "validation/rmse": np.sqrt(np.mean(off**2)),
            "validation/mae": np.mean(np.abs(off)),
            "validation/r2": 1 - np.sum(off**2) / np.sum((y - y.mean()) ** 2),
        }
        told = {name: value for name, value in notes.noted_metrics.items() if name.startswith("validation/")}
        assert told == pytest.approx(expected, rel=1e-9)
        assert evaluation.judged_on == "held-out", "they are not what a model is judged on"
        assert {"held_out/rmse", "held_out/mae", "held_out/r2"} <= set(notes.noted_metrics)

    def test_without_them_there_are_no_such_metrics(self, numbered: Callable[..., TrainConfig], notes: Any) -> None:
        config = numbered()
        data = load(config)
        evaluation = evaluate.fn(config, build(config, data), data, notes)
        assert evaluation.validation is None
        assert not [name for name in notes.noted_metrics if name.startswith("validation")]


def test_the_run_in_mlflow_says_how_many_there_are(
    numbered: Callable[..., TrainConfig], record: Any, store: Any
) -> None:
    record.dataset(load(numbered(validation_fraction=0.3)))
    (inputs,) = store.get_run(record.run_id).inputs.dataset_inputs
    counts = json.loads(inputs.dataset.profile)
    assert counts == {"training_rows": 26, "validation_rows": 16, "held_out_rows": 11}
