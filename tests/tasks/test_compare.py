"""The trainings of a comparison: what may be asked, where they begin, what they give."""

import math
import pickle
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourfold.comparison import Contestant, Standing, contestants, controls
from fourfold.configuration import CompareConfig, TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.fitting import FitConfig, Outcome, fit
from fourfold.losses import LOSSES
from fourfold.population import Members, Start, train_population
from tasks.build_model import build
from tasks.compare import Posed, check_comparison, distances, pose, train_members
from tasks.make_data import load
from tasks.workers import Needs, Workers


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    """Sixty rows of two features, in units far from 1, and two targets."""
    random = np.random.default_rng(3)
    x = random.normal(size=(60, 2)) * [300.0, 0.02] + [5000.0, -7.0]
    y = x @ [[0.5, 2.0], [100.0, -40.0]] + [3.0, 900.0] + random.normal(size=(60, 2))
    path = tmp_path / "rows.csv"
    np.savetxt(path, np.hstack([x, y]), delimiter=",", header="area,age,price,rent", comments="")
    return str(path)


def of_file(path: str, **options: Any) -> CompareConfig:
    return CompareConfig(**{"data": path, "target": "price,rent", "optimizers": "SGD,Adam", "seeds": 3} | options)


def flat(network: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in network.parameters() if p.requires_grad])


class TestCheck:
    def test_the_default_request_is_fine(self) -> None:
        labels = [one.label for one in check_comparison(CompareConfig())]
        assert labels == ["SGD", "Adagrad", "Adam", "Adamax", "ASGD", "RMSprop", "Rprop", "LBFGS"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"batch_size": 1, "budget": 2}, ["--budget 2", "3 batches of one epoch"]),
            ({"optimizers": "SGD,sgd"}, ["--optimizers", "SGD", "twice"]),
            ({"optimizers": "SGD:momentum=0.9,Adam,sgd:momentum=0.9"}, ["SGD:momentum=0.9", "twice"]),
            ({"optimizers": "SGD"}, ["--optimizers SGD", "two to compare"]),
            ({"optimizers": "SGD,Adm"}, ["--optimizers Adm", "Adam"]),
            ({"optimizers": "SGD,Adam:momentum=0.9"}, ["--optimizers Adam:momentum=0.9", "no option momentum"]),
            ({"optimizers": "SGD,Adam:weight_decay=0.1"}, ["weight decay is 0 for all"]),
            ({"optimizers": "SGD,SGD:momentum=-1"}, ["SGD refuses this request", "momentum"]),
            ({"optimizers": "SGD,SparseAdam"}, ["SparseAdam cannot train this model", "choose another"]),
            ({"optimizers": "SGD,Muon,SparseAdam", "model": "mlp"}, ["Muon"]),
            ({"optimizers": "SparseAdam,Muon"}, ["none of these optimizers can train this model", "SparseAdam"]),
            ({"data": "none.csv", "target": "y"}, ["none.csv", "no such file"]),
            ({"at": "1,2"}, ["--at 1,2", "2 values"]),
            ({"model": "nowhere:Net"}, ["nowhere:Net", "cannot be made"]),
            ({"test_fraction": 0.4, "validation_fraction": 0.4}, ["--validation-fraction 0.4", "1 of 3 rows"]),
            ({"target": "y"}, ["--target", "belong to a file"]),
        ],
    )
    def test_a_wrong_request_is_refused_in_one_line_that_says_what_is_wrong(
        self, options: dict[str, Any], said: list[str]
    ) -> None:
        with pytest.raises(RequestError) as refused:
            check_comparison(CompareConfig(**options))
        text = str(refused.value)
        assert "\n" not in text
        for part in said:
            assert part in text

    def test_a_budget_of_exactly_one_epoch_is_enough(self) -> None:
        assert len(check_comparison(CompareConfig(batch_size=1, budget=3, optimizers="SGD,LBFGS"))) == 2

    def test_the_batches_are_those_of_the_training_rows_alone(self) -> None:
        # Of 2,000 rows 1,000 are left to train on: ten batches, not twenty.
        given = {"data": "sine", "batch_size": 100, "test_fraction": 0.25, "validation_fraction": 0.25}
        check_comparison(CompareConfig(**given, budget=10, optimizers="SGD,Adam"))
        with pytest.raises(RequestError, match="10 batches"):
            check_comparison(CompareConfig(**given, budget=9, optimizers="SGD,Adam"))

    @pytest.mark.parametrize("spelled", ["all", "ALL", "All"])
    def test_all_leaves_out_those_that_cannot_train_the_model(self, spelled: str) -> None:
        labels = [one.label for one in check_comparison(CompareConfig(optimizers=spelled))]
        assert {"SGD", "Adam", "AdamW", "LBFGS", "Adafactor", "ASGD"} <= set(labels)
        assert not {"SparseAdam", "Muon"} & set(labels)

    def test_all_asks_torch_itself_which_can_train_the_model(self) -> None:
        """Each is stepped once here by hand on a copy of the same network."""
        able = set()
        for name, made in vars(torch.optim).items():
            if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)) or name == "Optimizer":
                continue
            network = nn.Linear(1, 1)
            try:
                optimizer = made(network.parameters(), lr=0.01)

                def closure(network: nn.Module = network, optimizer: Any = optimizer) -> torch.Tensor:
                    optimizer.zero_grad()
                    loss = network(torch.ones(2, 1)).square().sum()
                    loss.backward()
                    return loss

                optimizer.step(closure)
            except (RuntimeError, ValueError):
                continue
            able.add(name)
        assert {one.label for one in check_comparison(CompareConfig(optimizers="all"))} == able

    def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        check_comparison(CompareConfig(optimizers="SGD,Adam"))
        assert list(tmp_path.iterdir()) == []


