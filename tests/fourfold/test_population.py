"""Stacked trainings, against `fit` and against bare loops over torch.optim."""

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from fourfold import population
from fourfold.comparison import SHUFFLE, controls
from fourfold.errors import RequestError
from fourfold.fitting import FitConfig, FitResult, Outcome, fit
from fourfold.losses import LOSSES
from fourfold.optimizers import OptimizerConfig, optimizer_classes
from fourfold.population import Members, Problem, Start, train_population
from fourfold.stackable import why_not_stacked
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron

X = torch.tensor([[1.0], [2.0], [3.0]])
Y = 2 * X
NO_ROWS = torch.empty(0, 1)
# The line's steepest curvature is 33.3: the last of these diverges for plain descent.
RATES = (1e-3, 1e-2, 0.3)

UNFIT = {
    "SparseAdam": "SparseAdam does not support dense gradients",
    "Muon": "Muon only supports 2D parameters",
}
COUPLED = ("LBFGS", "Adafactor")
STACKABLE = [name for name in optimizer_classes() if name not in (*UNFIT, *COUPLED)]
TRAINABLE = [name for name in optimizer_classes() if name not in UNFIT]

Make = Callable[[], nn.Module]


pytestmark = pytest.mark.usefixtures("one_thread")


def begin(count: int, make: Make = LinearRegression, dtype: torch.dtype | None = None) -> tuple[Start, ...]:
    starts = []
    for seed in range(count):
        torch.manual_seed(seed)
        random.seed(seed)
        starts.append(Start.now(seed, make().to(dtype)))
    return tuple(starts)


def pose(seeds: int = 3, make: Make = LinearRegression, dtype: torch.dtype = torch.float32, **other: Any) -> Problem:
    given: dict[str, Any] = {
        "x": X,
        "y": Y,
        "validation": (NO_ROWS, NO_ROWS),
        "test": (NO_ROWS, NO_ROWS),
        "loss": "sse",
        "batch_size": None,
        "budget": 12,
        "goal": 1e-3,
    } | other
    for name in ("x", "y"):
        given[name] = given[name].to(dtype)
    for name in ("validation", "test"):
        given[name] = tuple(rows.to(dtype) for rows in given[name])
    return Problem(starts=begin(seeds, make, dtype), **given)


def configured(name: str, **options: Any) -> OptimizerConfig:
    return OptimizerConfig(name, 0.01, options)


def flat(network: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in network.parameters() if p.requires_grad])


def fitted(problem: Problem, optimizer: OptimizerConfig, lr: float, start: Start) -> tuple[nn.Module, FitResult]:
    """One training by `fit`, with nothing of the population but what it was asked to do."""
    network = copy.deepcopy(start.network)
    epochs = problem.budget // math.ceil(len(problem.x) / (problem.batch_size or len(problem.x)))
    config = FitConfig(
        replace(optimizer, lr=lr), None, epochs, problem.batch_size, problem.loss, start.seed, problem.budget
    )
    torch.set_rng_state(start.random_states[0])
    random.setstate(start.random_states[1])
    return network, fit(network, problem.x, problem.y, config)


def assert_fitted(members: Members, problem: Problem, optimizer: OptimizerConfig) -> None:
    """Each member is, bit for bit, what `fit` makes of it."""
    for row, lr in enumerate(members.learning_rates):
        for column, start in enumerate(problem.starts):
            network, result = fitted(problem, optimizer, float(lr), start)
            here = f"learning rate {lr}, seed {start.seed}"
            assert np.array_equal(members.parameters[row, column], flat(network), equal_nan=True), here
            assert np.array_equal(members.loss[row, column], result.loss, equal_nan=True), here
            assert members.diverged[row, column] == (result.outcome is Outcome.DIVERGED), here
            assert members.evaluations[row, column] == result.gradient_evaluations, here


def assert_same(one: Members, other: Members, but: Sequence[str] = ()) -> None:
    for field in fields(Members):
        if field.name not in ("seconds", *but):
            first, second = getattr(one, field.name), getattr(other, field.name)
            assert (first.dtype, first.shape) == (second.dtype, second.shape), field.name
            assert np.array_equal(first, second, equal_nan=True), field.name


def part(members: Members, rows: Any = slice(None), columns: Any = slice(None)) -> Members:
    values = {field.name: getattr(members, field.name)[rows] for field in fields(Members)}
    return Members(**{name: v if name == "learning_rates" else v[:, columns] for name, v in values.items()})


def waves(rows: int = 24) -> dict[str, Tensor]:
    x = torch.linspace(-2, 2, rows).unsqueeze(1)
    return {"x": x, "y": torch.sin(2 * x)}


def perceptron() -> nn.Module:
    return MultilayerPerceptron(1, 1, (8, 8))


def bare_run(
    problem: Problem, optimizer: Callable[[list[nn.Parameter]], Optimizer], start: Start
) -> tuple[nn.Module, Optimizer, list[float]]:
    """The textbook's loop over all rows; gives the losses before each step."""
    network, losses = copy.deepcopy(start.network), []
    stepped = optimizer(list(network.parameters()))
    for _ in range(problem.budget):
        stepped.zero_grad()
        loss = LOSSES[problem.loss](network(problem.x), problem.y)
        loss.backward()
        stepped.step()
        losses.append(loss.item())
    return network, stepped, losses


