"""The tutorial's flow: what it records, what it checks, and what the gate says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from flows import tutorial_flow as tutorial
from fourfold.configuration import TrainConfig, TutorialConfig
from fourfold.datasets import Dataset
from fourfold.errors import AgreementError, DivergedError
from fourfold.onnx_file import predict
from models.levels import LEVELS, Learned, first_values
from tasks.draw_panels import draw_panels
from tasks.make_data import load
from tasks.run_level import LevelRun, judged, refusal, run_level
from tasks.tracking import RunRecord
from tasks.tutorial_result import TOLERANCES, TutorialResult, level_panels

SHORT = TutorialConfig(steps=20)


@pytest.fixture
def sine() -> Dataset:
    return load(TrainConfig(data="sine"))


@pytest.fixture
def levels(sine: Dataset, record: RunRecord, tmp_path: Path) -> list[LevelRun]:
    return [run_level.fn(level, SHORT, sine, record, tmp_path) for level in LEVELS]


def test_each_level_is_a_run_below_the_flows_own(levels: list[LevelRun], record: RunRecord, tmp_path: Path) -> None:
    client: MlflowClient = record.client
    for one in levels:
        run = client.get_run(one.run_id)
        assert run.data.tags["mlflow.parentRunId"] == record.run_id
        assert run.info.status == "FINISHED"
        assert run.data.params["level"] == str(one.level.number)
        assert run.data.params["steps"] == "20"
        assert {name: run.data.metrics[name] for name in one.learned.coefficients} == one.learned.coefficients
        assert run.data.metrics["fit_seconds"] == one.seconds > 0
        curve = client.get_metric_history(one.run_id, "loss")
        assert [point.value for point in curve] == [*one.learned.losses, one.loss]
        kept = {artifact.path for artifact in client.list_artifacts(one.run_id)}
        assert "history.parquet" in kept
        assert ("model.onnx" in kept) == (one.learned.network is not None) == (one.parity is not None)
    assert [one.level.number for one in levels if one.parity] == [5, 6, 7, 8]
    assert all(one.parity.passed for one in levels if one.parity)
    found = predict(tmp_path / "level-8" / "model.onnx", np.array([[2.0]]))
    expected = np.polynomial.polynomial.polyval(2.0, levels[-1].polynomial)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_gate_refuses_the_network_that_it_accepts_in_evaluation_mode(
    levels: list[LevelRun], sine: Dataset, record: RunRecord, tmp_path: Path
) -> None:
    assert levels[-1].parity is not None
    assert levels[-1].parity.passed
    assert "random in evaluation mode" in refusal.fn(levels[-1], sine, record, tmp_path)
    seventh = next(one for one in levels if one.level.number == 7)
    with pytest.raises(AgreementError, match="let a network pass"):
        refusal.fn(seventh, sine, record, tmp_path)  # it draws nothing, and has to get through


def test_the_last_levels_draws_are_up_to_the_seed_whatever_was_drawn_before(
    levels: list[LevelRun], sine: Dataset, record: RunRecord, tmp_path: Path
) -> None:
    (tmp_path / "again").mkdir()
    torch.rand(5)
    again = run_level.fn(LEVELS[-1], SHORT, sine, record, tmp_path / "again")
    assert again.learned.losses == levels[-1].learned.losses
    alone = LEVELS[-1].run(sine.x, sine.y, first_values(0), 20, LEVELS[-1].rate)
    assert again.learned.losses == alone.losses
    (tmp_path / "other").mkdir()
    other = run_level.fn(LEVELS[-1], SHORT.model_copy(update={"seed": 1}), sine, record, tmp_path / "other")
    assert other.learned.losses != again.learned.losses


def test_levels_that_end_apart_fail_the_run(levels: list[LevelRun]) -> None:
    result = TutorialResult(SHORT, levels=levels)
    result.check_agreement()
    for number in (2, 3, 5, 7):
        moved = replace(levels[number - 1], polynomial=levels[number - 1].polynomial + 2 * TOLERANCES["float32"])
        others = [moved if one.level.number == number else one for one in levels]
        apart = TutorialResult(SHORT, levels=others)
        with pytest.raises(AgreementError, match=rf"^level {number} ended"):
            apart.check_agreement()
        assert [row[6].startswith("NO") for row in apart.tables()[0].rows].index(True) == number - 1
    lost = replace(levels[1], polynomial=levels[1].polynomial * np.nan)
    with pytest.raises(AgreementError, match=r"^level 2 ended"):
        TutorialResult(SHORT, levels=[levels[0], lost]).check_agreement()


def test_the_flow_fails_where_levels_end_apart(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("make_data", "run_level", "refusal", "draw_levels"):
        monkeypatch.setattr(tutorial, name, getattr(tutorial, name).fn)
    slower = replace(LEVELS[1], rate=2e-7)
    monkeypatch.setattr(tutorial, "LEVELS", (LEVELS[0], slower, LEVELS[7]))
    with pytest.raises(AgreementError, match="level 2 ended") as failure:
        tutorial.tutorial_flow.fn(SHORT)
    result = failure.value.result  # type: ignore[attr-defined]
    assert result.status == "failed"
    assert store.get_run(result.run_id).info.status == "FAILED"


def test_the_best_cubic_has_no_distance_and_the_exercises_loss(sine: Dataset) -> None:
    x, y = sine.x.double().numpy(), sine.y.double().numpy()
    best = np.polynomial.polynomial.polyfit(x[:, 0], y[:, 0], 3)
    loss, distance = judged(best, sine)
    assert loss == pytest.approx(8.8171654, abs=1e-5)
    assert distance < 1e-7
    assert judged(best + np.array([0.3, 0, 0.4, 0]), sine)[1] == pytest.approx(0.5, abs=1e-7)
    assert judged(np.array([*best, 0.3, 0.4]), sine)[1] == pytest.approx(0.5, abs=1e-7)


def test_a_level_that_diverges_says_so(sine: Dataset, record: RunRecord, tmp_path: Path) -> None:
    wild = replace(LEVELS[1], rate=1.0)
    with pytest.raises(DivergedError, match="level 2: tensors diverged"):
        run_level.fn(wild, TutorialConfig(steps=100), sine, record, tmp_path)


def test_its_pictures_hold_every_level_and_the_curve_they_fit(
    levels: list[LevelRun], sine: Dataset, tmp_path: Path
) -> None:
    fits, losses = level_panels(levels, sine)
    assert [curve.label for curve in fits.curves[1:]] == [curve.label for curve in losses.curves]
    assert len(losses.curves) == 8
    np.testing.assert_allclose(fits.curves[0].y, np.sin(fits.curves[0].x), atol=1e-6)
    for one, curve in zip(levels, losses.curves, strict=True):
        assert (curve.y[0], curve.y[-1]) == (one.learned.losses[0], one.learned.losses[-1])
    draw_panels((fits, losses), "levels", tmp_path / "levels.png")
    assert (tmp_path / "levels.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_stopped_early_tells_how_far_it_came() -> None:
    result = TutorialResult(SHORT, status="failed", reason="why")
    assert result.tables() == ()
    assert result.as_json()["levels"] == []
    assert result.rows()["status"] == "failed"


def test_the_gap_is_the_largest_difference_of_coefficients() -> None:
    def ended(*polynomial: float) -> LevelRun:
        learned = Learned({}, [1.0])
        return LevelRun(LEVELS[1], learned, np.array(polynomial), 0.0, 0.0, 2e-6, "", None)

    assert ended(1, 2, 3, 4).gap(ended(1, 2.5, 3, 3.75)) == 0.5
    assert ended(1).microseconds == pytest.approx(2)
    assert torch.get_default_dtype() is torch.float32
