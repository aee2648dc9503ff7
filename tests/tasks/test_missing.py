"""--missing error, drop and mean, from the file to the gate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.linear_model
import torch
from pydantic import ValidationError
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from fourfold.configuration import TrainConfig
from fourfold.errors import RequestError
from fourfold.fitting import Outcome
from fourfold.golden import prove_again, read_golden
from models.filled import Filled
from tasks.build_model import BuiltModel, build, core_of, scaling_of
from tasks.evaluate import Evaluation, evaluate, predict
from tasks.export_onnx import export_onnx
from tasks.make_data import load, make_data
from tasks.request import check, check_optimizer
from tasks.train import train
from tasks.verify_onnx import verify_onnx

ROWS = 200
LARGEST = 1e4  # of the values in held-out rows: a mean that they had a part in would show


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Three features, a tenth of them missing, and a target far from zero; gives the request that trains on them."""

    def write(edit: Callable[[pd.DataFrame], Any] = lambda frame: None, **options: Any) -> TrainConfig:
        random = np.random.default_rng(0)
        x = random.normal(size=(ROWS, 3)) * [1.0, 20.0, 0.1] + [5.0, -100.0, 0.0]
        frame = pd.DataFrame(x, columns=["a", "b", "c"])
        frame["y"] = 1000 + 3 * frame["a"] - 0.2 * frame["b"] + 40 * frame["c"] + random.normal(size=ROWS)
        frame = frame.mask(random.random(frame.shape) < [0.1, 0.2, 0.05, 0.0])
        edit(frame)
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pandas(frame), path)
        return TrainConfig(
            **{"data": str(path), "target": "y", "missing": "mean", "dtype": "float64", "epochs": 300, "lr": 0.1}
            | options
        )

    return write


def trained(config: TrainConfig, notes: Any, folder: Path) -> tuple[BuiltModel, Evaluation]:
    data = make_data.fn(config)
    built = build(config, data)
    fitted = train.fn(config, built, data, notes_with_curves(notes), folder)
    assert fitted.outcome is Outcome.COMPLETED, fitted.reason
    return built, evaluate.fn(config, built, data, notes)


def notes_with_curves(notes: Any) -> Any:
    notes.curves = lambda curves: None
    notes.table = lambda columns, path: None
    return notes


class TestWhatIsFilled:
    def test_the_training_rows_means_and_nobody_elses(self, table: Callable[..., TrainConfig]) -> None:
        config = table(validation_fraction=0.1)
        data = load(config)
        data.x_test[:], data.x_validation[:] = LARGEST, LARGEST
        network = build(config, data).network
        assert isinstance(network, Filled)
        assert network.values.numpy() == pytest.approx(np.nanmean(data.x.numpy(), axis=0), rel=1e-14)
        assert data.x.isnan().any(), "the rows keep what is missing: the network fills it"

    def test_another_seed_holds_other_rows_out_and_has_other_means(self, table: Callable[..., TrainConfig]) -> None:
        values = [build(config, load(config)).network.values for config in (table(seed=0), table(seed=1))]
        assert not torch.equal(*values)

    @pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-4), ("float64", 1e-11)])
    def test_rows_are_seen_filled_and_scaled_by_the_values_that_are_there(
        self, dtype: Any, near: float, table: Callable[..., TrainConfig]
    ) -> None:
        config = table(dtype=dtype)
        data = load(config)
        built = build(config, data)
        wide = data.x.double().numpy()
        expected = np.nan_to_num(StandardScaler().fit_transform(wide))  # the mean becomes 0
        assert built.x.dtype == data.x.dtype
        assert built.x.double().numpy() == pytest.approx(expected, rel=near, abs=near)

    def test_without_standardizing_they_are_only_filled(self, table: Callable[..., TrainConfig]) -> None:
        config = table(standardize=False)
        data = load(config)
        built = build(config, data)
        assert scaling_of(built.network) is None
        assert isinstance(built.network, Filled)
        assert core_of(built.network) is built.core
        assert built.x.numpy() == pytest.approx(SimpleImputer().fit_transform(data.x.numpy()), rel=1e-14)
        assert torch.equal(built.y, data.y)

    @pytest.mark.parametrize("missing", ["error", "drop"])
    def test_the_other_ways_leave_the_network_alone(self, missing: str, table: Callable[..., TrainConfig]) -> None:
        config = table(lambda frame: frame.fillna(0.5, inplace=True) if missing == "error" else None, missing=missing)
        network = build(config, load(config)).network
        assert not isinstance(network, Filled)
        assert not load(config).x.isnan().any()

    def test_a_file_in_which_nothing_is_missing_can_be_filled_later(self, table: Callable[..., TrainConfig]) -> None:
        """The model takes NaN from then on, whatever it was trained on."""
        config = table(lambda frame: frame.fillna(0.5, inplace=True))
        network = build(config, load(config)).network
        assert isinstance(network, Filled)
        assert predict(network, torch.full((1, 3), torch.nan, dtype=torch.float64)).isfinite().all()


