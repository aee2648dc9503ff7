"""How a result looks in a terminal, or in a file that it is sent to."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tasks import terminal
from tasks.reporting import Table
from tasks.terminal import show


@dataclass
class Told:
    """A result as a flow would give it."""

    shown: Mapping[str, str] = field(default_factory=dict)
    tabled: tuple[Table, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {}

    def rows(self) -> Mapping[str, str]:
        return self.shown

    def tables(self) -> tuple[Table, ...]:
        return self.tabled


WIDE = Table(
    "ranking",
    ("rank", "optimizer", "loss", "learning rate", "beats"),
    (("1", "SGD", "1.5e-11", "0.01", "3 of 3"), ("1", "Adam", "2.25e-11", "0.003", "2 of 3")),
)


@pytest.mark.parametrize("width", [80, 38, 30])
def test_a_table_that_is_too_wide_goes_on_below_with_what_tells_its_rows_apart(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "WIDTH_OF_FILES", width)
    show(Told(tabled=(WIDE,)), sys.stdout)
    parts = [part.splitlines() for part in capsys.readouterr().out.split("\n\n")[:-1]]
    assert len(parts) == {80: 1, 38: 2, 30: 3}[width]
    assert max(len(line.rstrip()) for part in parts for line in part) <= width
    read_again: list[list[str]] = [[], [], []]
    for part in parts:
        for cells, line in zip(read_again, part, strict=True):
            found = re.split(r"  +", line.strip())
            assert found[:2] == {0: ["rank", "optimizer"], 1: ["1", "SGD"], 2: ["1", "Adam"]}[part.index(line)]
            cells += found[2:]
    assert read_again == [list(WIDE.header[2:]), *(list(row[2:]) for row in WIDE.rows)]


def test_a_sentence_in_a_table_takes_several_lines_instead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "WIDTH_OF_FILES", 60)
    answers = Table(
        "answers", ("question", "answer"), (("worker", "one of work pool fourfold, " * 3), ("server", "ok"))
    )
    show(Told(tabled=(answers,)), sys.stdout)
    table = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in (table[0], table[1], table[-1])] == ["question", "worker", "server"]
    assert len(table) == 4
    assert " ".join(" ".join(table[1:3]).split()) == f"worker {'one of work pool fourfold, ' * 3}".strip()


def test_a_path_stays_whole_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "WIDTH_OF_FILES", 40)
    path = "mlruns/train/" + "0a" * 16 + "/artifacts/report.html"
    show(Told(shown={"decision": "the first version of all that are known here", "report": path}), sys.stdout)
    out = capsys.readouterr().out
    assert f"report    {path}\n" in out
    assert "decision  the first version of all that\n          are known here\n" in out


def test_values_are_shown_as_they_are_and_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(Told(shown={"data": "[bold]houses[/bold]", "model": "[/]"}), sys.stdout)
    out = capsys.readouterr().out
    assert "[bold]houses[/bold]" in out
    assert "[/]" in out


def test_names_are_shown_as_they_are_and_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A column of the user's may be called anything, and gives its name to a row."""
    show(Told(shown={"w/price [/m2]": "1", "w/[red]": "2"}), sys.stdout)
    out = capsys.readouterr().out
    assert "w/price [/m2]" in out
    assert "w/[red]" in out
