"""--stream: the same training from the disk as from memory, and nothing left behind."""

import gc
import math
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from fourfold import streams, tables
from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.fitting import FitResult, Outcome, fit_batches
from tasks import make_data
from tasks.build_model import BuiltModel, build
from tasks.evaluate import evaluate
from tasks.export_onnx import export_onnx
from tasks.make_data import load
from tasks.request import check, check_optimizer
from tasks.train import fit_config
from tasks.verify_onnx import verify_onnx

ROWS, COLUMNS = 3000, 4
BATCH = 128


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make some thousands of rows many chunks, pools and blocks."""
    monkeypatch.setattr(streams, "POOL", 500 * COLUMNS * 8)
    monkeypatch.setattr(streams, "SAMPLE_ROWS", 100)
    for module in (streams, tables):
        monkeypatch.setattr(module, "CHUNK_ROWS", 300)
    monkeypatch.setattr(tables, "_CSV_BLOCK", 16 * 2**10)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A plane with noise, sorted by its target; gives the request that trains on it."""

    def write(kind: str = "parquet", *, missing: float = 0.0, group: int = 200, **options: Any) -> TrainConfig:
        random = np.random.default_rng(0)
        x = random.normal(size=(ROWS, 3)) * [1.0, 20.0, 0.1] + [5.0, -100.0, 0.0]
        frame = pd.DataFrame(x, columns=["a", "b", "c"])
        frame["y"] = 1000 + 3 * frame["a"] - 0.2 * frame["b"] + 40 * frame["c"] + random.normal(size=ROWS)
        frame = frame.sort_values("y", ignore_index=True)
        frame = frame.mask(random.random(frame.shape) < [missing, missing, 0, 0])
        path = tmp_path / f"rows.{kind}"
        whole = pa.Table.from_pandas(frame, preserve_index=False)
        pc.write_csv(whole, path) if kind == "csv" else pq.write_table(whole, path, row_group_size=group)
        defaults = {
            "data": str(path),
            "target": "y",
            "dtype": "float64",
            "batch_size": BATCH,
            "validation_fraction": 0.1,
        }
        return TrainConfig(**defaults | {"stream": True, "epochs": 5, "optimizer": "Adam", "lr": 0.01} | options)

    return write


def in_memory(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"stream": False})


def trained(config: TrainConfig) -> tuple[BuiltModel, Dataset, FitResult]:
    data = load(config)
    built, plan = build(config, data), fit_config(config)
    return built, data, fit_batches(built.core, built.batches(plan.batch_size, plan.seed), plan)


