"""The inner loop, against bare loops over torch.optim and the exercise's published numbers."""

import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from fourfold.errors import RequestError, ScheduleError
from fourfold.fitting import (
    FitConfig,
    FitResult,
    History,
    Outcome,
    evaluate_loss,
    fit,
    try_out,
)
from fourfold.losses import LOSSES
from fourfold.optimizers import OptimizerConfig, SchedulerConfig
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron

X = torch.tensor([[1.0], [2.0], [3.0]])
Y = 2 * X

# Learning rate 0.01, seed 0, float32, the full batch of three points: w, b and the prediction at 4 after 100
# and after 1,000 epochs, and the loss before the last of 1,000 steps. Published with torch 2.13.0 on a CPU.
EXERCISE = {
    "SGD": ("1.7462902 0.5767419 7.5619025", "1.9996239 0.0008549 7.9993505", "3.2e-07"),
    "Adagrad": ("0.1730636 0.7165720 1.4088266", "0.5483452 1.0862552 3.2796359", "14.1"),
    "Adam": ("0.8212739 1.3469225 4.6320181", "1.7021080 0.6593928 7.4678249", "0.19"),
    "Adamax": ("0.7384750 1.2602524 4.2141523", "1.4959766 1.1172924 7.1011987", "0.54"),
    "ASGD": ("1.7462808 0.5767496 7.5618730", "1.9995725 0.0009578 7.9992480", "4.0e-07"),
    "LBFGS": ("1.9999477 0.0000307 7.9998212", "1.9999920 0.0000045 7.9999723", "5.3e-10"),
    "RMSprop": ("1.2046292 1.5993755 6.4178925", "2.0001504 0.0001500 8.0007515", "9.8e-07"),
    "Rprop": ("1.9999604 0.0000938 7.9999355", "1.9999998 -0.00000004 7.9999990", "1.2e-12"),
}
CELLS = [
    pytest.param(name, epochs, printed, id=f"{name}, {epochs} epochs")
    for name, (early, late, _) in EXERCISE.items()
    for epochs, printed in ((100, early), (1000, late))
]

# Read from torch, so that an optimizer that torch adds is tested without being named here.
OPTIMIZERS = [
    name
    for name in torch.optim.__all__
    if inspect.isclass(offered := getattr(torch.optim, name))
    and issubclass(offered, Optimizer)
    and offered is not Optimizer
]
UNFIT = {
    "SparseAdam": "takes sparse gradients only, and a linear layer has dense ones",
    "Muon": "takes matrices only, and a bias is a vector",
}
EACH_OPTIMIZER = [
    pytest.param(name, marks=[pytest.mark.skip(reason=f"{name} {UNFIT[name]}")] if name in UNFIT else [])
    for name in OPTIMIZERS
]
SCHEDULERS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 5, "gamma": 0.5},
    "MultiStepLR": {"milestones": (3, 8), "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 7},
    "LinearLR": {"start_factor": 0.25, "total_iters": 10},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 15, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 20},
    "CosineAnnealingWarmRestarts": {"T_0": 6},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.02, "step_size_up": 4},
    "OneCycleLR": {"max_lr": 0.02, "total_steps": 20},
    "ReduceLROnPlateau": {"patience": 0, "threshold": 0.9},
}


