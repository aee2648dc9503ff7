"""The plots of a fit: what is on them, before any library draws it."""

from typing import Any

import numpy as np
import pytest

from tasks.fit_panels import MOST_PARAMETERS, fit_panels
from tasks.panels import Curve, Panel

LOSS = np.array([8.0, 4.0, 2.0, 1.0])


def arrays(features: int = 1, targets: int = 1, held_out: int = 0, parameters: int = 2, **more: Any) -> dict[str, Any]:
    random = np.random.default_rng(3)
    made = {
        "loss": LOSS,
        "loss_label": np.array("training loss"),
        "epochs": np.array([0, 1, 3]),
        "parameter_names": np.array([f"p{number}" for number in range(parameters)]),
        "parameters": np.arange(3.0 * parameters).reshape(3, parameters),
        "features": np.array([f"f{number}" for number in range(features)]),
        "targets": np.array([f"t{number}" for number in range(targets)]),
    }
    for kind, rows in (("training", 5), ("held_out", held_out)):
        x, y = random.normal(size=(rows, features)), random.normal(size=(rows, targets))
        made |= {f"{kind}_x": x, f"{kind}_y": y, f"{kind}_prediction": y + 1}
    return made | more


def by_name(found: tuple[Panel, ...]) -> dict[str, Panel]:
    return {panel.name: panel for panel in found}


def curves(panel: Panel) -> dict[str, Curve]:
    return {curve.label: curve for curve in panel.curves}


def test_the_loss_and_each_parameter_are_over_the_epochs() -> None:
    panels = by_name(fit_panels(arrays()))
    (loss,) = panels["loss"].curves
    np.testing.assert_array_equal(loss.x, [0, 1, 3])
    np.testing.assert_array_equal(loss.y, [8, 4, 1])
    drawn = curves(panels["parameters"])
    np.testing.assert_array_equal(drawn["p0"].y, [0, 2, 4])
    np.testing.assert_array_equal(drawn["p1"].y, [1, 3, 5])


@pytest.mark.parametrize(("loss", "log"), [(LOSS, True), (LOSS - 1, False), (np.full(4, np.nan), False)])
def test_a_loss_is_over_logarithms_where_it_has_them(loss: np.ndarray, log: bool) -> None:
    assert by_name(fit_panels(arrays(loss=loss)))["loss"].y_log is log


def test_what_is_infinite_is_left_out() -> None:
    (loss,) = by_name(fit_panels(arrays(loss=np.array([1.0, 2.0, 3.0, np.inf]))))["loss"].curves
    np.testing.assert_array_equal(loss.y, [1, 2, np.nan])


def test_of_one_feature_the_rows_are_over_it_with_the_prediction_in_its_order() -> None:
    given = arrays(held_out=3)
    drawn = curves(by_name(fit_panels(given))["fit"])
    assert set(drawn) == {"training", "held-out", "prediction"}
    np.testing.assert_array_equal(drawn["held-out"].x, given["held_out_x"][:, 0])
    assert not drawn["held-out"].dash
    assert (np.diff(drawn["prediction"].x) > 0).all()
    np.testing.assert_array_equal(np.sort(drawn["prediction"].y), np.sort(given["training_prediction"][:, 0]))


@pytest.mark.parametrize(("held_out", "kind"), [(0, "training"), (3, "held_out")])
def test_predictions_are_against_targets_of_held_out_rows_where_there_are_some(held_out: int, kind: str) -> None:
    given = arrays(features=2, targets=2, held_out=held_out)
    panels = by_name(fit_panels(given))
    assert "fit" not in panels, "of several features there is no such picture"
    drawn = curves(panels["predictions"])
    points = drawn[f"{kind.replace('_', '-')} rows"]
    np.testing.assert_array_equal(points.x, given[f"{kind}_y"][:, 0])
    np.testing.assert_array_equal(points.y, given[f"{kind}_prediction"][:, 0])
    np.testing.assert_array_equal(drawn["as it is"].x, drawn["as it is"].y)
    assert "2 targets" in panels["predictions"].note


def test_of_many_parameters_the_first_are_drawn_and_it_is_said() -> None:
    panel = by_name(fit_panels(arrays(parameters=40)))["parameters"]
    assert len(panel.curves) == MOST_PARAMETERS
    assert len({(curve.color, curve.dash) for curve in panel.curves}) == MOST_PARAMETERS
    assert "16 of 40" in panel.note


def test_a_fit_that_diverged_has_no_predictions() -> None:
    given = {name: values for name, values in arrays().items() if not name.startswith(("training_", "held_out_"))}
    assert set(by_name(fit_panels(given))) == {"loss", "parameters"}


def test_some_of_the_values_are_from_end_to_end_and_only_those_that_are_there() -> None:
    y = np.arange(100.0)
    y[0] = np.nan
    found = Curve("", "", "solid", np.arange(100.0), y).sample(5)
    assert (found[0], found[-1], len(found)) == ((1, 1), (99, 99), 5)
    assert Curve("", "", "solid", np.arange(2.0), np.full(2, np.nan)).sample(5) == []
