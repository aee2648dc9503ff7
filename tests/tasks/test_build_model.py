from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourfold.configuration import EIGHT, TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError
from fourfold.fitting import MOST_PARAMETER_CURVES, History, fit
from fourfold.gate import expect, find_randomness, verify
from fourfold.onnx_export import export
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron
from models.polynomial import ChebyshevPolynomial
from models.standardize import Standardized
from tasks.build_model import BuiltModel, build, build_model
from tasks.make_data import load
from tasks.train import fit_config

MakeDataset = Callable[..., Dataset]


def state(built: BuiltModel) -> dict[str, Tensor]:
    return dict(built.core.state_dict())


@pytest.fixture
def houses(dataset: MakeDataset) -> Dataset:
    """Three features and two targets of very different sizes."""
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 3)) * [30.0, 1.5, 1e4] + [80.0, 3.0, -2e5]
    y = np.column_stack([x @ [2000.0, 5.0, 0.01] + 7.0, x @ [-1e-3, 0.2, 0.0] - 3.0]) + random.normal(size=(40, 2))
    return dataset(x, y, features=("area", "rooms", "height"), targets=("price", "rent"))


@pytest.fixture
def classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_modules: None) -> Callable[[str], None]:
    """Write `nets.py` into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(body: str) -> None:
        (tmp_path / "nets.py").write_text(f"import random\nimport torch\nfrom torch import nn\n\n\n{body}\n")

    return write


class TestNetworks:
    def test_the_line_is_what_torch_draws_from_the_seed(self) -> None:
        config = TrainConfig(seed=5)
        built = build_model.fn(config, load(config))
        torch.manual_seed(5)
        drawn = nn.Linear(1, 1)
        assert built.is_linear
        assert built.network is built.core
        assert isinstance(built.core, LinearRegression)
        assert torch.equal(built.core.linear.weight, drawn.weight)
        assert torch.equal(built.core.linear.bias, drawn.bias)
        assert (built.x.tolist(), built.y.tolist()) == ([[1], [2], [3]], [[2], [4], [6]])

    def test_the_mlp_has_the_layers_asked_for(self, houses: Dataset) -> None:
        built = build(TrainConfig(model="mlp", hidden=(8, 4), activation="relu", dtype="float64"), houses)
        assert isinstance(built.core, MultilayerPerceptron)
        assert not built.is_linear
        shapes = [tuple(p.shape) for name, p in built.core.named_parameters() if name.endswith("weight")]
        assert shapes == [(8, 3), (4, 8), (2, 4)]
        assert sum(isinstance(layer, nn.ReLU) for layer in built.core.modules()) == 2

    @pytest.mark.parametrize("model", ["linear", "mlp", "polynomial", "dynamic"])
    def test_the_same_seed_gives_the_same_weights_in_both_dtypes(self, model: str) -> None:
        def drawn(**options: Any) -> dict[str, Tensor]:
            config = TrainConfig(model=model, **options)
            return state(build(config, load(config)))

        first, again, wide, other = drawn(), drawn(), drawn(dtype="float64"), drawn(seed=1)
        for name, values in first.items():
            assert values.dtype == torch.float32
            assert torch.equal(values, again[name])
            assert wide[name].dtype == torch.float64
            assert torch.equal(values.double(), wide[name])
            assert not torch.equal(values, other[name])

    def test_with_scaling_the_core_sees_mean_0_and_deviation_1(self, houses: Dataset) -> None:
        built = build(TrainConfig(standardize=True, dtype="float64"), houses)
        assert isinstance(built.network, Standardized)
        assert built.network.core is built.core
        for values in (built.x, built.y):
            deviation, mean = torch.std_mean(values, dim=0, correction=0)
            torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
            torch.testing.assert_close(deviation, torch.ones_like(deviation))

    def test_scaling_does_not_change_the_first_weights(self, houses: Dataset) -> None:
        plain, scaled = (build(TrainConfig(standardize=on, dtype="float64"), houses) for on in (False, True))
        assert all(torch.equal(values, state(scaled)[name]) for name, values in state(plain).items())

    @pytest.mark.parametrize("model", ["legendre", "dynamic"])
    def test_the_tutorials_networks_take_one_feature(self, model: str, houses: Dataset) -> None:
        with pytest.raises(RequestError, match=f"--model {model} takes one feature and one target; the data have 3"):
            build(TrainConfig(model=model), houses)

    @pytest.mark.parametrize("standardize", [False, True])
    def test_a_chebyshev_polynomial_takes_the_range_that_it_sees(self, standardize: bool, houses: Dataset) -> None:
        config = TrainConfig(model="polynomial", basis="chebyshev", standardize=standardize, dtype="float64", degree=2)
        built = build(config, houses)
        assert isinstance(built.core, ChebyshevPolynomial)
        low, high = torch.aminmax(built.core.columns(built.x)[:, ::2], dim=0)
        torch.testing.assert_close(low, -torch.ones(3).double())
        torch.testing.assert_close(high, torch.ones(3).double())


OF_THE_TUTORIAL: list[dict[str, Any]] = [
    {"model": "polynomial"},
    {"model": "polynomial", "basis": "chebyshev", "degree": 6},
    {"model": "polynomial", "basis": "chebyshev", "degree": 1, "standardize": True},
    {"model": "legendre"},
    {"model": "dynamic"},
]


@pytest.mark.parametrize("options", OF_THE_TUTORIAL, ids=lambda options: "-".join(map(str, options.values())))
class TestTheTutorialsNetworks:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_they_pass_the_gate_with_a_derived_bound(self, options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
        config = TrainConfig(data="sine", dtype=dtype, epochs=20, lr=1e-9, **options)
        data = load(config)
        built = build(config, data)
        fit(built.core, built.x, built.y, fit_config(config))
        assert not find_randomness(built.network, data.x)
        expectations = expect(built.network, {"training rows": data.x})
        assert {one.basis for one in expectations} == {"a running error bound"}
        report = verify(built.network, export(built.network, data.x, tmp_path / "model.onnx", {}), expectations)
        assert report.passed, report.reason

    def test_they_train_with_every_optimizer_that_takes_single_numbers(self, options: dict[str, Any]) -> None:
        for name in (*EIGHT, "AdamW", "NAdam", "RAdam", "Adadelta"):
            config = TrainConfig(data="sine", epochs=3, optimizer=name, lr=1e-4, **options)
            built = build(config, load(config))
            before = [p.detach().clone() for p in built.core.parameters()]
            result = fit(built.core, built.x, built.y, fit_config(config))
            assert result.epochs
            moved = zip(before, built.core.parameters(), strict=True)
            assert any(not torch.equal(old, new.detach()) for old, new in moved), name


@pytest.mark.parametrize("options", OF_THE_TUTORIAL[:3], ids=lambda options: "-".join(map(str, options.values())))
def test_least_squares_of_a_polynomial_is_numpys_own(options: dict[str, Any]) -> None:
    config = TrainConfig(data="sine", dtype="float64", **options)
    data = load(config)
    built = build(config, data)
    x, y = data.x.numpy()[:, 0], data.y.numpy()[:, 0]
    found = built.exact(data)
    series = np.polynomial.Chebyshev if config.basis == "chebyshev" else np.polynomial.Polynomial
    fitted = series.fit(x, y, config.degree)
    expected = fitted.coef if config.basis == "chebyshev" else fitted.convert().coef
    np.testing.assert_allclose([found.intercepts[0], *found.weights[0]], expected, rtol=1e-9, atol=1e-11)
    assert found.sum_of_squares == pytest.approx(np.sum((fitted(x) - y) ** 2), rel=1e-9)
    assert list(built.named(found.weights, found.intercepts)) == [
        *(f"{'t' if config.basis == 'chebyshev' else 'c'}{order}" for order in range(1, config.degree + 1)),
        "t0" if config.basis == "chebyshev" else "c0",
    ]


class TestCoefficients:
    @pytest.mark.parametrize("standardize", [False, True])
    def test_they_are_the_networks_own_predictions_at_zero_and_at_unit_rows(
        self, standardize: bool, houses: Dataset
    ) -> None:
        built = build(TrainConfig(standardize=standardize, dtype="float64"), houses)
        w, b = built.coefficients()
        with torch.no_grad():
            at_zero = built.network(torch.zeros(1, 3, dtype=torch.float64)).numpy()[0]
            at_units = built.network(torch.eye(3, dtype=torch.float64)).numpy()
        assert (w.dtype, b.dtype) == (np.float64, np.float64)
        # Predictions of about 1e6 lose digits where the coefficients, a millionth of them, do not.
        scale = np.abs(at_zero).max() * 1e-12
        np.testing.assert_allclose(b, at_zero, rtol=1e-12, atol=scale)
        np.testing.assert_allclose(w.T, at_units - at_zero, rtol=1e-9, atol=scale)

    def test_they_are_float64_also_of_a_float32_network(self) -> None:
        config = TrainConfig()
        built = build(config, load(config))
        w, b = built.coefficients()
        assert isinstance(built.core, LinearRegression)
        assert w.tolist() == built.core.linear.weight.double().tolist()
        assert b.tolist() == built.core.linear.bias.double().tolist()

    @pytest.mark.parametrize(
        ("features", "targets", "names"),
        [
            (("x",), ("y",), ["w", "b"]),
            (("area", "rooms"), ("price",), ["w/area", "w/rooms", "b"]),
            (("x",), ("price", "rent"), ["w/price", "w/rent", "b/price", "b/rent"]),
            (
                ("area", "rooms"),
                ("price", "rent"),
                ["w/price/area", "w/price/rooms", "w/rent/area", "w/rent/rooms", "b/price", "b/rent"],
            ),
        ],
    )
    def test_they_are_named_after_the_columns(
        self, features: tuple[str, ...], targets: tuple[str, ...], names: list[str], dataset: MakeDataset
    ) -> None:
        random = np.random.default_rng(1)
        x, y = random.normal(size=(8, len(features))), random.normal(size=(8, len(targets)))
        config = TrainConfig(dtype="float64", epochs=3, loss="mse")
        built = build(config, dataset(x, y, features=features, targets=targets))
        history = fit(built.core, built.x, built.y, fit_config(config)).history
        assert list(built.parameters(history)) == names
        w, b = built.coefficients()
        expected = dict(zip(names, [*w.reshape(-1), *b], strict=True))
        assert built.parameters(history) == pytest.approx(expected, rel=1e-12)


class TestCurves:
    def test_they_are_in_the_users_units_and_end_at_the_coefficients(self, houses: Dataset) -> None:
        config = TrainConfig(standardize=True, dtype="float64", epochs=7, loss="mse", lr=0.1)
        built = build(config, houses)
        start = built.coefficients()
        history = fit(built.core, built.x, built.y, fit_config(config)).history
        curves = built.curves(history)
        for row, (w, b) in ((0, start), (-1, built.coefficients())):
            for i, target in enumerate(houses.targets):
                assert curves[f"b/{target}"][row] == pytest.approx(b[i], rel=1e-9)
                for j, feature in enumerate(houses.features):
                    assert curves[f"w/{target}/{feature}"][row] == pytest.approx(w[i, j], rel=1e-9)
        assert all(values.shape == (8,) for values in curves.values())

    def test_of_another_network_they_are_its_parameters(self) -> None:
        config = TrainConfig(model="mlp", hidden=(2,))
        built = build(config, load(config))
        history = fit(built.core, built.x, built.y, fit_config(config.model_copy(update={"epochs": 2}))).history
        curves = built.curves(history)
        assert len(curves) == 7
        assert curves["layers.0.weight[0,0]"][-1] == built.core.state_dict()["layers.0.weight"][0, 0].item()

    def test_of_too_many_there_are_norms(self, dataset: MakeDataset) -> None:
        random = np.random.default_rng(2)
        x = random.normal(size=(30, MOST_PARAMETER_CURVES))
        config = TrainConfig(dtype="float64", epochs=2, loss="mse")
        built = build(config, dataset(x, x[:, :1]))
        history = fit(built.core, built.x, built.y, fit_config(config)).history
        curves = built.curves(history)
        assert list(curves) == ["norm/linear.weight", "norm/linear.bias"]
        assert curves["norm/linear.weight"][-1] == pytest.approx(float(built.core.state_dict()["linear.weight"].norm()))

    def test_parameters_are_their_last_points(self) -> None:
        config = TrainConfig()
        built = build(config, load(config))
        rows = np.zeros(2)
        history = History(
            rows, rows, rows, ("linear.weight[0,0]", "linear.bias[0]"), np.array([[1.0, 2.0], [3.0, 4.0]])
        )
        assert built.parameters(history) == {"w": 3.0, "b": 4.0}


BENT = """
class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.tanh(self.w * x) + self.b
"""


@pytest.mark.parametrize(("model", "is_line"), [("linear", True), ("polynomial", False), ("nets:Bent", False)])
def test_only_a_line_is_one_whatever_the_parameters_are_called(
    model: str, is_line: bool, classes: Callable[[str], None], houses: Dataset
) -> None:
    classes(BENT)
    config = TrainConfig(model=model, degree=1)
    assert build(config, load(config)).is_line == is_line
    if model == "linear":
        assert not build(config, houses).is_line


CUBIC = """
class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(()))
        self.offset = nn.Parameter(torch.tensor(random.random()))

    def forward(self, x):
        return self.a * x**3 + self.offset
