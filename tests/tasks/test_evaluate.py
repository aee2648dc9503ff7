from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics
import torch

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.fitting import fit
from tasks.build_model import BuiltModel, build
from tasks.evaluate import accuracy, evaluate, points, predict
from tasks.make_data import load
from tasks.train import fit_config

MakeDataset = Callable[..., Dataset]


@pytest.fixture
def noisy(dataset: MakeDataset) -> Dataset:
    """A plane with noise, far from zero, and held-out rows."""
    random = np.random.default_rng(3)
    x = random.normal(size=(50, 2)) * [3.0, 20.0] + [10.0, -100.0]
    y = (x @ [2.0, -0.5])[:, None] + 40.0 + random.normal(size=(50, 1))
    return dataset(x[:40], y[:40], test=(x[40:], y[40:]), features=("area", "rooms"), targets=("price",))


def trained(config: TrainConfig, data: Dataset) -> BuiltModel:
    built = build(config, data)
    fit(built.core, built.x, built.y, fit_config(config))
    return built


class TestAccuracy:
    @pytest.mark.parametrize("targets", [1, 3])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_it_is_what_scikit_learn_computes(self, targets: int, dtype: Any) -> None:
        random = np.random.default_rng(4)
        target = (random.normal(size=(30, targets)) * 5 + 100).astype(dtype)
        prediction = (target + random.normal(size=(30, targets))).astype(dtype)
        judged = accuracy([(prediction, target)])
        wide = target.astype(np.float64), prediction.astype(np.float64)
        assert judged.rmse == pytest.approx(np.sqrt(sklearn.metrics.mean_squared_error(*wide)), rel=1e-12)
        assert judged.mae == pytest.approx(sklearn.metrics.mean_absolute_error(*wide), rel=1e-12)
        assert judged.r2 == pytest.approx(sklearn.metrics.r2_score(*wide), rel=1e-9)

    @pytest.mark.parametrize("off", [0.0, 1.0])
    def test_of_a_constant_target_too(self, off: float) -> None:
        target = np.column_stack([np.full(5, 7.0), np.arange(5.0)])
        prediction = target + np.array([off, 0.25])
        assert accuracy([(prediction, target)]).r2 == pytest.approx(sklearn.metrics.r2_score(target, prediction))

    def test_of_a_single_row_too(self) -> None:
        judged = accuracy([(np.array([[3.0]]), np.array([[5.0]]))])
        assert (judged.rmse, judged.mae, judged.r2) == (2.0, 2.0, 0.0)


class TestPoints:
    def test_by_default_one_feature_is_asked_at_4(self) -> None:
        config = TrainConfig()
        assert points(config, load(config)).tolist() == [[4.0]]

    def test_by_default_several_features_are_not_asked(self, noisy: Dataset) -> None:
        assert points(TrainConfig(), noisy).shape == (0, 2)

    def test_they_are_those_asked_for_in_the_dtype_of_the_rows(self, noisy: Dataset) -> None:
        asked = points(TrainConfig(at=((1.5, 2.0), (3.0, 4.0))), noisy)
        assert (asked.tolist(), asked.dtype) == ([[1.5, 2.0], [3.0, 4.0]], torch.float64)

    @pytest.mark.parametrize(
        ("at", "reason"),
        [
            (((1.0,),), "--at 1 has 1 values; the model takes 2: area, rooms"),
            (((1.0, 2.0), (1.0, 2.0, 3.5)), r"--at 1,2,3\.5 has 3 values; the model takes 2"),
        ],
    )
    def test_one_of_another_width_is_refused(self, at: Any, reason: str, noisy: Dataset) -> None:
        with pytest.raises(RequestError, match=reason):
            points(TrainConfig(at=at), noisy)


