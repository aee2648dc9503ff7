"""The trainings of a comparison, spread over workers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from fourfold.batches import batches_an_epoch, loss_of_the_mean
from fourfold.comparison import Contestant, Standing, contestants, grid, rounding_floor, standing
from fourfold.configuration import CompareConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.fitting import try_out
from fourfold.least_squares import least_squares
from fourfold.losses import LOSSES, is_squared, is_sum
from fourfold.population import Members, Problem, Start, seeds_at_once, train_population
from fourfold.stackable import why_not_stacked
from models.linear import LinearRegression
from tasks.build_model import BuiltModel, as_seen, build
from tasks.make_data import load
from tasks.reporting import progress
from tasks.request import check, two_rows
from tasks.steps import step
from tasks.train import fit_config
from tasks.workers import Job, Needs, check_workers, workers

# How far along from the constant mean's loss to least squares' own a loss counts as there.
SHARE_LEFT_LINEAR, SHARE_LEFT_OTHERS = 1e-4, 0.1
SEEDS_ALONE = 10  # that one worker trains one by one before it is given others


@dataclass(frozen=True)
class Posed:
    """A problem as the engine sees it, and the network of its first seed, which knows the user's units.

    Attributes:
        floor: the loss that is as good as zero.
    """

    problem: Problem
    built: BuiltModel
    floor: float


def check_comparison(config: CompareConfig) -> tuple[Contestant, ...]:
    """Give the optimizers that are to be compared, or raise RequestError with the first fault.

    Of `all`, those that cannot train this model are left out; one that was asked for by name is refused.
    """
    asked = contestants(config.optimizers)
    check_workers(config.workers, _needs(config))
    training = check(config.training())
    data = load(training)
    batches = batches_an_epoch(len(data.x), config.batch_size)
    if config.budget < batches:
        raise RequestError(f"--budget {config.budget} is less than the {batches} batches of one epoch; give more")
    built = build(training, two_rows(data))
    able, refusals = [], []
    for one in asked:
        try:
            try_out(built.core, built.x, built.y, replace(fit_config(training), optimizer=one.optimizer, budget=None))
            able.append(one)
        except RequestError as refusal:
            refusals.append(refusal)
    if not able:
        raise RequestError(f"none of these optimizers can train this model: {refusals[0]}")
    if refusals and [name.lower() for name in config.optimizers] != ["all"]:
        raise refusals[0]
    return tuple(able)


def pose(config: CompareConfig, data: Dataset) -> Posed:
    """Make the first weights of each seed, and give the rows as the networks see them."""
    training = config.training()
    starts: list[Start] = []
    for seed in reversed(range(config.seed, config.seed + config.seeds)):  # the first comes last, and stays
        built = build(training.model_copy(update={"seed": seed}), data)
        starts.insert(0, Start.now(seed, built.core))

    problem = Problem(
        starts=tuple(starts),
        x=built.x,
        y=built.y,
        validation=as_seen(built.network, data.x_validation, data.y_validation),
        test=as_seen(built.network, data.x_test, data.y_test),
        loss=config.loss_name,
        batch_size=config.batch_size,
        budget=config.budget,
        goal=_goal(config, built),
    )
    reported = problem.test[1] if len(data.x_test) else problem.y
    return Posed(problem, built, rounding_floor(reported, config.loss_name))


@dataclass(frozen=True)
class Chunk:
    """Trainings of one optimizer that are done together: which ones is the request's alone, whoever does them.

    Attributes:
        number: of the optimizer.
        rates: learning rates.
        seeds: the numbers of the first and of the one behind the last.
    """

    number: int
    rates: tuple[float, ...]
    seeds: tuple[int, int]


@step(name="train all members")
def train_members(config: CompareConfig, posed: Posed, entrants: Sequence[Contestant]) -> list[Standing]:
    """Train every contestant at every learning rate from every seed, spread over workers."""
    problem = posed.problem
    rates = [rates_of(config, one) for one in entrants]
    alone = [why_not_stacked(problem, one.optimizer) for one in entrants]
    # Those that go one by one take longest: they come first.
    order = sorted(range(len(entrants)), key=lambda number: not alone[number])
    chunks = [chunk for number in order for chunk in _cut(problem, number, rates[number], bool(alone[number]))]
    jobs = (_job(problem, entrants[chunk.number], chunk, stacked=not alone[chunk.number]) for chunk in chunks)
    parts: list[dict[Chunk, Members]] = [{} for _ in entrants]
    done, lowest = 0, np.inf
    with (
        workers(config.workers, len(chunks), _needs(config)) as pool,
        progress("comparing", sum(map(len, rates)) * len(problem.starts), "training") as report,
    ):
        for place, members in pool.results(jobs):
            parts[chunks[place].number][chunks[place]] = members
            done += members.loss.size
            lowest = min(lowest, float(np.where(members.diverged, np.inf, members.loss).min()))
            report(done, lowest)
    return [
        standing(one, _joined(part), _grid(config, one), config.lr, why)
        for one, why, part in zip(entrants, alone, parts, strict=True)
    ]


def _needs(config: CompareConfig) -> Needs:
    """What of a worker decides the bits that it trains."""
    return Needs(("torch", "numpy"), config.model.rpartition(":")[0], torch=True)


def _cut(problem: Problem, number: int, rates: Sequence[float], alone: bool) -> Iterator[Chunk]:
    """Of trainings that go one by one each learning rate and some seeds; of others as many seeds as one stack holds."""
    seeds = len(problem.starts)
    size = SEEDS_ALONE if alone else seeds_at_once(problem, len(rates))
    for some in [(lr,) for lr in rates] if alone else [tuple(rates)]:
        for first in range(0, seeds, size):
            yield Chunk(number, some, (first, min(first + size, seeds)))


def _job(problem: Problem, one: Contestant, chunk: Chunk, *, stacked: bool) -> Job[Members]:
    first, behind = chunk.seeds
    starts = problem.starts[first:behind]
    lr = f"{chunk.rates[0]:g}" + (f" to {chunk.rates[-1]:g}" if chunk.rates[1:] else "")
    name = f"{one.label} at lr {lr}, seeds {starts[0].seed} to {starts[-1].seed},"
    return Job(
        name,
        partial(train_population, replace(problem, starts=starts), one.optimizer, chunk.rates, stacked=stacked),
    )


def _joined(parts: Mapping[Chunk, Members]) -> Members:
    """All trainings of one optimizer, in rising learning rates and seeds, in whatever order they were done."""
    rows: dict[tuple[float, ...], list[Members]] = {}
    for chunk in sorted(parts, key=lambda chunk: (chunk.rates, chunk.seeds)):
        rows.setdefault(chunk.rates, []).append(parts[chunk])
    return Members.joined([Members.joined(row, axis=1) for row in rows.values()], axis=0)


def rates_of(config: CompareConfig, one: Contestant) -> list[float]:
    """An optimizer's learning rates, rising: its grid, its own default, and the one for all."""
    return sorted({*_grid(config, one), one.optimizer.lr, config.lr})


