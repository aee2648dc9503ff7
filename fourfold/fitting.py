"""One training of one network, with its curve; the inner loop that everything else is built around."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fourfold.batches import Batches, Rows, StreamedBatches
from fourfold.checkpoints import Keeper, State
from fourfold.errors import CheckpointError, RequestError, ScheduleError, first_line
from fourfold.losses import LOSSES, is_sum
from fourfold.optimizers import OptimizerConfig, SchedulerConfig

# Each parameter has a curve of its own up to this many; beyond, each tensor's norm has.
MOST_PARAMETER_CURVES = 16
# How far above its start a loss may rise and still come back: momentum 0.999 can overshoot a quadratic by
# 1 / (1 - 0.999) in each parameter, which is this in the loss.
MOST_OVERSHOOT = 1e6
# How far above that scale a fit may end: mini-batches on data without a pattern wobble about it.
MOST_WORSENING = 10
SECONDS_BETWEEN_REPORTS = 0.1


class Outcome(StrEnum):
    """How a fit ended."""

    COMPLETED = "completed"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class FitConfig:
    """What decides a fit, besides the network's first weights and the rows.

    Attributes:
        epochs: passes over the rows, at least 1.
        batch_size: rows a step; None for all of them, in their own order. Mini-batches are slices of the
            rows in an order that the seed decides, another one each epoch.
        loss: a name in `fourfold.losses.LOSSES`.
        budget: gradient evaluations at most, but for what the line search of LBFGS may overrun in its last
            step; None for as many as the epochs take. Under a budget an optimizer that ends a step over all
            rows by tolerances of its own, as LBFGS does, has finished, and the rest stays unused.
    """

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None = None
    epochs: int = 1000
    batch_size: int | None = None
    loss: str = "sse"
    seed: int = 0
    budget: int | None = None


@dataclass(frozen=True)
class History:
    """The curve of a fit: row e is the state after e epochs.

    Attributes:
        loss: (rows,) float64, as epoch e + 1 measured it from these weights on; with one batch an epoch
            that is the loss at these weights. The last row of a completed fit is measured after it, in
            evaluation mode.
        gradient_evaluations: (rows,) int64, closure calls so far.
        lr: (rows,) float64, learning rate of the first parameter group.
        columns: names of the columns of `values`: each parameter, as `linear.weight[0,0]`, while there are
            at most 16, else each tensor's Euclidean norm, as `norm/layers.0.weight`.
        values: (rows, columns) float64.
    """

    loss: np.ndarray
    gradient_evaluations: np.ndarray
    lr: np.ndarray
    columns: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class FitResult:
    """How a fit went; the trained weights are in the network.

    Attributes:
        loss: of the last row of the history.
        epochs: whole epochs done.
        seconds: of the training loop alone.
        reason: one sentence where the fit diverged, else empty.
    """

    outcome: Outcome
    loss: float
    epochs: int
    gradient_evaluations: int
    seconds: float
    history: History
    reason: str = ""


Progress = Callable[[int, float], None]


def fit(
    network: nn.Module, x: Tensor, y: Tensor, config: FitConfig, on_progress: Progress = lambda epoch, loss: None
) -> FitResult:
    """Train a network in place on x, (rows, features), and y, (rows, targets), as `fit_batches` does."""
    return fit_batches(network, Batches(x, y, config.batch_size, config.seed), config, on_progress)


def fit_batches(
    network: nn.Module,
    batches: "Batches | StreamedBatches",
    config: FitConfig,
    on_progress: Progress = lambda epoch, loss: None,
    keeper: Keeper | None = None,
) -> FitResult:
    """Train a network in place.

    Every optimizer is stepped the same way, `step(closure)`, and the closure calls are counted: LBFGS makes
    up to 25 a step, so that steps do not measure cost.

    Args:
        network: (rows, features) to (rows, targets), on the device and in the dtype of the rows.
        batches: the rows of each epoch.
        config: what decides the fit.
        on_progress: told the epochs done and the last loss, about ten times a second.
        keeper: keeps the fit now and then, and at its end; the fit goes on from what it kept before, to the same
            bits as if it had never stopped.

    Raises:
        RequestError: the optimizer or the scheduler refuses its options, or the curve is too long for the memory.
        CheckpointError: what was kept is damaged, or belongs to another fit.
    """
    optimizer = config.optimizer.build(network)
    scheduler = config.scheduler.build(optimizer) if config.scheduler else None
    loss_function, sums = LOSSES[config.loss], is_sum(config.loss)
    rows = batches.rows
    epochs = config.epochs if config.budget is None else min(config.epochs, config.budget // batches.count)
    at = _Position(scale=batches.loss_of_the_mean(config.loss))
    recorder = _Recorder(network, epochs)
    kept = _Kept(network, optimizer, scheduler, batches, recorder)
    if keeper and (state := keeper.load()):
        at = kept.restore(state)

    def closure() -> Tensor:
        at.evaluations += 1
        optimizer.zero_grad()
        loss = loss_function(network(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    # torch annotates closures as giving a float; they give, and `step` returns, the loss tensor.
    step = cast("Callable[[Callable[[], Tensor]], Tensor]", optimizer.step)
    network.train()
    started = next_report = time.perf_counter()
    earlier = at.seconds
    while at.epoch < epochs and not at.finished:
        if not at.batch:
            if keeper and batches.count > 1:  # else it costs a tiny step more than the rest of the keeping
                kept.begin_epoch()
            recorder.state(at.epoch, at.evaluations, optimizer.param_groups[0]["lr"])
        for inputs, targets in islice(batches.epoch(), at.batch, None):  # noqa: B007 - the closure reads both
            at.batch += 1
            if config.budget is not None:
                # Each further batch of the epoch needs one.
                before, most = at.evaluations, config.budget - at.evaluations - (batches.count - at.batch)
                iterations = _limit_iterations(optimizer, most)
            batch_loss = step(closure).item()
            if at.limit == math.inf:
                start = batch_loss * rows / len(inputs) if sums else batch_loss
                at.scale = max(at.scale, start if math.isfinite(start) else 0.0)
                at.limit = MOST_OVERSHOOT * at.scale
            at.total += batch_loss if sums else batch_loss * len(inputs)
            if keeper and at.batch < batches.count and keeper.due():
                at.seconds = earlier + time.perf_counter() - started
                keeper.save(kept.state(at))
        at.loss = at.total if sums else at.total / rows
        recorder.loss(at.epoch, at.loss)
        at.batch, at.total = 0, 0.0
        if not at.loss <= at.limit:  # also where it is not a number
            at.reason = f"the loss went from {recorder.first_loss:.3g} to {at.loss:.3g} within {at.epoch + 1} epochs"
            break
        at.epoch += 1
        if config.budget is not None:
            at.finished = batches.count > config.budget - at.evaluations or (
                batches.count == 1 and at.evaluations - before < iterations
            )
        if scheduler is not None:
            _step(scheduler, optimizer, at.loss)
        if (now := time.perf_counter()) >= next_report:
            on_progress(at.epoch, at.loss)
            next_report = now + SECONDS_BETWEEN_REPORTS
        if keeper and keeper.due():
            at.seconds = earlier + now - started
            keeper.save(kept.state(at))
    network.eval()
    if not at.ended:
        at.seconds = earlier + time.perf_counter() - started
        if not at.reason:
            recorder.state(at.epoch, at.evaluations, optimizer.param_groups[0]["lr"])
            at.loss = evaluate_batches(network, batches.in_order(), config.loss)
            recorder.loss(at.epoch, at.loss)
            if not at.loss <= MOST_WORSENING * at.scale:
                at.reason = (
                    f"the fit ended with loss {at.loss:.3g}, worse than the constant mean or its own start "
                    f"({at.scale:.3g})"
                )
        at.ended = at.finished = True
        if keeper:
            keeper.save(kept.state(at))
    on_progress(at.epoch, at.loss)
    return FitResult(
        Outcome.DIVERGED if at.reason else Outcome.COMPLETED,
        at.loss,
        at.epoch,
        at.evaluations,
        at.seconds,
        recorder.history(),
        at.reason,
    )


def evaluate_loss(network: nn.Module, x: Tensor, y: Tensor, loss: str, batch_size: int | None = None) -> float:
    """Measure a loss over all rows in evaluation mode, without gradients; batches add up as in a fit."""
    return evaluate_batches(network, Batches(x, y, batch_size, seed=0).in_order(), loss)


def evaluate_batches(network: nn.Module, batches: Iterable[Rows], loss: str) -> float:
    """The same over rows that come in batches."""
    network.eval()
    total, rows = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            batch_loss = float(LOSSES[loss](network(x), y))
            total += batch_loss if is_sum(loss) else batch_loss * len(x)
            rows += len(x)
    return total if is_sum(loss) else total / rows


def try_out(network: nn.Module, x: Tensor, y: Tensor, config: FitConfig) -> None:
    """Make sure that this optimizer can train this network, by one epoch of a copy on two rows.

    Raises:
        RequestError: with the reason that torch gives.
    """
    try:
        if config.scheduler:
            # OneCycleLR refuses to go on after its last step, which the one epoch below would not show.
            steps = getattr(config.scheduler.build(config.optimizer.build(network)), "total_steps", config.epochs)
            if steps < config.epochs:
                raise RequestError(
                    f"{config.scheduler.name} ends after {steps} steps; there are {config.epochs} epochs"
                )
        _Recorder(network, config.epochs if config.budget is None else min(config.epochs, config.budget))
        fit(copy.deepcopy(network), x[:2], y[:2], replace(config, epochs=1, batch_size=None))
    except RequestError:
        raise
    except ScheduleError as error:
        raise RequestError(str(error)) from error
    except Exception as error:  # a user's network and torch's optimizers may raise anything
        raise RequestError(
            f"{config.optimizer.name} cannot train this model: {first_line(error)}; choose another"
        ) from error


@dataclass(slots=True)
class _Position:
    """Where a fit is, and what it has seen so far.

    Attributes:
        batch: batches done in this epoch.
        total: loss of these.
        scale: of any loss worth having; the loss may rise to `limit`.
        finished: no step is left to be done.
        ended: the state after the last step has been measured as well.
    """

    scale: float
    limit: float = math.inf
    epoch: int = 0
    batch: int = 0
    total: float = 0.0
    loss: float = math.nan
    evaluations: int = 0
    seconds: float = 0.0
    finished: bool = False
    ended: bool = False
    reason: str = ""


class _Kept:
    """Everything that a fit changes, to be kept and restored."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        batches: "Batches | StreamedBatches",
        recorder: "_Recorder",
    ) -> None:
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.generator, self.recorder = batches.generator, recorder
        self.order = self.generator.get_state()

    def begin_epoch(self) -> None:
        """Remember what decides the order of this epoch's rows."""
        self.order = self.generator.get_state()

    def state(self, at: _Position) -> State:
        """Give what must be kept between two steps."""
        devices = {parameter.device for parameter in self.network.parameters() if parameter.is_cuda}
        return {
            "at": asdict(at),
            "network": self._tensors(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "history": self.recorder.state_dict(),
            "order": self.order if at.batch else self.generator.get_state(),
            "generators": {
                "torch": torch.get_rng_state(),
                **{str(device): torch.cuda.get_rng_state(device) for device in devices},
            },
        }

    def restore(self, state: State) -> _Position:
        """Put everything back, and give where the fit was."""
        tensors = self._tensors()
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: tensor.shape for name, tensor in state["network"].items()
        }:
            raise CheckpointError("the checkpoint is one of another network: its parameters are others")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(state["network"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        # load_state_dict gives what it loads the parameters' dtype: a learning rate kept in float32 beside weights
        # in float64 would be computed otherwise from then on.
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, of_parameter in state["optimizer"]["state"].items():
            self.optimizer.state[parameters[number]] = of_parameter
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.recorder.load_state_dict(state["history"])
        self.generator.set_state(state["order"])
        for name, generator in state["generators"].items():
            torch.set_rng_state(generator) if name == "torch" else torch.cuda.set_rng_state(generator, name)
        self.order = state["order"]
        return _Position(**state["at"])

    def _tensors(self) -> dict[str, Tensor]:
        """The network's own, those included that its state_dict leaves out."""
        return dict(self.network.named_parameters()) | dict(self.network.named_buffers())


class _Recorder:
    """Collects the history in arrays that are made once: a row costs about a microsecond."""

    def __init__(self, network: nn.Module, epochs: int) -> None:
        self.parameters = dict(network.named_parameters())
        self.each = sum(parameter.numel() for parameter in self.parameters.values()) <= MOST_PARAMETER_CURVES
        self.columns = tuple(self._names())
        try:
            self._values = np.empty((epochs + 1, len(self.columns)))
            self._loss = np.empty(epochs + 1)
            self._lr = np.empty(epochs + 1)
            self._evaluations = np.empty(epochs + 1, dtype=np.int64)
        except (MemoryError, ValueError, OverflowError) as error:
            raise RequestError(f"the curve of {epochs} epochs does not fit into memory; give fewer --epochs") from error
        self.rows = 0
        # On the CPU NumPy sees the memory of the parameters itself, which optimizers update in place.
        self.views = [
            parameter.detach().numpy().reshape(-1)
            for parameter in self.parameters.values()
            if parameter.device.type == "cpu" and parameter.is_contiguous()
        ]
        self.all_in_view = len(self.views) == len(self.parameters)

    def _names(self) -> Iterator[str]:
        for name, parameter in self.parameters.items():
            if not self.each:
                yield f"norm/{name}"
            elif parameter.dim() == 0:
                yield name
            else:
                for index in np.ndindex(*parameter.shape):
                    yield f"{name}[{','.join(map(str, index))}]"

    def state(self, row: int, evaluations: int, lr: float) -> None:
        self._evaluations[row] = evaluations
        self._lr[row] = lr
        arrays = (
            self.views
            if self.all_in_view
            else [parameter.detach().cpu().numpy().reshape(-1) for parameter in self.parameters.values()]
        )
        values = self._values[row]
        if self.each:
            first = 0
            for array in arrays:
                values[first : first + array.size] = array
                first += array.size
        else:
            for column, array in enumerate(arrays):
                values[column] = math.sqrt(np.dot(array, array))

    def loss(self, row: int, loss: float) -> None:
        self._loss[row] = loss
        self.rows = row + 1

    def state_dict(self) -> dict[str, Tensor]:
        # Of an epoch that has begun there is the state already, and not yet the loss.
        rows = min(self.rows + 1, len(self._loss))
        arrays = {"loss": self._loss, "lr": self._lr, "evaluations": self._evaluations, "values": self._values}
        return {name: torch.from_numpy(array[:rows]) for name, array in arrays.items()} | {
            "rows": torch.tensor(self.rows)
        }

    def load_state_dict(self, kept: Mapping[str, Tensor]) -> None:
        self.rows = int(kept["rows"])
        for array, name in (
            (self._loss, "loss"), (self._lr, "lr"), (self._evaluations, "evaluations"), (self._values, "values")
        ):  # fmt: skip
            array[: len(kept[name])] = kept[name].numpy()

    @property
    def first_loss(self) -> float:
        return float(self._loss[0])

    def history(self) -> History:
        rows = self.rows
        return History(self._loss[:rows], self._evaluations[:rows], self._lr[:rows], self.columns, self._values[:rows])


def _step(scheduler: LRScheduler, optimizer: Optimizer, loss: float) -> None:
    name = type(scheduler).__name__
    try:
        scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    except Exception as error:  # options that its constructor takes, and that cannot be computed with
        raise ScheduleError(
            f"{name} gives no learning rate for this epoch: {first_line(error)}; choose other options"
        ) from error
    for group in optimizer.param_groups:
        if not abs(group["lr"]) <= torch.finfo(group["params"][0].dtype).max:
            raise ScheduleError(f"{name} gives a learning rate of {group['lr']:g} for this epoch; choose other options")


def _limit_iterations(optimizer: Optimizer, most: int) -> int:
    """Let a step of LBFGS make at most so many iterations, one gradient each; how many it makes unless it is done.

    0 for other optimizers.
    """
    group = optimizer.param_groups[0]
    if "max_iter" not in group:
        return 0
    group["max_iter"] = min(group["max_iter"], most)
    return int(min(group["max_iter"], group["max_eval"]))
