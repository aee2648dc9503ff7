"""Rows in batches: an order of its own each epoch, from memory or from where they lie."""

from collections.abc import Callable, Iterable, Iterator
from itertools import starmap

import torch
from torch import Tensor

from fourfold.losses import LOSSES, is_sum

Rows = tuple[Tensor, Tensor]


def loss_of_the_mean(y: Tensor, loss: str) -> float:
    """The loss of the constant prediction that squared error likes best: the scale of any loss worth having."""
    return float(LOSSES[loss](y.mean(dim=0).expand_as(y), y))


def batches_an_epoch(rows: int, size: int | None) -> int:
    """How many steps one pass over the rows takes; without a size it is one."""
    return -(-rows // (size or rows))


class Batches:
    """The rows of each epoch, as views of tensors: no worker pool, no copy of single rows.

    Attributes:
        rows: of the whole.
        count: batches an epoch.
    """

    def __init__(self, x: Tensor, y: Tensor, size: int | None, seed: int) -> None:
        self.x, self.y, self.rows = x, y, len(x)
        self.size = size or len(x)
        self.count = batches_an_epoch(len(x), size)
        self.generator = torch.Generator().manual_seed(seed)

    def epoch(self) -> Iterator[Rows]:
        """Inputs and targets of each batch, in an order that the seed decides, another one each time."""
        if self.size >= len(self.x):
            yield self.x, self.y
            return
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        yield from _cut(self.x[order], self.y[order], self.size)

    def in_order(self) -> Iterator[Rows]:
        """The same rows in their own order."""
        return _cut(self.x, self.y, self.size)

    def loss_of_the_mean(self, loss: str) -> float:
        """The scale of any loss worth having."""
        return loss_of_the_mean(self.y, loss)


class StreamedBatches:
    """The rows of each epoch from where they lie, in pieces that are cut into batches; none is held longer.

    Args:
        shuffled: gives pieces of all rows in an order that the generator decides.
        in_order: gives pieces of all rows in their own order.
        as_seen: makes raw inputs and targets what the network is trained on.
        sample: some of the targets as the network is trained on them, (rows, targets).
        rows: of the whole.
        size: rows a batch.

    Attributes:
        count: batches an epoch.
    """

    def __init__(
        self,
        shuffled: Callable[[torch.Generator], Iterable[Rows]],
        in_order: Callable[[], Iterable[Rows]],
        as_seen: Callable[[Tensor, Tensor], Rows],
        sample: Tensor,
        rows: int,
        size: int,
        seed: int,
    ) -> None:
        self.shuffled, self.whole, self.as_seen, self.sample = shuffled, in_order, as_seen, sample
        self.rows, self.size, self.count = rows, size, batches_an_epoch(rows, size)
        self.generator = torch.Generator().manual_seed(seed)

    def epoch(self) -> Iterator[Rows]:
        """Inputs and targets of each batch, in an order that the seed decides, another one each time."""
        left: list[Rows] = []
        for x, y in self.shuffled(self.generator):
            needed = self.size - sum(len(inputs) for inputs, _ in left)
            if len(x):  # else the last batch might have no rows, and a mean of none is no number
                left.append((x[:needed], y[:needed]))
            if len(x) < needed:
                continue
            yield self.as_seen(*_joined(left))
            end = len(x) - (len(x) - needed) % self.size
            yield from starmap(self.as_seen, _cut(x[needed:end], y[needed:end], self.size))
            left = [(x[end:].clone(), y[end:].clone())] if end < len(x) else []  # a view would hold the whole piece
        if left:
            yield self.as_seen(*_joined(left))

    def in_order(self) -> Iterator[Rows]:
        """The same rows in their own order."""
        for x, y in self.whole():
            for inputs, targets in _cut(x, y, self.size):
                yield self.as_seen(inputs, targets)

    def loss_of_the_mean(self, loss: str) -> float:
        """The scale of any loss worth having, from the sample."""
        of_sample = loss_of_the_mean(self.sample, loss)
        return of_sample * self.rows / len(self.sample) if is_sum(loss) else of_sample


def _cut(x: Tensor, y: Tensor, size: int) -> Iterator[Rows]:
    return zip(torch.split(x, size), torch.split(y, size), strict=True) if len(x) else iter(())


def _joined(rows: list[Rows]) -> Rows:
    return torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])