def _grid(config: CompareConfig, one: Contestant) -> tuple[float, ...]:
    return grid(one.optimizer.lr, config.learning_rates, config.decades)


def distances(posed: Posed, data: Dataset, members: Members) -> np.ndarray | None:
    """Euclidean distance of each member's coefficients from least squares', (rates, seeds), in the user's units.

    None where the network is not linear or the loss not squared: least squares is no answer to it then.
    """
    built = posed.built
    if not built.is_linear or not is_squared(posed.problem.loss):
        return None
    exact = built.exact(data)
    w, b = built.flat_in_raw_units(torch.from_numpy(members.parameters).double())
    off = np.concatenate([(w - exact.weights).reshape(*b.shape[:-1], -1), b - exact.intercepts], -1)
    distance: np.ndarray = np.linalg.norm(off, axis=-1)
    return distance


def _goal(config: CompareConfig, built: BuiltModel) -> float:
    """The loss that is to be reached, in the units in which the core is trained."""
    if config.target_loss is not None:
        return config.target_loss
    # The constant prediction that the model can make: its mean, or zero where it goes through the origin.
    constant = loss_of_the_mean(built.y, config.loss_name)
    if not config.intercept:
        constant = float(LOSSES[config.loss_name](torch.zeros_like(built.y), built.y))
    if not isinstance(built.core, LinearRegression) or not is_squared(config.loss_name):
        return SHARE_LEFT_OTHERS * constant
    columns = built.core.columns(built.x).numpy()
    left = least_squares(columns, built.y.numpy(), intercept=config.intercept).sum_of_squares
    lowest = left if is_sum(config.loss_name) else left / built.y.numel()
    return lowest + SHARE_LEFT_LINEAR * (constant - lowest)
