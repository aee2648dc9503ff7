"""`FitConfig.budget`: gradient evaluations, as the network's own forwards in training mode count them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourfold.fitting import FitConfig, FitResult, Outcome, fit, try_out
from fourfold.optimizers import OptimizerConfig, SchedulerConfig, optimizer_classes
from models.linear import LinearRegression

X = torch.linspace(-1, 2, 6, dtype=torch.float64).unsqueeze(1)
Y = 2 * X + torch.sin(9 * X)

UNFIT = ("SparseAdam", "Muon")
TRAINABLE = [name for name in optimizer_classes() if name not in UNFIT]
ONE_A_STEP = [name for name in TRAINABLE if name != "LBFGS"]
BATCHES = {None: 1, 6: 1, 100: 1, 4: 2, 2: 3, 1: 6}
BUDGETS = (1, 2, 3, 6, 7, 20, 21, 26, 41)
PATIENT = {"tolerance_grad": 0.0, "tolerance_change": 0.0}


pytestmark = pytest.mark.usefixtures("one_thread")


class Counted(LinearRegression):
    """A line that counts its forwards in training mode: each is a gradient that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        self.gradients += self.training
        return super().forward(x)


def line() -> Counted:
    torch.manual_seed(0)
    return Counted().double()


def run(name: str, lr: float = 0.01, *, y: Tensor = Y, options: dict[str, Any] | None = None, **rest: Any) -> FitResult:
    return fit(line(), X, y, FitConfig(OptimizerConfig(name, lr, options or {}), **rest))


def counted(name: str, lr: float = 0.01, options: dict[str, Any] | None = None, **rest: Any) -> tuple[int, FitResult]:
    network = line()
    result = fit(network, X, Y, FitConfig(OptimizerConfig(name, lr, options or {}), **rest))
    return network.gradients, result


def assert_same_run(one: FitResult, other: FitResult) -> None:
    assert (one.outcome, one.loss, one.epochs, one.reason) == (other.outcome, other.loss, other.epochs, other.reason)
    for name in ("loss", "gradient_evaluations", "lr", "values"):
        assert np.array_equal(getattr(one.history, name), getattr(other.history, name)), name


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("batch_size", BATCHES)
def test_no_optimizer_exceeds_it(name: str, batch_size: int | None) -> None:
    for budget in (1, 5, 6, 23):
        asked, result = counted(name, batch_size=batch_size, budget=budget, epochs=10**6)
        assert asked == result.gradient_evaluations <= budget


@pytest.mark.parametrize("name", ONE_A_STEP)
@pytest.mark.parametrize("batch_size", BATCHES)
def test_whole_epochs_of_it_are_used_by_an_optimizer_with_one_gradient_a_step(
    name: str, batch_size: int | None
) -> None:
    count = BATCHES[batch_size]
    for budget in (6, 11, 12):
        asked, result = counted(name, batch_size=batch_size, budget=budget, epochs=10**6)
        assert asked == budget // count * count
        assert result.epochs == budget // count
        assert len(result.history.loss) == result.epochs + 1


@pytest.mark.parametrize("options", [{}, {"max_iter": 4}, {"max_eval": 5}, {"max_eval": 3, "max_iter": 50}])
@pytest.mark.parametrize("batch_size", BATCHES)
def test_lbfgs_does_not_exceed_it_whatever_its_own_limits(options: dict[str, Any], batch_size: int | None) -> None:
    for budget in BUDGETS:
        asked, result = counted("LBFGS", 0.1, options, batch_size=batch_size, budget=budget, epochs=10**6)
        assert asked == result.gradient_evaluations <= budget


@pytest.mark.parametrize("limits", [{}, {"max_iter": 4}, {"max_eval": 5}, {"max_eval": 3, "max_iter": 50}])
@pytest.mark.parametrize("budget", BUDGETS)
def test_lbfgs_uses_all_of_it_where_no_tolerance_stops_it(limits: dict[str, Any], budget: int) -> None:
    """A learning rate so low that it is never done."""
    asked, result = counted("LBFGS", 1e-3, PATIENT | limits, budget=budget, epochs=10**6)
    assert asked == budget
    assert result.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_each_batch_gets_a_gradient_in_each_epoch_that_begins(batch_size: int) -> None:
    for budget in BUDGETS:
        seen = []

        class Watched(Counted):
            def forward(self, x: Tensor, seen: list[tuple[float, ...]] = seen) -> Tensor:
                if self.training:
                    seen.append(tuple(x.flatten().tolist()))
                return super().forward(x)

        torch.manual_seed(0)
        config = FitConfig(OptimizerConfig("LBFGS", 0.1), None, 10**6, batch_size, budget=budget)
        result = fit(Watched().double(), X, Y, config)
        steps = [batch for place, batch in enumerate(seen) if place == 0 or batch != seen[place - 1]]
        assert sorted(x for batch in steps for x in batch) == sorted(X.flatten().tolist() * result.epochs)


