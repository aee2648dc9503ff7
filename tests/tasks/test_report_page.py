"""The report of a training: what it says at each stage, and that its lines can be used as they stand."""

import html
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourfold.configuration import TrainConfig
from fourfold.errors import DivergedError, ParityError, RegistrationError, ServiceError
from fourfold.fitting import fit
from fourfold.onnx_file import ExportedModel
from fourfold.parity import ParityReport
from tasks.build_model import build
from tasks.evaluate import evaluate
from tasks.make_data import load
from tasks.pages import Plot, Plots
from tasks.picture import PLOTS
from tasks.register import Registered
from tasks.report_page import report_page, reporting
from tasks.train import fit_config
from tasks.train_result import TrainResult

PASSED = ParityReport("passed", sha256="a" * 64, allowance="1 unit in the last place")
VERSION = Registered("line-linear", "3", "champion", "models:/line-linear/3", None, "a" * 64, "the best")
LOSS = Plot(
    "Loss", "After each.", "epoch", "sse", "<div id='p'></div>", [["sse", "#12", "solid"]], [["sse", "7", "0.5"]]
)
DRAWN = Plots("<script>bokeh</script>", (LOSS,))


def trained(notes: Any, **options: Any) -> TrainResult:
    """As far as the gate."""
    config = TrainConfig(**{"epochs": 50} | options)
    data = load(config)
    built = build(config, data)
    fitted = fit(built.core, built.x, built.y, fit_config(config))
    evaluation = evaluate.fn(config, built, data, notes)
    parameters = built.parameters(fitted.history)
    return TrainResult(config, data=data, fit=fitted, parameters=parameters, evaluation=evaluation)


def words(page: str) -> str:
    """The text of a page."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def lines(page: str, name: str) -> str:
    """What is shown to be typed."""
    (shown,) = re.findall(rf'<pre tabindex="0" id="{name}">(.*?)</pre>', page, flags=re.DOTALL)
    return html.unescape(shown)


def test_a_registered_model_has_its_data_fit_verdict_and_origin(notes: Any) -> None:
    result = trained(notes)
    result.parity, result.registered, result.run_id = PASSED, VERSION, "the-run"
    origin = {"git_commit": "c0ffee", "git_dirty": "true"}
    page = report_page(result, "registered", origin=origin, plots=DRAWN)
    text = words(page)
    assert result.data is not None
    for said in (
        "registered", "3 training", result.data.sha256, "x feature 1 3 2 0.816497", "y target 2 6 4 1.63299",
        "SGD, lr 0.01", "completed after 50 epochs, 50 gradient evaluations", "training rows RMSE",
        "1 unit in the last place", "models:/line-linear/3, champion", "the-run", "c0ffee, with changes",
        "x from 1 to 3", "judged on the rows that it was trained on", f"torch {torch.__version__.split('+')[0]}",
    ):  # fmt: skip
        assert said in text, said
    (w, b) = (result.parameters[name] for name in ("w", "b"))
    assert f"w {w:.9g} 2 {w - 2:.2g}" in text, "least squares is y = 2x"
    assert f"b {b:.9g}" in text
    assert 'href="parity.html"' in page
    assert "<script>bokeh</script>" in page
    assert "<div id='p'></div>" in page
    assert "sse 7 0.5" in text


def test_held_out_rows_are_what_it_is_judged_on(table_file: Callable[..., TrainConfig], notes: Any) -> None:
    x = np.arange(10.0)
    rows = "".join(f"{value},{3 * value}\n" for value in x)
    config = table_file(f"area,price\n{rows}", target=("price",), epochs=5)
    text = words(report_page(trained(notes, **config.model_dump()), "completed"))
    assert "8 training, 2 held-out" in text
    assert "held-out rows RMSE" in text
    assert "judged on the rows that it was trained on" not in text
    assert "area from" in text


def test_the_lines_for_onnxruntime_work_as_they_stand(
    linear_file: Callable[..., ExportedModel], notes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The row that they ask for is the mean of x, which is 2; the file is y = 5 x + 1."""
    linear_file([[5.0]], [1.0])
    result = trained(notes)
    result.parity = PASSED
    monkeypatch.chdir(tmp_path)
    exec(lines(report_page(result, "completed"), "use"), {})
    assert capsys.readouterr().out == "[[11.]]\n"


def test_the_lines_for_a_server_are_whole_arguments(notes: Any) -> None:
    result = trained(notes)
    result.parity, result.registered = PASSED, replace(VERSION, uri="models:/it's $(touch x)/3")
    serve, ask = lines(report_page(result, "registered"), "serve").splitlines()
    assert shlex.split(serve)[4] == "models:/it's $(touch x)/3"
    assert json.loads(shlex.split(ask)[4]) == {"dataframe_records": [{"x": 2.0}]}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (DivergedError("diverged: the loss went off"), "diverged : diverged: the loss went off"),
        (ParityError("row 0 differs"), "rejected : row 0 differs"),
        (RegistrationError("other bytes"), "other bytes"),
    ],
)
def test_what_was_refused_has_a_report_of_how_far_it_came(
    error: Exception, shown: str, notes: Any, tmp_path: Path
) -> None:
    data = load(TrainConfig())
    result = TrainResult(TrainConfig(), data=data)
    notes.artifact_uri = str(tmp_path / "kept")

    def refuse() -> None:
        with reporting(result, notes, tmp_path):
            raise error

    with pytest.raises(type(error)):
        refuse()
    assert notes.files == ["report.html"]
    text = words((tmp_path / "report.html").read_text())
    assert shown in text
    assert data.sha256 in text
    assert "How to use it" not in text
    assert "Evaluation" not in text


def test_a_run_that_lost_its_store_is_not_kept_waiting_for_a_report(notes: Any, tmp_path: Path) -> None:
    def lose() -> None:
        with reporting(TrainResult(TrainConfig(), data=load(TrainConfig())), notes, tmp_path):
            raise ServiceError("MLflow is away")

    with pytest.raises(ServiceError):
        lose()
    assert notes.files == []


def test_the_result_tells_where_the_report_is_and_it_has_the_plots_that_were_drawn(
    notes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = trained(notes)
    DRAWN.write(tmp_path / PLOTS)
    notes.artifact_uri = str(tmp_path / "mlruns" / "1")
    with reporting(result, notes, tmp_path):
        result.parity = PASSED
    assert result.report == "mlruns/1/report.html"
    assert result.rows()["report"] == "mlruns/1/report.html"
    assert "<script>bokeh</script>" in (tmp_path / "report.html").read_text()
    notes.artifact_uri, notes.url = "mlflow-artifacts:/1/run/artifacts", "http://mlflow/#/runs/1"
    with reporting(result, notes, tmp_path):
        pass
    assert result.report == "http://mlflow/#/runs/1/artifacts/report.html"


def test_many_columns_are_cut_and_said_so(notes: Any, dataset: Callable[..., Any]) -> None:
    result = TrainResult(TrainConfig(), data=dataset(np.random.default_rng(0).normal(size=(4, 70)), np.ones((4, 1))))
    text = words(report_page(result, "failed", "no reason"))
    assert "and 20 more feature" in text
    assert "f49" in text
    assert "f50" not in text


def test_a_name_that_is_no_character_is_a_page_too(notes: Any) -> None:
    result = trained(notes)
    result.warnings = ("\udcff is odd",)
    report_page(result, "completed").encode()
