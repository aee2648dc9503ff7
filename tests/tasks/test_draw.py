import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tasks import draw as drawing
from tasks.draw import draw
from tasks.pages import Plots

Arrays = dict[str, np.ndarray]


def loss_only(*loss: float, **names: Any) -> Arrays:
    return {
        "loss": np.array(loss),
        "loss_label": np.array("training loss"),
        "features": np.array(names.get("features", ("x",))),
        "targets": np.array(names.get("targets", ("y",))),
        "epochs": np.arange(len(loss)),
        "parameter_names": np.array(["w", "b"]),
        "parameters": np.ones((len(loss), 2)),
    }


def with_rows(features: int = 1, targets: int = 1, held_out: int = 0) -> Arrays:
    random = np.random.default_rng(7)
    arrays = loss_only(
        4.0, 2.0, 1.0, features=[f"f{i}" for i in range(features)], targets=[f"t{i}" for i in range(targets)]
    )
    for kind, rows in (("training", 30), ("held_out", held_out)):
        x, y = random.normal(size=(rows, features)), random.normal(size=(rows, targets))
        arrays |= {f"{kind}_x": x, f"{kind}_y": y, f"{kind}_prediction": y + 0.1}
    return arrays


CASES: dict[str, Arrays] = {
    "one feature": with_rows(),
    "several features": with_rows(features=3),
    "several targets": with_rows(features=2, targets=2),
    "held-out rows": with_rows(held_out=10),
    "held-out rows of several features": with_rows(features=2, held_out=10),
    "a loss that went off": loss_only(1.0, 1e30, np.inf, np.nan),
    "no finite loss": loss_only(np.nan, np.inf),
    "a single loss": loss_only(1.0),
    "a loss that reaches zero": loss_only(1.0, 0.5, 0.0),
    "a negative loss": loss_only(1.0, -1.0),
    "a loss over many decades": loss_only(1e38, 1.0, 1e-30),
    "names that look like mathematics": loss_only(2.0, 1.0, features=["$a_b^{"], targets=["$"])
    | {key: values for key, values in with_rows().items() if key.startswith(("training", "held_out"))},
}


@pytest.mark.parametrize("arrays", CASES.values(), ids=CASES)
def test_every_fit_has_a_readable_picture(arrays: Arrays, tmp_path: Path) -> None:
    draw(arrays, tmp_path / "fit.png")
    with Image.open(tmp_path / "fit.png") as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (1100, 440))
        assert len(picture.convert("L").getcolors() or ()) > 10, "more than an empty page"


@pytest.mark.parametrize("case", ["held-out rows", "a loss that went off", "no finite loss"])
def test_it_is_a_program_that_says_nothing(case: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "drawn.npz", **CASES[case])
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "tasks.draw",
            *(str(tmp_path / name) for name in ("drawn.npz", "fit.png", "plots.json")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    with Image.open(tmp_path / "fit.png") as picture:
        picture.verify()
    plots = Plots.read(tmp_path / "plots.json")
    assert plots.plots[0].title == "Loss"
    assert "Bokeh" in plots.scripts


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Draw, and give the figure itself."""

    def make(arrays: Arrays) -> Figure:
        figures: list[Figure] = []

        class Kept(Figure):
            def savefig(self, *arguments: Any, **options: Any) -> None:
                figures.append(self)

        monkeypatch.setattr(drawing, "Figure", Kept)
        draw(arrays, tmp_path / "fit.png")
        return figures[0]

    return make


@pytest.mark.parametrize(
    ("loss", "scale"),
    [((4.0, 1.0, 0.01), "log"), ((4.0, np.inf, np.nan), "log"), ((1.0, 0.0), "linear"), ((1.0, -1.0), "linear")],
)
def test_the_loss_is_drawn_over_logarithms_where_it_has_them(loss: tuple[float, ...], scale: str, drawn: Any) -> None:
    axes = drawn(loss_only(*loss)).axes
    assert len(axes) == 1
    assert axes[0].get_yscale() == scale
    (line,) = axes[0].lines
    finite = np.isfinite(loss)
    np.testing.assert_array_equal(np.asarray(line.get_ydata())[finite], np.asarray(loss)[finite])


def test_the_label_tells_what_the_loss_is_of(drawn: Any) -> None:
    arrays = loss_only(1.0, 0.5) | {"loss_label": np.array("training loss, target standardised")}
    assert drawn(arrays).axes[0].get_ylabel() == "training loss, target standardised"


def test_of_one_feature_the_fit_is_a_line_in_the_order_of_the_feature(drawn: Any) -> None:
    arrays = with_rows(held_out=10)
    axes = drawn(arrays).axes[1]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"training", "held-out", "fit"}
    order = np.argsort(arrays["training_x"][:, 0])
    np.testing.assert_array_equal(lines["fit"].get_xdata(), arrays["training_x"][order, 0])
    np.testing.assert_array_equal(lines["fit"].get_ydata(), arrays["training_prediction"][order, 0])
    np.testing.assert_array_equal(lines["held-out"].get_xdata(), arrays["held_out_x"][:, 0])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("f0", "t0")


def test_of_several_features_predictions_are_drawn_against_actual_values(drawn: Any) -> None:
    arrays = with_rows(features=3, targets=2)
    axes = drawn(arrays).axes[1]
    points = next(line for line in axes.lines if line.get_label() == "training")
    np.testing.assert_array_equal(points.get_xdata(), arrays["training_y"][:, 0])
    np.testing.assert_array_equal(points.get_ydata(), arrays["training_prediction"][:, 0])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("actual t0", "predicted t0")


def test_the_same_fit_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        draw(with_rows(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
