"""What the documents show is what the code does."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from certified import DAN_WOOD, MISRA1A, longley, norris
from workplaces import ROOT

from fourfold.configuration import EIGHT

README = (ROOT / "README.md").read_text()
ACCURACY = (ROOT / "docs" / "accuracy.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
SHOWN = ("levels", "legendre", "dynamic")


def test_the_digits_of_certified_coefficients_are_those_of_the_commands_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of Python write the rows, and each command is run as it stands, up to the fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (snippet,) = re.findall(r"```python\n(.*?)\n```", ACCURACY, flags=re.DOTALL)
    exec(snippet, {})
    variables = dict(re.findall(r'^    ([A-Z]+)="(.*)"$', ACCURACY, flags=re.MULTILINE))
    (table,) = re.findall(r"<!-- commands:.*?-->\n(.*?)\n<!-- end of commands -->", ACCURACY, flags=re.DOTALL)
    expected = {"Norris": norris(), "Longley": longley(), "DanWood": DAN_WOOD, "Misra1a": MISRA1A}
    commands = re.findall(r"\| (\d+) \| (\w+).*? \| `(.*?)` \|", table)
    assert len(commands) == len(table.splitlines()) - 2
    for _ in variables:  # they name each other
        commands = [(digits, name, Template(line).substitute(variables)) for digits, name, line in commands]
    found = subprocess.run(
        [sys.executable, "-c", FITS], input="\n".join(line for *_, line in commands),
        capture_output=True, text=True, check=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout.splitlines()  # fmt: skip
    for (digits, name, line), values in zip(commands, found, strict=True):
        error = np.abs(np.array(json.loads(values)) / expected[name].coefficients - 1).max()
        assert -np.log10(error) > int(digits), line


FITS = """
import json, shlex, sys
from fourfold.configuration import TrainConfig
from fourfold.fitting import fit
from tasks import command_line
from tasks.build_model import build
from tasks.make_data import load
from tasks.train import fit_config
for line in sys.stdin:
    config = command_line.read("train", TrainConfig, "", shlex.split(line)).config
    built = build(config, load(config))
    history = fit(built.core, built.x, built.y, fit_config(config)).history
    print(json.dumps(list(built.parameters(history).values())))
"""


def epochs() -> ModuleType:
    specification = importlib.util.spec_from_file_location("epochs", ROOT / "docs" / "epochs.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_tutorials_code_is_the_code_that_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)\n```", TUTORIAL, flags=re.DOTALL)
    sources = [(ROOT / "models" / f"{name}.py").read_text() for name in SHOWN]
    assert len(blocks) == 11
    for block in blocks:
        assert any(f"\n{block}\n" in source for source in sources), f"models/ does not hold:\n{block}"


def test_readme_shows_what_the_exercise_gives_after_100_and_1000_epochs() -> None:
    (shown,) = re.findall(r"<!-- epochs:.*?-->\n(.*?)\n<!-- end of epochs -->", README, flags=re.DOTALL)
    module = epochs()
    found = module.table({name: module.curves(name) for name in EIGHT})

    def numbers(table: str) -> list[float]:
        return [float(text) for line in table.splitlines()[2:] for text in re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", line)]

    assert [line.split("|")[1] for line in shown.splitlines()] == [line.split("|")[1] for line in found.splitlines()]

    def apart(table: str) -> tuple[list[float], list[float]]:
        values = np.array(numbers(table)).reshape(len(EIGHT), 7)
        return values[:, :-1].ravel().tolist(), values[:, -1].tolist()

    (coefficients, losses), (run_coefficients, run_losses) = apart(shown), apart(found)
    assert coefficients == pytest.approx(run_coefficients, rel=0, abs=1.1e-4)
    # Those near zero are squares of the last bits: their size is what another machine's arithmetic keeps.
    assert losses == pytest.approx(run_losses, rel=0.5)


def test_the_backward_that_is_shown_works() -> None:
    page = (ROOT / "docs" / "own-models.md").read_text()
    start = page.index("    class SoftRoot")
    snippet = page[start : page.index("\nIn `forward` of the network", start)]
    names: dict[str, Any] = {"torch": torch}
    exec(textwrap.dedent(snippet), names)
    x = torch.tensor([4.0, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    root = names["SoftRoot"].apply(x)
    root.sum().backward()
    assert root.tolist() == [2.0, 0.5, 0.0]
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([1 / 4.001, 1 / 1.001, 1000])
