"""The lines that the documents and --help tell a person to type."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel
from workplaces import ROOT

from flows.__main__ import FLOWS
from tasks.command_line import file_of

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES: dict[str, tuple[str, type[BaseModel]]] = {
    f"flows/{file_of(flow, config_class)}": (flow, config_class) for flow, config_class in FLOWS.items()
}
# What a line begins with that is typed; `python` and `.venv/bin/` in front of a program are left out.
PROGRAMS = {*FILES, "make", "mlflow", "prefect", "dask", "pip", "pytest", "ruff", "fourfold", "sudo"}


@dataclass(frozen=True)
class Command:
    """A line, and where it stands.

    Attributes:
        line: as it stands there.
        program: of PROGRAMS, or another file of ours that python runs.
        arguments: after it, comments left out.
    """

    place: str
    line: str
    program: str
    arguments: tuple[str, ...]


def in_documents() -> list[Command]:
    """Those in blocks and those within sentences."""
    found = []
    for path in DOCUMENTS:
        for number, line in typed_in(path.read_text()):
            command = read(f"{path.relative_to(ROOT)}:{number}", line)
            if command:
                found.append(command)
    return found


def of_help() -> list[Command]:
    """The examples at its end."""
    return [
        Command("--help", f"python {file} {line}", file, tuple(shlex.split(line)))
        for file, (_, config_class) in FILES.items()
        for line in config_class.examples  # type: ignore[attr-defined]
    ]


def typed_in(text: str) -> Iterator[tuple[int, str]]:
    """What stands indented, in a fence or between backticks; code that is Python's is no line to type."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fence = None if fence else line
        elif fence or line.startswith("    "):
            if fence != "```python":
                yield number, line.strip()
        else:
            yield from ((number, span) for span in re.findall(r"`([^`]+)`", line))


def read(place: str, line: str) -> Command | None:
    """The command of a line, None where it is none."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a part of a sentence
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words and words[0] in ("python", ".venv/bin/python"):
        words = words[1:]
        if not words or not words[0].endswith(".py"):
            return None
    elif not words or words[0].removeprefix(".venv/bin/") not in PROGRAMS:
        return None
    program = words[0].removeprefix(".venv/bin/")
    if len(words) == 1 and (program == "fourfold" or (program in FILES and "python" not in line)):  # it is spoken of
        return None
    return Command(place, line, program, tuple(words[1:]))
