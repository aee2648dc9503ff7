"""Rows that come in pieces of any size, cut into batches of one; those in memory: TestBatches of test_fitting.py."""

import weakref
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fourfold.batches import Batches, StreamedBatches
from fourfold.fitting import FitConfig, fit_batches
from fourfold.losses import LOSSES
from fourfold.optimizers import OptimizerConfig
from models.linear import LinearRegression


class TestStreamedBatches:
    ROWS = 101

    def batches(self, pieces: Iterable[int], size: int, *, seed: int = 0) -> StreamedBatches:
        x = torch.arange(float(self.ROWS)).reshape(-1, 1)
        sizes = list(pieces)
        assert sum(sizes) == self.ROWS

        def shuffled(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(self.ROWS, generator=generator)
            yield from zip(x[order].split(sizes), (3 * x[order]).split(sizes), strict=True)

        return StreamedBatches(
            shuffled, lambda: zip(x.split(sizes), (3 * x).split(sizes), strict=True),
            lambda x, y: (x / 100, y / 100), 3 * x[:10] / 100, self.ROWS, size, seed,
        )  # fmt: skip

    PIECES = pytest.mark.parametrize(
        "pieces",
        [[101], [1] * 101, [50, 51], [7] * 14 + [3], [3, 90, 8], [0, 60, 0, 41, 0]],
        ids=["one", "single rows", "halves", "sevens", "uneven", "some empty"],
    )

    @PIECES
    @pytest.mark.parametrize("size", [1, 2, 7, 50, 51, 100, 101, 1000])
    def test_each_row_comes_once_in_batches_of_the_size(self, pieces: list[int], size: int) -> None:
        batches = self.batches(pieces, size)
        found = list(batches.epoch())
        assert [len(x) for x, _ in found] == [size] * (101 // size) + [101 % size] * (101 % size > 0)
        assert len(found) == batches.count
        x = torch.cat([x for x, _ in found])
        assert (100 * x[:, 0]).round().sort().values.tolist() == list(range(101))
        assert torch.allclose(torch.cat([y for _, y in found]), 3 * x)

    @PIECES
    def test_batches_do_not_depend_on_the_pieces(self, pieces: list[int]) -> None:
        mine, whole = (list(self.batches(sizes, 8).epoch()) for sizes in (pieces, [101]))
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(mine, whole, strict=True))

    def test_each_epoch_has_another_order_that_the_seed_decides(self) -> None:
        one, again, other = (self.batches([101], 101, seed=seed) for seed in (1, 1, 2))
        first, second = (next(one.epoch())[0] for _ in range(2))
        assert not torch.equal(first, second)
        assert torch.equal(first, next(again.epoch())[0])
        assert not torch.equal(first, next(other.epoch())[0])

    @PIECES
    def test_in_order_they_are_as_they_lie(self, pieces: list[int]) -> None:
        found = torch.cat([x for x, _ in self.batches(pieces, 8).in_order()])
        assert torch.equal(found, torch.arange(101.0).reshape(-1, 1) / 100)

    def test_what_is_left_of_a_piece_does_not_hold_it(self) -> None:
        """As a view it would keep a whole piece in memory until the batch is full."""
        pieces = []

        def shuffled(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
            for rows in (90, 2, 9):
                assert len(pieces) < 2 or pieces[-2]() is None
                piece = np.zeros((rows, 1), dtype=np.float32)
                pieces.append(weakref.ref(piece))
                x = torch.from_numpy(piece)
                del piece
                yield x, torch.zeros(rows, 1)

        batches = StreamedBatches(
            shuffled, lambda: iter(()), lambda x, y: (x + 1, y), torch.zeros(1, 1), self.ROWS, 8, 0
        )
        assert sum(len(x) for x, _ in batches.epoch()) == self.ROWS
        assert len(pieces) == 3

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_scale_of_a_loss_is_that_of_the_whole(self, loss: str) -> None:
        """From a sample that is like the whole."""
        y = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        streamed = StreamedBatches(
            lambda generator: iter(()), lambda: iter(()), lambda x, y: (x, y), y[::10], len(y), 10, 0
        )  # fmt: skip
        whole = Batches(y, y, 10, 0)
        assert streamed.loss_of_the_mean(loss) == pytest.approx(whole.loss_of_the_mean(loss), rel=0.3)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_fit_measures_what_one_in_memory_does(self, loss: str) -> None:
        x = torch.arange(101.0).reshape(-1, 1) / 100
        config = FitConfig(OptimizerConfig.parse("SGD", 1e-12), epochs=2, batch_size=8, loss=loss)
        torch.manual_seed(0)
        network = LinearRegression(1)
        results = [fit_batches(network, rows, config) for rows in (self.batches([40, 61], 8), Batches(x, 3 * x, 8, 0))]
        assert results[0].history.loss == pytest.approx(results[1].history.loss, rel=1e-5)
        assert results[0].gradient_evaluations == results[1].gradient_evaluations == 2 * 13

    def test_a_budget_counts_the_batches(self) -> None:
        config = FitConfig(OptimizerConfig.parse("SGD", 0.01), epochs=100, batch_size=8, loss="mse", budget=30)
        result = fit_batches(LinearRegression(1), self.batches([101], 8), config)
        assert (result.epochs, result.gradient_evaluations) == (2, 26)
