"""What README says is what the code does."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from pydantic.fields import FieldInfo
from workplaces import ROOT

from fourfold.configuration import (
    CompareConfig,
    PredictConfig,
    PreflightConfig,
    ProblemConfig,
    ServeConfig,
    TrainConfig,
    TutorialConfig,
    VerifyConfig,
)
from fourfold.onnx_export import export
from models.linear import LinearRegression

README = (ROOT / "README.md").read_text()
OPTIONS = (ROOT / "docs" / "options.md").read_text()


def option_table(fields: dict[str, FieldInfo]) -> str:
    """Each option of a configuration, in order, as a row of Markdown."""
    rows = ["| option | what it decides |", "|---|---|"]
    spellings = {"registered_name": "register", "register_winners": "register"}
    for name, field in fields.items():
        option = spellings.get(name, name).replace("_", "-")
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default)) or None
        shown = "" if default is None or default is False or field.is_required() else f" (default: {default})"
        rows.append(f"| `--{option}` | {field.description}{shown} |")
    return "\n".join(rows)


OF_COMPARISON = {
    name: one for name, one in CompareConfig.model_fields.items() if name not in ProblemConfig.model_fields
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("train", TrainConfig.model_fields),
        ("compare", OF_COMPARISON),
        ("tutorial", TutorialConfig.model_fields),
        ("predict", PredictConfig.model_fields),
        ("verify", VerifyConfig.model_fields),
        ("serving", ServeConfig.model_fields),
        ("preflight", PreflightConfig.model_fields),
    ],
)
def test_the_option_tables_are_the_configurations(name: str, fields: dict[str, FieldInfo]) -> None:
    (table,) = re.findall(rf"<!-- {name}.*?-->\n(.*?)\n?<!-- end of {name} -->", OPTIONS, flags=re.DOTALL)
    assert table == option_table(fields), f"docs/options.md should hold:\n{option_table(fields)}"


def test_the_options_that_readme_shows_are_the_configurations() -> None:
    (table,) = re.findall(r"<!-- options.*?-->\n(.*?)\n<!-- end of options -->", README, flags=re.DOTALL)
    rows, shown = option_table(TrainConfig.model_fields).splitlines(), table.splitlines()
    assert len(shown) > 10
    assert [row for row in shown if row not in rows] == []


def test_readme_stays_short() -> None:
    assert len(README.splitlines()) < 250


def test_the_lines_for_onnxruntime_work_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"## Predict anywhere\n.*?\n\n((?:    [^\n]*\n)+)", README, flags=re.DOTALL)
    network = LinearRegression(2)
    with torch.no_grad():
        network.linear.weight.copy_(torch.tensor([[2.0, -1.0]]))
        network.linear.bias.zero_()
    export(network, torch.zeros(2, 2), tmp_path / "model.onnx", {"features": '["a", "b"]'})
    (tmp_path / "new.csv").write_text("b,other,a\n1,x,3\n2,y,5\n")
    monkeypatch.chdir(tmp_path)
    lines = textwrap.dedent(snippet).strip().splitlines()
    assert len(lines) == 6
    exec("\n".join(lines), {})
    assert capsys.readouterr().out == "[[5.]\n [8.]]\n"
