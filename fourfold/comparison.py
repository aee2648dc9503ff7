"""The rules of a fair comparison of optimizers, and what may be concluded from it.

Each rule with its reason and source: docs/comparison.md.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.optim import Optimizer

from fourfold.errors import RequestError
from fourfold.losses import LOSSES
from fourfold.optimizers import OptimizerConfig, default_lr, optimizer_classes
from fourfold.population import Members

# One optimizer beats another where chance alone would do so this seldom, seed for seed.
SIGNIFICANCE = 0.01
# Losses that differ by less, relative to the larger, are the same to anyone who chooses an optimizer.
SAME_LOSS = 1e-3
# A loss at which predictions are this many units in the last place from their targets is as good as zero.
UNITS_OF_ROUNDING = 4


@dataclass(frozen=True)
class Contestant:
    """An optimizer with its options, and the learning rate at the centre of its grid.

    Attributes:
        label: as typed, names as torch spells them: `SGD:momentum=0.9`.
        optimizer: at its default learning rate, without weight decay.
        texts: its options as a command line takes them.
    """

    label: str
    optimizer: OptimizerConfig
    texts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Contestant":
        """Read `NAME` or `NAME:OPTION=VALUE:...`; weight decay is 0 for all, since it changes the problem.

        Raises:
            RequestError: an unknown name or option, or a weight decay.
        """
        name, *options = text.split(":")
        try:
            known = OptimizerConfig.parse(name, 1.0, options).name
        except RequestError as error:
            raise RequestError(
                re.sub(r"^--(optimizer|option) [^:]*?(?=: | is )", lambda _: f"--optimizers {text}", str(error))
            ) from None
        if any(option.partition("=")[0] == "weight_decay" for option in options):
            raise RequestError(f"--optimizers {text}: weight decay is 0 for all, since it changes the problem")
        label = ":".join((known, *options))
        decay = inspect.signature(optimizer_classes()[known]).parameters.get("weight_decay")
        if decay is not None and decay.default != 0:
            options.append("weight_decay=0.0")
        return cls(label, OptimizerConfig.parse(known, default_lr(known), options), tuple(options))


def contestants(texts: Sequence[str]) -> tuple[Contestant, ...]:
    """Read the optimizers to compare; `all` stands for every one of torch.optim.

    Raises:
        RequestError: none or fewer than two, one twice, or what `Contestant.parse` refuses.
    """
    names = list(optimizer_classes()) if [text.lower() for text in texts] == ["all"] else texts
    found = [Contestant.parse(name) for name in names]
    if len(found) < 2:
        raise RequestError(f"--optimizers {','.join(names)}: it takes two to compare; name more, or all")
    labels = [one.label for one in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise RequestError(f"--optimizers names {', '.join(twice)} twice; once is enough")
    return tuple(found)


def grid(centre: float, count: int, decades: float) -> tuple[float, ...]:
    """Learning rates evenly spaced in their logarithm, as many and as wide for every optimizer.

    To six digits, so that one can be typed again, and is the default where it should be.

    >>> grid(0.001, 3, 2)
    (0.0001, 0.001, 0.01)
    """
    return tuple(float(f"{centre * 10 ** (decades * (place / (count - 1) - 0.5)):.6g}") for place in range(count))


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over seeds; a failed training counts as infinity."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Of (seeds,), where a quartile falls between two of them their mean.

        That is NumPy's "averaged_inverted_cdf", which gives NaN between two infinities.
        """
        ordered, quarter = np.sort(values), len(values) / 4
        between = [(math.ceil(part * quarter) - 1, math.floor(part * quarter)) for part in (1, 2, 3)]
        q1, median, q3 = (float(ordered[low]) / 2 + float(ordered[high]) / 2 for low, high in between)
        return cls(median, q1, q3)


@dataclass(frozen=True)
class AtRate:
    """How an optimizer did at one learning rate.

    Attributes:
        losses: (seeds,) of the rows that are reported, infinite where the training diverged.
        diverged: share of the seeds.
        evaluations_to_goal: median over the seeds, infinite where at most half of them came there.
        evaluations: median of those computed.
    """

    lr: float
    losses: np.ndarray
    diverged: float
    evaluations: float
    evaluations_to_goal: float

    @property
    def loss(self) -> Spread:
        """Of the reported rows."""
        return Spread.of(self.losses)


