import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import DivergedError, ExportError, ParityError, RegistrationError
from fourfold.fitting import FitResult, History, Outcome
from fourfold.parity import Case, ParityReport
from tasks import results
from tasks.evaluate import Accuracy, Comparison, Evaluation
from tasks.register import Registered
from tasks.train_result import TrainResult

KEYS = {
    "flow", "status", "reason", "run_id", "flow_run_id", "warnings", "optimizer", "epochs", "gradient_evaluations",
    "seconds", "loss", "parameters", "predictions", "held_out", "least_squares", "parity", "report", "model",
}  # fmt: skip


def curve(loss: float = 0.25) -> History:
    rows = np.array([1.0, loss])
    return History(rows, np.array([0, 1]), np.full(2, 0.01), ("w",), np.zeros((2, 1)))


def fitted(loss: float = 0.25, outcome: Outcome = Outcome.COMPLETED) -> FitResult:
    return FitResult(outcome, loss, 1000, 1001, 0.1, curve(loss))


def complete(dataset: Callable[..., Dataset]) -> TrainResult:
    """Of a run that came to its end."""
    data = dataset([[1.0], [2.0]], [[2.0], [4.0]], test=([[3.0]], [[6.0]]))
    return TrainResult(
        TrainConfig(),
        flow_run_id="a-flow-run",
        run_id="a-run",
        status="registered",
        data=data,
        warnings=("the columns are nearly dependent",),
        fit=fitted(),
        parameters={"w": 1.9996239, "b": 0.0008549},
        evaluation=Evaluation(
            0.125,
            "held-out",
            Accuracy(0.5, 0.25, 0.75),
            (((4.0,), (7.9993,)), ((0.5,), (1.0,))),
            Comparison({"w": 2.0, "b": 0.0}, 1e-12, 0.001),
        ),
        parity=ParityReport(
            "passed",
            sha256="a" * 64,
            cases=(Case("zeros", "onnxruntime", 1, True, 1e-7, max_ulp=1.0, worst_ratio=0.5),),
        ),
        registered=Registered(
            "line-linear", "3", "champion", "models:/line-linear/3", "/m/model.onnx", "a" * 64, "the best"
        ),
        report="mlruns/train/a-run/artifacts/report.html",
        seconds=1.23456,
        url="http://127.0.0.1:5000/#/experiments/1/runs/a-run",
    )


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would be put on the page in Prefect."""
    pages: list[tuple[Any, ...]] = []
    monkeypatch.setattr(results, "publish", lambda *arguments: pages.append(arguments))
    return pages


class TestJson:
    def test_a_complete_run_tells_all(self, dataset: Callable[..., Dataset]) -> None:
        assert json.loads(json.dumps(complete(dataset).as_json(), allow_nan=False)) == {
            "flow": "train",
            "status": "registered",
            "reason": None,
            "run_id": "a-run",
            "flow_run_id": "a-flow-run",
            "warnings": ["the columns are nearly dependent"],
            "optimizer": "SGD",
            "epochs": 1000,
            "gradient_evaluations": 1001,
            "seconds": 1.235,
            "loss": 0.125,
            "parameters": {"w": 1.9996239, "b": 0.0008549},
            "predictions": [{"x": [4.0], "y": [7.9993]}, {"x": [0.5], "y": [1.0]}],
            "held_out": {"rmse": 0.5, "mae": 0.25, "r2": 0.75},
            "least_squares": {"parameters": {"w": 2.0, "b": 0.0}, "loss": 1e-12, "distance": 0.001},
            "parity": {
                "verdict": "passed",
                "cases": 1,
                "max_abs_error": 1e-7,
                "max_ulp": 1.0,
                "worst_ratio": 0.5,
                "reason": "",
            },
            "report": "mlruns/train/a-run/artifacts/report.html",
            "model": {
                "name": "line-linear",
                "version": "3",
                "alias": "champion",
                "uri": "models:/line-linear/3",
                "path": "/m/model.onnx",
                "sha256": "a" * 64,
            },
        }

    def test_a_run_that_only_began_has_the_same_keys(self, dataset: Callable[..., Dataset]) -> None:
        begun = TrainResult(TrainConfig()).as_json()
        assert set(begun) == set(complete(dataset).as_json()) == KEYS
        assert {name for name, value in begun.items() if value is None} == KEYS - {
            "flow", "status", "warnings", "optimizer", "seconds", "parameters", "predictions",
        }  # fmt: skip
        assert (begun["warnings"], begun["parameters"], begun["predictions"]) == ([], {}, [])

    def test_before_the_evaluation_the_loss_is_the_fits(self) -> None:
        assert TrainResult(TrainConfig(), fit=fitted(0.5)).as_json()["loss"] == 0.5

    def test_training_rows_are_not_told_as_held_out(self, dataset: Callable[..., Dataset]) -> None:
        result = complete(dataset)
        assert result.evaluation is not None
        result.evaluation = replace(result.evaluation, judged_on="training")
        assert result.as_json()["held_out"] is None

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_null_wherever_it_is(self, value: float, dataset: Callable[..., Dataset]) -> None:
        """A network may predict anything, and readers of JSON know no NaN."""
        result = complete(dataset)
        assert result.evaluation is not None
        result.parameters = {"w": value}
        result.evaluation = Evaluation(
            value,
            "held-out",
            Accuracy(value, value, value),
            (((4.0,), (value,)),),
            Comparison({"w": value}, value, value),
        )
        case = Case("zeros", "onnxruntime", 1, True, value, max_ulp=value, worst_ratio=value)
        result.parity = ParityReport("failed", "row 0", "a" * 64, cases=(case,))
        told = json.loads(json.dumps(result.as_json(), allow_nan=False))
        assert told["loss"] is None
        assert told["parameters"] == {"w": None}
        assert told["predictions"] == [{"x": [4.0], "y": [None]}]
        assert told["held_out"] == {"rmse": None, "mae": None, "r2": None}
        assert told["least_squares"] == {"parameters": {"w": None}, "loss": None, "distance": None}
        assert told["parity"]["max_abs_error"] is None

    def test_a_loss_that_is_no_number_is_null_of_a_fit_too(self) -> None:
        result = TrainResult(TrainConfig(), fit=fitted(math.nan, Outcome.DIVERGED))
        assert json.loads(json.dumps(result.as_json(), allow_nan=False))["loss"] is None


class TestFollowed:
    def test_a_block_that_ends_without_a_version_is_completed(self, published: list[Any]) -> None:
        result = TrainResult(TrainConfig())
        with result.followed() as followed:
            assert followed is result
            assert result.status == "running"
        assert (result.status, result.reason) == ("completed", "")
        assert result.seconds > 0

    def test_one_that_ends_with_a_version_is_registered(
        self, published: list[Any], dataset: Callable[..., Dataset]
    ) -> None:
        result = TrainResult(TrainConfig())
        with result.followed():
            result.registered = complete(dataset).registered
        assert result.status == "registered"

    @pytest.mark.parametrize(
        ("error", "status", "reason"),
        [
            (DivergedError("the loss went off"), "diverged", "the loss went off"),
            (ParityError("row 0 differs"), "rejected", "row 0 differs"),
            (ExportError("a loop"), "failed", "a loop"),
            (RegistrationError("other bytes"), "failed", "other bytes"),
            (ValueError("a fault"), "failed", "a fault"),
            (MemoryError(), "failed", "MemoryError"),
            (KeyboardInterrupt(), "failed", "KeyboardInterrupt"),
            (SystemExit(143), "failed", "143"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_the_exception_that_ends_it_carries_the_result(
        self, error: BaseException, status: str, reason: str, published: list[Any]
    ) -> None:
        result = TrainResult(TrainConfig())
        with pytest.raises(type(error)) as raised, result.followed():
            raise error
        assert raised.value is error
        assert error.result is result  # type: ignore[attr-defined]
        assert (result.status, result.reason) == (status, reason)
        assert result.as_json()["reason"] == reason

    @pytest.mark.parametrize("fails", [False, True])
    def test_it_is_published_at_the_end_however_it_ends(self, fails: bool, published: list[Any]) -> None:
        result = TrainResult(TrainConfig())

        def block() -> None:
            with result.followed():
                result.run_id, result.url = "a-run", "http://127.0.0.1:5000/run"
                assert published == []
                if fails:
                    raise DivergedError("off")

        if fails:
            with pytest.raises(DivergedError):
                block()
        else:
            block()
        ((flow, title, rows, links, picture, tables),) = published
        assert tables == ()
        assert flow == "train"
        assert title == "SGD lr=0.01 line-linear"
        assert rows["status"] == ("diverged" if fails else "completed")
        assert (links, picture) == ({"The run in MLflow": "http://127.0.0.1:5000/run"}, None)


class TestRows:
    def test_a_run_that_only_began_shows_what_was_asked_for(self) -> None:
        assert TrainResult(TrainConfig(model="mlp", optimizer="Adam", lr=0.1)).rows() == {
            "status": "running",
            "model": "mlp",
            "optimizer": "Adam, lr 0.1",
            "seconds": "0.0",
        }

    def test_a_complete_run_shows_all(self, dataset: Callable[..., Dataset]) -> None:
        rows = complete(dataset).rows()
        assert rows["status"] == "registered"
        assert rows["data"] == "made, 2 training rows and 1 held out"
        assert rows["warning"] == "the columns are nearly dependent"
        assert rows["optimizer"] == "SGD, lr 0.01, 1000 epochs, 1001 gradient evaluations"
        assert rows["loss"] == "0.125 (sse)"
        assert rows["held-out rows"] == "RMSE 0.5, MAE 0.25, R2 0.75"
        assert (rows["w"], rows["b"]) == ("1.9996239", "0.0008549")
        assert (rows["y at 4"], rows["y at 0.5"]) == ("7.9993", "1")
        assert rows["least squares"] == "distance 0.001, its loss 1e-12"
        assert rows["parity"] == "passed, 1 cases, largest difference 1e-07 (1 units in the last place)"
        assert rows["registered"] == "models:/line-linear/3 as champion: the best"
        assert "mlflow ui" in rows["runs"]
        assert all(isinstance(value, str) for value in rows.values())

    def test_a_run_that_diverged_shows_its_fit(self) -> None:
        result = TrainResult(TrainConfig(), run_id="a-run", status="diverged", fit=fitted(math.nan, Outcome.DIVERGED))
        result.parameters = {"w": math.nan}
        rows = result.rows()
        assert rows["optimizer"].endswith("1000 epochs, 1001 gradient evaluations")
        assert rows["w"] == "nan"
        assert not {"loss", "parity", "registered"} & set(rows)

    def test_of_many_parameters_the_first_are_shown(self) -> None:
        result = TrainResult(TrainConfig(), parameters={f"w/{number}": 1.0 for number in range(100)})
        assert len([name for name in result.rows() if name.startswith("w/")]) == 16

    def test_several_features_and_targets_are_listed(self, dataset: Callable[..., Dataset]) -> None:
        result = complete(dataset)
        assert result.evaluation is not None
        result.evaluation = replace(result.evaluation, predictions=(((1.5, 2.0), (3.0, 4.0)),))
        assert result.rows()["y at 1.5, 2"] == "3, 4"

    def test_points_that_differ_in_a_late_digit_stay_apart(self, dataset: Callable[..., Dataset]) -> None:
        result = complete(dataset)
        assert result.evaluation is not None
        answers = (((1.0000001,), (3.0,)), ((1.0000002,), (4.0,)))
        result.evaluation = replace(result.evaluation, predictions=answers)
        assert len([name for name in result.rows() if name.startswith("y at")]) == 2

    @pytest.mark.parametrize("name", ["loss", "status", "model", "seconds"])
    def test_a_parameter_of_the_users_hides_no_row(self, name: str, dataset: Callable[..., Dataset]) -> None:
        """A scalar parameter of a network of the user's may be called anything."""
        result = complete(dataset)
        before = result.rows()
        result.parameters = {name: 0.987654321}
        assert result.rows()[name] == before[name]
        assert "0.987654321" in result.rows().values()
