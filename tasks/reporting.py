"""What a person sees of a run: its progress, and its page in Prefect."""

import base64
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fourfold.errors import visible

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(what: str, total: int | None, unit: str = "epoch") -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal that can draw one, elsewhere a line every five seconds.

    Gives what is told of units done and the loss.

    Args:
        total: None where nobody knows.
        unit: what is counted; the loss may be left out.
    """
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (
            # Ctrl-C is echoed behind the line: where that were full, the echo would begin another.
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, loss="")
            yield lambda done, loss=None: bar.update(task, completed=done, loss=_spell_loss(loss).strip(", "))
        return
    last = time.monotonic()

    def line(done: int, loss: float | None = None) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{what}: {unit} {done}{f' of {total}' if total else ''}{_spell_loss(loss)}")

    yield line


def _spell_loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {loss:.4g}"


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header.

    Attributes:
        name: of letters, digits and hyphens.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def publish(
    flow: str,
    title: str,
    rows: Mapping[str, str],
    links: Mapping[str, str],
    picture: Path | None,
    tables: Sequence[Table] = (),
) -> None:
    """Put a table of names and values on the flow run's page in Prefect, with links above and the picture below.

    Further tables become table artifacts of their own.

    Outside a flow run there is no page. Where Prefect cannot take it, the run's own end is not changed.
    """
    if not flow_run.id:
        return

    def cell(text: str) -> str:
        # Neither a link nor a picture, which a browser would fetch from wherever a column's name says.
        return re.sub(r"[\\|`*\[\]]", r"\\\g<0>", visible(text.replace("\n", " "))).replace("<", "&lt;")

    lines = [f"[{cell(name)}]({address})" for name, address in links.items()]
    lines += ["", "| | |", "|---|---|", *(f"| {cell(name)} | {cell(value)} |" for name, value in rows.items())]
    if picture is not None and picture.exists():
        encoded = base64.b64encode(picture.read_bytes()).decode()
        lines += ["", f"![loss and fit](data:image/png;base64,{encoded})"]
    try:
        create_markdown_artifact("\n".join(lines), key=flow, description=cell(title))
        for table in tables:
            named = [dict(zip(table.header, row, strict=True)) for row in table.rows]
            create_table_artifact(named, key=f"{flow}-{table.name}", description=cell(title))
    except Exception as error:
        get_run_logger().warning("the result is not on this page: %s", error)