@dataclass(frozen=True)
class Standing:
    """What one optimizer reached.

    Attributes:
        members: all its trainings, in rising learning rates.
        on_grid: (rates,) whether a learning rate is of the grid, or only shown beside it.
        choosing: (rates,) median loss of the rows that the learning rate is chosen on.
        default, same_lr, tuned: at its own default, at the one for all, and at the best of its grid.
        on_grid_edge: whether that best is the first or last of the grid, so that a better one may lie outside.
        why_alone: why its trainings were not stacked; empty where they were.
    """

    contestant: Contestant
    members: Members
    on_grid: np.ndarray
    choosing: np.ndarray
    default: AtRate
    same_lr: AtRate
    tuned: AtRate
    on_grid_edge: bool
    why_alone: str = ""

    @property
    def label(self) -> str:
        """The contestant's name."""
        return self.contestant.label

    @property
    def tuned_row(self) -> int:
        """Where the best learning rate stands among the members."""
        return int(np.flatnonzero(self.members.learning_rates == self.tuned.lr)[0])

    @property
    def averaged(self) -> float | None:
        """Median loss of the averaged weights at the best learning rate; None where the optimizer has none."""
        losses, row = self.members.averaged_loss, self.tuned_row
        return Spread.of(_with_failures(losses[row], self.members.diverged[row])).median if _there(losses) else None

    @property
    def diverged(self) -> float:
        """Share of the trainings on the grid that diverged."""
        return float(self.members.diverged[self.on_grid].mean())


def standing(
    contestant: Contestant, members: Members, on_grid: Sequence[float], same_lr: float, why_alone: str = ""
) -> Standing:
    """Choose the learning rate by the median over seeds of the validation loss, else of the training loss.

    The loss that is reported is that of the test rows, where there are any. Of equal medians the lower learning rate
    is chosen.
    """
    failed = members.diverged
    chosen_by = _with_failures(members.validation_loss if _there(members.validation_loss) else members.loss, failed)
    reported = _with_failures(members.test_loss if _there(members.test_loss) else members.loss, failed)
    choosing = np.array([Spread.of(row).median for row in chosen_by])
    rates = members.learning_rates
    of_grid = np.isin(rates, on_grid)
    best = int(np.argmin(np.where(of_grid, choosing, np.inf)))
    if not np.isfinite(choosing[best]):  # nothing worked: the first of the grid stands for all
        best = int(np.flatnonzero(of_grid)[0])

    def at(lr: float) -> AtRate:
        row = int(np.flatnonzero(rates == lr)[0])
        return AtRate(
            float(lr),
            reported[row],
            float(failed[row].mean()),
            float(np.median(members.evaluations[row])),
            Spread.of(members.evaluations_to_goal[row]).median,
        )

    edges = np.flatnonzero(of_grid)[[0, -1]]
    tuned = at(rates[best])
    return Standing(
        contestant,
        members,
        of_grid,
        choosing,
        default=at(contestant.optimizer.lr),
        same_lr=at(same_lr),
        tuned=tuned,
        on_grid_edge=best in edges,
        why_alone=why_alone,
    )


def rounding_floor(y: Tensor, loss: str) -> float:
    """The loss of predictions a few units in the last place from their targets, (rows, targets): as good as zero."""
    return float(LOSSES[loss](y * (1 + UNITS_OF_ROUNDING * torch.finfo(y.dtype).eps), y))


def beats(one: np.ndarray, other: np.ndarray, floor: float) -> bool:
    """Whether losses (seeds,) are lower than another optimizer's beyond what seeds alone would do.

    A sign test over the seeds, which both share (Conover, Practical Nonparametric Statistics, 1999, section 3.4):
    seeds on which both did the same say nothing. It asks nothing of the distribution, and a failure is just worse.

    >>> beats(np.full(10, 1.0), np.full(10, 2.0), floor=0.0), beats(np.full(10, 1.0), np.full(10, 1.0001), floor=0.0)
    (True, False)
    """
    one, other = np.where(one <= floor, floor, one), np.where(other <= floor, floor, other)
    both_failed = np.isinf(one) & np.isinf(other)
    with np.errstate(invalid="ignore"):
        close = np.abs(one - other) <= SAME_LOSS * np.maximum(one, other)
    told = ~both_failed & ~(close & np.isfinite(one) & np.isfinite(other))
    wins, decided = int((one < other)[told].sum()), int(told.sum())
    return wins * 2 > decided and bool(binomtest(wins, decided).pvalue <= SIGNIFICANCE)


def fewest_seeds() -> int:
    """How many seeds it takes until the better one of two could be told at all."""
    return math.ceil(1 - math.log2(SIGNIFICANCE))


@dataclass(frozen=True)
class Place:
    """Where an optimizer stands, tuned.

    Attributes:
        rank: 1 and one for each optimizer that beats it.
        beats, tied: labels of those that it beats, and of those that cannot be told from it.
    """

    rank: int
    beats: tuple[str, ...]
    tied: tuple[str, ...]


