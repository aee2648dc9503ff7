from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold import configuration
from fourfold.configuration import TrainConfig
from fourfold.errors import RequestError
from tasks.make_data import BUILT_IN, _load, load, make_data

ROWS = "area,rooms,price\n" + "".join(f"{50 + i},{1 + i % 5},{1000.5 + 3 * i}\n" for i in range(20))


def test_every_built_in_set_can_be_asked_for() -> None:
    assert tuple(BUILT_IN) == configuration.BUILT_IN


def test_the_line_is_the_exercises_three_points() -> None:
    data = make_data.fn(TrainConfig())
    assert (data.name, data.features, data.targets) == ("line", ("x",), ("y",))
    assert (data.x.tolist(), data.y.tolist()) == ([[1], [2], [3]], [[2], [4], [6]])
    assert data.x.dtype == torch.float32
    assert len(data.x_test) == 0


def test_the_sine_is_the_tutorials_2000_points() -> None:
    data = make_data.fn(TrainConfig(data="sine", dtype="float64"))
    x = np.linspace(-np.pi, np.pi, 2000)
    np.testing.assert_array_equal(data.x[:, 0].numpy(), x)
    np.testing.assert_array_equal(data.y[:, 0].numpy(), np.sin(x))


@pytest.mark.parametrize("options", [{"target": "y"}, {"features": "x"}], ids=str)
def test_columns_of_a_built_in_set_cannot_be_chosen(options: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="--target and --features belong to a file; line has one column of each"):
        make_data.fn(TrainConfig(**options))


def test_a_file_gives_its_numeric_columns_and_holds_a_fifth_out(table_file: Callable[..., TrainConfig]) -> None:
    data = make_data.fn(table_file(ROWS, "my houses.csv", target="price"))
    assert (data.name, data.features, data.targets) == ("my-houses", ("area", "rooms"), ("price",))
    assert (data.x.shape, data.y.shape, data.x_test.shape, data.y_test.shape) == ((16, 2), (16, 1), (4, 2), (4, 1))
    together = sorted([*data.x[:, 0].tolist(), *data.x_test[:, 0].tolist()])
    assert together == [50.0 + i for i in range(20)]


def test_columns_can_be_chosen_and_everything_trained_on(table_file: Callable[..., TrainConfig]) -> None:
    config = table_file(ROWS, target="price,rooms", features="area", test_fraction=0, dtype="float64")
    data = make_data.fn(config)
    assert (data.features, data.targets) == (("area",), ("price", "rooms"))
    np.testing.assert_array_equal(data.y[:3].numpy(), [[1000.5, 1], [1003.5, 2], [1006.5, 3]])


def test_the_seed_decides_the_split_and_nothing_else_does(table_file: Callable[..., TrainConfig]) -> None:
    config = table_file(ROWS, target="price")

    def held_out(**changes: object) -> list[float]:
        _load.cache_clear()
        return sorted(make_data.fn(config.model_copy(update=changes)).x_test[:, 0].tolist())

    assert held_out() == held_out(lr=0.5, epochs=3, dtype="float64")
    assert held_out(seed=1) != held_out()


def test_the_hash_is_of_the_rows_and_not_of_what_is_done_with_them(table_file: Callable[..., TrainConfig]) -> None:
    config = table_file(ROWS, target="price")
    hashes = {
        make_data.fn(config.model_copy(update=changes)).sha256
        for changes in ({}, {"seed": 1}, {"dtype": "float64"}, {"test_fraction": 0.5})
    }
    assert len(hashes) == 1
    changed = table_file(ROWS.replace("1000.5", "1000.25"), "changed.csv", target="price")
    assert make_data.fn(changed).sha256 not in hashes


def test_the_step_gives_the_very_rows_that_were_checked(table_file: Callable[..., TrainConfig]) -> None:
    """The file may change between the check and the flow run."""
    config = table_file(ROWS, target="price")
    checked = load(config)
    assert make_data.fn(config) is checked


def test_a_file_that_was_changed_since_is_read_again(table_file: Callable[..., TrainConfig]) -> None:
    """Two runs of one process, a notebook's say, with the rows mended between them."""
    before = make_data.fn(table_file(ROWS, target="price"))
    after = make_data.fn(table_file(ROWS.replace("1000.5", "2000.25"), target="price"))
    assert after.sha256 != before.sha256


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (ROWS, {}, r"rows\.csv needs --target COLUMN; its columns are area, rooms, price"),
        (ROWS, {"target": "rent"}, r"--target rent: .* has no such column"),
        (ROWS, {"target": "price", "features": "age"}, r"--features age: .* has no such column"),
        (
            ROWS.replace("50", "fifty"),
            {"target": "area"},
            r"column 'area' .*: 1 of 20 values are text, first in row 1 \('fifty'\)",
        ),
        (ROWS, {"target": "price", "test_fraction": 0.95}, r"--test-fraction 0\.95 leaves 1 of 20 rows"),
        ("a,b\n1,2\n", {"target": "b"}, "rows has 1 row; at least two"),
        ("a,b\n1,2\n1e100,2\n3,4\n", {"target": "b"}, "use --dtype float64"),
        ("a,b\n1,2\n1e300,2\n3,4\n", {"target": "b", "dtype": "float64"}, r"values beyond 1e\+150, .* in a; give them"),
        ("a,b\n1,-1e300\n2,2\n3,4\n", {"target": "b", "dtype": "float64", "stream": True}, r"beyond 1e\+150, .* in b"),
        ("", {"target": "b"}, r"rows\.csv is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    text: str, options: dict[str, object], reason: str, table_file: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(RequestError, match=reason):
        make_data.fn(table_file(text, **options))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"houses\.csv: no such file; give line, sine, or the path"):
        make_data.fn(TrainConfig(data=str(tmp_path / "houses.csv"), target="price"))
