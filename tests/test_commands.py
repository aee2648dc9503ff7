"""Every line that README, the documents and --help tell a person to type is one that its program takes.

`make commands` runs them.
"""

import re
import tomllib
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from uuid import UUID

import click
import pytest
from commands import DOCUMENTS, FILES, Command, in_documents, of_help
from distributed.cli import dask_scheduler, dask_worker
from prefect.cli._app import _app as prefect_cli
from workplaces import ROOT

from flows.__main__ import FLOWS
from tasks import command_line

with warnings.catch_warnings():  # it warns of type hints of its own
    warnings.simplefilter("ignore")
    from mlflow.cli import cli as mlflow_cli

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = in_documents() + of_help()


def check(command: Command) -> None:
    """Let the program's own parser read a line; whatever it raises is the fault."""
    program, arguments = command.program, command.arguments
    if program in FILES:
        flow, config_class = FILES[program]
        command_line.parse(flow, config_class, "", arguments)
    elif program.endswith(".py"):
        assert (ROOT / program).is_file(), program
    else:
        CHECKS[program](arguments)


def by_click(group: click.Command, arguments: Sequence[str]) -> None:
    """Read as far down as there are commands, and run none; of a bare name what it needs is not asked for."""
    bare = not any(argument.startswith("-") for argument in arguments)
    context = group.make_context(group.name, list(arguments), resilient_parsing=bare)
    while isinstance(group, click.Group):
        _, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        group, context = found, found.make_context(found.name, rest, parent=context, resilient_parsing=bare)


def by_prefect(arguments: Sequence[str]) -> None:
    """Without the option that stands before its commands, and with an id where one is meant."""
    given = [str(UUID(int=0)) if one == "SCHEDULE_ID" else one for one in arguments if one != "--no-prompt"]
    prefect_cli.parse_args(given, exit_on_error=False, print_error=False)


def dask(arguments: Sequence[str]) -> None:
    by_click({"scheduler": dask_scheduler.main, "worker": dask_worker.main}[arguments[0]], arguments[1:])


def fourfold(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in FLOWS:
        command_line.parse(arguments[0], FLOWS[arguments[0]], "", arguments[1:])
    else:
        assert arguments in ((), ("--install-completion",), ("--help",), ("--version",)), arguments


def make(arguments: Sequence[str]) -> None:
    assert re.search(rf"^{arguments[0]}:", MAKEFILE, flags=re.MULTILINE), f"no target {arguments[0]}"
    assert all(re.match(r"(ARGS|PYTHON)=", argument) for argument in arguments[1:]), arguments


def pip(arguments: Sequence[str]) -> None:
    assert arguments[0] == "install"
    options = {option for option in arguments if option.startswith("-")}
    assert options <= {"--constraint", "--editable"}, options
    for argument in arguments[1:]:
        if argument.endswith(".txt"):
            assert (ROOT / argument).is_file()
        elif argument not in options:
            name, *extras = re.split(r"[\[\],]", argument.removesuffix("]"))
            assert name in (".", PROJECT["name"])
            assert set(extras) <= set(PROJECT["optional-dependencies"])


def of_tests(arguments: Sequence[str]) -> None:
    """Folders and files of them exist."""
    assert all((ROOT / argument).exists() for argument in arguments if argument.startswith("tests"))


def of_ruff(arguments: Sequence[str]) -> None:
    assert arguments == ("format", "."), arguments
    assert metadata.version("ruff")


def of_postgres(arguments: Sequence[str]) -> None:
    """By the user that Debian makes; tests/servers does the same to a cluster of its own."""
    assert arguments[:2] == ("-u", "postgres")
    assert arguments[2] in ("psql", "createdb")


CHECKS = {
    "mlflow": lambda arguments: by_click(mlflow_cli, arguments) if arguments else None,
    "prefect": by_prefect,
    "dask": dask,
    "fourfold": fourfold,
    "make": make,
    "pip": pip,
    "pytest": of_tests,
    "ruff": of_ruff,
    "sudo": of_postgres,
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.place} {command.line}")
def test_a_line_that_is_told_is_one_that_its_program_takes(command: Command) -> None:
    check(command)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("flows/train_flow.py", "--optimiser Adam"),
        ("mlflow", "ui --prot 5000"),
        ("mlflow", "uj"),
        ("prefect", "server strat"),
        ("prefect", "worker start --pol fourfold"),
        ("dask", "worker 10.0.0.5:8786 --nprocs 8"),
        ("fourfold", "trian"),
        ("make", "tests"),
        ("pip", "install fourfold[spark]"),
        ("pytest", "tests/nowhere"),
    ],
)
def test_a_line_with_a_slip_is_found(program: str, arguments: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(Command("here", "", program, tuple(arguments.split())))


def test_no_kind_of_line_is_overlooked() -> None:
    """At least what was there when this was written, by program."""
    found = Counter(command.program for command in COMMANDS)
    assert found["flows/train_flow.py"] >= 16
    assert found["flows/compare_flow.py"] >= 9
    assert found["prefect"] >= 15
    assert found["make"] >= 15
    assert min(found[program] for program in (*FILES, *CHECKS)) >= 1, found
    assert {command.place.partition(":")[0] for command in COMMANDS} > {
        str(path.relative_to(ROOT)) for path in DOCUMENTS if "flows/train_flow.py --" in path.read_text()
    }
