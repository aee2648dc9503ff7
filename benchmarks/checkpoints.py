"""What keeping a fit costs, beside the same fit that is not kept: alternating, medians of the ratios.

python benchmarks/checkpoints.py --seconds 12 --repeats 5
"""

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from fourfold.batches import Batches
from fourfold.checkpoints import CheckpointFolder, Keeper
from fourfold.fitting import FitConfig, fit_batches
from fourfold.optimizers import OptimizerConfig


def line() -> tuple[nn.Module, Batches, str]:
    x = torch.tensor([[1.0], [2.0], [3.0]])
    return nn.Linear(1, 1), Batches(x, 2 * x, None, 0), "SGD"


def wide() -> tuple[nn.Module, Batches, str]:
    """A million parameters under Adam: twelve megabytes a checkpoint."""
    x = torch.randn(2000, 20)
    network = nn.Sequential(nn.Linear(20, 1000), nn.Tanh(), nn.Linear(1000, 1000), nn.Tanh(), nn.Linear(1000, 1))
    return network, Batches(x, x[:, :1], 200, 0), "Adam"


def seconds(make: object, epochs: int, every: float | None) -> tuple[float, int]:
    torch.manual_seed(0)
    network, batches, optimizer = make()  # type: ignore[operator]
    config = FitConfig(OptimizerConfig(optimizer, 1e-4), epochs=epochs, loss="mse")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on a disk: /tmp may be memory
        keeper = None if every is None else Keeper(CheckpointFolder(Path(folder)), every, {})
        result = fit_batches(network, batches, config, keeper=keeper)
        numbers = [int(file.stem) for file in Path(folder).glob("*.sha256")]
    return result.seconds, max(numbers, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print("| fit | seconds | a checkpoint every | checkpoints | times the fit without |\n|---|---|---|---|---|")
    for name, make in (("line, SGD, one batch", line), ("a million parameters, Adam", wide)):
        trial = 20 if make is wide else 5000
        took, _ = seconds(make, trial, None)
        epochs = math.ceil(trial * asked.seconds / took)
        for every in (5.0, 1.0):
            ratios, bare = [], []
            for _ in range(asked.repeats):
                without, _ = seconds(make, epochs, None)
                kept, count = seconds(make, epochs, every)
                ratios.append(kept / without)
                bare.append(without)
            print(
                f"| {name} | {statistics.median(bare):.1f} | {every:g} s | {count} | {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
