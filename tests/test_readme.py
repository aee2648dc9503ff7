"""What README says is what the code does."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.fields import FieldInfo
from workplaces import ROOT

from fourfold.configuration import CompareConfig, ProblemConfig, TrainConfig
from fourfold.onnx_export import export
from models.linear import LinearRegression

README = (ROOT / "README.md").read_text()


def option_table(fields: dict[str, FieldInfo]) -> str:
    """Each option of a configuration, in order, as a row of Markdown."""
    rows = ["| option | what it decides |", "|---|---|"]
    spellings = {"registered_name": "register", "register_winners": "register"}
    for name, field in fields.items():
        option = spellings.get(name, name).replace("_", "-")
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default)) or None
        shown = "" if default is None or default is False else f" (default: {default})"
        rows.append(f"| `--{option}` | {field.description}{shown} |")
    return "\n".join(rows)


OF_COMPARISON = {
    name: one for name, one in CompareConfig.model_fields.items() if name not in ProblemConfig.model_fields
}


@pytest.mark.parametrize(
    ("name", "fields"), [("options", TrainConfig.model_fields), ("comparison", OF_COMPARISON)], ids=["train", "compare"]
)
def test_the_option_tables_are_the_configurations(name: str, fields: dict[str, FieldInfo]) -> None:
    (table,) = re.findall(rf"<!-- {name}:.*?-->\n(.*?)\n<!-- end of {name} -->", README, flags=re.DOTALL)
    assert table == option_table(fields), f"README.md should hold:\n{option_table(fields)}"


def test_readme_stays_short() -> None:
    assert len(README.splitlines()) < 250


def test_the_lines_for_onnxruntime_work_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"## Predict with onnxruntime alone\n.*?\n\n((?:    [^\n]*\n)+)", README, flags=re.DOTALL)
    export(LinearRegression(), torch.zeros(2, 1), tmp_path / "model.onnx", {"data": "line"})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    *statements, predict, about = textwrap.dedent(snippet).strip().splitlines()
    exec("\n".join(statements), names)
    assert eval(predict, names)[0].shape == (1, 1)
    assert eval(about, names) == {"data": "line"}