class Line(nn.Module):
    """A line whose training forwards are recorded: each one is a gradient that was asked for."""

    def __init__(self, weight: float = 0.5, bias: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        return self.weight * x + self.bias


def seeded(seed: int = 0) -> LinearRegression:
    torch.manual_seed(seed)
    return LinearRegression()


def plan(optimizer: str = "SGD", lr: float = 0.01, *, options: dict[str, Any] | None = None, **rest: Any) -> FitConfig:
    return FitConfig(OptimizerConfig(optimizer, lr, options or {}), **rest)


def noise(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A feature and a target that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, generator=generator), torch.randn(rows, 1, generator=generator)


def bare_loop(
    network: nn.Module,
    optimizer: Optimizer,
    epochs: int,
    x: Tensor = X,
    y: Tensor = Y,
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> tuple[list[float], int]:
    """The textbook's loop; gives the losses and how many gradients were computed."""
    criterion, losses, evaluations = nn.MSELoss(reduction="sum"), [], 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss: Tensor = criterion(network(x), y)
        loss.backward()
        return loss

    for _ in range(epochs):
        loss = optimizer.step(closure)  # type: ignore[arg-type]
        losses.append(loss.item())  # type: ignore[attr-defined]
        after_step(loss)  # type: ignore[arg-type]
    return losses, evaluations


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def assert_same_run(one: FitResult, other: FitResult) -> None:
    assert (one.outcome, one.loss, one.epochs) == (other.outcome, other.loss, other.epochs)
    assert one.gradient_evaluations == other.gradient_evaluations
    for name in ("loss", "gradient_evaluations", "lr", "values"):
        assert np.array_equal(getattr(one.history, name), getattr(other.history, name)), name


@cache
def exercise_run(name: str, epochs: int) -> tuple[LinearRegression, History]:
    """A run of the table; several tests look at it."""
    network = seeded()
    return network, fit(network, X, Y, plan(name, epochs=epochs)).history


class TestExercise:
    """The table that the exercise publishes."""

    @pytest.mark.parametrize(("name", "epochs", "printed"), CELLS)
    def test_a_cell_of_the_table(self, name: str, epochs: int, printed: str) -> None:
        """Within one unit of the last printed digit, and the spacing of float32 there, which can be the larger."""
        network, _ = exercise_run(name, epochs)
        w, b, at_four = network.linear.weight.item(), network.linear.bias.item(), network(torch.tensor([[4.0]])).item()
        for value, text in zip((w, b, at_four), printed.split(), strict=True):
            unit = Decimal(1).scaleb(Decimal(text).as_tuple().exponent)  # type: ignore[arg-type]
            spacing = Decimal(float(np.spacing(np.float32(value))))
            assert abs(Decimal(value) - Decimal(text)) <= unit + spacing, (value, text)

    @pytest.mark.parametrize("name", EXERCISE)
    def test_the_loss_before_the_last_of_a_thousand_steps(self, name: str) -> None:
        """To two significant digits."""
        _, history = exercise_run(name, 1000)
        assert f"{history.loss[-2]:.1e}" == f"{float(EXERCISE[name][2]):.1e}"

    def test_the_tutorials_cubic_ends_where_least_squares_does(self) -> None:
        """Exercise 2: b and d of the cubic through a sine, and the loss, as published; here by LBFGS in float64."""
        x = torch.linspace(-torch.pi, torch.pi, 2000, dtype=torch.float64).unsqueeze(1)
        network = LinearRegression(3).double()
        options = {"line_search_fn": "strong_wolfe"}
        result = fit(
            network, torch.cat([x, x**2, x**3], 1), torch.sin(x), plan("LBFGS", 1.0, options=options, epochs=20)
        )
        assert network.linear.weight.tolist()[0] == pytest.approx([0.8567408431, 0, -0.0933303890], abs=1e-7)
        assert result.loss == pytest.approx(8.8171654, abs=5.1e-8)


class TestSameBits:
    """A fit is a bare loop over torch.optim, bit for bit."""

    @pytest.mark.parametrize("name", EACH_OPTIMIZER)
    def test_every_optimizer(self, name: str) -> None:
        network, bare = seeded(), seeded()
        losses, evaluations = bare_loop(bare, getattr(torch.optim, name)(bare.parameters(), lr=0.01), epochs=10)
        result = fit(network, X, Y, plan(name, epochs=10))
        assert_same_weights(network, bare)
        assert result.history.loss[:-1].tolist() == losses
        assert result.gradient_evaluations == evaluations

    @pytest.mark.parametrize("name", EACH_OPTIMIZER)
    def test_every_optimizer_in_float64(self, name: str) -> None:
        network, bare = seeded().double(), seeded().double()
        bare_loop(bare, getattr(torch.optim, name)(bare.parameters(), lr=0.01), 10, X.double(), Y.double())
        fit(network, X.double(), Y.double(), plan(name, epochs=10))
        assert network.linear.weight.dtype == torch.float64
        assert_same_weights(network, bare)

    def test_muon_on_a_matrix(self) -> None:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
        networks = []
        for _ in range(2):
            torch.manual_seed(0)
            networks.append(nn.Linear(3, 2, bias=False))
        bare_loop(networks[0], torch.optim.Muon(networks[0].parameters(), lr=0.01), 20, x, x[:, :2])
        fit(networks[1], x, x[:, :2], plan("Muon", epochs=20))
        assert_same_weights(*networks)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("SGD", {"momentum": 0.9, "nesterov": True}),
            ("Adam", {"betas": (0.8, 0.99), "amsgrad": True}),
            ("LBFGS", {"line_search_fn": "strong_wolfe", "max_iter": 3}),
        ],
    )
    def test_an_optimizer_with_options(self, name: str, options: dict[str, Any]) -> None:
        network, bare = seeded(), seeded()
        bare_loop(bare, getattr(torch.optim, name)(bare.parameters(), lr=0.01, **options), epochs=50)
        fit(network, X, Y, plan(name, options=options, epochs=50))
        assert_same_weights(network, bare)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_every_scheduler_that_needs_no_function(self, name: str) -> None:
        network, bare = seeded(), seeded()
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.01, momentum=0.5)
        scheduler = getattr(lr_scheduler, name)(optimizer, **SCHEDULERS[name])
        rates = [optimizer.param_groups[0]["lr"]]

        def after_step(loss: Tensor) -> None:
            scheduler.step(loss.item()) if name == "ReduceLROnPlateau" else scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])

        bare_loop(bare, optimizer, 20, after_step=after_step)
        schedule = SchedulerConfig(name, SCHEDULERS[name])
        result = fit(network, X, Y, plan(options={"momentum": 0.5}, scheduler=schedule, epochs=20))
        assert len(set(rates)) > 1, "a schedule that changes nothing shows nothing"
        assert result.history.lr.tolist() == rates
        assert_same_weights(network, bare)

    def test_a_learning_rate_of_its_own_for_the_bias(self) -> None:
        network, bare = seeded(), seeded()
        groups = [{"params": [bare.linear.weight]}, {"params": [bare.linear.bias], "lr": 0.05}]
        bare_loop(bare, torch.optim.SGD(groups, lr=0.01), epochs=50)
        result = fit(network, X, Y, FitConfig(OptimizerConfig("SGD", 0.01, lr_for={"bias": 0.05}), epochs=50))
        assert_same_weights(network, bare)
        assert set(result.history.lr) == {0.01}, "the curve is that of the first group"

    @pytest.mark.parametrize("batch_size", [3, 4, 1000])
    def test_a_batch_of_all_rows_is_the_full_batch(self, batch_size: int) -> None:
        network, full = seeded(), seeded()
        fit(network, X, Y, plan(epochs=20, batch_size=batch_size))
        fit(full, X, Y, plan(epochs=20))
        assert_same_weights(network, full)

    @pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS"])
    @pytest.mark.parametrize("batch_size", [None, 7])
    @pytest.mark.parametrize("scheduler", [None, "StepLR", "ReduceLROnPlateau"])
    def test_two_runs(self, name: str, batch_size: int | None, scheduler: str | None) -> None:
        x, y = noise(20)
        schedule = SchedulerConfig(scheduler, SCHEDULERS[scheduler]) if scheduler else None
        config = plan(name, epochs=6, batch_size=batch_size, scheduler=schedule, loss="mse", seed=3)
        networks = seeded(), seeded()
        runs = [fit(network, x, y, config) for network in networks]
        assert_same_run(*runs)
        assert_same_weights(*networks)