class TestPose:
    @pytest.mark.parametrize("model", ["linear", "mlp"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_each_seed_starts_from_the_bits_that_a_training_of_that_seed_builds(self, model: str, dtype: str) -> None:
        config = CompareConfig(model=model, dtype=dtype, seed=5, seeds=3)
        data = load(config.training())
        posed = pose(config, data)
        assert [start.seed for start in posed.problem.starts] == [5, 6, 7]
        for start in posed.problem.starts:
            built = build(config.training().model_copy(update={"seed": start.seed}), data)
            states = torch.get_rng_state(), random.getstate()
            assert flat(start.network).tobytes() == flat(built.core).tobytes()
            assert torch.equal(start.random_states[0], states[0])
            assert start.random_states[1] == states[1]
        weights = [flat(start.network) for start in posed.problem.starts]
        assert not np.array_equal(weights[0], weights[1])
        assert not np.array_equal(weights[1], weights[2])

    def test_what_knows_the_units_is_the_network_of_the_first_seed(self) -> None:
        config = CompareConfig(seed=5, seeds=3)
        posed = pose(config, load(config.training()))
        assert posed.built.core is posed.problem.starts[0].network

    def test_no_start_shares_its_weights_with_another(self) -> None:
        config = CompareConfig(seeds=3)
        posed = pose(config, load(config.training()))
        places = {p.data_ptr() for start in posed.problem.starts for p in start.network.parameters()}
        assert len(places) == 3 * 2

    def test_validation_and_test_rows_are_scaled_as_the_training_rows(self, rows_file: str) -> None:
        config = of_file(rows_file, dtype="float64")
        data = load(config.training())
        problem = pose(config, data).problem
        x, y = data.x.numpy(), data.y.numpy()
        assert (len(x), len(data.x_validation), len(data.x_test)) == (36, 12, 12)
        pairs = [
            (problem.x, data.x, x),
            (problem.y, data.y, y),
            (problem.validation[0], data.x_validation, x),
            (problem.validation[1], data.y_validation, y),
            (problem.test[0], data.x_test, x),
            (problem.test[1], data.y_test, y),
        ]
        for seen, raw, training in pairs:
            expected = (raw.numpy() - training.mean(axis=0)) / training.std(axis=0)
            np.testing.assert_allclose(seen.numpy(), expected, rtol=1e-12, atol=1e-12)

    def test_without_scaling_the_rows_are_the_users(self, rows_file: str) -> None:
        config = of_file(rows_file, standardize=False)
        data = load(config.training())
        problem = pose(config, data).problem
        for seen, raw in zip(
            (problem.x, problem.y, *problem.validation, *problem.test),
            (data.x, data.y, data.x_validation, data.y_validation, data.x_test, data.y_test),
            strict=True,
        ):
            assert torch.equal(seen, raw)

    def test_on_the_built_in_sets_nothing_is_kept_aside(self) -> None:
        config = CompareConfig(data="sine", seeds=1)
        problem = pose(config, load(config.training())).problem
        assert [len(rows) for rows in (problem.x, problem.validation[0], problem.test[0])] == [2000, 0, 0]

    @pytest.mark.parametrize("loss", ["sse", "mse"])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_the_target_loss_is_just_above_least_squares(self, rows_file: str, loss: str, standardize: bool) -> None:
        config = of_file(rows_file, loss=loss, standardize=standardize, dtype="float64")
        data = load(config.training())
        x, y = data.x.numpy(), data.y.numpy()
        if standardize:
            x, y = ((values - values.mean(axis=0)) / values.std(axis=0) for values in (x, y))
        design = np.column_stack([x, np.ones(len(x))])
        left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        lowest, constant = np.sum(left**2), np.sum((y - y.mean(axis=0)) ** 2)
        if loss == "mse":
            lowest, constant = lowest / y.size, constant / y.size
        assert pose(config, data).problem.goal == pytest.approx(lowest + 1e-4 * (constant - lowest), rel=1e-6)

    @pytest.mark.parametrize(("model", "loss"), [("mlp", "mse"), ("linear", "l1"), ("linear", "huber")])
    def test_for_other_networks_and_losses_it_is_a_tenth_of_the_constant_means(self, model: str, loss: str) -> None:
        config = CompareConfig(data="sine", model=model, loss=loss, dtype="float64", seeds=1)
        y = np.sin(np.linspace(-np.pi, np.pi, 2000))
        off = np.abs(y - y.mean())
        of_mean = {"mse": off**2, "l1": off, "huber": np.where(off < 1, off**2 / 2, off - 0.5)}[loss].mean()
        assert pose(config, load(config.training())).problem.goal == pytest.approx(of_mean / 10, rel=1e-9)

    @pytest.mark.parametrize("standardize", [False, True])
    def test_through_the_origin_it_is_between_least_squares_and_zeros(self, rows_file: str, standardize: bool) -> None:
        config = of_file(rows_file, standardize=standardize, intercept=False, dtype="float64")
        data = load(config.training())
        x, y = data.x.numpy(), data.y.numpy()
        if standardize:
            y = y / np.sqrt((y**2).mean(axis=0))
        lowest = np.mean((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2)
        expected = lowest + 1e-4 * (np.mean(y**2) - lowest)
        assert pose(config, data).problem.goal == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("given", [0.25, 0.0, -1.0])
    def test_a_target_loss_that_is_given_counts(self, given: float) -> None:
        config = CompareConfig(target_loss=given, seeds=1)
        assert pose(config, load(config.training())).problem.goal == given

    def test_the_largest_seeds_can_be_started_from(self) -> None:
        config = CompareConfig(seed=2**63 - 1, seeds=2)
        starts = pose(config, load(config.training())).problem.starts
        assert [start.seed for start in starts] == [2**63 - 1, 2**63]


ENTRANTS = ("SGD", "ASGD", "LBFGS")
SMALL = {"optimizers": ENTRANTS, "budget": 12, "learning_rates": 3, "decades": 4.0, "seeds": 2, "lr": 0.05}
Trained = tuple[CompareConfig, Posed, list[Standing]]


def trained_by(workers: int) -> Trained:
    config = CompareConfig(**SMALL, workers=workers)
    posed = pose(config, load(config.training()))
    return config, posed, train_members.fn(config, posed, contestants(config.optimizers))


@pytest.fixture(scope="module")
def by_one() -> Trained:
    return trained_by(1)


@pytest.fixture(scope="module")
def by_two() -> Trained:
    return trained_by(2)


class TestTrainMembers:
    def test_it_gives_a_standing_for_each_in_the_order_asked(self, by_one: Trained) -> None:
        assert tuple(one.label for one in by_one[2]) == ENTRANTS

    def test_it_is_what_each_training_alone_gives(self, by_one: Trained) -> None:
        config, posed, standings = by_one
        for one in standings:
            for row, lr in enumerate(one.members.learning_rates):
                for column, seed in enumerate((0, 1)):
                    built = build(TrainConfig(seed=seed), load(TrainConfig()))
                    result = fit(
                        built.core,
                        built.x,
                        built.y,
                        FitConfig(replace(one.contestant.optimizer, lr=float(lr)), epochs=12, seed=seed, budget=12),
                    )
                    here = f"{one.label}, learning rate {lr}, seed {seed}"
                    assert np.array_equal(one.members.parameters[row, column], flat(built.core), equal_nan=True), here
                    assert np.array_equal(one.members.loss[row, column], result.loss, equal_nan=True), here
                    assert one.members.diverged[row, column] == (result.outcome is Outcome.DIVERGED), here
                    assert one.members.evaluations[row, column] == result.gradient_evaluations, here
        assert config.budget == posed.problem.budget == 12

    def test_one_process_and_two_give_the_same_bits(self, by_one: Trained, by_two: Trained) -> None:
        for one, other in zip(by_one[2], by_two[2], strict=True):
            assert one.label == other.label
            for field in fields(Members):
                if field.name != "seconds":
                    first, second = getattr(one.members, field.name), getattr(other.members, field.name)
                    assert first.dtype == second.dtype, field.name
                    assert first.tobytes() == second.tobytes(), f"{one.label}: {field.name}"
            assert one.tuned.lr == other.tuned.lr
            assert np.array_equal(one.on_grid, other.on_grid)

    def test_the_grids_have_the_same_count_and_width_and_their_own_centre(self, by_one: Trained) -> None:
        for one, centre in zip(by_one[2], (1e-3, 1e-2, 1.0), strict=True):
            on_grid = one.members.learning_rates[one.on_grid]
            np.testing.assert_allclose(on_grid, centre * np.array([0.01, 1, 100]), rtol=1e-12)

    def test_the_common_learning_rate_is_trained_beside_the_grid(self, by_one: Trained) -> None:
        for one in by_one[2]:
            rates = one.members.learning_rates
            assert (np.diff(rates) > 0).all(), "rising, each once"
            assert rates[~one.on_grid].tolist() == [0.05]
            assert one.same_lr.lr == 0.05
            assert one.default.lr == one.contestant.optimizer.lr
            assert one.tuned.lr in rates[one.on_grid]

    def test_they_say_which_were_trained_one_by_one(self, by_one: Trained) -> None:
        assert [bool(one.why_alone) for one in by_one[2]] == [False, False, True]

    def test_only_asgd_has_averaged_weights(self, by_one: Trained) -> None:
        assert [one.averaged is not None for one in by_one[2]] == [False, True, False]


class NoProcesses:
    """In place of workers: what they are given is done at once, here."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, ...]] = []
        self.counts: list[int] = []

    @contextmanager
    def __call__(self, asked: int | str | None, most: int, needs: Needs) -> Iterator[Workers]:
        self.counts.append(most)
        yield Workers(self.submit, lambda: 1, lambda error, job: None)

    def submit(self, _: Callable[..., Any], work: Any) -> "Future[Any]":
        self.jobs.append((*work.args[1:], work.args[0].starts))
        future: Future[Any] = Future()
        future.set_result(work())
        return future


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoProcesses]:
    pool = NoProcesses()
    monkeypatch.setattr("tasks.compare.workers", pool)
    return pool


class TestRates:
    """Without processes, which would cost seconds each."""

    def train(self, **options: Any) -> list[Standing]:
        config = CompareConfig(**SMALL | {"optimizers": "SGD,Adam", "budget": 2, "seeds": 1} | options)
        return train_members.fn(config, pose(config, load(config.training())), contestants(config.optimizers))

    @pytest.mark.parametrize("count", [2, 3, 4, 13])
    @pytest.mark.parametrize("decades", [0.5, 6.0])
    def test_the_default_is_on_the_grid_only_where_it_is_its_middle(
        self, at_once: NoProcesses, count: int, decades: float
    ) -> None:
        for one in self.train(learning_rates=count, decades=decades, lr=0.07):
            rates, default = one.members.learning_rates, one.contestant.optimizer.lr
            assert one.on_grid.sum() == count
            assert math.log10(rates[one.on_grid][-1] / rates[one.on_grid][0]) == pytest.approx(decades)
            assert default in rates
            assert 0.07 in rates
            beside = {0.07} if count % 2 else {0.07, default}
            assert set(rates[~one.on_grid]) == beside

    def test_where_the_common_rate_is_a_grid_point_it_is_trained_once(self, at_once: NoProcesses) -> None:
        for one in self.train(learning_rates=3, decades=2, lr=0.001):
            assert one.members.learning_rates.shape == (3,)
            assert one.on_grid.all()

    def test_a_common_rate_as_a_person_types_it_is_the_grid_point_it_names(self, at_once: NoProcesses) -> None:
        """The grid's points are computed, and 0.0001 is one of 0.001's; it is not trained a second time beside it."""
        for typed in (1e-6, 1e-5, 1e-4, 1e-2, 1e-1, 1.0):
            for one in self.train(learning_rates=13, decades=6, lr=typed):
                assert one.members.learning_rates.shape == (13,), f"{typed}: {one.members.learning_rates}"

    def test_those_that_train_one_by_one_come_first_each_rate_for_itself(self, at_once: NoProcesses) -> None:
        self.train(optimizers="SGD,LBFGS", workers=64)
        assert [job[0].name for job in at_once.jobs] == ["LBFGS"] * 4 + ["SGD"]
        assert [len(job[1]) for job in at_once.jobs] == [1, 1, 1, 1, 4]
        assert at_once.counts == [5], "no more processes than jobs"

    def test_what_is_cut_into_chunks_is_put_together_again_in_the_order_of_rates_and_seeds(
        self, at_once: NoProcesses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = {"optimizers": "SGD,LBFGS", "learning_rates": 2, "seeds": 5}
        whole = self.train(**options)
        assert len(at_once.jobs) == 5, "LBFGS at four rates, and SGD at once"
        monkeypatch.setattr("tasks.compare.SEEDS_ALONE", 2)
        monkeypatch.setattr("tasks.compare.seeds_at_once", lambda problem, rates: 3)
        at_once.jobs.clear()
        cut = self.train(**options)
        seeds = [[start.seed for start in job[-1]] for job in at_once.jobs]
        assert seeds == [[0, 1], [2, 3], [4]] * 4 + [[0, 1, 2], [3, 4]]
        for one, other in zip(whole, cut, strict=True):
            for field in fields(Members):
                if field.name != "seconds":
                    here, there = getattr(one.members, field.name), getattr(other.members, field.name)
                    assert here.tobytes() == there.tobytes(), f"{one.label}: {field.name}"

    def test_the_controls_are_trained_like_all_others(self, at_once: NoProcesses) -> None:
        config = CompareConfig(**SMALL)
        posed = pose(config, load(config.training()))
        found = {one.label: one for one in train_members.fn(config, posed, controls())}
        assert len(found) == 5
        plain, again = found["control: SGD"], found["control: SGD again"]
        assert plain.members.loss.tobytes() == again.members.loss.tobytes()
        assert all(one.on_grid.sum() == 3 for one in found.values())


def members(parameters: Any) -> Members:
    """With coefficients (rates, seeds, parameters); the rest does not matter."""
    flat = np.asarray(parameters)
    nothing = np.zeros(flat.shape[:2])
    return Members(
        np.ones(len(flat)), flat, *(nothing for _ in range(7)), np.zeros((*flat.shape[:2], 2)), nothing
    )  # fmt: skip


class TestDistances:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_they_are_from_least_squares_in_the_users_units(
        self, rows_file: str, standardize: bool, dtype: str
    ) -> None:
        config = of_file(rows_file, standardize=standardize, dtype=dtype)
        data = load(config.training())
        posed = pose(config, data)
        x, y = data.x.numpy().astype(np.float64), data.y.numpy().astype(np.float64)
        design = np.column_stack([x, np.ones(len(x))])
        exact = np.linalg.lstsq(design / np.linalg.norm(design, axis=0), y, rcond=None)[0]
        exact /= np.linalg.norm(design, axis=0)[:, None]
        made = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(dtype)
        expected = np.empty((2, 3))
        for place in np.ndindex(2, 3):
            w, b = made[place][:4].astype(np.float64).reshape(2, 2), made[place][4:].astype(np.float64)
            if standardize:
                w = w * y.std(axis=0)[:, None] / x.std(axis=0)
                b = b * y.std(axis=0) + y.mean(axis=0) - w @ x.mean(axis=0)
            expected[place] = np.linalg.norm(np.vstack([w.T, b]) - exact)
        np.testing.assert_allclose(distances(posed, data, members(made)), expected, rtol=1e-5)

    @pytest.mark.parametrize("standardize", [False, True])
    def test_through_the_origin_they_are_of_the_slopes_alone(self, rows_file: str, standardize: bool) -> None:
        config = of_file(rows_file, standardize=standardize, intercept=False, dtype="float64")
        data = load(config.training())
        x, y = data.x.numpy(), data.y.numpy()
        made = np.random.default_rng(1).normal(size=(2, 3, 4))
        slopes = made.reshape(2, 3, 2, 2)
        if standardize:
            slopes = slopes * np.sqrt((y**2).mean(axis=0))[:, None] / np.sqrt((x**2).mean(axis=0))
        exact = np.linalg.lstsq(x, y, rcond=None)[0].T
        expected = np.linalg.norm((slopes - exact).reshape(2, 3, 4), axis=-1)
        np.testing.assert_allclose(distances(pose(config, data), data, members(made)), expected, rtol=1e-8)

    def test_of_the_line_it_is_the_distance_from_w_2_and_b_0(self) -> None:
        config = CompareConfig(seeds=1)
        data = load(config.training())
        found = distances(pose(config, data), data, members(np.array([[[5.0, 4.0]], [[2.0, 0.0]]], dtype=np.float32)))
        assert found is not None
        np.testing.assert_allclose(found, [[5.0], [0.0]], atol=1e-12)

    @pytest.mark.parametrize("options", [{"model": "mlp"}, {"loss": "l1"}, {"loss": "huber"}])
    def test_where_least_squares_is_no_answer_there_are_none(self, options: dict[str, Any]) -> None:
        config = CompareConfig(**options, seeds=1)
        data = load(config.training())
        assert distances(pose(config, data), data, members(np.zeros((1, 1, 2)))) is None

    def test_coefficients_that_ran_away_have_a_distance_without_a_warning(self) -> None:
        config = CompareConfig(seeds=1, dtype="float64")
        data = load(config.training())
        found = distances(pose(config, data), data, members([[[np.inf, 0.0], [np.nan, 1.0], [1e100, -1e100]]]))
        assert found is not None
        assert found.shape == (1, 3)
        assert not (found < 1e99).any()

    def test_a_trained_member_is_as_far_as_its_own_numbers_say(self) -> None:
        config = CompareConfig(seeds=2, budget=30)
        data: Dataset = load(config.training())
        posed = pose(config, data)
        trained = train_population(posed.problem, Contestant.parse("SGD").optimizer, [0.01], stacked=True)
        w, b = trained.parameters[0, :, 0].astype(np.float64), trained.parameters[0, :, 1].astype(np.float64)
        np.testing.assert_allclose(distances(posed, data, trained), [np.hypot(w - 2, b)], rtol=1e-9)


def test_the_floor_is_what_rounding_leaves_of_the_rows_that_are_reported(rows_file: str) -> None:
    config = of_file(rows_file, standardize=False)
    data = load(config.training())
    posed = pose(config, data)
    y = data.y_test.numpy().astype(np.float64)
    assert posed.floor == pytest.approx(np.mean((y * 4 * 2.0**-23) ** 2), rel=0.3)
    assert posed.floor < float(LOSSES["mse"](posed.problem.test[1], torch.zeros_like(posed.problem.test[1])))


def test_a_start_is_picklable_with_its_generators() -> None:
    config = CompareConfig(seeds=1)
    (start,) = pose(config, load(config.training())).problem.starts
    again: Start = pickle.loads(pickle.dumps(start))
    assert flat(again.network).tobytes() == flat(start.network).tobytes()
    assert torch.equal(again.random_states[0], start.random_states[0])