def places(standings: Sequence[Standing], floor: float) -> dict[str, Place]:
    """Rank by what exceeds the spread of seeds; best first, within a rank by the median."""
    won = {
        one.label: {other.label for other in standings if beats(one.tuned.losses, other.tuned.losses, floor)}
        for one in standings
    }
    found = {}
    for one in standings:
        losses_to = {label for label, beaten in won.items() if one.label in beaten}
        tied = [o.label for o in standings if o is not one and o.label not in losses_to | won[one.label]]
        found[one.label] = Place(1 + len(losses_to), tuple(sorted(won[one.label])), tuple(tied))
    order = sorted(standings, key=lambda one: (found[one.label].rank, one.tuned.loss.median))
    return {one.label: found[one.label] for one in order}


def best_of(losses: np.ndarray) -> np.ndarray:
    """The median of the best loss among k learning rates that were tried in random order, for k = 1 ... all.

    Of k out of n without replacement, the i-th best is the best with chance C(n - i, k - 1) / C(n, k).

    Args:
        losses: (rates,), infinite for failures.

    >>> best_of(np.array([3.0, 1.0, 2.0])).tolist()
    [2.0, 1.0, 1.0]
    """
    ordered, count = np.sort(losses), len(losses)
    best = []
    for tried in range(1, count + 1):
        chances = [math.comb(count - place, tried - 1) / math.comb(count, tried) for place in range(1, count + 1)]
        best.append(ordered[np.searchsorted(np.cumsum(chances), 0.5 - 1e-12)])
    return np.array(best)


class Shuffle(Optimizer):
    """A control: an optimizer that learns nothing, it only puts the weights in another order."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})
        self.generator = torch.Generator().manual_seed(0)

    def step(self, closure: Any = None) -> Any:
        """Compute the gradients, as all others do, and shuffle each tensor's numbers together."""
        loss = closure() if closure is not None else None
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.no_grad():
            numbers = torch.cat([parameter.reshape(-1) for parameter in parameters])
            shuffled = numbers[torch.randperm(len(numbers), generator=self.generator)]
            pieces = torch.split(shuffled, [parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.copy_(piece.view(parameter.shape))
        return loss


@dataclass(frozen=True)
class _ShuffleConfig(OptimizerConfig):
    def over(self, groups: list[dict[str, Any]]) -> Optimizer:
        return Shuffle(groups, lr=self.lr)


PLAIN, AGAIN, SHUFFLE = "control: SGD", "control: SGD again", "control: shuffle"
MOMENTA = ("control: SGD momentum 0.5", "control: SGD momentum 0.9")


def controls() -> tuple[Contestant, ...]:
    """Optimizers whose place is known beforehand."""
    plain = Contestant.parse("SGD")
    momenta = (Contestant.parse(f"SGD:{label.split()[-2]}={label.split()[-1]}") for label in MOMENTA)
    return (
        replace(plain, label=PLAIN),
        replace(plain, label=AGAIN),
        *(replace(one, label=label) for one, label in zip(momenta, MOMENTA, strict=True)),
        Contestant(SHUFFLE, _ShuffleConfig("Shuffle", 0.01)),
    )


def failed_controls(standings: Sequence[Standing], floor: float) -> list[str]:
    """Say which of the controls came out otherwise than they must, in a sentence each."""
    losses = {one.label: one.tuned.losses for one in standings}
    best_momentum = min((losses[label] for label in MOMENTA), key=lambda values: Spread.of(values).median)
    faults = []
    if not np.array_equal(losses[PLAIN], losses[AGAIN]):
        faults.append("SGD under a second name did not give the same losses")
    if beats(losses[PLAIN], best_momentum, floor):
        faults.append("SGD beat SGD with momentum, both tuned")
    medians = {label: Spread.of(values).median for label, values in losses.items()}
    if medians[SHUFFLE] <= min(median for label, median in medians.items() if label != SHUFFLE):
        faults.append("nothing did better than an optimizer that only shuffles the weights")
    return faults


def as_numbers(at: AtRate) -> Mapping[str, Any]:
    """For the machine-readable result."""
    return {
        "lr": at.lr,
        "loss": {"median": at.loss.median, "q1": at.loss.q1, "q3": at.loss.q3},
        "diverged": at.diverged,
        "evaluations": at.evaluations,
        "evaluations_to_target": at.evaluations_to_goal,
    }


def _with_failures(losses: np.ndarray, failed: np.ndarray) -> np.ndarray:
    return np.where(failed | np.isnan(losses), np.inf, losses)


def _there(losses: np.ndarray) -> bool:
    """Whether there were rows to measure them on; a diverged network may give NaN on any."""
    return not np.isnan(losses).all()