class TestBatches:
    """The rows of each step."""

    def test_an_epoch_visits_each_row_once(self) -> None:
        x = torch.arange(10.0).unsqueeze(1)
        network = Line()
        fit(network, x, x, plan(lr=1e-6, epochs=3, batch_size=4))
        assert [len(batch) for batch in network.seen] == 3 * [4, 4, 2]
        epochs = [torch.cat(network.seen[3 * epoch : 3 * epoch + 3]).flatten() for epoch in range(3)]
        for rows in epochs:
            assert rows.sort().values.tolist() == x.flatten().tolist()
        assert len({tuple(rows.tolist()) for rows in epochs}) == 3, "each epoch has an order of its own"

    def test_the_seed_decides_the_order(self) -> None:
        x = torch.arange(10.0).unsqueeze(1)
        orders = []
        for seed in (0, 0, 1):
            network = Line()
            fit(network, x, x, plan(lr=1e-6, epochs=2, batch_size=4, seed=seed))
            orders.append(torch.cat(network.seen).flatten().tolist())
        assert orders[0] == orders[1] != orders[2]

    def test_the_full_batch_keeps_its_order(self) -> None:
        network = Line()
        fit(network, X, Y, plan(epochs=2))
        assert [batch.tolist() for batch in network.seen] == 2 * [X.tolist()]

    def test_a_rows_target_stays_with_it(self) -> None:
        """Where y = 2 x holds exactly, no batch may show an error."""
        x = torch.arange(50.0).unsqueeze(1)
        result = fit(Line(2.0, 0.0), x, 2 * x, plan(epochs=3, batch_size=8))
        assert result.history.loss.tolist() == [0.0] * 4

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_losses_of_batches_add_up_by_rows(self, loss: str) -> None:
        """While the weights stand still, 13 rows in batches of 5, 5 and 3 have the loss of all at once."""
        x, y = noise(13)
        network = seeded()
        with torch.no_grad():
            at_once = LOSSES[loss](network(x), y).item()
        history = fit(network, x, y, plan(lr=1e-30, epochs=2, batch_size=5, loss=loss)).history
        assert history.loss == pytest.approx(np.full(3, at_once), rel=1e-6)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("batch_size", [1, 5, 13, 100])
    def test_evaluating_in_batches_is_evaluating_at_once(self, loss: str, batch_size: int) -> None:
        x, y = (values.double() for values in noise(13))
        network = seeded().double()
        with torch.no_grad():
            at_once = LOSSES[loss](network(x), y).item()
        assert evaluate_loss(network, x, y, loss) == at_once
        assert evaluate_loss(network, x, y, loss, batch_size) == pytest.approx(at_once, rel=1e-14)