"""


class TestWithoutAnIntercept:
    @pytest.mark.parametrize("standardize", [False, True])
    @pytest.mark.parametrize(("features", "targets"), [(1, 1), (1, 2), (3, 1), (3, 2)])
    @pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
    def test_it_is_trained_to_what_numpy_finds(
        self, dtype: torch.dtype, digits: float, features: int, targets: int, standardize: bool, dataset: MakeDataset
    ) -> None:
        random = np.random.default_rng(3)
        data = dataset(random.normal(size=(60, features)) + 2, random.normal(size=(60, targets)) - 7, dtype=dtype)
        expected = np.linalg.lstsq(data.x.double().numpy(), data.y.double().numpy(), rcond=None)[0].T
        config = TrainConfig(
            intercept=False, standardize=standardize, dtype=str(data.x.dtype)[6:], loss="mse", optimizer="LBFGS", lr=1,
            option=("line_search_fn=strong_wolfe", "tolerance_grad=0.0", "tolerance_change=0.0"), epochs=10,
        )  # fmt: skip
        built = build(config, data)
        history = fit(built.core, built.x, built.y, fit_config(config)).history
        w, b = built.coefficients()
        np.testing.assert_allclose(w, expected, rtol=digits, atol=digits)
        assert b.tolist() == [0.0] * targets
        found = built.exact(data)
        np.testing.assert_allclose(found.weights, expected, rtol=1e-6 if dtype is torch.float32 else 1e-11)
        assert list(built.parameters(history).values()) == pytest.approx(w.ravel().tolist(), rel=1e-12)
        assert not any(name.startswith("b") for name in built.parameters(history))
        with torch.no_grad():
            assert torch.equal(built.network(torch.zeros_like(data.x[:1])), torch.zeros_like(data.y[:1]))

    @pytest.mark.parametrize("standardize", [False, True])
    def test_a_polynomial_has_no_constant(self, standardize: bool) -> None:
        config = TrainConfig(
            data="sine", model="polynomial", intercept=False, dtype="float64", standardize=standardize
        )  # fmt: skip
        data = load(config)
        built = build(config, data)
        found = built.exact(data)
        x = data.x.numpy()
        expected = np.linalg.lstsq(np.hstack([x, x**2, x**3]), data.y.numpy(), rcond=None)[0].T
        np.testing.assert_allclose(found.weights, expected, rtol=1e-10, atol=1e-12)
        assert list(built.named(found.weights, found.intercepts)) == ["c1", "c2", "c3"]

    def test_a_line_through_the_origin_has_no_b_to_draw(self) -> None:
        config = TrainConfig(intercept=False)
        assert not build(config, load(config)).is_line

    @pytest.mark.parametrize(
        ("options", "given"),
        [
            ({"model": "mlp"}, "--model mlp was given"),
            ({"model": "legendre"}, "--model legendre was given"),
            ({"model": "nets:Bent"}, "--model nets:Bent was given"),
            ({"model": "polynomial", "basis": "chebyshev"}, "--model polynomial --basis chebyshev was given"),
        ],
        ids=str,
    )
    def test_other_models_are_refused(self, options: dict[str, Any], given: str) -> None:
        config = TrainConfig(intercept=False, **options)
        with pytest.raises(RequestError, match=given) as refused:
            build(config, load(config))
        assert "\n" not in str(refused.value)


class TestDecorrelated:
    @pytest.mark.parametrize(
        "options", [{}, {"intercept": False}, {"model": "mlp", "hidden": (4,)}, {"model": "nets:Net"}], ids=str
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_it_passes_the_gate_and_a_wrong_rotation_does_not(
        self, dtype: str, options: dict[str, Any], classes: Callable[[str], None], dataset: MakeDataset, tmp_path: Path
    ) -> None:
        classes("class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 1)")
        random = np.random.default_rng(4)
        x = random.normal(size=(50, 3)) @ random.normal(size=(3, 3)) * [1, 1e3, 1e-2] + 5
        data = dataset(x, x.sum(axis=1, keepdims=True), dtype=getattr(torch, dtype))
        config = TrainConfig(decorrelate=True, standardize=True, dtype=dtype, epochs=20, **options)
        built = build(config, data)
        assert fit(built.core, built.x, built.y, fit_config(config)).epochs == 20
        expectations = expect(built.network, {"training rows": data.x})
        assert {one.basis for one in expectations} == {"a running error bound"}
        exported = export(built.network, data.x, tmp_path / "model.onnx", {})
        report = verify(built.network, exported, expectations)
        assert report.passed, report.reason
        assert report.weights["x_rotation"] == "as it is"
        rotation = built.network.x_rotation
        assert isinstance(rotation, Tensor)
        rotation.copy_(rotation.T.clone())
        other = export(built.network, data.x, tmp_path / "other.onnx", {})
        rotation.copy_(rotation.T.clone())
        assert not verify(built.network, other, expectations).passed

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({}, "--decorrelate rotates standardised features, and nothing is standardised; add --standardize"),
            ({"start": ("w=1",), "data": "rows.csv"}, "add --standardize"),
            ({"model": "polynomial", "standardize": True}, "--model polynomial takes functions of each one alone"),
            ({"model": "legendre", "standardize": True}, "--model legendre takes"),
            ({"model": "dynamic", "standardize": True}, "--model dynamic takes"),
        ],
        ids=str,
    )
    def test_what_cannot_be_rotated_is_refused(self, options: dict[str, Any], reason: str, houses: Dataset) -> None:
        with pytest.raises(RequestError, match=reason) as refused:
            build(TrainConfig(decorrelate=True, **options), houses)
        assert "\n" not in str(refused.value)


TWO_LAYERS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.b1 = nn.Linear(1, 2), nn.Linear(2, 1, bias=False), nn.Parameter(torch.ones(()))
        self.first.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) * self.b1 * self.first.gain
"""