class TestEvaluation:
    @pytest.mark.parametrize("loss", ["sse", "mse", "l1", "huber"])
    @pytest.mark.parametrize("batch_size", [None, 7])
    def test_the_loss_is_in_the_users_units(
        self, loss: Any, batch_size: int | None, noisy: Dataset, notes: Any
    ) -> None:
        """The fit's own loss is that of the scaled rows."""
        config = TrainConfig(
            standardize=True, dtype="float64", loss=loss, epochs=30, lr=0.001, batch_size=batch_size, optimizer="Adam"
        )
        built = trained(config, noisy)
        evaluation = evaluate.fn(config, built, noisy, notes)
        error = predict(built.network, noisy.x).numpy() - noisy.y.numpy()
        expected = {
            "sse": np.sum(error**2),
            "mse": np.mean(error**2),
            "l1": np.mean(np.abs(error)),
            "huber": np.mean(np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)),
        }[loss]
        assert evaluation.loss == pytest.approx(expected, rel=1e-9)
        assert notes.noted_metrics["final_loss"] == evaluation.loss

    def test_held_out_rows_judge_where_there_are_any(self, noisy: Dataset, notes: Any) -> None:
        config = TrainConfig(standardize=True, dtype="float64", loss="mse", epochs=200, lr=0.1)
        built = trained(config, noisy)
        evaluation = evaluate.fn(config, built, noisy, notes)
        prediction = predict(built.network, noisy.x_test).numpy()
        assert evaluation.judged_on == "held-out"
        assert evaluation.accuracy.r2 == pytest.approx(sklearn.metrics.r2_score(noisy.y_test.numpy(), prediction))
        assert notes.noted_metrics["held_out/rmse"] == evaluation.accuracy.rmse
        assert {"held_out/rmse", "held_out/mae", "held_out/r2"} <= set(notes.noted_metrics)

    def test_else_the_training_rows_do(self, notes: Any) -> None:
        config = TrainConfig(epochs=10)
        data = load(config)
        evaluation = evaluate.fn(config, trained(config, data), data, notes)
        assert evaluation.judged_on == "training"
        assert notes.noted_metrics["training/rmse"] == evaluation.accuracy.rmse

    def test_points_are_answered_in_order(self, notes: Any) -> None:
        config = TrainConfig(epochs=1000, at=((4.0,), (0.0,), (-1.0,)))
        data = load(config)
        built = trained(config, data)
        evaluation = evaluate.fn(config, built, data, notes)
        w, b = (values.item() for values in built.coefficients())
        assert [x for x, _ in evaluation.predictions] == [(4.0,), (0.0,), (-1.0,)]
        for (x,), (y,) in evaluation.predictions:
            assert y == pytest.approx(w * x + b, rel=1e-6)
        assert notes.noted_metrics["prediction/1/0"] == evaluation.predictions[1][1][0]

    def test_without_points_there_are_no_answers(self, noisy: Dataset, notes: Any) -> None:
        config = TrainConfig(standardize=True, dtype="float64", loss="mse", epochs=1)
        assert evaluate.fn(config, trained(config, noisy), noisy, notes).predictions == ()

    def test_the_network_is_left_in_evaluation_mode(self, notes: Any) -> None:
        config = TrainConfig(epochs=1)
        data = load(config)
        built = trained(config, data)
        built.network.train()
        evaluate.fn(config, built, data, notes)
        assert not built.network.training


class TestLeastSquares:
    @pytest.mark.parametrize("standardize", [False, True])
    @pytest.mark.parametrize("loss", ["sse", "mse"])
    def test_it_is_scikit_learns_solution_with_its_loss(
        self, loss: Any, standardize: bool, noisy: Dataset, notes: Any
    ) -> None:
        config = TrainConfig(standardize=standardize, dtype="float64", loss=loss, epochs=1, lr=1e-7)
        built = trained(config, noisy)
        compared = evaluate.fn(config, built, noisy, notes).least_squares
        assert compared is not None
        exact = sklearn.linear_model.LinearRegression().fit(noisy.x.numpy(), noisy.y.numpy())
        coefficients = {"w/area": exact.coef_[0, 0], "w/rooms": exact.coef_[0, 1], "b": exact.intercept_[0]}
        assert compared.parameters == pytest.approx(coefficients, rel=1e-9)
        squares = (exact.predict(noisy.x.numpy()) - noisy.y.numpy()) ** 2
        assert compared.loss == pytest.approx(squares.sum() if loss == "sse" else squares.mean(), rel=1e-9)
        w, b = built.coefficients()
        distance = np.sqrt(np.sum((w - exact.coef_) ** 2) + np.sum((b - exact.intercept_) ** 2))
        assert compared.distance == pytest.approx(distance, rel=1e-9)
        assert notes.noted_metrics["least_squares/distance"] == compared.distance
        assert notes.noted_metrics["least_squares/loss"] == compared.loss

    def test_a_fit_that_converged_is_near_it(self, noisy: Dataset, notes: Any) -> None:
        config = TrainConfig(standardize=True, dtype="float64", loss="mse", epochs=2000, lr=0.1)
        evaluation = evaluate.fn(config, trained(config, noisy), noisy, notes)
        assert evaluation.least_squares is not None
        assert evaluation.least_squares.distance < 1e-9
        assert evaluation.loss == pytest.approx(evaluation.least_squares.loss, rel=1e-12)

    @pytest.mark.parametrize("options", [{"loss": "l1"}, {"loss": "huber"}, {"model": "mlp"}], ids=str)
    def test_it_is_compared_with_a_line_under_squared_error_alone(self, options: dict[str, Any], notes: Any) -> None:
        config = TrainConfig(epochs=5, lr=0.001, **options)
        data = load(config)
        assert evaluate.fn(config, trained(config, data), data, notes).least_squares is None
        assert "least_squares/loss" not in notes.noted_metrics
