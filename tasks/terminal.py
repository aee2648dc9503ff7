"""A result as a terminal shows it, or a file that it is sent to. Light to import."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fourfold.errors import visible

WIDTH_OF_SENTENCES = 30  # within a table, at least
WIDTH_OF_FILES = 120  # where nobody says how wide the page is


class Texts(Protocol):
    """Rows of texts under a header."""

    @property
    def header(self) -> Sequence[str]:
        """A text for each column."""

    @property
    def rows(self) -> Sequence[Sequence[str]]:
        """As long as the header, each."""


class Result(Protocol):
    """What a flow gives back, and what an exception that ends it carries as its `result`."""

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result."""

    def rows(self) -> Mapping[str, str]:
        """The same for a person, by name."""

    def tables(self) -> Sequence["Texts"]:
        """What of it is a table of more than names and values."""


def show(result: Result, file: IO[str]) -> None:
    """Print the tables of a result, and below them its rows."""
    console = Console(file=file)
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    with console.capture() as text:
        for one in result.tables():
            for columns in _side_by_side(one, console.width):
                wide = Table(box=None, pad_edge=False, header_style="bold")
                for column in columns:
                    wide.add_column(_shown(one.header[column]), overflow="fold")
                for row in one.rows:
                    wide.add_row(*(_shown(row[column]) for column in columns))
                console.print(wide)
                console.print()
        rows = {visible(name): visible(value) for name, value in result.rows().items()}
        names = max(map(cell_len, rows), default=0) + 2
        for name, value in rows.items():
            # A path stays whole, for whoever copies it; where the line ends is the terminal's to say.
            lines = textwrap.wrap(value, max(console.width - names, 20), break_long_words=False, break_on_hyphens=False)
            shown = ("\n" + " " * names).join(lines)
            console.print(Text.assemble((name, "bold"), " " * (names - cell_len(name)), shown), soft_wrap=True)
    # A terminal that cannot spell a letter still shows the rest.
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.get().encode(encoding, "backslashreplace").decode(encoding))


def _side_by_side(table: Texts, width: int) -> Iterator[list[int]]:
    """The columns that fit beside each other, part by part; each part begins with those that tell the rows apart.

    Sentences may take several lines, and so need less than they are long; numbers and names must not be broken.
    """
    columns = [[head, *(row[number] for row in table.rows)] for number, head in enumerate(table.header)]
    widths = [min(max(cell_len(visible(text)) for text in texts), WIDTH_OF_SENTENCES) + 2 for texts in columns]
    alike = itertools.takewhile(lambda texts: len({*texts}) < len(texts), columns)
    keys = list(range(len([*alike]) + 1))
    part = keys
    for column in range(len(keys), len(columns)):
        if part != keys and sum(widths[one] for one in (*part, column)) - 2 > width:
            yield part
            part = keys
        part = [*part, column]
    yield [one for one in part if one < len(columns)]


def _shown(text: str) -> Text:
    return Text(visible(text))
