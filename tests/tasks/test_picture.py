from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.fitting import FitResult, fit
from tasks import picture
from tasks.build_model import BuiltModel, build
from tasks.make_data import load
from tasks.picture import MOST_POINTS_DRAWN, drawing
from tasks.train import fit_config


@pytest.fixture
def line() -> tuple[BuiltModel, Dataset, FitResult]:
    config = TrainConfig(epochs=20)
    data = load(config)
    built = build(config, data)
    return built, data, fit(built.core, built.x, built.y, fit_config(config))


def painter() -> psutil.Process:
    """The process that draws."""
    (process,) = (
        child for child in psutil.Process().children() if "tasks.draw" in child.cmdline() and child.is_running()
    )
    return process


class TestDrawing:
    def test_the_picture_is_kept_at_the_end_of_the_block(
        self, line: tuple[BuiltModel, Dataset, FitResult], notes: Any, tmp_path: Path
    ) -> None:
        with drawing(*line, notes, tmp_path) as picture:
            assert picture == tmp_path / "fit.png"
            assert notes.files == []
        assert notes.files == ["fit.png"]
        with Image.open(picture) as image:
            image.verify()
        assert notes.noted_tags == {}

    def test_also_where_the_block_raises(
        self, line: tuple[BuiltModel, Dataset, FitResult], notes: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="a fault"), drawing(*line, notes, tmp_path):
            raise ValueError("a fault")
        assert notes.files == ["fit.png"]

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_nobody_waits_for_it_where_the_block_is_interrupted(
        self,
        interrupt: type[BaseException],
        line: tuple[BuiltModel, Dataset, FitResult],
        notes: Any,
        tmp_path: Path,
        is_gone: Callable[[int], bool],
    ) -> None:
        processes: list[psutil.Process] = []

        def draw_and_stop() -> None:
            with drawing(*line, notes, tmp_path):
                processes.append(painter())
                raise interrupt

        with pytest.raises(interrupt):
            draw_and_stop()
        assert is_gone(processes[0].pid)
        assert notes.files == []

    def test_no_process_is_left_where_the_wait_for_it_is_interrupted(
        self,
        line: tuple[BuiltModel, Dataset, FitResult],
        notes: Any,
        tmp_path: Path,
        is_gone: Callable[[int], bool],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The block is done and the picture is not: SIGTERM comes in between."""
        real = picture.subprocess.Popen.communicate

        def interrupted(process: Any, *arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(picture.subprocess.Popen, "communicate", real)
            raise SystemExit(143)

        processes: list[psutil.Process] = []

        def draw_and_stop() -> None:
            with drawing(*line, notes, tmp_path):
                processes.append(painter())
                processes[0].suspend()
                monkeypatch.setattr(picture.subprocess.Popen, "communicate", interrupted)

        with pytest.raises(SystemExit):
            draw_and_stop()
        left = not is_gone(processes[0].pid)
        if left:
            processes[0].kill()  # it is ours to end
        assert not left

    def test_a_picture_that_fails_is_told_and_does_not_fail_the_run(
        self, line: tuple[BuiltModel, Dataset, FitResult], notes: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "fit.png").mkdir()
        with drawing(*line, notes, tmp_path):
            pass
        assert notes.files == []
        assert "IsADirectoryError" in notes.noted_tags["picture"]

    @pytest.mark.filterwarnings("error")
    def test_a_fit_that_diverged_is_drawn_without_rows(self, notes: Any, tmp_path: Path) -> None:
        config = TrainConfig(lr=1.0, epochs=200)
        data = load(config)
        built = build(config, data)
        fitted = fit(built.core, built.x, built.y, fit_config(config))
        with drawing(built, data, fitted, notes, tmp_path):
            pass
        assert notes.files == ["fit.png"]
        with np.load(tmp_path / "drawn.npz") as arrays:
            assert "training_x" not in arrays
            np.testing.assert_array_equal(arrays["loss"], fitted.history.loss)

    def test_of_many_rows_some_are_drawn_and_the_ends_among_them(
        self, notes: Any, tmp_path: Path, dataset: Callable[..., Dataset]
    ) -> None:
        rows = np.arange(10_000.0)[:, None] / 10_000
        data = dataset(rows, 2 * rows, test=(rows[:3], 2 * rows[:3]))
        config = TrainConfig(dtype="float64", loss="mse", epochs=3)
        built = build(config, data)
        fitted = fit(built.core, built.x, built.y, fit_config(config))
        with drawing(built, data, fitted, notes, tmp_path):
            pass
        with np.load(tmp_path / "drawn.npz") as arrays:
            x = arrays["training_x"]
            assert len(x) == len(arrays["training_prediction"]) == MOST_POINTS_DRAWN
            assert (x[0, 0], x[-1, 0]) == (rows[0, 0], rows[-1, 0])
            assert len(np.unique(x)) == MOST_POINTS_DRAWN
            assert len(arrays["held_out_x"]) == 3
            with torch.no_grad():
                expected = built.network(torch.from_numpy(x)).numpy()
            np.testing.assert_array_equal(arrays["training_prediction"], expected)