def measured(network: nn.Module, rows: tuple[Tensor, Tensor], loss: str = "sse") -> float:
    with torch.no_grad():
        return LOSSES[loss](network.eval()(rows[0]), rows[1]).item()


class Widened(LinearRegression):
    """A line with something more, as each network below."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.widen()

    def widen(self) -> None:
        pass


class Idle(Widened):
    def widen(self) -> None:
        self.idle = nn.Parameter(torch.tensor([1.0, 2.0]))


class Frozen(Widened):
    def widen(self) -> None:
        self.linear.bias.requires_grad_(False).fill_(0.25)


class FrozenAtRandom(Widened):
    def widen(self) -> None:
        self.linear.bias.requires_grad_(False)


class Buffered(Widened):
    def widen(self) -> None:
        self.register_buffer("slope", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.slope


class BufferedAtRandom(Buffered):
    def widen(self) -> None:
        self.register_buffer("slope", torch.rand(()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.second(torch.tanh(self.first(x)))
        return prediction


class Scalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class MixedTypes(Scalars):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(self.bias.detach().double())


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2).t())
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.out(torch.cat([x, x**2], 1) @ self.weight)
        return prediction


class DecidesByRows(LinearRegression):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 3.5 else 2 * super().forward(x)


class DecidesByPrediction(LinearRegression):
    def forward(self, x: Tensor) -> Tensor:
        prediction = super().forward(x)
        return prediction if prediction.sum() > 0 else 2 * prediction


class SteeperInEvaluation(LinearRegression):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if self.training else 3)


class ClampsInEvaluation(LinearRegression):
    def forward(self, x: Tensor) -> Tensor:
        prediction = super().forward(x)
        return prediction.clamp(-9, 9) if not self.training and prediction.abs().max() > 9 else prediction


class ForksAtRandom(LinearRegression):
    def forward(self, x: Tensor) -> Tensor:
        prediction = super().forward(x)
        return prediction if random.random() < 0.5 else 2 * prediction


class ShiftsAtRandom(LinearRegression):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (random.random() if self.training else 0.5)


class Counts(LinearRegression):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        return super().forward(x)


def between(module: nn.Module) -> Make:
    return lambda: nn.Sequential(nn.Linear(1, 8), copy.deepcopy(module), nn.Linear(8, 1))


def from_seed(later: int, change: Callable[[nn.Module], None]) -> Make:
    """Networks alike, but that those from a seed on are changed."""

    def make() -> nn.Module:
        network = Buffered()
        if torch.initial_seed() >= later:
            change(network)
        return network

    return make


def steeper(network: nn.Module) -> None:
    network.slope.fill_(5.0)


def freeze_bias(network: nn.Module) -> None:
    network.linear.bias.requires_grad_(False)


def one_buffer_more(network: nn.Module) -> None:
    network.register_buffer("more", torch.zeros(2))


def other_type_of_buffer(network: nn.Module) -> None:
    network.slope = network.slope.double()


# Whether they can be stacked at all is theirs to say; None where both answers would be right.
NETWORKS: dict[str, tuple[Make, bool | None]] = {
    "line": (LinearRegression, True),
    "line through the origin": (lambda: nn.Linear(1, 1, bias=False), True),
    "perceptron": (perceptron, True),
    "frozen": (Frozen, True),
    "buffered": (Buffered, True),
    "tied": (Tied, True),
    "scalars": (Scalars, True),
    "transposed": (Transposed, True),
    "steeper in evaluation": (SteeperInEvaluation, True),
    "idle": (Idle, None),
    "decides by rows": (DecidesByRows, None),
    "clamps in evaluation": (ClampsInEvaluation, None),
    "decides by prediction": (DecidesByPrediction, False),
    "frozen at random": (FrozenAtRandom, False),
    "buffered at random": (BufferedAtRandom, False),
    "mixed types": (MixedTypes, False),
    "dropout": (between(nn.Dropout(0.5)), False),
    "batch norm": (between(nn.BatchNorm1d(8)), False),
    "forks at random": (ForksAtRandom, False),
    "shifts at random": (ShiftsAtRandom, False),
    "counts": (Counts, False),
    "another buffer in the second": (from_seed(1, steeper), False),
    "another buffer in the fourth": (from_seed(3, steeper), False),
    "a frozen bias in the second": (from_seed(1, freeze_bias), False),
    "a buffer more in the second": (from_seed(1, one_buffer_more), False),
}


class TestSameAsAlone:
    """A member is what `fit` makes of the same start."""

    @pytest.mark.parametrize("name", STACKABLE)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_bit_for_bit_on_the_line(self, name: str, dtype: torch.dtype, batch_size: int | None) -> None:
        problem = pose(2, dtype=dtype, batch_size=batch_size)
        members = train_population(problem, configured(name), RATES, stacked=True)
        assert members.parameters.dtype == (np.float32 if dtype is torch.float32 else np.float64)
        assert_fitted(members, problem, configured(name))

    @pytest.mark.parametrize("name", STACKABLE)
    def test_bit_for_bit_with_more_members_than_a_vector_register_takes(self, name: str) -> None:
        problem = pose(21, budget=4)
        members = train_population(problem, configured(name), (1e-2,), stacked=True)
        assert_fitted(members, problem, configured(name))

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("SGD", {"momentum": 0.9, "nesterov": True}),
            ("SGD", {"weight_decay": 0.1, "dampening": 0.5, "momentum": 0.5}),
            ("SGD", {"maximize": True}),
            ("SGD", {"foreach": True}),
            ("Adam", {"betas": (0.5, 0.6), "amsgrad": True}),
            ("Adam", {"fused": True}),
            ("AdamW", {"weight_decay": 0.5}),
            ("RMSprop", {"centered": True, "momentum": 0.5}),
            ("Rprop", {"etas": (0.3, 1.7)}),
            ("ASGD", {"t0": 2.0, "lambd": 0.1}),
        ],
    )
    def test_bit_for_bit_with_options_where_it_says_so(self, name: str, options: dict[str, Any]) -> None:
        problem, optimizer = pose(21, budget=8), configured(name, **options)
        if not why_not_stacked(problem, optimizer):
            assert_fitted(train_population(problem, optimizer, (1e-3,), stacked=True), problem, optimizer)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_bit_for_bit_with_each_loss(self, loss: str, batch_size: int | None) -> None:
        problem = pose(loss=loss, batch_size=batch_size)
        assert_fitted(train_population(problem, configured("SGD"), RATES, stacked=True), problem, configured("SGD"))

    @pytest.mark.parametrize(("seeds", "rates"), [(1, (1e-2,)), (1, (1e-3, 1e-2)), (4, (1e-2,))])
    def test_bit_for_bit_with_a_single_rate_or_seed(self, seeds: int, rates: tuple[float, ...]) -> None:
        problem = pose(seeds)
        assert_fitted(train_population(problem, configured("Adam"), rates, stacked=True), problem, configured("Adam"))

    @pytest.mark.parametrize("budget", [2, 3, 7])
    def test_the_budget_left_over_by_whole_epochs_stays_unused(self, budget: int) -> None:
        problem = pose(batch_size=2, budget=budget)
        members = train_population(problem, configured("SGD"), (1e-2,), stacked=True)
        assert set(members.evaluations.flat) == {budget // 2 * 2}
        assert_fitted(members, problem, configured("SGD"))

    @pytest.mark.parametrize("name", STACKABLE)
    @pytest.mark.parametrize("batch_size", [None, 7])
    def test_a_perceptron_to_five_digits_of_its_loss(self, name: str, batch_size: int | None) -> None:
        problem = pose(make=perceptron, **waves(), loss="mse", batch_size=batch_size)
        members = train_population(problem, configured(name), (1e-3, 1e-2), stacked=True)
        for row, lr in enumerate(members.learning_rates):
            for column, start in enumerate(problem.starts):
                _, result = fitted(problem, configured(name), float(lr), start)
                assert members.loss[row, column] == pytest.approx(result.loss, rel=1e-5)

    @pytest.mark.parametrize("batch_size", [None, 2, 3])
    def test_several_features_and_targets(self, batch_size: int | None) -> None:
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
        problem = pose(make=lambda: LinearRegression(3, 2), x=x, y=y, loss="mse", batch_size=batch_size)
        members = train_population(problem, configured("SGD"), (1e-3, 1e-2), stacked=True)
        assert members.parameters.shape == (2, 3, 8)
        for row, lr in enumerate(members.learning_rates):
            for column, start in enumerate(problem.starts):
                network, result = fitted(problem, configured("SGD"), float(lr), start)
                assert members.parameters[row, column] == pytest.approx(flat(network), rel=1e-5, abs=1e-6)
                assert members.loss[row, column] == pytest.approx(result.loss, rel=1e-5)

    @pytest.mark.parametrize("name", ["SGD", "Adam"])
    def test_a_bare_loop_over_torch_ends_at_the_same_bits(self, name: str) -> None:
        problem = pose(4)
        members = train_population(problem, configured(name), (1e-3, 1e-2), stacked=True)
        for row, lr in enumerate((1e-3, 1e-2)):
            for column, start in enumerate(problem.starts):
                network, _, losses = bare_run(problem, lambda p, lr=lr: getattr(torch.optim, name)(p, lr=lr), start)
                assert members.parameters[row, column].tolist() == flat(network).tolist()
                assert members.curve[row, column].tolist() == [*losses, measured(network, (X, Y))]


class TestWhyNotStacked:
    """What cannot be stacked is found by trying."""

    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_network_is_judged_as_it_is(self, name: str) -> None:
        make, stackable = NETWORKS[name]
        problem = replace(pose(), starts=begin(4, make))
        why = why_not_stacked(problem, configured("SGD"))
        assert isinstance(why, str)
        assert "\n" not in why
        assert stackable is None or (why == "") is stackable, why

    @pytest.mark.parametrize("batch_size", [None, 2])
    @pytest.mark.parametrize(
        ("name", "optimizer"),
        [
            *((name, "SGD") for name, (_, stackable) in NETWORKS.items() if stackable is not False),
            ("idle", "ASGD"),
            ("idle", "AdamW"),
        ],
    )
    def test_what_is_stacked_is_what_it_is_alone(self, name: str, optimizer: str, batch_size: int | None) -> None:
        make, _ = NETWORKS[name]
        problem = replace(pose(batch_size=batch_size, budget=24, loss="mse"), starts=begin(4, make))
        if why_not_stacked(problem, configured(optimizer)):
            return
        members = train_population(problem, configured(optimizer), (1e-2,), stacked=True)
        for column, start in enumerate(problem.starts):
            network, result = fitted(problem, configured(optimizer), 1e-2, start)
            assert members.parameters[0, column] == pytest.approx(flat(network), rel=1e-5, abs=1e-6)
            assert members.loss[0, column] == pytest.approx(result.loss, rel=1e-5)

    @pytest.mark.parametrize("loss", ["l1", "huber"])
    def test_randomness_is_found_where_no_gradient_shows_it(self, loss: str) -> None:
        """Far from its targets such a loss has one gradient, whatever a network adds to its predictions."""
        problem = pose(make=ShiftsAtRandom, y=Y + 50, loss=loss)
        assert why_not_stacked(problem, configured("SGD")) != ""

    def test_dropout_is_found_where_no_gradient_shows_it(self) -> None:
        problem = pose(make=lambda: nn.Sequential(nn.Linear(1, 1), nn.Dropout(1e-4)), loss="l1")
        assert why_not_stacked(problem, configured("SGD")) != ""

    def test_networks_with_buffers_of_another_type_are_not_stacked(self) -> None:
        problem = replace(pose(), starts=begin(3, from_seed(1, other_type_of_buffer)))
        assert why_not_stacked(problem, configured("SGD")) != ""

    @pytest.mark.parametrize("name", optimizer_classes())
    def test_an_optimizer_is_judged_as_it_is(self, name: str) -> None:
        why = why_not_stacked(pose(), configured(name))
        assert (why == "") is (name in STACKABLE), why
        assert why == "" or why.startswith(name)

    @pytest.mark.parametrize("name", [*COUPLED, "Muon"])
    def test_an_optimizer_of_whole_tensors_is_found_on_a_single_weight_of_a_single_seed(self, name: str) -> None:
        problem = pose(1, make=lambda: nn.Linear(1, 1, bias=False))
        assert "more than one number at a time" in why_not_stacked(problem, configured(name))

    def test_the_control_that_shuffles_is_not_stacked(self) -> None:
        (shuffle,) = (one.optimizer for one in controls() if one.label == SHUFFLE)
        assert why_not_stacked(pose(), shuffle) != ""

    @pytest.mark.parametrize("rate", [0.01, 0.05])
    def test_a_learning_rate_of_its_own_is_kept_or_not_stacked(self, rate: float) -> None:
        """The one of the bias may be the optimizer's own, which the population replaces."""
        problem, optimizer = pose(), OptimizerConfig("SGD", 0.01, {}, {"bias": rate})
        if not why_not_stacked(problem, optimizer):
            assert_fitted(train_population(problem, optimizer, (1e-3, 3e-2), stacked=True), problem, optimizer)

    @pytest.mark.parametrize(("name", "reason"), UNFIT.items())
    def test_what_cannot_train_the_network_says_so_in_torchs_words(self, name: str, reason: str) -> None:
        assert reason in why_not_stacked(pose(), configured(name))
        with pytest.raises((RequestError, RuntimeError), match=reason):
            train_population(pose(), configured(name), (1e-2,), stacked=False)

    @pytest.mark.parametrize("name", ["line", "dropout", "batch norm", "forks at random", "shifts at random", "counts"])
    @pytest.mark.parametrize("optimizer", ["SGD", "LBFGS", "Muon"])
    def test_trying_changes_nothing(self, name: str, optimizer: str) -> None:
        problem = replace(pose(), starts=begin(3, NETWORKS[name][0]))
        before = [copy.deepcopy(start.network.state_dict()) for start in problem.starts]
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        why_not_stacked(problem, configured(optimizer))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]
        assert_untouched(problem, before)

    def test_the_generators_stand_as_they_did_after_a_network_that_raises(self) -> None:
        class Broken(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                random.random()
                torch.rand(3)
                raise KeyError("no such luck\nat all")

        problem = pose(make=lambda: Broken(1, 1))
        states = torch.get_rng_state(), random.getstate()
        assert why_not_stacked(problem, configured("SGD")).endswith("no such luck\\nat all'")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]