class TestTheResult:
    def test_least_squares_is_that_of_the_filled_rows(
        self, table: Callable[..., TrainConfig], notes: Any, tmp_path: Path
    ) -> None:
        config = table()
        built, evaluation = trained(config, notes, tmp_path)
        data = load(config)
        imputer = SimpleImputer().fit(data.x.numpy())
        exact = sklearn.linear_model.LinearRegression().fit(imputer.transform(data.x.numpy()), data.y.numpy())
        assert evaluation.least_squares is not None
        expected = dict(zip(("w/a", "w/b", "w/c"), exact.coef_[0], strict=True)) | {"b": exact.intercept_[0]}
        assert evaluation.least_squares.parameters == pytest.approx(expected, rel=1e-9)
        assert evaluation.least_squares.distance < 1e-6 * np.abs(exact.intercept_[0])
        predicted = exact.predict(imputer.transform(data.x_test.numpy()))
        left = predicted - data.y_test.numpy()
        assert evaluation.accuracy.rmse == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-6)
        assert predict(built.network, data.x_test).numpy() == pytest.approx(predicted, rel=1e-6)

    def test_dropped_rows_are_as_if_they_had_never_been(
        self, table: Callable[..., TrainConfig], notes: Any, tmp_path: Path
    ) -> None:
        config = table(missing="drop")
        without = tmp_path / "without.parquet"
        pq.write_table(
            pa.Table.from_pandas(pq.read_table(config.data).to_pandas().dropna(), preserve_index=False), without
        )
        data, other = load(config), load(config.model_copy(update={"data": str(without), "missing": "error"}))
        assert data.rows == other.rows < ROWS
        assert data.sha256 == other.sha256
        for mine, its in zip(data.at_hand.values(), other.at_hand.values(), strict=True):
            assert all(map(torch.equal, mine, its))

    @pytest.mark.parametrize(
        "options",
        [
            {"model": "linear"},
            {"model": "linear", "standardize": False, "optimizer": "Adam", "epochs": 20},
            {"model": "mlp", "hidden": (8,), "optimizer": "Adam", "epochs": 20},
            {"model": "polynomial", "degree": 2, "optimizer": "Adam", "epochs": 20},
            {"model": "polynomial", "degree": 3, "basis": "chebyshev", "optimizer": "Adam", "epochs": 20},
        ],
        ids=lambda options: " ".join(map(str, options.values())),
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_file_takes_rows_as_they_come_and_passes_the_gate(
        self, options: dict[str, Any], dtype: str, table: Callable[..., TrainConfig], notes: Any, tmp_path: Path
    ) -> None:
        config = table(dtype=dtype, **options, at=((5.0, -100.0, 0.0),))
        built, _ = trained(config, notes, tmp_path)
        data = load(config)
        assert data.x.isnan().any()
        assert data.x_test.isnan().any()
        exported = export_onnx.fn(config, built, data, notes, tmp_path)
        report = verify_onnx.fn(config, built, data, exported, notes, tmp_path)
        assert report.passed, report.reason
        session = onnxruntime.InferenceSession(exported.path)
        (predicted,) = session.run(None, {"x": data.x_test.numpy()})
        assert predicted == pytest.approx(predict(built.network, data.x_test).numpy(), rel=1e-5)
        assert session.get_modelmeta().custom_metadata_map["missing"] == "mean"
        golden = read_golden(tmp_path / "golden.parquet")
        assert np.isnan(golden.expectations[0].x).any()
        assert prove_again(exported.path, golden).passed

    def test_a_file_says_that_missing_values_are_refused_where_they_were(
        self, table: Callable[..., TrainConfig], notes: Any, tmp_path: Path
    ) -> None:
        config = table(missing="drop", epochs=2)
        built, _ = trained(config, notes, tmp_path)
        exported = export_onnx.fn(config, built, load(config), notes, tmp_path)
        metadata = onnxruntime.InferenceSession(exported.path).get_modelmeta().custom_metadata_map
        assert metadata["missing"] == "error"


class TestRefusals:
    def refusal(self, config: TrainConfig) -> str:
        with pytest.raises(RequestError) as refused:
            load(config)
        line = str(refused.value)
        assert "\n" not in line
        return line

    def test_by_default_missing_values_are_counted_by_column(self, table: Callable[..., TrainConfig]) -> None:
        config = table(missing="error")
        frame = pq.read_table(config.data).to_pandas()
        counts = ", ".join(f"{name} {frame[name].isna().sum()}" for name in "abc")
        first = int(frame.isna().any(axis=1).to_numpy().argmax()) + 1
        assert f"missing values: {counts} of {ROWS} rows, first in row {first}; mend them" in self.refusal(config)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_target_is_never_filled(self, stream: bool, table: Callable[..., TrainConfig]) -> None:
        config = table(lambda frame: frame.loc.__setitem__(([7, 11], "y"), np.nan), stream=stream)
        assert "missing values: y 2 of 200 rows, first in row 8;" in (line := self.refusal(config))
        assert "a target cannot be filled" in line

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_column_without_any_value(self, stream: bool, table: Callable[..., TrainConfig]) -> None:
        config = table(lambda frame: frame.__setitem__("b", np.nan), stream=stream)
        assert "missing values: b 200 of 200 rows" in (line := self.refusal(config))
        assert "nor a column without any value" in line

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_column_without_any_value_in_the_training_rows(
        self, stream: bool, table: Callable[..., TrainConfig]
    ) -> None:
        """Only rows that are held out have one: there is no mean, and the column would be filled with 0."""

        def rows(frame: pd.DataFrame) -> None:
            frame["a"] = np.arange(ROWS)

        held_out = load(table(rows)).x_test[:2, 0].int().tolist()
        config = table(
            lambda frame: frame.__setitem__("b", [float(row) if row in held_out else np.nan for row in range(ROWS)]),
            stream=stream,
        )
        assert "rows has no value of b in its training rows" in self.refusal(config)

    @pytest.mark.parametrize("options", [{}, {"model": "polynomial", "basis": "chebyshev"}, {"model": "mlp"}], ids=str)
    def test_a_column_whose_values_begin_late_is_fine(
        self, options: dict[str, Any], table: Callable[..., TrainConfig], notes: Any, tmp_path: Path
    ) -> None:
        """A request is looked at with two rows of it, which say nothing of the others."""
        config = table(
            lambda frame: frame.loc.__setitem__((slice(0, 150), "b"), np.nan),
            test_fraction=0.0, epochs=2, optimizer="Adam", **options,
        )  # fmt: skip
        check_optimizer(check(config))
        _, evaluation = trained(config, notes, tmp_path)
        assert np.isfinite(evaluation.loss)

    @pytest.mark.parametrize("value", ["nan", float("nan"), "inf"])
    def test_a_point_cannot_have_a_missing_value(self, value: Any, table: Callable[..., TrainConfig]) -> None:
        with pytest.raises(ValidationError, match="finite number"):
            table(at=((1.0, value, 2.0),))

    def test_built_in_sets_are_whole(self) -> None:
        with pytest.raises(RequestError, match="--stream and --missing belong to a file"):
            load(TrainConfig(missing="mean"))