class TestHistory:
    """Row e is the state after e epochs."""

    @pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS", "ASGD"])
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_a_row_is_where_a_shorter_fit_ends(self, name: str, batch_size: int | None) -> None:
        schedule = SchedulerConfig("ExponentialLR", {"gamma": 0.9})
        history = fit(seeded(), X, Y, plan(name, epochs=6, batch_size=batch_size, scheduler=schedule)).history
        assert len(history.loss) == len(history.lr) == len(history.values) == 7
        assert history.values[0].tolist() == [value.item() for value in seeded().parameters()]
        for epochs in (1, 3, 6):
            network = seeded()
            shorter = fit(network, X, Y, plan(name, epochs=epochs, batch_size=batch_size, scheduler=schedule))
            assert history.values[epochs].tolist() == [value.item() for value in network.parameters()]
            assert history.gradient_evaluations[epochs] == shorter.gradient_evaluations
            assert history.lr[epochs] == shorter.history.lr[-1]

    def test_a_rows_loss_is_that_of_its_weights(self) -> None:
        history = fit(seeded(), X, Y, plan(epochs=20)).history
        for loss, (w, b) in zip(history.loss, history.values, strict=True):
            assert loss == pytest.approx(np.sum((w * X.numpy() + b - Y.numpy()) ** 2), rel=1e-5)

    def test_the_last_row_is_measured_in_evaluation_mode(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.9), nn.Linear(16, 1))
        result = fit(network, X, Y, plan(lr=1e-30, epochs=2))
        with torch.no_grad():
            loss = nn.functional.mse_loss(network.eval()(X), Y, reduction="sum").item()
        assert result.loss == result.history.loss[-1] == loss
        assert loss not in result.history.loss[:-1]

    @pytest.mark.parametrize("outcome", Outcome)
    def test_the_network_is_left_in_evaluation_mode(self, outcome: Outcome) -> None:
        network = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.0))
        assert fit(network, X, Y, plan(lr=0.01 if outcome is Outcome.COMPLETED else 10.0, epochs=20)).outcome is outcome
        assert not any(module.training for module in network.modules())

    def test_one_gradient_a_step_for_most(self) -> None:
        result = fit(Line(), X, Y, plan("Adam", epochs=10))
        assert result.history.gradient_evaluations.tolist() == list(range(11))
        result = fit(Line(), X, Y, plan("Adam", epochs=10, batch_size=2))
        assert result.history.gradient_evaluations.tolist() == list(range(0, 21, 2))

    def test_lbfgs_computes_more_gradients_than_it_makes_steps(self) -> None:
        """Each is counted, as the network's own forwards in training mode show."""
        network = Line()
        result = fit(network, X, Y, plan("LBFGS", epochs=20))
        assert result.gradient_evaluations == result.history.gradient_evaluations[-1] == len(network.seen)
        assert result.gradient_evaluations > 2 * 20
        assert result.history.gradient_evaluations[:2].tolist() == [0, 20]

    def test_each_parameter_has_a_curve_by_name(self) -> None:
        network = LinearRegression(2, 2)
        history = fit(network, torch.randn(5, 2), torch.randn(5, 2), plan(lr=1e-3, epochs=3)).history
        assert history.columns == (
            "linear.weight[0,0]",
            "linear.weight[0,1]",
            "linear.weight[1,0]",
            "linear.weight[1,1]",
            "linear.bias[0]",
            "linear.bias[1]",
        )
        expected = torch.cat([network.linear.weight.flatten(), network.linear.bias])
        assert history.values[-1].tolist() == expected.tolist()

    def test_a_scalar_parameter_is_named_without_an_index(self) -> None:
        assert fit(Line(), X, Y, plan(epochs=1)).history.columns == ("weight", "bias")

    @pytest.mark.parametrize(("features", "each"), [(15, True), (16, False)])
    def test_up_to_sixteen_parameters_have_curves_of_their_own(self, features: int, each: bool) -> None:
        network = LinearRegression(features)
        history = fit(network, torch.randn(5, features), torch.randn(5, 1), plan(lr=1e-3, epochs=1)).history
        assert len(history.columns) == (16 if each else 2)
        assert ("norm/linear.weight" in history.columns) is not each

    def test_beyond_sixteen_each_tensor_has_its_norm(self) -> None:
        torch.manual_seed(0)
        network = MultilayerPerceptron(1, 1, (8,))
        first = [value.detach().clone() for value in network.parameters()]
        history = fit(network, X, Y, plan(lr=1e-3, epochs=5)).history
        assert history.columns == tuple(f"norm/{name}" for name, _ in network.named_parameters())
        for row, tensors in ((0, first), (-1, list(network.parameters()))):
            norms = [torch.linalg.vector_norm(tensor.detach().double()).item() for tensor in tensors]
            assert history.values[row] == pytest.approx(norms, rel=1e-6)

    def test_a_parameter_in_another_memory_order_has_its_curve_too(self) -> None:
        network = LinearRegression(3, 2)
        network.linear.weight = nn.Parameter(torch.randn(3, 2).t())
        assert not network.linear.weight.is_contiguous()
        history = fit(network, torch.randn(5, 3), torch.randn(5, 2), plan(lr=1e-3, epochs=4)).history
        expected = [*network.linear.weight.flatten().tolist(), *network.linear.bias.tolist()]
        assert history.values[-1].tolist() == expected

    def test_a_frozen_parameter_stays_and_has_a_level_curve(self) -> None:
        network = seeded()
        network.linear.bias.requires_grad_(False)
        bias = network.linear.bias.item()
        history = fit(network, X, Y, plan(epochs=10)).history
        assert set(history.values[:, 1]) == {bias}
        assert len(set(history.values[:, 0])) == 11

    def test_progress_ends_with_the_whole_fit(self) -> None:
        told: list[tuple[int, float]] = []
        result = fit(seeded(), X, Y, plan(epochs=30), lambda epoch, loss: told.append((epoch, loss)))
        assert told[0] == (1, result.history.loss[0])
        assert told[-1] == (30, result.loss)

    def test_an_exact_problem_is_solved_to_float64(self) -> None:
        network = seeded().double()
        options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
        result = fit(network, X.double(), Y.double(), plan("LBFGS", 1.0, options=options, epochs=20))
        assert network.linear.weight.item() == pytest.approx(2, abs=1e-12)
        assert network.linear.bias.item() == pytest.approx(0, abs=1e-12)
        assert result.loss < 1e-24


