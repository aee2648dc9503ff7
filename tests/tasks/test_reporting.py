import base64
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.fitting import FitResult, fit
from tasks import reporting
from tasks.build_model import BuiltModel, build
from tasks.make_data import load
from tasks.reporting import MOST_POINTS_DRAWN, drawing, progress, publish
from tasks.train import fit_config


class TestProgress:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        """A clock that stands still until it is put forward."""
        now = [1000.0]
        monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: now[0]))

        def forward(seconds: float) -> None:
            now[0] += seconds

        return forward

    def test_a_short_fit_prints_nothing(
        self, clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress("training", 100) as report:
            for epoch in range(100):
                report(epoch, 1.0)
                clock(0.04)
        assert capsys.readouterr() == ("", "")

    def test_a_long_one_prints_a_line_every_five_seconds_on_standard_error(
        self, clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with progress("training", 120) as report:
            for epoch in range(1, 121):
                clock(0.1)
                report(epoch, 1 / epoch)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines() == [
            "training: epoch 50 of 120, loss 0.02",
            "training: epoch 100 of 120, loss 0.01",
        ]

    def test_on_a_terminal_there_is_a_bar_that_leaves_nothing_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        with progress("training", 10) as report:
            report(5, 0.125)
        shown = terminal.getvalue()
        assert "training" in shown
        assert "5/10" in shown
        assert "loss 0.125" in shown
        assert shown.rstrip().endswith("\x1b[2K"), "the line is erased at the end"


class TestPublish:
    @pytest.fixture
    def pages(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
        """Pages of a flow run that is pretended."""
        made: list[dict[str, str]] = []
        monkeypatch.setattr(reporting, "flow_run", SimpleNamespace(id="a-flow-run"))
        monkeypatch.setattr(
            reporting, "create_markdown_artifact", lambda markdown, **other: made.append({"text": markdown, **other})
        )
        return made

    def test_outside_a_flow_there_is_no_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("an artifact was made")

        monkeypatch.setattr(reporting, "create_markdown_artifact", refuse)
        publish("a run", {"status": "completed"}, {}, None)

    def test_the_page_has_links_a_table_and_the_picture(self, pages: list[dict[str, str]], tmp_path: Path) -> None:
        picture = tmp_path / "fit.png"
        picture.write_bytes(b"a picture")
        publish(
            "SGD lr=0.01", {"status": "completed", "w": "2"}, {"The run in MLflow": "http://mlflow/#/runs/1"}, picture
        )
        (page,) = pages
        assert (page["key"], page["description"]) == ("train", "SGD lr=0.01")
        lines = page["text"].splitlines()
        assert lines[0] == "[The run in MLflow](http://mlflow/#/runs/1)"
        table = lines.index("| | |")
        assert lines[table - 1] == "", "a table begins a paragraph"
        assert lines[table + 1 : table + 4] == ["|---|---|", "| status | completed |", "| w | 2 |"]
        encoded = base64.b64encode(b"a picture").decode()
        assert lines[-1] == f"![loss and fit](data:image/png;base64,{encoded})"

    def test_a_picture_that_was_not_made_is_left_out(self, pages: list[dict[str, str]], tmp_path: Path) -> None:
        publish("a run", {"status": "failed"}, {}, tmp_path / "fit.png")
        publish("a run", {"status": "failed"}, {}, None)
        assert all("![" not in page["text"] for page in pages)

    @pytest.mark.parametrize(
        ("text", "cell"),
        [
            ("a|b", "a\\|b"),
            ("a\\|b", "a\\\\\\|b"),
            ("<script>", "&lt;script>"),
            ("two\nlines", "two lines"),
            ("C:\\data", "C:\\\\data"),
        ],
    )
    def test_what_is_shown_cannot_break_out_of_its_cell(
        self, text: str, cell: str, pages: list[dict[str, str]]
    ) -> None:
        publish("a run", {text: text}, {}, None)
        assert pages[0]["text"].splitlines()[-1] == f"| {cell} | {cell} |"

    def test_where_prefect_cannot_take_it_the_run_goes_on(
        self, pages: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("nobody there")

        monkeypatch.setattr(reporting, "create_markdown_artifact", refuse)
        monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("a.flow.run"))
        with caplog.at_level(logging.WARNING):
            publish("a run", {"status": "completed"}, {}, None)
        assert "nobody there" in caplog.text


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
        real = reporting.subprocess.Popen.communicate

        def interrupted(process: Any, *arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(reporting.subprocess.Popen, "communicate", real)
            raise SystemExit(143)

        processes: list[psutil.Process] = []

        def draw_and_stop() -> None:
            with drawing(*line, notes, tmp_path):
                processes.append(painter())
                processes[0].suspend()
                monkeypatch.setattr(reporting.subprocess.Popen, "communicate", interrupted)

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
