"""Many trainings of one architecture: every learning rate with every seed, at once where the arithmetic allows.

A stacked population holds the trainable parameters of all members in one tensor, (rates, seeds, parameters). One
forward and backward pass under `torch.func.vmap` gives the gradients of all, and one optimizer of `torch.optim`
updates them, a parameter group for each learning rate: the arithmetic is torch's own.
"""

import copy
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fourfold.batches import Batches, batches_an_epoch, loss_of_the_mean
from fourfold.fitting import (
    MOST_OVERSHOOT,
    MOST_WORSENING,
    FitConfig,
    Outcome,
    evaluate_loss,
    fit,
)
from fourfold.losses import LOSSES, is_sum
from fourfold.optimizers import OptimizerConfig

MOST_CURVE_POINTS = 100
# Numbers that one pass may hold for all members together, parameters and activations: 8 MB in float64. It bounds the
# memory, and an mlp on 442 rows took 2.7 times as long with five times as many, which no cache holds.
MOST_NUMBERS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Start:
    """Where the trainings of one seed begin, whatever the optimizer.

    Attributes:
        seed: of the order of the rows.
        network: with its first weights.
        random_states: of torch's and of Python's generator, for networks that draw while they train.
    """

    seed: int
    network: nn.Module
    random_states: tuple[Tensor, Any]

    @classmethod
    def now(cls, seed: int, network: nn.Module) -> "Start":
        """Take the network as it is, and the generators as they stand."""
        return cls(seed, network, (torch.get_rng_state(), random.getstate()))


@dataclass(frozen=True, eq=False)
class Problem:
    """What all trainings of a comparison share.

    Attributes:
        starts: one for each seed.
        x, y: training rows, (rows, features) and (rows, targets), as the networks see them.
        validation, test: further rows, x and y each, to judge on; no rows where there are none.
        loss, batch_size: as in `FitConfig`.
        budget: gradient evaluations a training, at least one for each batch.
        goal: the loss whose first time is noted.
    """

    starts: tuple[Start, ...]
    x: Tensor
    y: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: str
    batch_size: int | None
    budget: int
    goal: float

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        return batches_an_epoch(len(self.x), self.batch_size)

    @property
    def epochs(self) -> int:
        """Passes over the rows that the budget allows to an optimizer with one gradient a step."""
        return self.budget // self.batches

    def curve_points(self) -> np.ndarray:
        """Gradient evaluations at which curves are kept, (points,): whole epochs, denser at the start."""
        spread = np.geomspace(1, self.epochs, MOST_CURVE_POINTS).round().astype(np.int64)
        return np.unique(np.concatenate(([0], spread))) * self.batches


@dataclass(frozen=True)
class Members:
    """How the trainings of one optimizer ended; a row for each learning rate, a column for each seed.

    Attributes:
        learning_rates: (rates,).
        parameters: (rates, seeds, parameters), the trainable ones, flat, in the order of `parameters()`.
        loss: (rates, seeds) of the training rows at the end; of a diverged one the last that was measured.
        validation_loss, test_loss: the same of those rows, NaN where there are none.
        averaged_loss: the same of a stacked ASGD's averaged weights on the rows that are reported, else NaN; also
            NaN of a member that diverged while it was trained.
        diverged: (rates, seeds).
        evaluations: gradients computed.
        evaluations_to_goal: after how many of them the loss was first at the goal, infinite if never.
        curve: (rates, seeds, points), the training loss after `Problem.curve_points` evaluations; infinite after
            a divergence, the last value where an optimizer finished early.
        seconds: of each training alone, or of a stacked one its share.
    """

    learning_rates: np.ndarray
    parameters: np.ndarray
    loss: np.ndarray
    validation_loss: np.ndarray
    test_loss: np.ndarray
    averaged_loss: np.ndarray
    diverged: np.ndarray
    evaluations: np.ndarray
    evaluations_to_goal: np.ndarray
    curve: np.ndarray
    seconds: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Members"], axis: int) -> "Members":
        """Put parts together: of other learning rates (axis 0) or of other seeds (axis 1)."""

        def join(name: str) -> np.ndarray:
            arrays = [getattr(part, name) for part in parts]
            return arrays[0] if axis == 1 and name == "learning_rates" else np.concatenate(arrays, axis)

        return cls(**{field.name: join(field.name) for field in fields(cls)})