def assert_untouched(problem: Problem, before: list[dict[str, Tensor]]) -> None:
    for start, state in zip(problem.starts, before, strict=True):
        assert start.network.training
        assert all(parameter.grad is None for parameter in start.network.parameters())
        for name, value in start.network.state_dict().items():
            assert torch.equal(value, state[name]), name


class TestDivergence:
    """A member that diverges stops where it was, and nobody else does."""

    @pytest.mark.parametrize("name", STACKABLE)
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_the_neighbours_of_a_lost_rate_do_not_notice(self, name: str, batch_size: int | None) -> None:
        problem = pose(batch_size=batch_size, budget=24)
        crowd = train_population(problem, configured(name), (1e-3, 1e30, 1e-2), stacked=True)
        calm = train_population(problem, configured(name), (1e-3, 1e-2), stacked=True)
        assert_same(part(crowd, [0, 2]), calm)

    @pytest.mark.parametrize("bad", [math.nan, 1e30])
    @pytest.mark.parametrize("name", STACKABLE)
    def test_the_neighbours_of_a_lost_seed_do_not_notice(self, name: str, bad: float) -> None:
        problem = pose(batch_size=2)
        network = copy.deepcopy(problem.starts[0].network)
        with torch.no_grad():
            network.linear.weight.fill_(bad)
        starts = (problem.starts[0], Start.now(7, network), *problem.starts[1:])
        crowd = train_population(replace(problem, starts=starts), configured(name), (1e-3, 1e-2), stacked=True)
        calm = train_population(problem, configured(name), (1e-3, 1e-2), stacked=True)
        assert crowd.diverged[:, 1].all()
        assert_same(part(crowd, columns=[0, 2, 3]), calm)
        assert_fitted(crowd, replace(problem, starts=starts), configured(name))

    def test_rates_are_lost_one_after_another_and_each_stops_as_alone(self) -> None:
        problem, rates = pose(budget=60), (0.01, 0.1, 0.2, 1.0, 1e6)
        members = train_population(problem, configured("SGD"), rates, stacked=True)
        assert members.diverged.all(axis=1).tolist() == [False, True, True, True, True]
        assert len(set(members.evaluations[:, 0])) == len(rates)
        assert_fitted(members, problem, configured("SGD"))

    def test_all_may_be_lost_at_once(self) -> None:
        problem = pose()
        members = train_population(problem, configured("SGD"), (1e30, 1e31), stacked=True)
        assert members.diverged.all()
        assert set(members.evaluations.flat) == {2}
        assert_fitted(members, problem, configured("SGD"))

    def test_a_fit_that_only_ends_badly_has_diverged_and_used_its_budget(self) -> None:
        problem = pose(budget=1)
        members = train_population(problem, configured("SGD"), (0.2,), stacked=True)
        assert members.diverged.all()
        assert set(members.evaluations.flat) == {1}
        assert np.isfinite(members.curve).all()
        assert_fitted(members, problem, configured("SGD"))

    @pytest.mark.parametrize("stacked", [True, False])
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_the_curve_is_infinite_behind_a_divergence(self, stacked: bool, batch_size: int | None) -> None:
        problem = pose(budget=40, batch_size=batch_size)
        members = train_population(problem, configured("SGD"), (0.2,), stacked=stacked)
        points = problem.curve_points()
        for column, start in enumerate(problem.starts):
            _, result = fitted(problem, configured("SGD"), 0.2, start)
            told = dict(zip(result.history.gradient_evaluations.tolist(), result.history.loss.tolist(), strict=True))
            expected = [told.get(int(point), math.inf) for point in points]
            assert members.curve[0, column].tolist() == expected
            assert math.isinf(expected[-1])

    @pytest.mark.parametrize("stacked", [True, False])
    def test_a_loss_that_overflows_is_infinite_in_the_curve(self, stacked: bool) -> None:
        members = train_population(pose(), configured("SGD"), (1e25,), stacked=stacked)
        assert np.isinf(members.loss).all()
        assert np.isinf(members.curve[..., 1:]).all()

    @pytest.mark.parametrize("stacked", [True, False])
    def test_a_curve_is_never_nan(self, stacked: bool) -> None:
        problem = pose(1)
        with torch.no_grad():
            problem.starts[0].network.linear.weight.fill_(math.nan)
        members = train_population(problem, configured("SGD"), (1e-2,), stacked=stacked)
        assert np.isposinf(members.curve).all()
        assert np.isposinf(members.evaluations_to_goal).all()
        assert np.isnan(members.loss).all()

    def test_the_averages_of_a_lost_member_do_not_hang_on_its_neighbours(self) -> None:
        class Cube(Scalars):
            def forward(self, x: Tensor) -> Tensor:
                return self.weight**3 * x + self.bias

        problem = pose(2, make=Cube, budget=30)
        with torch.no_grad():
            for start, weight in zip(problem.starts, (1.0, 3.0), strict=True):
                start.network.weight.fill_(weight)
        optimizer = configured("ASGD", t0=1.0)
        both = train_population(problem, optimizer, (2e-3,), stacked=True)
        assert both.diverged.tolist() == [[False, True]]
        alone = train_population(replace(problem, starts=problem.starts[1:]), optimizer, (2e-3,), stacked=True)
        assert_same(part(both, columns=[1]), alone)