class TestTheSameTraining:
    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    @pytest.mark.parametrize("loss", ["mse", "sse", "l1", "huber"])
    def test_the_evaluation_is_that_of_the_rows_in_memory(
        self, missing: Any, loss: Any, table: Callable[..., TrainConfig], notes: Any
    ) -> None:
        """Of one and the same network: every number but the order of the sums."""
        config = table(missing=0.0 if missing == "error" else 0.1).model_copy(update={"missing": missing, "loss": loss})
        data, whole = load(config), load(in_memory(config))
        torch.manual_seed(0)
        network = build(config, data).network
        built = [
            BuiltModel(network, network, one.x, one.y, one.features, one.targets, one.stream) for one in (data, whole)
        ]
        mine, its = (evaluate.fn(config, one, rows, notes) for one, rows in zip(built, (data, whole), strict=True))
        assert mine.loss == pytest.approx(its.loss, rel=1e-12)
        assert mine.judged_on == its.judged_on == "held-out"
        for of_mine, of_its in ((mine.accuracy, its.accuracy), (mine.validation, its.validation)):
            assert of_mine is not None
            assert of_its is not None
            assert vars(of_mine) == pytest.approx(vars(of_its), rel=1e-12)
        assert data.count == whole.count

    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_before_the_first_step_they_are_the_same_network(
        self, missing: Any, kind: str, table: Callable[..., TrainConfig]
    ) -> None:
        """Means and deviations are of the whole, and not of the samples at hand."""
        config = table(kind, missing=0.0 if missing == "error" else 0.1).model_copy(update={"missing": missing})
        mine, its = (build(one, load(one)).network.state_dict() for one in (config, in_memory(config)))
        assert mine.keys() == its.keys()
        for name, values in mine.items():
            assert torch.allclose(values, its[name], rtol=1e-12, atol=0), name

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    @pytest.mark.parametrize("missing", [0.0, 0.1])
    def test_a_problem_with_one_minimum_ends_there(
        self, kind: str, missing: float, table: Callable[..., TrainConfig]
    ) -> None:
        """Sorted rows that came as they lie would end far from it: the last batch alone would decide."""
        config = table(
            kind,
            missing=missing,
            epochs=30,
            optimizer="SGD",
            lr=0.05,
            scheduler="ExponentialLR",
            scheduler_option=("gamma=0.8",),
        ).model_copy(update={"missing": "mean"})
        (mine, data, result), (its, whole, other) = trained(config), trained(in_memory(config))
        exact = its.exact(whole)
        assert result.outcome is other.outcome is Outcome.COMPLETED
        assert result.gradient_evaluations == other.gradient_evaluations
        assert result.loss == pytest.approx(other.loss, rel=1e-3)
        w, b = mine.coefficients()
        assert w == pytest.approx(exact.weights, rel=0.02)
        assert b == pytest.approx(exact.intercepts, rel=0.02)
        assert data.count == whole.count

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_the_same_request_gives_the_same_bits(self, kind: str, table: Callable[..., TrainConfig]) -> None:
        config = table(kind, model="mlp", hidden=(4,))
        histories = []
        for _ in range(2):
            make_data._load.cache_clear()
            histories.append(trained(config)[2].history)
        assert histories[0].values.tobytes() == histories[1].values.tobytes()
        assert histories[0].loss.tobytes() == histories[1].loss.tobytes()

    def test_another_seed_gives_another_order(self, table: Callable[..., TrainConfig]) -> None:
        config = table(test_fraction=0.0, validation_fraction=0.0)
        first, other = (
            [numbers for numbers, _ in batches(config.model_copy(update={"seed": seed}))] for seed in (0, 1)
        )
        assert not torch.equal(torch.cat(first), torch.cat(other))

    def test_the_loss_of_an_epoch_is_measured_over_all_training_rows(self, table: Callable[..., TrainConfig]) -> None:
        """At a learning rate that changes nothing, each row of the curve is the loss at the first weights."""
        config = table(lr=1e-14, optimizer="SGD", epochs=2)
        (_, _, result), (_, _, other) = trained(config), trained(in_memory(config))
        assert result.history.loss == pytest.approx(other.history.loss, rel=1e-9)
        assert len(result.history.loss) == 3


def batches(config: TrainConfig) -> list[tuple[Tensor, Tensor]]:
    built, plan = build(config, load(config)), fit_config(config)
    return list(built.batches(plan.batch_size, plan.seed).epoch())