def test_lbfgs_that_is_done_leaves_the_rest() -> None:
    """Compared with torch's own step, which ends by its tolerances before it has made its iterations."""
    exact, network = 2 * X + 1, line()
    optimizer, evaluations, used = torch.optim.LBFGS(network.parameters(), lr=1.0), 0, []

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(X), exact, reduction="sum")
        loss.backward()
        return loss

    while not used or used[-1] == 20:
        before = evaluations
        optimizer.step(closure)  # type: ignore[arg-type]
        used.append(evaluations - before)
    result = run("LBFGS", 1.0, y=exact, budget=500, epochs=500)
    assert result.gradient_evaluations == evaluations < 100
    assert (result.epochs, result.outcome) == (len(used), Outcome.COMPLETED)
    assert result.loss < 1e-10
    assert len(result.history.loss) == result.epochs + 1


def test_lbfgs_that_is_done_in_mini_batches_goes_on() -> None:
    """What is the end for one batch is none for the others."""
    asked, _ = counted("LBFGS", 1.0, batch_size=2, budget=60, epochs=10**6)
    assert asked == 60


def test_lbfgs_that_starts_at_the_optimum_needs_one() -> None:
    network = line()
    with torch.no_grad():
        exact = network(X)
    result = fit(network, X, exact, FitConfig(OptimizerConfig("LBFGS", 1.0), budget=50))
    assert (result.gradient_evaluations, result.epochs) == (1, 1)


def test_a_line_search_may_overrun_it_in_its_last_step_only() -> None:
    """One search takes at most max_ls = 25 evaluations, and what went before was within the budget."""
    for budget in BUDGETS:
        result = run("LBFGS", 1.0, options={"line_search_fn": "strong_wolfe"} | PATIENT, budget=budget, epochs=10**6)
        assert result.gradient_evaluations <= budget + 25
        assert (result.history.gradient_evaluations[:-1] < budget).all()


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_one_that_the_epochs_do_not_use_up_changes_nothing(name: str, batch_size: int | None) -> None:
    """LBFGS, which would be done early, is kept at it by its tolerances."""
    options = PATIENT if name == "LBFGS" else {}
    free = run(name, 1e-3, options=options, batch_size=batch_size, epochs=8)
    assert_same_run(run(name, 1e-3, options=options, batch_size=batch_size, epochs=8, budget=10**6), free)


@pytest.mark.parametrize("name", ONE_A_STEP)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_budget_is_so_many_epochs(name: str, batch_size: int | None) -> None:
    epochs = 12 // BATCHES[batch_size]
    shorter = run(name, batch_size=batch_size, epochs=epochs)
    assert_same_run(run(name, batch_size=batch_size, epochs=10**6, budget=12), shorter)


def test_without_one_lbfgs_goes_on_although_it_is_done() -> None:
    """An epoch is a step then, and costs one gradient where there is nothing left to do."""
    exact = 2 * X + 1
    result = run("LBFGS", 1.0, y=exact, epochs=100)
    assert result.epochs == 100
    assert result.gradient_evaluations >= 100
    assert result.history.gradient_evaluations[-1] - result.history.gradient_evaluations[-2] == 1


@pytest.mark.parametrize("options", [{}, {"max_iter": 7}, {"max_eval": 5}, {"line_search_fn": "strong_wolfe"}])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_without_one_lbfgs_is_torchs_own_loop(options: dict[str, Any], batch_size: int | None) -> None:
    network, bare = line(), line()
    result = fit(network, X, Y, FitConfig(OptimizerConfig("LBFGS", 0.1, options), epochs=4, batch_size=batch_size))
    optimizer, generator = torch.optim.LBFGS(bare.parameters(), lr=0.1, **options), torch.Generator().manual_seed(0)
    for _ in range(4):
        order = torch.arange(6) if batch_size is None else torch.randperm(6, generator=generator)
        for rows in order.split(batch_size or 6):

            def closure(rows: Tensor = rows) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(bare(X[rows]), Y[rows], reduction="sum")
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
    assert result.gradient_evaluations == bare.gradients
    for mine, other in zip(network.parameters(), bare.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["SGD", "LBFGS"])
def test_one_below_a_gradient_for_each_batch_trains_nothing(name: str) -> None:
    network = line()
    result = fit(network, X, Y, FitConfig(OptimizerConfig(name, 0.01), batch_size=2, budget=2))
    assert (result.gradient_evaluations, result.epochs, network.gradients) == (0, 0, 0)
    assert torch.equal(network.linear.weight, line().linear.weight)


def test_the_learning_rate_is_scheduled_by_epochs_under_it_too() -> None:
    schedule = SchedulerConfig("StepLR", {"step_size": 1, "gamma": 0.5})
    result = run("SGD", batch_size=2, budget=10, scheduler=schedule)
    assert result.history.lr.tolist() == [0.01, 0.005, 0.0025, 0.00125]


@pytest.mark.parametrize("lr", [10.0, 1e30])
def test_a_divergence_stops_before_it_is_used(lr: float) -> None:
    result = run("SGD", lr, budget=1000)
    assert result.outcome is Outcome.DIVERGED
    assert result.gradient_evaluations < 1000
    assert not math.isnan(result.history.loss[0])


def test_trying_an_optimizer_out_needs_no_budget_for_all_batches() -> None:
    network = line()
    try_out(network, X, Y, FitConfig(OptimizerConfig("LBFGS", 0.1), batch_size=1, budget=6))
    assert torch.equal(network.linear.weight, line().linear.weight)
