"""What a comparison costs beside the same trainings one after another in a bare loop: `make bench-comparison`.

The bare loop trains a sample, spread over learning rates; sample and comparison alternate in one run, and the ratio of
the medians counts, since times drift on shared machines.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from torch import nn

from fourfold.comparison import Contestant
from fourfold.configuration import EIGHT, CompareConfig
from fourfold.losses import LOSSES
from fourfold.population import Problem, train_population
from tasks.build_model import build
from tasks.compare import Posed, pose, rates_of, train_members
from tasks.make_data import load

SAMPLED_RATES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of each comparison (default 3)")
    parser.add_argument("--only", choices=("line", "mlp", "seeds", "memory"), help="one of the measurements")
    parser.add_argument("--members", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.members:
        _train_many(asked.members)
        return
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    line, stacked = _seeds(10), tuple(name for name in EIGHT if name != "LBFGS")
    if asked.only in (None, "line"):
        _against_bare("line, the eight, 36 x 10 x 500", line, EIGHT, asked.repeats, "at most 30 s, at least 60 times")
        _against_bare("the same without LBFGS", line, stacked, asked.repeats, "aim 150 times")
    if asked.only in (None, "mlp"):
        with tempfile.TemporaryDirectory() as folder:
            config = CompareConfig(
                data=_table(Path(folder)), target=("y",), validation_fraction=0, test_fraction=0, model="mlp",
                hidden=(32,), learning_rates=12, seeds=5, budget=200,
            )  # fmt: skip
            _against_bare("mlp 8-32-1, 442 rows, 8 x 12 x 5 x 200", config, EIGHT, asked.repeats, "at least 5 times")
            _against_bare("the same without LBFGS", config, stacked, asked.repeats, "")
    if asked.only in (None, "seeds"):
        _more_seeds(asked.repeats)
    if asked.only in (None, "memory"):
        subprocess.run([sys.executable, __file__, "--members", "100000"], check=True)


def _against_bare(what: str, config: CompareConfig, names: tuple[str, ...], repeats: int, wanted: str) -> None:
    posed, entrants = pose(config, load(config.training())), [Contestant.parse(name) for name in names]
    together, bare = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        train_members.fn(config, posed, entrants)
        together.append(time.perf_counter() - started)
        bare.append(sum(_bare_seconds(config, posed, entrant) for entrant in entrants))
    ours, theirs = statistics.median(together), statistics.median(bare)
    print(f"{what}: bare {theirs:.0f} s (from samples), here {ours:.1f} s, {theirs / ours:.0f} times  [{wanted}]")


def _bare_seconds(config: CompareConfig, posed: Posed, entrant: Contestant) -> float:
    """Seconds that all trainings of an optimizer take one after another, from one seed of a third of the rates."""
    rates = rates_of(config, entrant)
    sample = [rates[place] for place in np.linspace(0, len(rates) - 1, SAMPLED_RATES).round().astype(int)]
    started = time.perf_counter()
    for lr in sample:
        _bare(config, posed.problem, entrant, lr)
    return (time.perf_counter() - started) / len(sample) * len(rates) * config.seeds


def _bare(config: CompareConfig, problem: Problem, entrant: Contestant, lr: float) -> nn.Module:
    network, loss_function = build(config.training(), load(config.training())).core, LOSSES[problem.loss]
    optimizer = getattr(torch.optim, entrant.optimizer.name)(network.parameters(), lr=lr)
    evaluations = 0

    def closure() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = loss_function(network(problem.x), problem.y)
        loss.backward()
        return loss

    while evaluations < config.budget:
        optimizer.step(closure)
    return network


def _more_seeds(repeats: int) -> None:
    adam = Contestant.parse("Adam")
    few, many = (pose(config, load(config.training())).problem for config in (_seeds(10), _seeds(1000)))
    rates = rates_of(_seeds(10), adam)
    seconds: dict[int, list[float]] = {10: [], 1000: []}
    for _ in range(repeats):
        for problem in (few, many):
            started = time.perf_counter()
            train_population(problem, adam.optimizer, rates, stacked=True)
            seconds[len(problem.starts)].append(time.perf_counter() - started)
    ten, thousand = (statistics.median(side) for side in seconds.values())
    print(
        f"Adam, 36 rates: 10 seeds {ten:.2f} s, 1000 seeds {thousand:.2f} s, {thousand / ten:.1f} times  [at most 10]"
    )


def _train_many(members: int) -> None:
    config = _seeds(-(-members // 36)).model_copy(update={"budget": 100})
    problem = pose(config, load(config.training())).problem
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    adam = Contestant.parse("Adam")
    trained = train_population(problem, adam.optimizer, rates_of(config, adam), stacked=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{trained.loss.size} members on the line: peak {peak:.0f} MiB, {before:.0f} before it  [under 1 GB]")


def _seeds(count: int) -> CompareConfig:
    return CompareConfig(learning_rates=36, seeds=count, budget=500)


def _table(folder: Path) -> str:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(442, 8))
    y = x @ generator.normal(size=8) + np.sin(x[:, 0] * x[:, 1]) + 0.1 * generator.normal(size=442)
    columns = {f"x{number}": column for number, column in enumerate(x.T)}
    pa.csv.write_csv(pa.table({**columns, "y": y}), folder / "rows.csv")
    return str(folder / "rows.csv")


if __name__ == "__main__":
    main()
