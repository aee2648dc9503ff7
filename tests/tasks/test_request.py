from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold.configuration import TrainConfig
from fourfold.errors import RequestError
from tasks.make_data import load
from tasks.request import check, check_optimizer
from tasks.train import settle

ROWS = "area,rooms,price\n" + "".join(f"{50 + i},{1 + i % 5},{1000 + 3 * i}\n" for i in range(20))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_modules: None) -> Path:
    """An empty working directory, beside a file of rows."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "rows.csv").write_text(ROWS)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


class TestSettle:
    @pytest.mark.parametrize(("typed", "name"), [("sgd", "SGD"), ("ADAMW", "AdamW"), ("Adam", "Adam")])
    def test_an_optimizer_gets_the_name_that_torch_gives_it(self, typed: str, name: str) -> None:
        assert settle(TrainConfig(optimizer=typed)) == TrainConfig(optimizer=name)

    def test_so_does_a_scheduler(self) -> None:
        config = TrainConfig(scheduler="steplr", scheduler_option=("step_size=10",))
        assert settle(config) == config.model_copy(update={"scheduler": "StepLR"})

    def test_settling_twice_is_settling_once(self) -> None:
        once = settle(TrainConfig(optimizer="rmsprop"))
        assert settle(once) == once


class TestCheck:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"optimizer": "adam", "option": ("betas=0.9,0.99",)},
            {"model": "mlp", "data": "sine"},
            {"data": "../rows.csv", "target": "price", "at": [[60, 3]]},
        ],
        ids=str,
    )
    def test_a_sound_request_is_settled_and_leaves_nothing(self, options: dict[str, Any], here: Path) -> None:
        config = TrainConfig(**options)
        assert check(config) == settle(config)
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"optimizer": "Adm"}, "--optimizer Adm is unknown; did you mean Adam"),
            ({"option": ("momentun=0.9",)}, "--option momentun=0.9: SGD has no option momentun"),
            ({"option": ("momentum=much",)}, "--option momentum=much: 'much' is not a finite number"),
            ({"option": ("lr=0.1",)}, "the learning rate is given by --lr"),
            ({"option": ("momentum=0.5", "momentum=0.9")}, "--option momentum=0.9: momentum is given twice"),
            ({"lr_for": ("bias=0.1", "bias=0.2")}, "--lr-for bias=0.2: bias is given twice"),
            ({"option": ("momentum=" + "[" * 9999,)}, r"--option momentum=.* is not a finite number"),
            ({"at": ((1e39,),)}, r"--at 1e\+39 is beyond float32; use --dtype float64"),
            ({"data": "a" * 5000}, "--data a+: no such file; give line, sine"),
            ({"model": "mlp", "hidden": (10**6, 10**7)}, "--model mlp of this size does not fit into memory"),
            ({"lr_for": ("bias=fast",)}, "--lr-for bias=fast: 'fast' is not a number"),
            ({"scheduler": "Stairs"}, "--scheduler Stairs is unknown"),
            ({"scheduler": "StepLR"}, "StepLR needs --scheduler-option step_size="),
            ({"data": "absent.csv", "target": "y"}, r"absent\.csv: no such file"),
            ({"data": "../rows.csv"}, "needs --target COLUMN"),
            ({"data": "../rows.csv", "target": "rent"}, "--target rent: .* no such column"),
            ({"data": "../rows.csv", "target": "price", "at": ((4.0,),)}, "--at 4 has 1 values; the model takes 2"),
            ({"at": ((1.0, 2.0),)}, "--at 1,2 has 2 values; the model takes 1"),
            ({"target": "y"}, "--target and --features belong to a file"),
            ({"model": "nets_of_nobody:Net"}, "--model nets_of_nobody:Net cannot be made: ModuleNotFoundError"),
            ({"test_fraction": 0.9}, r"--test-fraction 0\.9 leaves 0 of 3 rows"),
        ],
        ids=str,
    )
    def test_a_wrong_one_is_refused_and_leaves_nothing(self, options: dict[str, Any], reason: str, here: Path) -> None:
        with pytest.raises(RequestError, match=reason):
            check(TrainConfig(**options))
        assert list(here.iterdir()) == []

    def test_a_store_that_cannot_be_used_is_refused(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/absent/mlflow.db")
        with pytest.raises(RequestError, match="absent cannot be written"):
            check(TrainConfig())
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize("device", ["cuda", "mps"])
    def test_a_device_that_is_not_there_is_refused(
        self, device: Any, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(RequestError, match=f"--device {device} is not available"):
            check(TrainConfig(device=device))


class TestCheckOptimizer:
    @pytest.mark.parametrize("optimizer", ["SGD", "Adam", "LBFGS", "Rprop"])
    def test_one_that_can_train_the_model_is_accepted_and_trains_nothing(self, optimizer: str) -> None:
        config = TrainConfig(optimizer=optimizer)
        before = load(config).x.clone()
        check_optimizer(config)
        assert torch.equal(load(config).x, before)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"optimizer": "SparseAdam"}, "SparseAdam cannot train this model: .*dense gradients"),
            ({"optimizer": "Muon"}, "Muon"),
            ({"optimizer": "LBFGS", "lr_for": ("bias=0.1",)}, "LBFGS refuses this request"),
            ({"lr_for": ("gain=0.1",)}, r"--lr-for gain=0\.1 matches no further parameter; there are linear\.weight"),
            ({"option": ("momentum=-1",)}, "SGD refuses this request: Invalid momentum"),
            ({"option": ("nesterov=true",)}, "SGD refuses this request: Nesterov"),
            (
                {"scheduler": "StepLR", "scheduler_option": ("step_size=0",)},
                "^StepLR gives no learning rate for this epoch",
            ),
            (
                {"scheduler": "CyclicLR", "scheduler_option": ("base_lr=0.1", "max_lr=1", "step_size_up=0")},
                "^CyclicLR refuses this request: .*division by zero",
            ),
            ({"epochs": 10**15}, "the curve of 10{15} epochs does not fit into memory; give fewer --epochs"),
            ({"epochs": 2**64}, "does not fit into memory; give fewer --epochs"),
        ],
        ids=str,
    )
    def test_one_that_cannot_is_refused_with_torchs_reason(self, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(RequestError, match=reason) as refused:
            check_optimizer(TrainConfig(**options))
        assert "\n" not in str(refused.value)
