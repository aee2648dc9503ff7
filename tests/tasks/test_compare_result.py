"""What a comparison tells, for machines and for people, at every stage of it."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fourfold.comparison import Spread, Standing, contestants, fewest_seeds, grid, places, standing
from fourfold.configuration import CompareConfig, TrainConfig
from fourfold.errors import ComparisonError
from fourfold.fitting import FitResult, History, Outcome
from fourfold.parity import ParityReport
from fourfold.population import Members, train_population
from tasks.compare import pose
from tasks.compare_result import CompareResult
from tasks.evaluate import Accuracy, Evaluation
from tasks.keep_comparison import check_result
from tasks.make_data import load
from tasks.reporting import Table
from tasks.train import settle
from tasks.train_result import TrainResult

OPTIMIZERS = ("SGD", "Adam")
AT_RATE = {"lr", "loss", "diverged", "evaluations", "evaluations_to_target"}
STAGES = ("begun", "data", "posed", "trained", "ranked", "with winners", "all diverged")


def trained(config: CompareConfig) -> CompareResult:
    """Of a run that came to its ranking, made in this process."""
    data = load(config.training())
    result = CompareResult(config, data=data, posed=pose(config, data), run_id="a-run")
    assert result.posed is not None
    for one in contestants(config.optimizers):
        on_grid = grid(one.optimizer.lr, config.learning_rates, config.decades)
        rates = sorted({*on_grid, one.optimizer.lr, config.lr})
        members = train_population(result.posed.problem, one.optimizer, rates, stacked=one.label != "LBFGS")
        result.standings.append(standing(one, members, on_grid, config.lr))
    result.places = places(result.standings, result.posed.floor)
    return result


def won(config: CompareConfig, one: Standing, loss: float | None = None, **other: Any) -> TrainResult:
    """As if the winner had been trained alone: its curve falls from 8 to 4, 2, 1 and its own loss, in 0.4 s."""
    last = float(one.members.loss[one.tuned_row, 0]) if loss is None else loss
    losses = np.array([8.0, 4.0, 2.0, 1.0, last])
    history = History(losses, np.arange(5), np.full(5, 0.1), ("w", "b"), np.zeros((5, 2)))
    accuracy = Accuracy(0.1, 0.1, 0.9)
    given: dict[str, Any] = {
        "run_id": f"run-of-{one.label}",
        "status": "completed",
        "fit": FitResult(Outcome.COMPLETED, last, 4, 4, 0.4, history),
        "parameters": {"w": 1.25, "b": -0.5},
        "evaluation": Evaluation(last, "training", accuracy, (((4.0,), (4.5,)),), None),
        "parity": ParityReport("passed"),
    }
    return TrainResult(
        settle(config.training(one.contestant.optimizer.name, one.tuned.lr, one.contestant.texts)), **given | other
    )


def with_winners(config: CompareConfig, **other: Any) -> CompareResult:
    result = trained(config)
    result.winners = {one.label: won(config, one, **other) for one in result.ranked}
    result.status = "compared"
    return result


def changed(one: Standing, config: CompareConfig, **arrays: np.ndarray) -> Standing:
    on_grid = tuple(one.members.learning_rates[one.on_grid])
    return standing(one.contestant, replace(one.members, **arrays), on_grid, config.lr)


def all_diverged(config: CompareConfig) -> CompareResult:
    """Nothing worked, and no winner was trained."""
    result = trained(config)
    for number, one in enumerate(result.standings):
        there: Members = one.members
        result.standings[number] = changed(
            one,
            config,
            parameters=np.full_like(there.parameters, np.nan),
            loss=np.full_like(there.loss, np.nan),
            averaged_loss=np.full_like(there.loss, np.nan),
            diverged=np.ones_like(there.diverged),
            evaluations_to_goal=np.full_like(there.evaluations_to_goal, np.inf),
            curve=np.full_like(there.curve, np.inf),
        )
    assert result.posed is not None
    result.places = places(result.standings, result.posed.floor)
    return result


def at_stage(stage: str) -> CompareResult:
    config = CompareConfig(optimizers=OPTIMIZERS, budget=20, learning_rates=3, seeds=3)
    if stage == "all diverged":
        return all_diverged(config)
    result = with_winners(config)
    left_out = {
        "begun": ("data", "posed", "standings", "places", "winners"),
        "data": ("posed", "standings", "places", "winners"),
        "posed": ("standings", "places", "winners"),
        "trained": ("places", "winners"),
        "ranked": ("winners",),
    }
    for name in left_out.get(stage, ()):
        setattr(result, name, {"standings": [], "places": {}, "winners": {}}.get(name))
    return result


@pytest.fixture
def config() -> CompareConfig:
    return CompareConfig(optimizers=OPTIMIZERS, budget=20, learning_rates=3, seeds=3)


class TestJson:
    def test_it_has_the_shape_that_is_promised(self, config: CompareConfig) -> None:
        result = with_winners(config)
        result.seconds = 1.23456
        told = json.loads(json.dumps(result.as_json(), allow_nan=False))
        assert set(told) == {
            "flow", "status", "reason", "run_id", "flow_run_id", "problem", "budget", "learning_rates", "seeds",
            "seconds", "results",
        }  # fmt: skip
        assert (told["flow"], told["status"], told["run_id"]) == ("compare", "compared", "a-run")
        assert (told["budget"], told["learning_rates"], told["seeds"], told["seconds"]) == (20, 3, 3, 1.235)
        assert told["problem"] == {
            "data": "line", "model": "linear", "loss": "sse", "training_rows": 3, "validation_rows": 0, "test_rows": 0,
            # Least squares leaves 0 and the constant mean 8: 4, 0 and 4.
            "target_loss": pytest.approx(1e-4 * 8, rel=1e-6),
        }  # fmt: skip
        for one in told["results"]:
            assert {"optimizer", "default", "tuned", "rank"} <= set(one)
            assert set(one["default"]) == set(one["same_lr"]) == AT_RATE
            assert {*AT_RATE, "seconds", "parameters", "on_grid_edge"} <= set(one["tuned"])
            for at in (one["default"], one["same_lr"], one["tuned"]):
                assert set(at["loss"]) == {"median", "q1", "q3"}

    def test_the_numbers_are_those_of_the_trainings(self, config: CompareConfig) -> None:
        result = with_winners(config)
        for one, told in zip(result.ranked, result.as_json()["results"], strict=True):
            rates, members = one.members.learning_rates, one.members
            for name, lr in (("default", 1e-3), ("same_lr", 0.01), ("tuned", one.tuned.lr)):
                (row,) = np.flatnonzero(rates == lr)
                losses = np.sort(np.where(members.diverged[row], np.inf, members.loss[row]))
                assert told[name]["lr"] == lr
                assert told[name]["loss"] == {
                    key: value if math.isfinite(value) else None
                    for key, value in zip(("q1", "median", "q3"), losses.tolist(), strict=True)
                }
                assert told[name]["diverged"] == members.diverged[row].mean()
            assert told["tuned"]["on_grid_edge"] == (one.tuned.lr in rates[one.on_grid][[0, -1]])
            assert told["tuned"]["parameters"] == {"w": 1.25, "b": -0.5}
            assert told["tuned"]["predictions"] == [{"x": [4.0], "y": [4.5]}]
            assert (told["tuned"]["run_id"], told["tuned"]["parity"]) == (f"run-of-{one.label}", "passed")
            assert told["diverged_on_grid"] == members.diverged[one.on_grid].mean()

    @pytest.mark.parametrize("stage", STAGES)
    def test_it_is_valid_at_every_stage(self, stage: str) -> None:
        result = at_stage(stage)
        text = json.dumps(result.as_json(), allow_nan=False)
        told = json.loads(text)
        known = 0 if stage in ("begun", "data", "posed") else len(OPTIMIZERS)
        assert len(told["results"]) == known
        assert (told["problem"]["training_rows"] is None) == (stage == "begun")
        assert (told["problem"]["target_loss"] is None) == (stage in ("begun", "data"))
        for one in told["results"]:
            assert (one["rank"] is None) == (stage == "trained")
            assert (one["tuned"]["seconds"] is None) == (stage != "with winners")
            assert (one["tuned"]["loss"]["median"] is None) == (stage == "all diverged")

    def test_a_target_that_was_never_reached_is_null(self, config: CompareConfig) -> None:
        result = with_winners(config.model_copy(update={"target_loss": -1.0}))
        for one in json.loads(json.dumps(result.as_json(), allow_nan=False))["results"]:
            assert one["tuned"]["evaluations_to_target"] is None
            assert one["tuned"]["seconds_to_target"] is None

    def test_results_come_best_first(self, config: CompareConfig) -> None:
        result = with_winners(config)
        order = [one["optimizer"] for one in result.as_json()["results"]]
        medians = {one.label: float(np.median(one.tuned.losses)) for one in result.standings}
        assert order == sorted(order, key=medians.__getitem__), "three seeds tell no ranks apart"
        assert order == list(result.places)

    def test_parameters_that_are_no_numbers_are_null(self, config: CompareConfig) -> None:
        result = with_winners(config, parameters={"w": math.nan, "b": -math.inf})
        told = json.loads(json.dumps(result.as_json(), allow_nan=False))
        assert told["results"][0]["tuned"]["parameters"] == {"w": None, "b": None}


class TestTables:
    def tables(self, result: CompareResult) -> dict[str, Table]:
        made = {table.name: table for table in result.tables()}
        for table in made.values():
            for row in table.rows:
                assert len(row) == len(table.header), f"{table.header} against {row}"
                assert all(isinstance(cell, str) for cell in row)
            assert len(set(table.header)) == len(table.header)
        return made

    @pytest.mark.parametrize("stage", STAGES)
    def test_there_are_some_from_the_ranking_on(self, stage: str) -> None:
        made = self.tables(at_stage(stage))
        expected = ["ranking", "winners"] if stage in ("ranked", "with winners", "all diverged") else []
        assert list(made) == expected

    def cells(self, table: Table) -> list[dict[str, str]]:
        return [dict(zip(table.header, row, strict=True)) for row in table.rows]

    def test_the_ranking_tells_each_optimizers_losses(self, config: CompareConfig) -> None:
        result = with_winners(config)
        for one, row in zip(result.ranked, self.cells(self.tables(result)["ranking"]), strict=True):
            spread = Spread.of(one.tuned.losses)
            assert (row["rank"], row["optimizer"], row["own lr"]) == ("1", one.label, "0.001")
            assert float(row["tuned loss"]) == pytest.approx(spread.median, rel=0.01)
            low, high = row["quartiles"].split(" to ")
            assert (float(low), float(high)) == (pytest.approx(spread.q1, rel=0.01), pytest.approx(spread.q3, rel=0.01))
            assert row["beats"] == "0 of 1"
            assert row["to target"] == "never"
            assert "loss at 0.01" in row

    def test_what_was_chosen_at_the_edge_of_the_grid_is_flagged(self, config: CompareConfig) -> None:
        result = with_winners(config)
        rows = {row["optimizer"]: row["best lr"] for row in self.cells(self.tables(result)["ranking"])}
        for one in result.standings:
            edges = (one.contestant.optimizer.lr * 1e-3, one.contestant.optimizer.lr * 1e3)
            at_edge = any(math.isclose(one.tuned.lr, edge) for edge in edges)
            assert ("(edge)" in rows[one.label]) == at_edge
        assert any("(edge)" in text for text in rows.values())
        assert not all("(edge)" in text for text in rows.values())
        assert result.facts()["edge of grid"].endswith("give more --decades")

    def test_where_all_diverged_it_says_so(self, config: CompareConfig) -> None:
        made = self.tables(all_diverged(config))
        for row in self.cells(made["ranking"]):
            assert row["tuned loss"] == row["loss"] == row["loss at 0.01"] == "diverged"
            assert (row["quartiles"], row["diverged"]) == ("diverged to diverged", "100%")
            assert row["to target"] == "never"
        assert [row["status"] for row in self.cells(made["winners"])] == ["not trained alone"] * 2

    def test_the_winners_tell_parameters_predictions_and_how_they_ended(self, config: CompareConfig) -> None:
        result = with_winners(config)
        for one, row in zip(result.ranked, self.cells(self.tables(result)["winners"]), strict=True):
            assert row == {
                "optimizer": one.label, "w": "1.25", "b": "-0.5", "y at 4": "4.5", "fit seconds": "0.400",
                "to target": "never", "parity": "passed", "off stack": "0", "status": "completed",
            }  # fmt: skip

    def test_a_target_that_was_reached_has_its_share_of_the_seconds(self, config: CompareConfig) -> None:
        result = with_winners(config.model_copy(update={"target_loss": 2.0}))
        # 8, 4, 2: after two of the four gradients, so after half of the 0.4 s.
        for row in self.cells(self.tables(result)["winners"]):
            assert row["to target"] == "0.200"
        for one in result.as_json()["results"]:
            assert one["tuned"]["seconds_to_target"] == pytest.approx(0.2)

    def test_a_point_that_is_asked_for_twice_is_told_once(self, config: CompareConfig) -> None:
        """As `--at 4 --at 4` does."""
        asked = (((4.0,), (4.5,)), ((1.0,), (1.5,)), ((4.0,), (4.5,)))
        evaluation = Evaluation(0.1, "training", Accuracy(0.1, 0.1, 0.9), asked, None)
        for row in self.cells(self.tables(with_winners(config, evaluation=evaluation))["winners"]):
            assert (row["y at 4"], row["y at 1"]) == ("4.5", "1.5")

    @pytest.mark.parametrize("name", ["status", "optimizer", "y at 4", "parity"])
    def test_a_parameter_may_be_called_as_a_column_is(self, config: CompareConfig, name: str) -> None:
        """In a network of the user's own; in Prefect's table each row is a mapping by the header."""
        result = with_winners(config, parameters={name: 1.0})
        self.tables(result)

    def test_norms_of_a_large_network_are_not_shown(self, config: CompareConfig) -> None:
        made = self.tables(with_winners(config, parameters={"norm/layers.0.weight": 1.0}))
        assert not [name for name in made["winners"].header if "norm" in name]

    def test_of_many_parameters_the_first_four_are_shown(self, config: CompareConfig) -> None:
        made = self.tables(with_winners(config, parameters={f"p{n}": float(n) for n in range(9)}))
        assert [name for name in made["winners"].header if name.startswith("p") and name != "parity"] == [
            "p0", "p1", "p2", "p3"
        ]  # fmt: skip

    def test_a_winner_that_diverged_has_no_predictions(self, config: CompareConfig) -> None:
        result = trained(config)
        first, second = result.ranked
        result.winners = {
            first.label: won(config, first),
            second.label: won(config, second, evaluation=None, parity=None, status="diverged"),
        }
        rows = self.cells(self.tables(result)["winners"])
        assert (rows[1]["y at 4"], rows[1]["parity"], rows[1]["status"]) == ("", "", "diverged")
        assert rows[0]["y at 4"] == "4.5"


class TestRows:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_person_is_told_what_there_is(self, stage: str) -> None:
        rows = at_stage(stage).rows()
        assert all(isinstance(value, str) for value in rows.values())
        assert ("data" in rows) == (stage != "begun")
        assert ("target" in rows) == (stage not in ("begun", "data"))
        assert rows["each optimizer"] == "3 learning rates over 6 decades, 3 seeds, 20 gradient evaluations"
        assert "runs" in rows

    def test_too_few_seeds_are_told(self, config: CompareConfig) -> None:
        # Of n fair coins all alike, on either side: 2 / 2^n is at most 1 % from 8 on.
        assert fewest_seeds() == 8
        assert "8 are the fewest" in trained(config).rows()["seeds"]
        assert "seeds" not in trained(config.model_copy(update={"seeds": 8})).rows()

    def test_rows_kept_aside_are_counted(self) -> None:
        config = CompareConfig(
            data="sine", optimizers=OPTIMIZERS, validation_fraction=0.2, test_fraction=0.1, seeds=1, budget=2,
            learning_rates=2,
        )  # fmt: skip
        result = trained(config)
        assert result.rows()["data"] == "sine, 1400 training, 400 validation, 200 test rows"
        rules = " ".join(result.rules())
        assert "of the validation rows and reported on the test rows" in rules
        assert "of the training rows and reported on the training rows" in " ".join(CompareResult(config).rules())

    def test_what_beats_what_is_said_of_each(self, config: CompareConfig) -> None:
        result = trained(config)
        assert result.differences() == {"SGD": "not told from Adam", "Adam": "not told from SGD"}

    def test_one_that_all_others_beat_is_told(self) -> None:
        config = CompareConfig(optimizers=OPTIMIZERS, budget=20, learning_rates=3, seeds=8)
        result = trained(config)
        for number, one in enumerate(result.standings):
            loss = np.full_like(one.members.loss, number + 1.0)
            result.standings[number] = changed(one, config, loss=loss, diverged=np.zeros_like(one.members.diverged))
        assert result.posed is not None
        result.places = places(result.standings, result.posed.floor)
        assert result.differences() == {"SGD": "beats Adam", "Adam": "beaten by all others"}
        assert [one["rank"] for one in result.as_json()["results"]] == [1, 2]

    def test_the_controls_are_told_without_being_ranked(self, config: CompareConfig) -> None:
        result = with_winners(config)
        result.controls = [
            replace(result.standings[0], contestant=replace(contestants(("SGD", "Adam"))[0], label="control: SGD"))
        ]
        assert result.facts()["controls"].startswith("tuned losses: SGD ")
        assert len(result.as_json()["results"]) == 2


class TestDifferenceAlone:
    def difference(self, config: CompareConfig, member: float, alone: float) -> float | None:
        result = trained(config)
        one = result.standings[0]
        loss = one.members.loss.copy()
        loss[one.tuned_row, 0] = member
        moved = replace(one, members=replace(one.members, loss=loss))
        result.standings[0] = moved
        result.winners = {moved.label: won(config, moved, alone)}
        return result.difference_alone(moved)

    @pytest.mark.parametrize(
        ("member", "alone", "expected"),
        [
            (0.5, 0.5, 0.0),
            (0.5, 0.4, 0.2),
            (0.4, 0.5, 0.2),
            (0.0, 0.0, 0.0),
            (math.nan, math.nan, 0.0),
            (math.inf, math.nan, 0.0),
            (math.inf, math.inf, 0.0),
        ],
    )
    def test_it_is_relative_to_the_larger(
        self, config: CompareConfig, member: float, alone: float, expected: float
    ) -> None:
        assert self.difference(config, member, alone) == pytest.approx(expected, abs=1e-15)

    def test_below_the_floor_there_is_none_to_speak_of(self, config: CompareConfig) -> None:
        posed = trained(config).posed
        assert posed is not None
        found = self.difference(config, posed.floor / 1000, 0.0)
        assert found == pytest.approx(1e-3)

    @pytest.mark.parametrize(("member", "alone"), [(0.5, math.nan), (0.5, math.inf), (math.nan, 0.5), (math.inf, 0.5)])
    def test_where_only_one_of_the_two_is_a_number_it_is_infinite(
        self, config: CompareConfig, member: float, alone: float
    ) -> None:
        assert self.difference(config, member, alone) == math.inf

    def test_before_there_is_a_winner_there_is_none(self, config: CompareConfig) -> None:
        result = trained(config)
        assert result.difference_alone(result.standings[0]) is None
        result.winners = {"SGD": TrainResult(TrainConfig())}
        assert result.difference_alone(result.standings[0]) is None


class TestCheck:
    def with_loss(self, config: CompareConfig, members: list[float], alone: float) -> CompareResult:
        """SGD's tuned losses, one for each seed, and what its winner alone came to."""
        result = trained(config)
        one = result.standings[0]
        loss = one.members.loss.copy()
        loss[one.tuned_row] = members
        moved = replace(one, members=replace(one.members, loss=loss))
        result.standings[0] = moved
        result.winners = {moved.label: won(config, moved, alone)}
        return result

    @pytest.mark.parametrize("alone", [1.0, 1.0005])
    def test_a_winner_that_is_what_the_stack_said_passes(self, config: CompareConfig, alone: float) -> None:
        check_result(self.with_loss(config, [1.0, 1.0, 1.0], alone))

    @pytest.mark.parametrize("alone", [1.1, 0.9, math.nan, math.inf])
    def test_one_that_is_not_is_told(self, config: CompareConfig, alone: float) -> None:
        with pytest.raises(ComparisonError, match="SGD trained alone ended"):
            check_result(self.with_loss(config, [1.0, 1.0, 1.0], alone))

    def test_what_another_seed_changes_as_much_is_no_fault(self, config: CompareConfig) -> None:
        check_result(self.with_loss(config, [1.0, 2.0, 3.0], 1.2))

    @pytest.mark.parametrize("others", [[5.0, math.inf], [math.nan, math.inf]])
    def test_nor_where_other_seeds_diverged(self, config: CompareConfig, others: list[float]) -> None:
        check_result(self.with_loss(config, [1.0, *others], 1.2))

    def test_nothing_is_wrong_where_nothing_worked(self, config: CompareConfig) -> None:
        check_result(all_diverged(config))