class TestChunks:
    """The seeds may be taken in chunks, to bound the memory."""

    @pytest.mark.parametrize("most", [1, 2500])
    @pytest.mark.parametrize(("optimizer", "rates"), [("Adam", (1e-2, 1e30)), ("SGD", RATES), ("ASGD", (1e-4, 1e-3))])
    @pytest.mark.parametrize("batch_size", [None, 5])
    @pytest.mark.parametrize("make", [LinearRegression, perceptron])
    def test_chunks_change_no_bit(
        self,
        make: Make,
        batch_size: int | None,
        optimizer: str,
        rates: tuple[float, ...],
        most: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rows = (torch.tensor([[4.0]]), torch.tensor([[1.0]]))
        problem = pose(5, make=make, **waves(), batch_size=batch_size, validation=rows, test=rows, goal=20.0)
        config = configured(optimizer, **({"t0": 2.0} if optimizer == "ASGD" else {}))
        whole = train_population(problem, config, rates, stacked=True)
        monkeypatch.setattr(population, "MOST_NUMBERS_AT_ONCE", most)
        assert_same(train_population(problem, config, rates, stacked=True), whole)

    def test_less_than_a_member_at_once_still_takes_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = []
        original = population.Stack.train

        def counted(self: Any, *arguments: Any) -> Members:
            taken.append(len(self.first))
            return original(self, *arguments)

        monkeypatch.setattr(population.Stack, "train", counted)
        train_population(pose(4), configured("SGD"), (1e-2,), stacked=True)
        monkeypatch.setattr(population, "MOST_NUMBERS_AT_ONCE", 1)
        train_population(pose(4), configured("SGD"), (1e-2,), stacked=True)
        assert taken == [4, 1, 1, 1, 1]


class TestJoined:
    """Parts of a comparison put together."""

    @pytest.fixture
    def whole(self) -> Members:
        return train_population(pose(4, goal=30.0), configured("SGD"), RATES, stacked=True)

    def test_other_rates_make_more_rows(self, whole: Members) -> None:
        joined = Members.joined([part(whole, [0]), part(whole, [1, 2])], axis=0)
        assert_same(joined, whole)
        assert joined.learning_rates.tolist() == list(RATES)

    def test_other_seeds_make_more_columns(self, whole: Members) -> None:
        parts = [part(whole, columns=[0]), part(whole, columns=[1, 2]), part(whole, columns=[3])]
        assert_same(Members.joined(parts, axis=1), whole)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_one_part_is_the_whole(self, whole: Members, axis: int) -> None:
        assert_same(Members.joined([whole], axis=axis), whole)

    def test_the_order_is_that_of_the_parts(self, whole: Members) -> None:
        swapped = Members.joined([part(whole, [2]), part(whole, [0])], axis=0)
        assert_same(swapped, part(whole, [2, 0]))

    def test_the_seconds_are_joined_too(self, whole: Members) -> None:
        parts = [part(whole, columns=[0, 1]), part(whole, columns=[2, 3])]
        assert Members.joined(parts, axis=1).seconds.shape == (3, 4)

    def test_seeds_trained_apart_are_those_trained_together(self, whole: Members) -> None:
        problem = pose(4, goal=30.0)
        parts = [
            train_population(replace(problem, starts=(start,)), configured("SGD"), RATES, stacked=True)
            for start in problem.starts
        ]
        assert_same(Members.joined(parts, axis=1), whole)


@cache
def trained(name: str, stacked: bool, batch_size: int | None) -> tuple[Problem, Members]:
    rows = {"validation": (X + 0.5, 2 * X), "test": (X[:2] * 3, X[:2])}
    problem = pose(batch_size=batch_size, budget=40, goal=3.0, **rows)
    return problem, train_population(problem, configured(name), RATES, stacked=stacked)


@cache
def fits(name: str, stacked: bool, batch_size: int | None) -> dict[tuple[int, int], tuple[nn.Module, FitResult]]:
    """What `fit` says of the same trainings, by row and column."""
    problem, _ = trained(name, stacked, batch_size)
    return {
        (row, column): fitted(problem, configured(name), lr, start)
        for row, lr in enumerate(RATES)
        for column, start in enumerate(problem.starts)
    }


KINDS = [
    pytest.param(name, stacked, batch_size, id=f"{name}, {'stacked' if stacked else 'alone'}, batches of {batch_size}")
    for name, stacked in (("SGD", True), ("Adam", True), ("SGD", False), ("LBFGS", False), ("Adafactor", False))
    for batch_size in (None, 2)
]


@pytest.mark.parametrize(("name", "stacked", "batch_size"), KINDS)
class TestMembers:
    """Each array means what it is said to mean."""

    def test_a_row_for_each_rate_and_a_column_for_each_seed(
        self, name: str, stacked: bool, batch_size: int | None
    ) -> None:
        problem, members = trained(name, stacked, batch_size)
        assert members.learning_rates.tolist() == list(RATES)
        points = len(problem.curve_points())
        for field in fields(Members):
            shape = getattr(members, field.name).shape
            more = {"parameters": (2,), "curve": (points,)}.get(field.name, ())
            assert shape == ((3,) if field.name == "learning_rates" else (3, 3, *more)), field.name

    def test_what_fit_says_of_each(self, name: str, stacked: bool, batch_size: int | None) -> None:
        _, members = trained(name, stacked, batch_size)
        for index, (network, result) in fits(name, stacked, batch_size).items():
            assert members.parameters[index].tolist() == flat(network).tolist()
            assert members.loss[index] == result.loss
            assert members.diverged[index] == (result.outcome is Outcome.DIVERGED)
            assert members.evaluations[index] == result.gradient_evaluations

    def test_the_losses_are_those_of_the_parameters(self, name: str, stacked: bool, batch_size: int | None) -> None:
        problem, members = trained(name, stacked, batch_size)
        for index in np.ndindex(3, 3):
            w, b = members.parameters[index].astype(np.float64)
            judged = [(members.validation_loss[index], problem.validation), (members.test_loss[index], problem.test)]
            if not members.diverged[index]:
                judged.append((members.loss[index], (X, Y)))
            for said, (x, y) in judged:
                expected = np.sum((w * x.numpy().astype(np.float64) + b - y.numpy()) ** 2)
                if expected < 1e30:
                    assert said == pytest.approx(expected, rel=1e-4, abs=1e-9)

    def test_the_goal_is_reached_where_the_curve_first_is_there(
        self, name: str, stacked: bool, batch_size: int | None
    ) -> None:
        problem, members = trained(name, stacked, batch_size)
        for index, (_, result) in fits(name, stacked, batch_size).items():
            rows = zip(result.history.gradient_evaluations.tolist(), result.history.loss.tolist(), strict=True)
            there = [evaluations for evaluations, loss in rows if loss <= problem.goal]
            assert members.evaluations_to_goal[index] == (there[0] if there else math.inf)

    def test_the_curve_is_fits_own_at_the_points(self, name: str, stacked: bool, batch_size: int | None) -> None:
        problem, members = trained(name, stacked, batch_size)
        for index, (_, result) in fits(name, stacked, batch_size).items():
            at, losses, expected = result.history.gradient_evaluations.tolist(), result.history.loss.tolist(), []
            for point in problem.curve_points():
                known = [loss for evaluations, loss in zip(at, losses, strict=True) if evaluations <= point]
                over = result.outcome is Outcome.DIVERGED and point > at[-1]
                expected.append(math.inf if over else known[-1])
            assert members.curve[index].tolist() == expected

    def test_no_averages_but_those_of_asgd(self, name: str, stacked: bool, batch_size: int | None) -> None:
        assert np.isnan(trained(name, stacked, batch_size)[1].averaged_loss).all()

    def test_each_took_some_time(self, name: str, stacked: bool, batch_size: int | None) -> None:
        seconds = trained(name, stacked, batch_size)[1].seconds
        assert (seconds > 0).all()
        assert seconds.sum() < 60


class TestAverages:
    """What ASGD averages is judged beside what it ends with."""

    @pytest.mark.parametrize("with_test", [True, False])
    def test_the_averages_of_asgd_are_judged_on_the_reported_rows(self, with_test: bool) -> None:
        test = (X + 1, 2 * X) if with_test else (NO_ROWS, NO_ROWS)
        problem = pose(budget=30, validation=(X * 9, X), test=test)
        members = train_population(problem, configured("ASGD", t0=10.0), (1e-3, 1e-2), stacked=True)
        for row, lr in enumerate((1e-3, 1e-2)):
            for column, start in enumerate(problem.starts):
                network, optimizer, _ = bare_run(problem, lambda p, lr=lr: torch.optim.ASGD(p, lr=lr, t0=10.0), start)
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter.copy_(optimizer.state[parameter]["ax"])
                expected = measured(network, test if with_test else (X, Y))
                assert members.averaged_loss[row, column] == pytest.approx(expected, rel=1e-6)
                assert members.averaged_loss[row, column] != members.loss[row, column]

    def test_there_are_none_of_a_training_alone(self) -> None:
        members = train_population(pose(), configured("ASGD", t0=1.0), (1e-3,), stacked=False)
        assert np.isnan(members.averaged_loss).all()

    def test_before_averaging_begins_the_averages_are_the_parameters(self) -> None:
        members = train_population(pose(), configured("ASGD"), (1e-3, 1e-2), stacked=True)
        assert members.averaged_loss.tolist() == members.loss.tolist()


class TestMoreOfMembers:
    """What needs other problems than those above."""

    @pytest.mark.parametrize("stacked", [True, False])
    def test_rows_that_are_not_there_have_no_loss(self, stacked: bool) -> None:
        members = train_population(pose(), configured("SGD"), (1e-2,), stacked=stacked)
        assert np.isnan(members.validation_loss).all()
        assert np.isnan(members.test_loss).all()
        assert np.isfinite(members.loss).all()

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("stacked", [True, False])
    def test_other_rows_are_measured_in_batches_as_at_once(self, stacked: bool, loss: str) -> None:
        rows = (torch.linspace(0, 9, 11).unsqueeze(1), torch.linspace(1, 2, 11).unsqueeze(1))
        problem = pose(loss=loss, batch_size=2, validation=rows, dtype=torch.float64)
        members = train_population(problem, configured("SGD"), (1e-2,), stacked=stacked)
        for column, start in enumerate(problem.starts):
            network, _ = fitted(problem, configured("SGD"), 1e-2, start)
            expected = measured(network, problem.validation, loss)
            assert members.validation_loss[0, column] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("stacked", [True, False])
    def test_the_parameters_are_the_trainable_ones_in_order(self, stacked: bool) -> None:
        problem = pose(make=Transposed)
        members = train_population(problem, configured("SGD"), (1e-300,), stacked=stacked)
        for column, start in enumerate(problem.starts):
            assert members.parameters[0, column].tolist() == flat(start.network).tolist()
        assert train_population(pose(make=Frozen), configured("SGD"), (1e-2,), stacked=stacked).parameters.shape[2] == 1

    @pytest.mark.parametrize("stacked", [True, False])
    @pytest.mark.parametrize("name", ["SGD", "ASGD"])
    def test_a_training_leaves_the_networks_and_the_rows_as_they_were(self, name: str, stacked: bool) -> None:
        problem = pose(make=Buffered, batch_size=2)
        before = [copy.deepcopy(start.network.state_dict()) for start in problem.starts]
        x, y = problem.x.clone(), problem.y.clone()
        train_population(problem, configured(name), RATES, stacked=stacked)
        assert_untouched(problem, before)
        assert torch.equal(problem.x, x)
        assert torch.equal(problem.y, y)

    def test_a_stacked_training_draws_no_random_number(self) -> None:
        problem = pose(batch_size=2)
        states = torch.get_rng_state(), random.getstate()
        train_population(problem, configured("SGD"), RATES, stacked=True)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]

    @pytest.mark.parametrize("stacked", [True, False])
    def test_an_optimizers_own_learning_rate_does_not_count(self, stacked: bool) -> None:
        runs = [
            train_population(pose(), OptimizerConfig("Adam", lr), (1e-3, 1e-2), stacked=stacked) for lr in (1e-9, 5.0)
        ]
        assert_same(*runs)

    @pytest.mark.parametrize("make", [between(nn.Dropout(0.5)), ForksAtRandom, ShiftsAtRandom])
    def test_a_network_that_draws_begins_at_its_own_random_state(self, make: Make) -> None:
        problem = pose(make=make)
        forwards = train_population(problem, configured("SGD"), (1e-3, 1e-2), stacked=False)
        assert_fitted(forwards, problem, configured("SGD"))
        random.seed(99)
        torch.manual_seed(99)
        backwards = replace(problem, starts=problem.starts[::-1])
        again = train_population(backwards, configured("SGD"), (1e-3, 1e-2), stacked=False)
        assert_same(part(again, columns=[2, 1, 0]), forwards)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_alone_and_stacked_are_told_alike(self, dtype: torch.dtype) -> None:
        rows = (X + 1, X)
        problem = pose(dtype=dtype, batch_size=2, budget=30, goal=1.0, validation=rows, test=rows)
        runs = [train_population(problem, configured("Adam"), RATES, stacked=stacked) for stacked in (True, False)]
        assert_same(*runs)