class TestBatches:
    @pytest.mark.parametrize("size", [1, 7, 100, 128, 700, 2099, 2100, 2101, 10_000])
    def test_each_training_row_is_in_one_batch(self, size: int, table: Callable[..., TrainConfig]) -> None:
        config = table(batch_size=size)
        found = batches(config)
        data = load(in_memory(config))
        built = build(in_memory(config), data)
        assert [len(x) for x, _ in found] == [size] * (2100 // size) + [2100 % size] * (2100 % size > 0)
        assert all(len(x) == len(y) for x, y in found)
        mine, its = torch.cat([torch.cat(one, dim=1) for one in found]), torch.cat([built.x, built.y], dim=1)
        assert torch.allclose(mine[mine[:, 0].argsort()], its[its[:, 0].argsort()], rtol=1e-9, atol=1e-12)


class TestWhenItStreams:
    def test_a_file_that_fits_does_not(self, table: Callable[..., TrainConfig]) -> None:
        assert load(table(stream=None)).stream is None

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_larger_one_does_unless_told_not_to(
        self, kind: str, table: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(make_data, "STREAM_BEYOND", ROWS * COLUMNS * 8 - 1)
        assert load(table(kind, stream=None)).stream is not None
        assert load(table(kind, stream=False)).stream is None
        monkeypatch.setattr(make_data, "STREAM_BEYOND", 2 * ROWS * COLUMNS * 10)
        make_data._load.cache_clear()
        assert load(table(kind, stream=None)).stream is None

    def test_all_rows_cannot_be_one_batch(self, table: Callable[..., TrainConfig], store: Any) -> None:
        with pytest.raises(RequestError, match=r"its 3000 rows cannot be one batch: give --batch-size, as 8192, or"):
            check(table(batch_size=None))

    def test_a_flow_that_nobody_checked_refuses_that_too(self, table: Callable[..., TrainConfig]) -> None:
        """A deployment's run begins with its first step."""
        with pytest.raises(RequestError, match="cannot be one batch: give --batch-size"):
            make_data.make_data.fn(table(batch_size=None))
        check_optimizer(check(table()))

    def test_built_in_sets_are_small(self) -> None:
        with pytest.raises(RequestError, match="--stream and --missing belong to a file"):
            load(TrainConfig(stream=True))

    @pytest.mark.parametrize("options", [{"model": "linear"}, {"model": "mlp", "hidden": (8,)}], ids=str)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_file_passes_the_gate(
        self, options: dict[str, Any], dtype: str, table: Callable[..., TrainConfig], notes: Any, tmp_path: Path
    ) -> None:
        config = table("csv", missing=0.1, dtype=dtype, epochs=1, **options).model_copy(update={"missing": "mean"})
        built, data, _ = trained(config)
        exported = export_onnx.fn(config, built, data, notes, tmp_path)
        report = verify_onnx.fn(config, built, data, exported, notes, tmp_path)
        assert report.passed, report.reason


class Interrupting(nn.Module):
    """A line that is interrupted in the middle of an epoch, as by Ctrl-C."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(in_features, out_features), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls > 5:
            raise KeyboardInterrupt
        return self.linear(x)  # type: ignore[no-any-return]


class TestWhatIsLeftBehind:
    @pytest.fixture
    def quiet(self, temporary: Path) -> Callable[[], bool]:
        """Whether the test left no thread and no folder, when nothing holds the rows any more."""
        before = set(threading.enumerate())

        def ask() -> bool:
            make_data._load.cache_clear()
            gc.collect()
            for thread in set(threading.enumerate()) - before:
                thread.join(timeout=5)
            return set(threading.enumerate()) <= before and not list(temporary.iterdir())

        return ask

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_by_a_fit_that_ends(self, kind: str, table: Callable[..., TrainConfig], quiet: Callable[[], bool]) -> None:
        assert trained(table(kind))[2].outcome is Outcome.COMPLETED
        assert quiet()

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_by_a_fit_that_diverges(
        self, kind: str, table: Callable[..., TrainConfig], quiet: Callable[[], bool]
    ) -> None:
        result = trained(table(kind, optimizer="SGD", lr=1e3))[2]
        assert result.outcome is Outcome.DIVERGED
        assert not math.isfinite(result.loss) or result.loss > 1e3
        assert quiet()

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_by_one_that_is_interrupted_within_an_epoch(
        self, kind: str, table: Callable[..., TrainConfig], quiet: Callable[[], bool], temporary: Path
    ) -> None:
        config = table(kind)
        data = load(config)
        built = build(config.model_copy(update={"model": f"{__name__}:Interrupting"}), data)
        plan = fit_config(config)
        rows = built.batches(plan.batch_size, plan.seed)
        with pytest.raises(KeyboardInterrupt):
            fit_batches(built.core, rows, plan)
        assert len(list(temporary.iterdir())) == (kind == "csv"), "the rows are still wanted"
        del built, data, rows
        assert quiet()
