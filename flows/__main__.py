"""Train, compare, predict and prove models of regression problems: each flow as a command."""

import ast
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App
from pydantic import BaseModel

from fourfold.configuration import (
    CompareConfig,
    PredictConfig,
    PreflightConfig,
    TrainConfig,
    TutorialConfig,
    VerifyConfig,
)
from tasks import command_line

FLOWS: dict[str, type[BaseModel]] = {
    "train": TrainConfig,
    "compare": CompareConfig,
    "predict": PredictConfig,
    "verify": VerifyConfig,
    "tutorial": TutorialConfig,
    "serve_check": PreflightConfig,
}


def main() -> None:
    """Become the flow that is asked for: `fourfold train` is `python flows/train_flow.py`, wherever that lies."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in FLOWS and not {"--help", "-h"} & set(arguments):
        file = file_of(arguments[0])
        os.execv(sys.executable, [sys.executable, str(file), *arguments[1:]])
    command_line.obey(commands(arguments), arguments)


def commands(arguments: Sequence[str]) -> App:
    """What `--help` tells of, and what a shell completes."""
    app = App(
        name="fourfold", help=__doc__, help_format="plaintext",
        version=lambda: importlib.metadata.version("fourfold"), result_action="return_value",
    )  # fmt: skip
    for flow, config_class in FLOWS.items():
        description = ast.get_docstring(ast.parse(file_of(flow).read_text())) or ""
        program, served = f"fourfold {flow}", "--serve" in arguments
        app.command(command_line.application(program, config_class, description, [], served=served), name=flow)
    app.register_install_completion_command()
    return app


def file_of(flow: str) -> Path:
    """Where a flow's file lies."""
    return Path(__file__).with_name(command_line.file_of(flow, FLOWS[flow]))


if __name__ == "__main__":
    main()
