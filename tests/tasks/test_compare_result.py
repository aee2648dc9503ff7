"""The result of a comparison, for machines and for people, at every stage of a run."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fourfold.comparison import Contestant, Standing, places, standing
from fourfold.configuration import CompareConfig
from fourfold.fitting import fit
from fourfold.population import Members
from tasks.build_model import build
from tasks.compare import pose, rates_of, train_members
from tasks.compare_result import CompareResult
from tasks.make_data import load
from tasks.train import fit_config
from tasks.train_result import TrainResult

CONFIG = CompareConfig(optimizers=("SGD", "Adam"), budget=30, learning_rates=3, seeds=2, workers=1)


@pytest.fixture(scope="module")
def compared() -> CompareResult:
    """Two optimizers on the line, without the winners."""
    data = load(CONFIG.training())
    posed = pose(CONFIG, data)
    standings = train_members.fn(CONFIG, posed, [Contestant.parse(name) for name in CONFIG.optimizers])
    ranked = places(standings, posed.floor)
    return CompareResult(CONFIG, data=data, posed=posed, standings=standings, places=ranked)


@pytest.fixture
def winner(compared: CompareResult) -> TrainResult:
    """The best SGD, trained alone."""
    chosen = CONFIG.training("SGD", compared.standings[0].tuned.lr)
    built = build(chosen, load(chosen))
    result = TrainResult(chosen, status="completed")
    result.fit = fit(built.core, built.x, built.y, fit_config(chosen))
    result.parameters = built.parameters(result.fit.history)
    return result


def strict(result: CompareResult) -> dict[str, Any]:
    """Through JSON that knows neither NaN nor infinity, and back."""
    back: dict[str, Any] = json.loads(json.dumps(result.as_json(), allow_nan=False))
    return back


def everywhere_diverged() -> Standing:
    one = Contestant.parse("SGD")
    rates = rates_of(CONFIG, one)
    shape = (len(rates), 2)
    gone, nothing = np.full(shape, np.inf), np.full(shape, np.nan)
    members = Members(
        np.array(rates), np.zeros((*shape, 2)), gone, nothing, nothing, nothing, np.ones(shape, dtype=bool),
        np.full(shape, 30), gone, np.full((*shape, 3), np.inf), np.zeros(shape),
    )  # fmt: skip
    return standing(one, members, rates, CONFIG.lr)


def test_a_run_that_did_not_come_to_its_trainings_says_what_was_asked() -> None:
    told = strict(CompareResult(CONFIG, status="failed", reason="no luck"))
    assert (told["flow"], told["status"], told["reason"], told["results"]) == ("compare", "failed", "no luck", [])
    assert (told["budget"], told["learning_rates"], told["seeds"]) == (30, 3, 2)


def test_the_json_has_what_is_promised_for_each_optimizer(compared: CompareResult) -> None:
    told = strict(compared)
    assert {"flow", "run_id", "problem", "budget", "learning_rates", "seeds", "seconds", "results"} <= set(told)
    assert [one["optimizer"] for one in told["results"]] == list(compared.places)
    for one in told["results"]:
        assert {"optimizer", "default", "tuned", "rank"} <= set(one)
        wanted = {"lr", "loss", "diverged", "evaluations_to_target", "seconds", "parameters", "on_grid_edge"}
        assert wanted <= set(one["tuned"])
        assert set(one["tuned"]["loss"]) == {"median", "q1", "q3"}


def test_the_winner_gives_parameters_seconds_and_how_far_it_is_from_the_stack(
    compared: CompareResult, winner: TrainResult
) -> None:
    result = CompareResult(
        CONFIG, data=compared.data, posed=compared.posed, standings=compared.standings, places=compared.places,
        winners={"SGD": winner},
    )  # fmt: skip
    tuned = {one["optimizer"]: one["tuned"] for one in strict(result)["results"]}
    assert set(tuned["SGD"]["parameters"]) == {"w", "b"}
    assert tuned["SGD"]["difference_alone"] == 0
    assert tuned["SGD"]["seconds"] > 0
    assert (tuned["Adam"]["parameters"], tuned["Adam"]["difference_alone"]) == ({}, None)
    assert winner.fit is not None
    off = CompareResult(CONFIG, posed=compared.posed, winners={"SGD": winner})
    other = everywhere_diverged()
    other.members.loss[:] = winner.fit.loss * 2
    assert off.difference_alone(other) == pytest.approx(0.5)


def test_where_all_diverged_the_tables_say_so(compared: CompareResult) -> None:
    gone = everywhere_diverged()
    result = CompareResult(CONFIG, posed=compared.posed, standings=[gone], places=places([gone], 0.0))
    (row,) = result.tables()[0].rows
    cells = dict(zip(result.tables()[0].header, row, strict=True))
    assert (cells["tuned loss"], cells["diverged"], cells["to target"]) == ("diverged", "100%", "never")
    assert result.tables()[1].rows[0][-1] == "not trained alone"
    assert strict(result)["results"][0]["tuned"]["loss"]["median"] is None


def test_before_there_are_ranks_there_are_no_tables() -> None:
    assert CompareResult(CONFIG).tables() == ()
    assert CompareResult(CONFIG).rows()["status"] == "running"


@pytest.mark.parametrize(("seeds", "warned"), [(7, True), (8, False)])
def test_too_few_seeds_are_named(seeds: int, warned: bool, compared: CompareResult) -> None:
    few = CompareResult(CONFIG.model_copy(update={"seeds": seeds}), standings=compared.standings)
    assert ("seeds" in few.rows()) is warned


def test_the_rules_name_the_rows_that_were_judged_on(dataset: Callable[..., Any]) -> None:
    rows = [[1.0], [2.0], [3.0]]
    held_out = CompareResult(CONFIG, data=dataset(rows, rows, test=(rows, rows)))
    assert "reported on the test rows" in " ".join(held_out.rules())
    assert "reported on the training rows" in " ".join(CompareResult(CONFIG).rules())
