"""A fit that is stopped anywhere, and goes on from its checkpoint in objects of its own, ends with the same bits."""

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourfold.batches import Batches, StreamedBatches
from fourfold.checkpoints import MOST_OF_THE_TIME, CheckpointFolder, Keeper
from fourfold.durable import write_whole
from fourfold.errors import CheckpointError
from fourfold.fitting import FitConfig, FitResult, Outcome, fit_batches
from fourfold.optimizers import OptimizerConfig, SchedulerConfig, optimizer_classes, scheduler_classes

X = torch.randn(23, 3, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(23, 1, generator=torch.Generator().manual_seed(2))
# Schedulers need these; SequentialLR, ChainedScheduler, LambdaLR and their like take objects that cannot be typed.
SCHEDULER_OPTIONS: dict[str, tuple[str, ...]] = {
    "ConstantLR": ("total_iters=4",), "CosineAnnealingLR": ("T_max=9",), "CosineAnnealingWarmRestarts": ("T_0=4",),
    "CyclicLR": ("base_lr=0.001", "max_lr=0.02", "step_size_up=3"), "ExponentialLR": ("gamma=0.9",), "LinearLR": (),
    "MultiStepLR": ("milestones=[3,3,6]",), "OneCycleLR": ("max_lr=0.02", "total_steps=12"), "PolynomialLR": (),
    "ReduceLROnPlateau": ("patience=0", "threshold=0.5"), "StepLR": ("step_size=2",),
}  # fmt: skip


class StopsAt(Keeper):
    """Is due the n-th time that it is asked, and ends the fit there as an interruption does."""

    def __init__(self, path: Path, number: float) -> None:
        super().__init__(CheckpointFolder(path), math.inf, {})
        self.left = number

    def due(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.stop = self.interrupt
        return super().due()

    def interrupt(self) -> None:
        raise KeyboardInterrupt


class Noisy(nn.Module):
    """Draws from torch's generator in each forward, counts in a buffer, and has another that state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.layers(x)
        if self.training:
            self.calls += 1
            prediction = prediction + 0.01 * self.last
            self.last = prediction.detach().mean()
        return prediction


def line(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(3, 1).to(dtype)


def batches(size: int | None, dtype: torch.dtype = torch.float32) -> Batches:
    return Batches(X.to(dtype), Y.to(dtype), size, seed=7)


def bits(network: nn.Module, result: FitResult) -> tuple[Any, ...]:
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    history = result.history
    return (
        {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()},
        (result.outcome, result.loss, result.epochs, result.gradient_evaluations, result.reason),
        [array.tobytes() for array in (history.loss, history.gradient_evaluations, history.lr, history.values)],
    )


def stopped_everywhere(
    make: Callable[[], nn.Module], rows: Callable[[], Any], config: FitConfig, path: Path, every: int
) -> tuple[Any, ...]:
    """Train in pieces: each ends at its n-th chance to be stopped, and the next starts from nothing but the disk."""
    for _ in range(1000):
        network = make()
        torch.manual_seed(11)
        try:
            return bits(network, fit_batches(network, rows(), config, keeper=StopsAt(path, every)))
        except KeyboardInterrupt:
            torch.rand(7)  # what another process would have drawn
    raise AssertionError("the fit does not get on")


def in_one_go(make: Callable[[], nn.Module], rows: Callable[[], Any], config: FitConfig) -> tuple[Any, ...]:
    network = make()
    torch.manual_seed(11)
    return bits(network, fit_batches(network, rows(), config))


@pytest.mark.parametrize("name", sorted(set(optimizer_classes()) - {"SparseAdam", "Muon"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_optimizer_goes_on_to_the_same_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    options = {"amsgrad": True} if name in ("Adam", "AdamW") else {"momentum": 0.9} if name == "SGD" else {}
    config = FitConfig(OptimizerConfig(name, 0.01, options), epochs=9)
    same = in_one_go(lambda: line(dtype), lambda: batches(None, dtype), config)
    assert stopped_everywhere(lambda: line(dtype), lambda: batches(None, dtype), config, tmp_path, 2) == same


def test_muon_which_takes_matrices_alone_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def matrix() -> nn.Module:
        torch.manual_seed(3)
        return nn.Linear(3, 1, bias=False)

    config = FitConfig(OptimizerConfig("Muon", 0.01), epochs=9, batch_size=5)
    same = in_one_go(matrix, lambda: batches(5), config)
    assert stopped_everywhere(matrix, lambda: batches(5), config, tmp_path, 4) == same


def test_the_schedulers_above_are_all_that_can_be_typed() -> None:
    takes_objects = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
    assert set(scheduler_classes()) - takes_objects == set(SCHEDULER_OPTIONS)


@pytest.mark.parametrize("name", SCHEDULER_OPTIONS)
@pytest.mark.parametrize("size", [None, 5])
def test_every_scheduler_goes_on_to_the_same_bits(name: str, size: int | None, tmp_path: Path) -> None:
    scheduler = SchedulerConfig.parse(name, SCHEDULER_OPTIONS[name])
    optimizer = OptimizerConfig("SGD", 0.01, {"momentum": 0.5}, {"bias": 0.002})
    config = FitConfig(optimizer, scheduler, epochs=12, batch_size=size, loss="mse")
    same = in_one_go(line, lambda: batches(size), config)
    assert stopped_everywhere(line, lambda: batches(size), config, tmp_path, 3) == same


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 6, 11])
def test_a_fit_that_is_stopped_between_batches_keeps_order_and_draws(every: int, tmp_path: Path) -> None:
    config = FitConfig(OptimizerConfig("Adam", 0.01), epochs=7, batch_size=5, loss="mse")
    same = in_one_go(Noisy, lambda: batches(5), config)
    assert stopped_everywhere(Noisy, lambda: batches(5), config, tmp_path, every) == same


@pytest.mark.parametrize("every", [1, 4, 7])
def test_a_streamed_fit_goes_on_within_an_epoch(every: int, tmp_path: Path) -> None:
    def stream() -> StreamedBatches:
        def shuffled(generator: torch.Generator) -> Any:
            order = torch.randperm(len(X), generator=generator)
            return zip(torch.split(X[order], 4), torch.split(Y[order], 4), strict=True)

        def in_order() -> Any:
            return [(X, Y)]

        return StreamedBatches(shuffled, in_order, lambda x, y: (x, y), Y, len(X), 5, seed=7)

    config = FitConfig(OptimizerConfig("RMSprop", 0.01), epochs=4, batch_size=5, loss="mse")
    assert stopped_everywhere(line, stream, config, tmp_path, every) == in_one_go(line, stream, config)


@pytest.mark.parametrize("budget", [40, 131])
@pytest.mark.parametrize(("name", "size"), [("LBFGS", None), ("LBFGS", 9), ("SGD", 9)])
def test_a_budget_is_spent_alike(name: str, size: int | None, budget: int, tmp_path: Path) -> None:
    config = FitConfig(OptimizerConfig(name, 0.05), epochs=60, batch_size=size, loss="mse", budget=budget)
    same = in_one_go(line, lambda: batches(size), config)
    assert stopped_everywhere(line, lambda: batches(size), config, tmp_path, 2) == same


def test_a_fit_that_diverges_does_so_again(tmp_path: Path) -> None:
    config = FitConfig(OptimizerConfig("SGD", 5.0), epochs=50)
    same = in_one_go(line, lambda: batches(None), config)
    assert same[1][0] is Outcome.DIVERGED
    assert stopped_everywhere(line, lambda: batches(None), config, tmp_path, 1) == same
    # Its last checkpoint is that of a fit that has ended: nothing is trained again.
    assert stopped_everywhere(line, lambda: batches(None), config, tmp_path, 1) == same


def test_a_fit_that_has_ended_is_given_back_as_it_was(tmp_path: Path) -> None:
    config = FitConfig(OptimizerConfig("Adam", 0.01), epochs=6, batch_size=5)
    first, second = Noisy(), Noisy()
    result = fit_batches(first, batches(5), config, keeper=StopsAt(tmp_path, math.inf))
    again = fit_batches(second, batches(5), config, keeper=StopsAt(tmp_path, math.inf))
    assert bits(second, again) == bits(first, result)
    assert again.seconds == result.seconds
    assert second.calls == first.calls, "no step was made"


def test_seconds_add_up_over_the_pieces(tmp_path: Path) -> None:
    config = FitConfig(OptimizerConfig("SGD", 0.001), epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit_batches(line(), batches(None), config, keeper=StopsAt(tmp_path, 2))
    folder = CheckpointFolder(tmp_path)
    state = folder.load()
    assert state is not None
    state["fit"]["at"]["seconds"] = 1000.0
    folder.save(state)
    result = fit_batches(line(), batches(None), config, keeper=StopsAt(tmp_path, math.inf))
    assert 1000 < result.seconds < 1010


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    config = FitConfig(OptimizerConfig("SGD", 0.001), epochs=3)
    fit_batches(line(), batches(None), config, keeper=StopsAt(tmp_path, math.inf))
    with pytest.raises(CheckpointError, match="another network"):
        fit_batches(nn.Linear(3, 1, bias=False), batches(None), config, keeper=StopsAt(tmp_path, math.inf))


def test_what_must_be_the_same_is_compared(tmp_path: Path) -> None:
    Keeper(CheckpointFolder(tmp_path), 5, {"data": "a" * 8, "torch": "1"}).save({"loss": 1.0})
    assert Keeper(CheckpointFolder(tmp_path), 9, {"data": "a" * 8, "torch": "1"}).load() == {"loss": 1.0}
    with pytest.raises(CheckpointError, match="another data: aaaaaaaa, not bbbbbbbb"):
        Keeper(CheckpointFolder(tmp_path), 5, {"data": "b" * 8, "torch": "1"}).load()


def test_saving_takes_no_more_than_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    keeper = Keeper(CheckpointFolder(tmp_path), 5, {})

    def slowly(state: Any) -> None:
        nonlocal clock
        clock += 2

    monkeypatch.setattr(keeper.folder, "save", slowly)
    saved, steps = 0, 10_000
    for _ in range(steps):
        clock += 1
        if keeper.due():
            keeper.save({})
            saved += 1
    assert saved > 10
    assert 2 * saved <= MOST_OF_THE_TIME * clock


STATE = {
    "weights": torch.arange(40, dtype=torch.float64).reshape(5, 8)[:, ::2], "none": None, "true": True,
    "text": "weiß ☃", "numbers": [1, -2.5, math.inf, 0.1 + 0.2], "pair": (0.9, 0.999), "counts": Counter([3, 3, 5]),
    "by number": {0: {"step": torch.tensor(3.0)}, 1: {}}, "empty": torch.empty(0, 3), "half": torch.ones(2).bfloat16(),
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.shape == other.shape
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.load() is None
    folder.save(STATE)
    assert same(STATE, folder.load())


def test_tensors_that_share_memory_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    folder = CheckpointFolder(tmp_path)
    folder.save({"whole": whole, "part": whole[2:4], "again": whole})
    assert same({"whole": whole, "part": whole[2:4], "again": whole}, folder.load())


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a function cannot be kept in a checkpoint"):
        CheckpointFolder(tmp_path).save({"hook": same})
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_what_sha256sum_reads(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(STATE)
    subprocess.run(["sha256sum", "--check", "--strict", "000001.sha256"], cwd=tmp_path, check=True)


def test_two_checkpoints_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for number in range(5):
        folder.save({"number": number})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "000004.safetensors", "000004.sha256", "000005.safetensors", "000005.sha256",
    ]  # fmt: skip


@pytest.fixture
def two(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path)
    for number in (1, 2):
        folder.save(STATE | {"number": number})
    return folder


NEWEST = ["000002.safetensors", "000002.sha256"]


@pytest.mark.parametrize("name", NEWEST)
def test_a_cut_off_file_makes_the_one_before_count(name: str, two: CheckpointFolder) -> None:
    path = two.path / name
    content = path.read_bytes()
    for size in range(0, len(content), 64):
        path.write_bytes(content[:size])
        state = two.load()
        assert state is not None
        assert state["number"] == 1, f"{name} of {size} bytes passed for whole"
    path.unlink()
    assert same(STATE | {"number": 1}, two.load())


@pytest.mark.parametrize("name", NEWEST)
def test_a_flipped_bit_makes_the_one_before_count(name: str, two: CheckpointFolder) -> None:
    path = two.path / name
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        state = two.load()
        assert state is not None
        assert state["number"] == 1


def test_where_none_is_whole_it_says_why(two: CheckpointFolder) -> None:
    for number in (1, 2):
        (two.path / f"00000{number}.safetensors").write_bytes(b"")
    (two.path / "000002.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole \(000002.*; 000001.*manifest names\)"):
        two.load()


def test_the_next_one_counts_on_from_a_damaged_one(two: CheckpointFolder) -> None:
    (two.path / "000002.sha256").write_text("nonsense")
    two.save(STATE | {"number": 3})
    state = two.load()
    assert state is not None
    assert state["number"] == 3
    assert (two.path / "000003.sha256").is_file()


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_a_write_that_fails_leaves_the_one_before(
    fails_at: int, two: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        two.save(STATE | {"number": 3})
    state = two.load()
    assert state is not None
    # Where only the folder could not be flushed behind the manifest, the new one is there as well.
    assert state["number"] == (3 if fails_at == 4 else 2)
    assert not list(two.path.glob(".*.part"))


def test_nothing_is_read_as_a_pickle(two: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    assert two.load() is not None


def test_a_file_is_written_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"1")
    write_whole(path, b"22")
    assert path.read_bytes() == b"22"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_alone_need_no_service() -> None:
    code = "import sys, fourfold.checkpoints; assert not {'mlflow', 'prefect'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