class TestStartValues:
    @pytest.fixture
    def begun(self, classes: Callable[[str], None]) -> Callable[..., BuiltModel]:
        classes(TWO_LAYERS)

        def make(*start: str, **options: Any) -> BuiltModel:
            config = TrainConfig(**{"model": "nets:Net", **options}, start=start)
            return build(config, load(config))

        return make

    @pytest.mark.parametrize(
        ("text", "name", "values"),
        [
            ("b1=500", "b1", 500.0),
            ("b1=-2.5e-4", "b1", -2.5e-4),
            ("first.gain=3", "first.gain", 3.0),
            ("gain=3", "first.gain", 3.0),
            ("first.weight=1,-2", "first.weight", [[1.0], [-2.0]]),
            ("first.weight=7", "first.weight", [[7.0], [7.0]]),
            ("second.weight=1,-2", "second.weight", [[1.0, -2.0]]),
            ("bias=0.5", "first.bias", [0.5, 0.5]),
        ],
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_parameter_begins_where_it_is_told(
        self, text: str, name: str, values: Any, dtype: str, begun: Callable[..., BuiltModel]
    ) -> None:
        drawn, found = state(begun(dtype=dtype)), state(begun(text, dtype=dtype))
        assert torch.equal(found.pop(name), torch.tensor(values, dtype=getattr(torch, dtype)))
        assert all(torch.equal(left, drawn[other]) for other, left in found.items()), "the others are the seed's"

    def test_several_are_in_row_major_order(self, houses: Dataset) -> None:
        built = build(TrainConfig(dtype="float64", start=("weight=1,2,3,4,5,6", "bias=7,8")), houses)
        assert state(built)["linear.weight"].tolist() == [[1, 2, 3], [4, 5, 6]]
        assert state(built)["linear.bias"].tolist() == [7, 8]

    def test_they_are_those_inside_the_scaling(self, houses: Dataset) -> None:
        built = build(TrainConfig(dtype="float64", start=("weight=0", "bias=0"), standardize=True), houses)
        np.testing.assert_allclose(built.coefficients()[1], houses.y.mean(dim=0))

    def test_a_lazy_network_takes_them_as_well(self, classes: Callable[[str], None]) -> None:
        classes("def make():\n    return nn.LazyLinear(1)")
        config = TrainConfig(model="nets:make", start=("weight=3", "bias=-1"))
        built = build(config, load(config))
        assert {name: values.tolist() for name, values in state(built).items()} == {"weight": [[3]], "bias": [-1]}

    def test_training_begins_there(self) -> None:
        config = TrainConfig(start=("weight=2", "bias=0"), epochs=3)
        built = build(config, load(config))
        history = fit(built.core, built.x, built.y, fit_config(config)).history
        assert built.curves(history)["w"].tolist() == [2.0] * 4
        assert history.loss.tolist() == [0.0] * 4

    @pytest.mark.parametrize(
        ("start", "reason"),
        [
            (("b2=1",), r"b2 is no parameter of this model; there are b1, first.weight \(2, 1\), first.bias"),
            (("irst.weight=1",), "irst.weight is no parameter"),
            (("weight=1",), "weight could be first.weight or second.weight; there are b1"),
            (("first.weight=1,2,3",), r"3 values for first.weight \(2, 1\); give one for all, or 2"),
            (("b1=1,2",), "2 values for b1; give one for all, or 1"),
            (("b1=many",), "'many' is not a number, or several separated by commas"),
            (("b1=1,",), "'1,' is not a number"),
            (("b1=nan",), "each value must be a finite number in torch.float32"),
            (("first.weight=1,inf",), "each value must be a finite number in torch.float32"),
            (("b1=1e39",), "each value must be a finite number in torch.float32"),
            (("gain=1", "first.gain=2"), "first.gain is given twice; once is enough"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, start: tuple[str, ...], reason: str, begun: Callable[..., BuiltModel]
    ) -> None:
        with pytest.raises(RequestError, match=reason) as refused:
            begun(*start)
        assert str(refused.value).startswith(f"--start {start[-1]}: ")
        assert "\n" not in str(refused.value)


class TestUsersOwn:
    @pytest.fixture
    def of_line(self) -> Callable[..., BuiltModel]:
        def make(model: str, **options: Any) -> BuiltModel:
            config = TrainConfig(model=model, **options)
            return build(config, load(config))

        return make

    def test_a_class_of_the_working_directory_is_taken(
        self, classes: Callable[[str], None], of_line: Callable[..., BuiltModel]
    ) -> None:
        classes(CUBIC)
        first, again, wide = of_line("nets:Cubic"), of_line("nets:Cubic"), of_line("nets:Cubic", dtype="float64")
        assert type(first.core).__name__ == "Cubic"
        assert state(first) == state(again), "torch's and Python's generators are seeded"
        assert {name: values.double() for name, values in state(first).items()} == state(wide)
        assert state(first) != state(of_line("nets:Cubic", seed=1))

    def test_a_module_in_a_package_is_taken(
        self, tmp_path: Path, classes: Callable[[str], None], of_line: Callable[..., BuiltModel]
    ) -> None:
        (tmp_path / "my_nets").mkdir()
        (tmp_path / "my_nets" / "cubic.py").write_text(f"import random\nimport torch\nfrom torch import nn\n{CUBIC}")
        assert type(of_line("my_nets.cubic:Cubic").core).__name__ == "Cubic"

    @pytest.mark.parametrize(
        "signature",
        ["in_features, out_features", "in_features=9, out_features=9", "*, out_features, in_features", "**sizes"],
    )
    def test_a_constructor_gets_the_sizes_that_it_takes(
        self, signature: str, classes: Callable[[str], None], houses: Dataset
    ) -> None:
        sizes = "sizes['in_features'], sizes['out_features']" if "**" in signature else "in_features, out_features"
        classes(
            f"class Net(nn.Module):\n    def __init__(self, {signature}):\n        super().__init__()\n"
            f"        self.layer = nn.Linear({sizes})\n    def forward(self, x):\n        return self.layer(x)\n"
        )
        built = build(TrainConfig(model="nets:Net", dtype="float64"), houses)
        assert tuple(built.core.state_dict()["layer.weight"].shape) == (2, 3)

    def test_a_function_that_makes_a_network_will_do(
        self, classes: Callable[[str], None], of_line: Callable[..., BuiltModel]
    ) -> None:
        classes("def make(in_features):\n    return nn.Sequential(nn.Linear(in_features, 4), nn.Linear(4, 1))")
        assert len(state(of_line("nets:make"))) == 4

    def test_a_lazy_network_is_made_for_the_rows(
        self, classes: Callable[[str], None], of_line: Callable[..., BuiltModel]
    ) -> None:
        classes("def make():\n    return nn.LazyLinear(1)")
        assert tuple(state(of_line("nets:make"))["weight"].shape) == (1, 1)

    def test_it_can_be_scaled(self, classes: Callable[[str], None], houses: Dataset) -> None:
        classes("class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 2)")
        built = build(TrainConfig(model="nets:Net", standardize=True, dtype="float64"), houses)
        assert isinstance(built.network, Standardized)
        assert not built.is_linear

    NET = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    LAYER = "        self.layer = nn.Linear(1, 1)\n"

    @pytest.mark.parametrize(
        ("body", "model", "reason"),
        [
            ("", "no_such_nets:Net", "cannot be made: ModuleNotFoundError: No module named 'no_such_nets'"),
            ("", "nets:Absent", "cannot be made: AttributeError: .*has no attribute 'Absent'"),
            ("def broken(:", "nets:Net", "cannot be made: SyntaxError"),
            ("raise OSError('no such\\nweights')", "nets:Net", "cannot be made: OSError: no such; give module:Class"),
            ("raise SystemExit('usage: nets.py FILE')", "nets:Net", "cannot be made: SystemExit"),
            ("class Net(nn.Module):\n    def __init__(self, depth):\n        pass", "nets:Net", "TypeError: .*'depth'"),
            (NET + "        raise KeyError\n", "nets:Net", "cannot be made: KeyError: KeyError; give module:Class"),
            ("Net = 3", "nets:Net", "cannot be made: TypeError: 3 is not a callable object"),
            ("class Net:\n    pass", "nets:Net", r"makes a Net; it must be a torch\.nn\.Module"),
            (NET, "nets:Net", "has no parameter that could be trained"),
            (
                f"{NET}{LAYER}        self.layer.requires_grad_(False)\n",
                "nets:Net",
                "has no parameter that could be trained",
            ),
            (f"{NET}{LAYER}", "nets:Net", "cannot take rows of 1 features"),
            (
                f"{NET}{LAYER}    def forward(self, x):\n        raise ValueError('too narrow\\nor not')",
                "nets:Net",
                "cannot take rows of 1 features: too narrow$",
            ),
            (
                f"{NET}{LAYER}    def forward(self, x):\n        return self.layer(x)[:, 0]",
                "nets:Net",
                r"gives \(2,\) torch\.float32 for two rows; it must give \(2, 1\) torch\.float32",
            ),
            (
                f"{NET}{LAYER}    def forward(self, x):\n        return self.layer(x).sum()",
                "nets:Net",
                r"gives \(\) torch\.float32",
            ),
            (
                f"{NET}{LAYER}    def forward(self, x):\n        return self.layer(x).double()",
                "nets:Net",
                r"gives \(2, 1\) torch\.float64 for two rows; it must give \(2, 1\) torch\.float32",
            ),
            (f"{NET}{LAYER}    def forward(self, x):\n        return (self.layer(x),)", "nets:Net", "gives .*tuple"),
        ],
    )
    def test_what_cannot_be_trained_is_refused(
        self,
        body: str,
        model: str,
        reason: str,
        classes: Callable[[str], None],
        of_line: Callable[..., BuiltModel],
    ) -> None:
        classes(body)
        with pytest.raises(RequestError, match=reason) as refused:
            of_line(model)
        assert str(refused.value).startswith(f"--model {model} ")
        assert "\n" not in str(refused.value)


class TestDevice:
    @pytest.fixture
    def present(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def pretend(*, cuda: bool = False, mps: bool = False) -> None:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
            monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

        return pretend

    @pytest.mark.parametrize("device", ["cuda", "mps"])
    def test_one_that_is_not_there_is_refused(self, device: Any, present: Callable[..., None]) -> None:
        present()
        config = TrainConfig(device=device)
        with pytest.raises(RequestError, match=f"--device {device} is not available; this machine has cpu"):
            build(config, load(config))

    def test_mps_has_no_float64(self, present: Callable[..., None]) -> None:
        present(mps=True)
        config = TrainConfig(device="mps", dtype="float64")
        with pytest.raises(RequestError, match="--device mps has no float64; use --dtype float32 or --device cpu"):
            build(config, load(config))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_without_a_gpu_auto_is_the_cpu(self, dtype: Any, present: Callable[..., None]) -> None:
        present()
        config = TrainConfig(dtype=dtype)
        assert build(config, load(config)).x.device.type == "cpu"

    def test_auto_passes_by_a_gpu_without_float64(self, present: Callable[..., None]) -> None:
        present(mps=True)
        config = TrainConfig(dtype="float64")
        assert build(config, load(config)).x.device.type == "cpu"