class TestProblem:
    """How a budget becomes epochs and points."""

    @pytest.mark.parametrize(
        ("batch_size", "batches", "epochs"), [(None, 1, 100), (24, 1, 100), (99, 1, 100), (7, 4, 25), (1, 24, 4)]
    )
    def test_epochs_are_what_the_budget_pays(self, batch_size: int | None, batches: int, epochs: int) -> None:
        problem = pose(1, **waves(), batch_size=batch_size, budget=100)
        assert (problem.batches, problem.epochs) == (batches, epochs)

    @pytest.mark.parametrize("budget", [1, 2, 17, 100, 101, 5000])
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_points_are_whole_epochs_from_none_to_all(self, budget: int, batch_size: int | None) -> None:
        problem = pose(1, batch_size=batch_size, budget=max(budget, 2))
        points = problem.curve_points()
        assert points[0] == 0
        assert points[-1] == problem.epochs * problem.batches
        assert (np.diff(points) > 0).all()
        assert (points % problem.batches == 0).all()
        assert len(points) <= population.MOST_CURVE_POINTS + 1
        gaps = np.diff(points)
        assert (gaps[1:] >= gaps[:-1] - problem.batches).all(), "denser at the start"

    def test_a_start_keeps_where_the_generators_stand(self) -> None:
        torch.manual_seed(5)
        random.seed(5)
        start = Start.now(1, LinearRegression())
        drawn = functional.dropout(torch.ones(9)), random.random()
        torch.set_rng_state(start.random_states[0])
        random.setstate(start.random_states[1])
        assert torch.equal(functional.dropout(torch.ones(9)), drawn[0])
        assert random.random() == drawn[1]
