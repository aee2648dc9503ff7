"""The options of a run: defaults, bounds, and how they may be typed."""

from typing import Any

import pytest
from pydantic import ValidationError

from fourfold.configuration import (
    CompareConfig,
    FlowConfig,
    PredictConfig,
    TrainConfig,
    TutorialConfig,
    VerifyConfig,
)


def test_the_defaults_are_the_exercise() -> None:
    """Three points, a line, SGD at 0.01, a sum of squares, 1,000 epochs of the full batch, float32, seed 0."""
    config = TrainConfig()
    assert (config.data, config.model, config.optimizer, config.lr, config.epochs) == (
        "line",
        "linear",
        "SGD",
        0.01,
        1000,
    )
    assert (config.batch_size, config.dtype, config.seed, config.loss_name) == (None, "float32", 0, "sse")
    assert (config.option, config.lr_for, config.scheduler, config.scheduler_option) == ((), (), None, ())


@pytest.mark.parametrize(
    ("data", "is_file", "loss", "standardizes", "held_out"),
    [
        ("line", False, "sse", False, 0.0),
        ("sine", False, "sse", False, 0.0),
        ("houses.csv", True, "mse", True, 0.2),
        ("houses.parquet", True, "mse", True, 0.2),
        ("Line", True, "mse", True, 0.2),
    ],
)
def test_some_defaults_depend_on_whether_the_data_is_a_file(
    data: str, is_file: bool, loss: str, standardizes: bool, held_out: float
) -> None:
    config = TrainConfig(data=data)
    assert config.is_file is is_file
    assert config.loss_name == loss
    assert config.standardizes is standardizes
    assert config.held_out_fraction == held_out


@pytest.mark.parametrize("data", ["line", "houses.csv"])
def test_what_is_given_wins_over_the_default(data: str) -> None:
    config = TrainConfig(data=data, loss="huber", standardize=data == "line", test_fraction=0.5)
    assert config.loss_name == "huber"
    assert config.standardizes is (data == "line")
    assert config.held_out_fraction == 0.5


@pytest.mark.parametrize(("standardize", "standardizes"), [(None, False), (True, True), (False, False)])
def test_start_values_are_in_the_users_units_unless_scaling_is_asked_for(
    standardize: bool | None, standardizes: bool
) -> None:
    config = TrainConfig(data="houses.csv", start=("b=1",), standardize=standardize)
    assert config.standardizes is standardizes


def test_zero_and_false_are_given_and_not_missing() -> None:
    config = TrainConfig(data="houses.csv", standardize=False, test_fraction=0)
    assert config.standardizes is False
    assert config.held_out_fraction == 0


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("data", "", "at least 1 character"),
        ("test_fraction", -0.1, "greater than or equal to 0"),
        ("test_fraction", 1, "less than 1"),
        ("test_fraction", float("nan"), "less than 1"),
        ("model", "forest", "linear, mlp, .*or a class of yours as module:Class"),
        ("model", "a:B:C", "linear, mlp, .*or a class of yours as module:Class"),
        ("model", "my module:Class", "linear, mlp, .*or a class of yours as module:Class"),
        ("hidden", (), "at least 1 item"),
        ("hidden", "", "at least 1 item"),
        ("hidden", (0,), "greater than or equal to 1"),
        ("hidden", (32, 0), "greater than or equal to 1"),
        ("hidden", "32,0", "greater than or equal to 1"),
        ("hidden", (32, -1), "greater than or equal to 1"),
        ("hidden", "32,wide", "valid integer"),
        ("activation", "gelu", "'tanh', 'relu', 'sigmoid', 'silu' or 'softsign'"),
        ("loss", "rmse", "'sse', 'mse', 'l1' or 'huber'"),
        ("optimizer", "", "at least 1 character"),
        ("lr", 0, "greater than 0"),
        ("lr", -0.01, "greater than 0"),
        ("lr", float("nan"), "finite number"),
        ("lr", float("inf"), "finite number"),
        ("lr", "fast", "valid number"),
        ("option", ("momentum",), "should be NAME=VALUE"),
        ("option", ("=0.9",), "should be NAME=VALUE"),
        ("option", ("momentum=",), "should be NAME=VALUE"),
        ("lr_for", ("bias",), "should be NAME=VALUE"),
        ("scheduler", "", "at least 1 character"),
        ("scheduler_option", ("step_size",), "should be NAME=VALUE"),
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 1.5, "valid integer"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("dtype", "float16", "'float32' or 'float64'"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than 9223372036854775808"),
        ("at", "nan", "finite number"),
        ("at", "inf", "finite number"),
        ("at", "four", "valid number"),
        ("at", ((),), "at least 1 item"),
        ("registered_name", "", "a name without the characters"),
        ("registered_name", "a/b", "a name without the characters"),
        ("registered_name", "a:1", "a name without the characters"),
        ("registered_name", " a", "a name without the characters"),
        ("learning_rate", 0.1, "not permitted"),
    ],
)
def test_each_bound_is_refused_with_what_is_allowed(option: str, value: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as refusal:
        TrainConfig(**{option: value})
    assert {error["loc"][0] for error in refusal.value.errors()} == {option}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("test_fraction", 0.0),
        ("test_fraction", 0.999),
        ("hidden", (1,)),
        ("lr", 5e-324),
        ("epochs", 1),
        ("batch_size", 1),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("model", "package.module:Class"),
        ("registered_name", "house prices"),
        ("option", ("betas=0.9,0.99",)),
        ("option", ("momentum=a=b",)),
    ],
)
def test_each_bound_itself_is_allowed(option: str, value: Any) -> None:
    assert getattr(TrainConfig(**{option: value}), option) == value


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [
        ("hidden", "32,16", (32, 16)),
        ("hidden", ["8,4", "2"], (8, 4, 2)),
        ("hidden", [8, 4], (8, 4)),
        ("target", "price", ("price",)),
        ("target", "price,rent", ("price", "rent")),
        ("target", ["price", "rent,tax"], ("price", "rent", "tax")),
        ("features", "a,,b,", ("a", "b")),
        ("features", "", ()),
        ("at", 4, ((4.0,),)),
        ("at", "4", ((4.0,),)),
        ("at", "1.5,2", ((1.5, 2.0),)),
        ("at", [4, 5], ((4.0,), (5.0,))),
        ("at", ["1,2", "3,4"], ((1.0, 2.0), (3.0, 4.0))),
        ("at", [[1, 2], [3, 4]], ((1.0, 2.0), (3.0, 4.0))),
    ],
)
def test_commas_and_repeats_mean_the_same(option: str, typed: Any, meant: tuple[Any, ...]) -> None:
    assert getattr(TrainConfig(**{option: typed}), option) == meant


