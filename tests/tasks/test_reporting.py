import base64
import io
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import reporting
from tasks.reporting import progress, publish


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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

    def test_on_a_terminal_that_cannot_draw_there_are_lines(
        self, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "dumb")
        with progress("training", 120) as report:
            clock(5.5)
            report(50, 0.5)
        assert terminal.getvalue() == "training: epoch 50 of 120, loss 0.5\n"

    def test_the_bar_leaves_room_for_the_echo_of_ctrl_c(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a full line it would begin another, and the bar would stay where it was."""
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        with progress("training", 800_000) as report:
            report(123_456, 0.4219)
        lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))
        assert 60 < max(len(line.rstrip()) for line in lines) <= 78

    def test_on_a_terminal_there_is_a_bar_that_leaves_nothing_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
        publish("train", "a run", {"status": "completed"}, {}, None)

    def test_the_page_has_links_a_table_and_the_picture(self, pages: list[dict[str, str]], tmp_path: Path) -> None:
        picture = tmp_path / "fit.png"
        picture.write_bytes(b"a picture")
        publish(
            "train",
            "SGD lr=0.01",
            {"status": "completed", "w": "2"},
            {"The run in MLflow": "http://mlflow/#/runs/1"},
            picture,
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
        publish("train", "a run", {"status": "failed"}, {}, tmp_path / "fit.png")
        publish("train", "a run", {"status": "failed"}, {}, None)
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
        publish("train", "a run", {text: text}, {}, None)
        assert pages[0]["text"].splitlines()[-1] == f"| {cell} | {cell} |"

    def test_where_prefect_cannot_take_it_the_run_goes_on(
        self, pages: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("nobody there")

        monkeypatch.setattr(reporting, "create_markdown_artifact", refuse)
        monkeypatch.setattr(reporting, "get_run_logger", lambda: logging.getLogger("a.flow.run"))
        with caplog.at_level(logging.WARNING):
            publish("train", "a run", {"status": "completed"}, {}, None)
        assert "nobody there" in caplog.text