class TestDivergence:
    """What is called divergence, and what is not."""

    def test_a_rate_above_the_limit_diverges(self) -> None:
        """The line's steepest curvature is 33.3, so that descent needs a rate below 2 / 33.3 = 0.06."""
        assert fit(seeded(), X, Y, plan(lr=0.059, epochs=200)).outcome is Outcome.COMPLETED
        assert fit(seeded(), X, Y, plan(lr=0.061, epochs=200)).outcome is Outcome.DIVERGED

    def test_the_curve_stops_where_the_fit_did(self) -> None:
        network, bare = seeded(), seeded()
        result = fit(network, X, Y, plan(lr=0.2))
        losses, _ = bare_loop(bare, torch.optim.SGD(bare.parameters(), lr=0.2), epochs=5)
        assert result.outcome is Outcome.DIVERGED
        assert result.epochs == 4
        assert result.history.loss.tolist() == losses
        assert result.loss == losses[-1] > 1e6 * losses[0]
        assert len(result.history.values) == len(result.history.lr) == len(result.history.gradient_evaluations) == 5
        assert_same_weights(network, bare)

    def test_the_reason_is_a_sentence_with_numbers(self) -> None:
        result = fit(seeded(), X, Y, plan(lr=0.2))
        assert result.reason == "the loss went from 44.4 to 4.58e+07 within 5 epochs"

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
    def test_first_weights_that_give_no_finite_loss_diverge_at_once(self, bad: float) -> None:
        result = fit(Line(bad, 0.0), X, Y, plan())
        assert (result.outcome, result.epochs, len(result.history.loss)) == (Outcome.DIVERGED, 0, 1)
        assert not math.isfinite(result.loss)

    @pytest.mark.parametrize("epochs", [1, 20])
    def test_lbfgs_that_ends_finite_and_huge_has_diverged(self, epochs: int) -> None:
        result = fit(seeded(), X, Y, plan("LBFGS", 5.0, epochs=epochs))
        assert result.outcome is Outcome.DIVERGED
        assert math.isfinite(result.loss)
        assert result.loss > 1e20
        assert f"{result.loss:.3g}" in result.reason

    def test_a_single_epoch_that_makes_things_worse_has_diverged(self) -> None:
        result = fit(seeded(), X, Y, plan(lr=0.2, epochs=1))
        assert result.outcome is Outcome.DIVERGED
        assert result.epochs == 1
        assert "worse than the constant mean or its own start" in result.reason

    def test_an_overshoot_that_comes_back_is_none(self) -> None:
        result = fit(seeded(), X, Y, plan(lr=0.1, options={"momentum": 0.99}, epochs=3000))
        assert result.history.loss.max() > 5 * result.history.loss[0]
        assert result.outcome is Outcome.COMPLETED
        assert result.reason == ""
        assert result.loss < 1e-9

    @pytest.mark.parametrize("name", EACH_OPTIMIZER)
    def test_starting_at_the_optimum_is_none(self, name: str) -> None:
        result = fit(Line(2.0, 0.0), X, Y, plan(name, epochs=50))
        assert (result.outcome, result.epochs, result.reason) == (Outcome.COMPLETED, 50, "")

    @pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS"])
    def test_a_constant_target_that_is_already_met_is_none(self, name: str) -> None:
        assert fit(Line(0.0, 5.0), X, torch.full_like(X, 5.0), plan(name, epochs=50)).outcome is Outcome.COMPLETED

    @pytest.mark.parametrize("seed", [1, 4, 5])
    def test_mini_batches_that_wobble_about_the_optimum_are_none(self, seed: int) -> None:
        """Where there is nothing to learn the least-squares line is hardly better than the mean, and a wobble worse."""
        x, y = noise(100, seed)
        slope, intercept = np.polyfit(x[:, 0].numpy(), y[:, 0].numpy(), 1)
        result = fit(Line(slope, intercept), x, y, plan(lr=0.2, epochs=20, batch_size=10, loss="mse"))
        assert result.loss < 1.1 * y.var().item()
        assert result.outcome is Outcome.COMPLETED, result.reason

    def test_a_first_epoch_on_rows_without_a_pattern_is_none(self) -> None:
        x, y = noise(200, 1)
        torch.manual_seed(0)
        result = fit(MultilayerPerceptron(), x, y, plan("Adam", epochs=1, batch_size=16, loss="mse"))
        assert result.loss < 1.2 * y.var().item()
        assert result.outcome is Outcome.COMPLETED, result.reason