def test_an_assignment_stays_whole_at_its_commas() -> None:
    assert TrainConfig(option=["betas=0.9,0.99"]).option == ("betas=0.9,0.99",)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().lr = 0.1  # type: ignore[misc]


def test_equal_configurations_are_one_key() -> None:
    """The rows of a request are kept by its configuration."""
    assert len({TrainConfig(), TrainConfig(seed=0), TrainConfig(seed=1)}) == 2


def test_a_configuration_survives_json() -> None:
    config = TrainConfig(data="a.csv", target="y", at="1,2", hidden="8,4", option=["betas=0.9,0.99"], seed=2**63 - 1)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "line-linear"),
        ({"data": "sine", "model": "mlp"}, "sine-mlp"),
        ({"data": "folder/houses.csv"}, "houses-linear"),
        ({"data": "folder/houses.2024.parquet"}, "houses-2024-linear"),
        ({"data": "my houses:new.csv"}, "my-houses-new-linear"),
        ({"data": "C:\\data\\all  houses.csv"}, "C-data-all-houses-linear"),
        ({"data": "houses.csv", "model": "own.networks:Forest"}, "houses-Forest"),
        ({"registered_name": "house prices"}, "house prices"),
    ],
)
def test_the_registered_name_is_made_of_what_a_registry_admits(given: dict[str, Any], name: str) -> None:
    config = TrainConfig(**given)
    assert config.model_name == name
    assert not set(config.model_name) & set("/:\\")


def test_the_title_tells_a_run_from_its_neighbours() -> None:
    assert TrainConfig(optimizer="Adam", lr=1e-3, data="a/b c.csv", model="m:Net").title == "Adam lr=0.001 b-c-Net"


def test_the_winners_of_a_comparison_must_be_as_much_better_as_was_asked_for() -> None:
    assert CompareConfig(min_improvement=0.02).training().min_improvement == 0.02
    assert CompareConfig().training().min_improvement == 0


@pytest.mark.parametrize("config", [TrainConfig, CompareConfig, TutorialConfig, PredictConfig, VerifyConfig])
def test_the_form_that_prefect_makes_describes_each_option(config: type[FlowConfig]) -> None:
    for name, option in config.model_json_schema()["properties"].items():
        assert option["description"] == config.model_fields[name].description
        assert option.get("type") != "array" or "minLength" not in option, "no bound that a form would not apply"


def test_the_form_asks_for_one_hidden_layer_and_one_optimizer_at_least() -> None:
    form = CompareConfig.model_json_schema()["properties"]
    assert (form["hidden"]["minItems"], form["optimizers"]["minItems"]) == (1, 1)