def seeds_at_once(problem: Problem, learning_rates: int) -> int:
    """How many seeds one stack holds, each with that many learning rates: what bounds the memory."""
    return max(1, MOST_NUMBERS_AT_ONCE // (_numbers_a_member(problem) * learning_rates))


def train_population(
    problem: Problem, optimizer: OptimizerConfig, learning_rates: Sequence[float], *, stacked: bool
) -> Members:
    """Train a member for each learning rate and seed.

    Args:
        problem: what they share.
        optimizer: its own learning rate does not count.
        learning_rates: one or more.
        stacked: all at once, in chunks that bound the memory; else one after another, by `fit`.
    """
    if not stacked:
        parts = [_train_alone(problem, optimizer, lr, start) for lr in learning_rates for start in problem.starts]
        width = len(problem.starts)
        rows = [Members.joined(parts[first : first + width], axis=1) for first in range(0, len(parts), width)]
        return Members.joined(rows, axis=0)
    starts = problem.starts
    size = seeds_at_once(problem, len(learning_rates))
    chunks = [replace(problem, starts=starts[first : first + size]) for first in range(0, len(starts), size)]
    return Members.joined([Stack(chunk).train(optimizer, learning_rates) for chunk in chunks], axis=1)


class Stack:
    """The networks of all seeds as one: `template` says what is computed, a flat vector with which parameters."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.template = copy.deepcopy(problem.starts[0].network)
        trained = {name: p for name, p in self.template.named_parameters() if p.requires_grad}
        self.names = list(trained)
        self.shapes = [parameter.shape for parameter in trained.values()]
        self.sizes = [parameter.numel() for parameter in trained.values()]
        self.first = torch.stack([flat_parameters(start.network) for start in problem.starts])

    def losses(self, parameters: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each member, (members,).

        Args:
            parameters: (members, parameters).
            x, y: the same rows for all, or (members, rows, columns).
        """

        def one(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
            pieces = zip(self.names, torch.split(flat, self.sizes), self.shapes, strict=True)
            named = {name: piece.view(shape) for name, piece, shape in pieces}
            return LOSSES[self.problem.loss](functional_call(self.template, named, (x,)), y)

        rows = None if x.dim() == self.problem.x.dim() else 0
        losses: Tensor = vmap(one, in_dims=(0, rows, rows))(parameters, x, y)
        return losses

    def evaluate(self, parameters: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each member over rows as `evaluate_loss` measures it, (members,) float64; NaN without rows."""
        if not len(x):
            return torch.full((len(parameters),), torch.nan, dtype=torch.float64)
        self.template.eval()
        total = torch.zeros(len(parameters), dtype=torch.float64)
        size, sums = self.problem.batch_size or len(x), is_sum(self.problem.loss)
        with torch.no_grad():
            for first in range(0, len(x), size):
                rows = x[first : first + size]
                losses = self.losses(parameters, rows, y[first : first + size]).double()
                total += losses if sums else losses * len(rows)
        return total if sums else total / len(x)

    def train(self, optimizer: OptimizerConfig, learning_rates: Sequence[float]) -> Members:
        """Train all members; each is judged by the rules of `fit`, and one that diverged stays where it was."""
        problem, rates, seeds = self.problem, len(learning_rates), len(self.first)
        started = time.perf_counter()
        storage = self.first.expand(rates, *self.first.shape).clone()
        everyone = storage.view(rates * seeds, -1)
        leaf = everyone.detach().requires_grad_()  # shares the memory: autograd sees what the optimizer updates
        gradients = torch.zeros_like(storage)
        of_rates = list(storage)
        for each, gradient in zip(of_rates, gradients, strict=True):
            each.grad = gradient
        made = optimizer.over([{"params": [each], "lr": lr} for each, lr in zip(of_rates, learning_rates, strict=True)])
        groups = list(made.param_groups)
        judge = _Judge(problem, rates, seeds)
        sums, rows = is_sum(problem.loss), len(problem.x)
        epochs = _EpochsOfSeeds(problem, rates)

        losses = torch.empty(0)

        def closure() -> Tensor:
            nonlocal losses
            losses = self.losses(leaf, inputs, targets)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
            gradients.view_as(gradient).copy_(gradient)
            return losses

        self.template.train()
        for epoch in range(problem.epochs):
            total = torch.zeros(rates * seeds, dtype=torch.float64)
            for inputs, targets in epochs.next():  # noqa: B007 - the closure reads both
                made.step(closure)  # type: ignore[arg-type]
                measured, size = losses.detach().double(), inputs.shape[-2]
                if judge.limit is None:
                    judge.begin(measured * (rows / size) if sums else measured)
                total += measured if sums else measured * size
            if judge.look(epoch, total if sums else total / rows, everyone):
                # A group without a living member is not worth its steps.
                lost = judge.lost.view(rates, seeds).all(dim=1).tolist()
                made.param_groups = [group for group, gone in zip(groups, lost, strict=True) if not gone]
                if not made.param_groups:
                    break
        if judge.lost.any():
            everyone[judge.lost] = judge.kept[judge.lost]
        judge.end(self.evaluate(everyone, problem.x, problem.y))
        averaged = torch.full_like(judge.loss, torch.nan)
        if all("ax" in made.state[each] for each in of_rates):  # as ASGD calls its averages
            averages = torch.stack([made.state[each]["ax"] for each in of_rates]).view_as(everyone)
            reported = problem.test if len(problem.test[0]) else (problem.x, problem.y)
            averaged = self.evaluate(averages, *reported)
            averaged[judge.lost] = torch.nan  # they went on with the others of their learning rate
        shape = (rates, seeds)

        def grid(values: Tensor) -> np.ndarray:
            array: np.ndarray = values.view(*shape, *values.shape[1:]).numpy()
            return array

        return Members(
            learning_rates=np.asarray(learning_rates, dtype=np.float64),
            parameters=grid(everyone),
            loss=grid(judge.loss),
            validation_loss=grid(self.evaluate(everyone, *problem.validation)),
            test_loss=grid(self.evaluate(everyone, *problem.test)),
            averaged_loss=grid(averaged),
            diverged=grid(judge.diverged),
            evaluations=grid(judge.evaluations),
            evaluations_to_goal=grid(judge.to_goal),
            curve=grid(judge.curve),
            seconds=np.full(shape, (time.perf_counter() - started) / (rates * seeds)),
        )


class _Judge:
    """Follows the losses of all members; the same rules as in `fit`, each member by its own start."""

    def __init__(self, problem: Problem, rates: int, seeds: int) -> None:
        members = rates * seeds
        self.problem = problem
        self.limit: Tensor | None = None
        self.lost = torch.zeros(members, dtype=torch.bool)  # during the training
        self.kept = torch.zeros(members, 0)  # their parameters
        self.loss = torch.full((members,), torch.nan, dtype=torch.float64)
        self.evaluations = torch.full((members,), problem.epochs * problem.batches)
        self.to_goal = torch.full((members,), torch.inf, dtype=torch.float64)
        self.points = {int(point): place for place, point in enumerate(problem.curve_points())}
        self.curve = torch.full((members, len(self.points)), torch.inf, dtype=torch.float64)

    def begin(self, start: Tensor) -> None:
        """Take the first losses, (members,) float64, as each member's scale."""
        mean = torch.full_like(start, loss_of_the_mean(self.problem.y, self.problem.loss))
        self.scale = torch.where(start.isfinite(), torch.maximum(start, mean), mean)
        self.limit = MOST_OVERSHOOT * self.scale

    def look(self, epoch: int, loss: Tensor, parameters: Tensor) -> bool:
        """Judge the losses (members,) that an epoch measured; whether it lost some, whose parameters are kept."""
        assert self.limit is not None, "the first batch began it"
        self._note(epoch * self.problem.batches, loss)
        fallen = ~(loss <= self.limit) & ~self.lost
        if any_fallen := bool(fallen.any()):
            if not self.kept.numel():
                self.kept = torch.zeros_like(parameters)
            self.kept[fallen] = parameters[fallen]
            self.evaluations[fallen] = (epoch + 1) * self.problem.batches
            self.loss[fallen] = loss[fallen]
            self.lost |= fallen
        return any_fallen

    def end(self, loss: Tensor) -> None:
        """Judge the losses after the training."""
        self._note(self.problem.epochs * self.problem.batches, loss)
        self.loss = torch.where(self.lost, self.loss, loss)
        self.diverged = self.lost | ~(loss <= MOST_WORSENING * self.scale)

    def _note(self, evaluations: int, loss: Tensor) -> None:
        if (point := self.points.get(evaluations)) is not None:
            self.curve[:, point] = torch.where(self.lost | loss.isnan(), torch.inf, loss)
        self.to_goal[(loss <= self.problem.goal) & ~self.lost & self.to_goal.isinf()] = evaluations


class _EpochsOfSeeds:
    """The batches of each epoch: all rows for everybody, or for each seed its own order, as `fit` has it."""

    def __init__(self, problem: Problem, rates: int) -> None:
        self.rates = rates
        self.of_seeds = [Batches(problem.x, problem.y, problem.batch_size, start.seed) for start in problem.starts]

    def next(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.of_seeds[0].count == 1:
            yield from self.of_seeds[0].epoch()
            return
        for batch in zip(*(each.epoch() for each in self.of_seeds), strict=True):
            inputs, targets = (torch.stack(parts) for parts in zip(*batch, strict=True))
            yield tuple(part.repeat(self.rates, 1, 1) for part in (inputs, targets))  # type: ignore[misc]


def _train_alone(problem: Problem, optimizer: OptimizerConfig, lr: float, start: Start) -> Members:
    """Train one member by `fit`."""
    network = copy.deepcopy(start.network)
    torch.set_rng_state(start.random_states[0])
    random.setstate(start.random_states[1])
    config = FitConfig(
        replace(optimizer, lr=lr), None, problem.epochs, problem.batch_size, problem.loss, start.seed, problem.budget
    )
    result = fit(network, problem.x, problem.y, config)
    history, diverged = result.history, result.outcome is Outcome.DIVERGED
    points = problem.curve_points()
    rows = np.searchsorted(history.gradient_evaluations, points, side="right") - 1
    curve = np.where(np.isnan(history.loss), np.inf, history.loss)[rows]
    if diverged:
        curve[points > history.gradient_evaluations[-1]] = np.inf
    reached = np.flatnonzero(history.loss <= problem.goal)

    def judged(x: Tensor, y: Tensor) -> float:
        return evaluate_loss(network, x, y, problem.loss, problem.batch_size) if len(x) else np.nan

    values = {
        "parameters": flat_parameters(network).numpy(),
        "loss": result.loss,
        "validation_loss": judged(*problem.validation),
        "test_loss": judged(*problem.test),
        "averaged_loss": np.nan,
        "diverged": diverged,
        "evaluations": result.gradient_evaluations,
        "evaluations_to_goal": float(history.gradient_evaluations[reached[0]]) if len(reached) else np.inf,
        "curve": curve,
        "seconds": result.seconds,
    }
    return Members(np.array([lr]), **{name: np.asarray(value)[None, None] for name, value in values.items()})


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the order of `parameters()`."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def flat_parameters(network: nn.Module) -> Tensor:
    """These as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in trained_parameters(network)])


def _numbers_a_member(problem: Problem) -> int:
    """About what one member holds in a pass: parameters with their optimizer's state, and activations."""
    network = problem.starts[0].network
    widths = sum(parameter.shape[0] for parameter in network.parameters() if parameter.dim() > 1)
    rows = min(problem.batch_size or len(problem.x), len(problem.x))
    return 8 * sum(p.numel() for p in trained_parameters(network)) + rows * (
        widths + problem.x.shape[1] + problem.y.shape[1]
    )