class TestTrial:
    """Trying an optimizer out on two rows of a copy."""

    @pytest.mark.parametrize("name", EACH_OPTIMIZER)
    def test_what_can_train_passes(self, name: str) -> None:
        network = seeded()
        try_out(network, X, Y, plan(name))
        assert_same_weights(network, seeded())
        assert network.training
        assert all(value.grad is None for value in network.parameters())

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("SparseAdam", "SparseAdam cannot train this model: SparseAdam does not support dense gradients"),
            ("Muon", "Muon refuses this request: Muon only supports 2D parameters"),
        ],
    )
    def test_what_cannot_is_refused_with_torchs_reason(self, name: str, reason: str) -> None:
        with pytest.raises(RequestError, match=reason):
            try_out(seeded(), X, Y, plan(name))

    def test_an_option_that_only_a_step_refuses_is_found(self) -> None:
        with pytest.raises(RequestError, match="LBFGS cannot train this model: only 'strong_wolfe' is supported"):
            try_out(seeded(), X, Y, plan("LBFGS", options={"line_search_fn": "armijo"}))

    def test_a_pattern_that_matches_nothing_is_refused(self) -> None:
        with pytest.raises(RequestError, match="--lr-for slope=0.1 matches no further parameter".replace(".", r"\.")):
            try_out(seeded(), X, Y, FitConfig(OptimizerConfig("SGD", 0.01, lr_for={"slope": 0.1})))

    @pytest.mark.parametrize(("message", "told"), [("no such luck\nat all", "no such luck"), ("", "KeyError")])
    def test_a_network_that_raises_is_refused_in_one_line(self, message: str, told: str) -> None:
        class Broken(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                raise RuntimeError(message) if message else KeyError

        with pytest.raises(RequestError, match=f"SGD cannot train this model: {told}; choose another") as refusal:
            try_out(Broken(1, 1), X, Y, plan())
        assert "\n" not in str(refusal.value)

    def test_a_long_fit_is_tried_for_one_epoch_only(self) -> None:
        try_out(seeded(), X, Y, plan(epochs=10**9))

    def test_a_schedule_shorter_than_the_fit_is_refused_and_not_met_on_the_way(self) -> None:
        """Torch itself raises only when the sixth of five steps is due, when all training before it would be lost."""
        config = plan(epochs=20, scheduler=SchedulerConfig("OneCycleLR", {"max_lr": 0.02, "total_steps": 5}))
        with pytest.raises(RequestError, match="OneCycleLR"):  # noqa: PT012 - either of the two may notice
            try_out(seeded(), X, Y, config)
            fit(seeded(), X, Y, config)


@pytest.mark.parametrize("epochs", [10**15, 2**63, 2**64])
def test_a_curve_that_no_memory_holds_is_refused_also_without_a_trial(epochs: int) -> None:
    with pytest.raises(RequestError, match=f"the curve of {epochs} epochs does not fit into memory"):
        fit(LinearRegression(1, 1), X, Y, FitConfig(OptimizerConfig("SGD", 0.01), epochs=epochs))


def test_a_rate_that_grows_beyond_the_numbers_ends_the_fit_in_one_sentence() -> None:
    config = plan(epochs=5, scheduler=SchedulerConfig("ExponentialLR", {"gamma": 1e300}))
    with pytest.raises(ScheduleError, match=r"ExponentialLR gives a learning rate of 1e\+298"):
        fit(seeded(), X, Y, config)
