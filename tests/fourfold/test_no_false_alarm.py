"""The gate passes what is right: networks of every kind offered, drawn at random."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import pytest
import torch
from rescaled import rescaled
from torch import Tensor, nn

from fourfold.gate import expect, verify
from fourfold.onnx_export import export
from models.linear import LinearRegression
from models.mlp import ACTIVATIONS, MultilayerPerceptron

T = TypeVar("T")

SEEDS = range(64)  # a round of both dtypes, all depths and all activations takes 50
MOST_LAYERS, MOST_TARGETS, MOST_FEATURES = 4, 5, 30
WEIGHT_SCALES = (1.0, 3.0, 10.0)
ROW_SCALES = (1e-3, 1.0, 50.0, 1e4)
ROW_OFFSETS = (0.0, 0.0, 1.0, -20.0, 1e3)  # in deviations


@dataclass(frozen=True)
class Drawn:
    """A network and its training rows, all from one seed."""

    network: nn.Module
    rows: Tensor
    says: str

    @classmethod
    def of(cls, seed: int) -> Self:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls._draw(seed)

    @classmethod
    def _draw(cls, seed: int) -> Self:
        dtype = (torch.float32, torch.float64)[seed % 2]
        depth = seed // 2 % (MOST_LAYERS + 1)
        activation = list(ACTIVATIONS)[seed // 2 // (MOST_LAYERS + 1) % len(ACTIVATIONS)] if depth else ""
        features, targets = _any(range(1, MOST_FEATURES + 1)), _any(range(1, MOST_TARGETS + 1))
        hidden = [_any((1, 4, 8, 16, 32, 64)) for _ in range(depth)]
        weight_scale, standardized = _any(WEIGHT_SCALES), _any((False, True))
        row_scale, row_offset = _any(ROW_SCALES), _any(ROW_OFFSETS)
        core: nn.Module = LinearRegression(features, targets)
        if depth:
            core = MultilayerPerceptron(features, targets, hidden, activation)
        with torch.no_grad():
            for parameter in core.parameters():
                parameter *= weight_scale
        x = row_scale * (row_offset + torch.randn(_any((2, 3, 50, 200)), features, dtype=torch.float64))
        if features > 1 and _any((False, True)):  # columns of different scales
            x *= 10.0 ** torch.randint(-3, 4, (features,))
        rows, core = x.to(dtype), core.to(dtype)
        network = core
        if standardized:
            y = 10.0 ** _any((-3, 0, 5)) * (_any((0, 1, 30)) + torch.randn(len(x), targets, dtype=torch.float64))
            network = rescaled(core, rows, y.to(dtype))
        says = (
            f"{features} -> {hidden} -> {targets} {activation}, {dtype}, {'standardized' if standardized else 'raw'}, "
            f"weights times {weight_scale:g}, {len(x)} rows at {row_scale:g} * ({row_offset:g} +- 1)"
        )
        return cls(network, rows, says)


def _any(choices: Sequence[T]) -> T:
    return choices[int(torch.randint(len(choices), ()))]


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    """Products as small as these gain nothing from threads, which wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_passes(seed: int, tmp_path: Path) -> None:
    drawn = Drawn.of(seed)
    exported = export(drawn.network, drawn.rows, tmp_path / "model.onnx", {})
    report = verify(drawn.network, exported, expect(drawn.network, {"training rows": drawn.rows}))
    assert report.passed, f"{drawn.says}: {report.reason}"
    assert report.summary()["worst_ratio"] < 1, drawn.says
