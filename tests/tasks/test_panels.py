"""The pictures of a comparison: what they show, the PNG and the page that show it."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bokeh.models import HoverTool
from PIL import Image

from fourfold.comparison import Standing, contestants, grid, standing
from fourfold.configuration import CompareConfig
from fourfold.datasets import Dataset
from fourfold.fitting import FitConfig, History, fit
from fourfold.population import train_population
from tasks.build_model import build
from tasks.compare import Posed, pose
from tasks.comparison_page import comparison_page
from tasks.comparison_panels import MOST_PATH_POINTS, panels
from tasks.draw_panels import draw_panels
from tasks.make_data import load
from tasks.page_plots import _plot
from tasks.panels import Curve, Panel, style
from tasks.reporting import Table

HARM = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def stood(posed: Posed, config: CompareConfig) -> list[Standing]:
    """Train all in this process."""
    found = []
    for one in contestants(config.optimizers):
        on_grid = grid(one.optimizer.lr, config.learning_rates, config.decades)
        rates = sorted({*on_grid, one.optimizer.lr, config.lr})
        trained = train_population(posed.problem, one.optimizer, rates, stacked=one.label != "LBFGS")
        found.append(standing(one, trained, on_grid, config.lr))
    return found


def alone(config: CompareConfig, data: Dataset, one: Standing) -> History:
    built = build(config.training(), data)
    optimizer = replace(one.contestant.optimizer, lr=one.tuned.lr)
    plan = FitConfig(optimizer, epochs=config.budget, loss=config.loss_name, budget=config.budget)
    return fit(built.core, built.x, built.y, plan).history


class Case:
    """A small comparison, and its panels by name."""

    def __init__(self, **options: Any) -> None:
        given = {"optimizers": "SGD,Adam", "budget": 20, "learning_rates": 5, "seeds": 3}
        self.config = CompareConfig(**given | options)
        self.data = load(self.config.training())
        self.posed = pose(self.config, self.data)
        self.standings = stood(self.posed, self.config)
        self.histories = {one.label: alone(self.config, self.data, one) for one in self.standings}

    def panels(self, standings: list[Standing] | None = None, histories: Any = None) -> dict[str, Panel]:
        made = panels(
            self.standings if standings is None else standings,
            self.posed,
            self.data,
            self.histories if histories is None else histories,
            "sse",
        )
        return {panel.name: panel for panel in made}


@pytest.fixture(scope="module")
def line() -> Case:
    """On three points; SGD diverges at its largest learning rates."""
    return Case()


def changed(one: Standing, config: CompareConfig, **arrays: np.ndarray) -> Standing:
    """The same trainings with other numbers, judged anew."""
    trained = replace(one.members, **arrays)
    on_grid = tuple(trained.learning_rates[one.on_grid])
    return standing(one.contestant, trained, on_grid, config.lr)


def all_diverged(one: Standing, config: CompareConfig) -> Standing:
    there = one.members
    curve = there.curve.copy()
    curve[..., 1:] = np.inf
    return changed(
        one,
        config,
        loss=np.full_like(there.loss, np.nan),
        diverged=np.ones_like(there.diverged),
        evaluations_to_goal=np.full_like(there.evaluations_to_goal, np.inf),
        curve=curve,
    )


def test_curves_are_told_apart_also_where_neighbours_coincide() -> None:
    styles = [style(number) for number in range(32)]
    assert len(set(styles)) == 32
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in pairwise(styles))


class TestValues:
    def test_there_is_a_curve_for_each_in_the_order_given(self, line: Case) -> None:
        for panel in line.panels().values():
            assert [curve.label for curve in panel.curves] == ["SGD", "Adam"]
        turned = line.panels(line.standings[::-1])
        assert [curve.label for curve in turned["loss"].curves] == ["Adam", "SGD"]

    def test_an_optimizer_looks_the_same_in_all_and_unlike_the_other(self, line: Case) -> None:
        looks = {(curve.label, curve.color, curve.dash) for panel in line.panels().values() for curve in panel.curves}
        assert len(looks) == 2
        assert len({color for _, color, _ in looks}) == 2

    def test_the_loss_is_the_median_over_seeds_at_the_best_rate_with_its_quartiles(self, line: Case) -> None:
        for one, curve in zip(line.standings, line.panels()["loss"].curves, strict=True):
            row = int(np.flatnonzero(one.members.learning_rates == one.tuned.lr)[0])
            values = np.sort(one.members.curve[row], axis=0)[:, 1:]
            assert curve.x.tolist() == line.posed.problem.curve_points()[1:].tolist()
            np.testing.assert_array_equal(curve.y, values[1])
            np.testing.assert_array_equal(curve.low, values[0])
            np.testing.assert_array_equal(curve.high, values[2])

    def test_what_diverged_is_a_gap(self, line: Case) -> None:
        for one, curve in zip(line.standings, line.panels()["sensitivity"].curves, strict=True):
            assert curve.x.tolist() == one.members.learning_rates[one.on_grid].tolist()
            failed = np.isinf(one.choosing[one.on_grid])
            assert np.isnan(curve.y[failed]).all()
        assert failed.any() or np.isinf(line.standings[0].choosing).any(), "there is something to leave out"

    def test_no_panel_holds_an_infinity(self, line: Case) -> None:
        for standings in (line.standings, [all_diverged(one, line.config) for one in line.standings]):
            for panel in line.panels(standings).values():
                for curve in panel.curves:
                    for values in (curve.x, curve.y, curve.low, curve.high, curve.mark):
                        assert values is None or not np.isinf(values).any(), f"{panel.name}: {curve.label}"

    def test_nor_where_the_very_first_loss_is_infinite(self, line: Case) -> None:
        standings = []
        for one in line.standings:
            curve, loss = np.full_like(one.members.curve, np.inf), np.full_like(one.members.loss, np.inf)
            standings.append(changed(one, line.config, curve=curve, loss=loss))
        for panel in line.panels(standings).values():
            for curve in panel.curves:
                for values in (curve.y, curve.low, curve.high, curve.mark):
                    assert values is None or not np.isinf(values).any(), f"{panel.name}: {curve.label}"

    def test_zero_becomes_the_floor(self, line: Case) -> None:
        one = line.standings[0]
        perfect = changed(
            one,
            line.config,
            loss=np.zeros_like(one.members.loss),
            diverged=np.zeros_like(one.members.diverged),
            curve=np.where(np.arange(one.members.curve.shape[-1]) > 0, 0.0, one.members.curve),
        )
        made = line.panels([perfect])
        for name in ("loss", "sensitivity", "search"):
            assert (made[name].curves[0].y == line.posed.floor).all()
        assert made["sensitivity"].curves[0].mark == (perfect.tuned.lr, line.posed.floor)
        assert line.posed.floor > 0

    def test_the_mark_is_the_learning_rate_that_was_chosen(self, line: Case) -> None:
        for one, curve in zip(line.standings, line.panels()["sensitivity"].curves, strict=True):
            medians = {
                lr: np.median(np.where(failed, np.inf, losses))
                for lr, losses, failed, on_grid in zip(
                    one.members.learning_rates, one.members.loss, one.members.diverged, one.on_grid, strict=True
                )
                if on_grid
            }
            best = min(medians, key=medians.__getitem__)
            assert curve.mark == (best, max(medians[best], line.posed.floor))

    def test_nothing_is_marked_where_nothing_worked(self, line: Case) -> None:
        made = line.panels([all_diverged(one, line.config) for one in line.standings])
        assert [curve.mark for curve in made["sensitivity"].curves] == [None, None]

    def test_the_search_never_gets_worse_and_ends_at_the_best(self, line: Case) -> None:
        for one, curve in zip(line.standings, line.panels()["search"].curves, strict=True):
            assert curve.x.tolist() == [1, 2, 3, 4, 5]
            there = curve.y[~np.isnan(curve.y)]
            assert (np.diff(there) <= 0).all()
            assert curve.y[-1] == max(one.choosing[one.on_grid].min(), line.posed.floor)

    def test_what_went_far_off_is_left_out(self, line: Case) -> None:
        one = line.standings[0]
        far = one.members.loss.copy()
        far[one.on_grid.nonzero()[0][1]] = 1e30
        (curve,) = line.panels([changed(one, line.config, loss=far)])["sensitivity"].curves
        assert np.isnan(curve.y[1])

    @pytest.mark.parametrize(
        ("options", "chosen"),
        [({}, "training"), ({"data": "sine", "validation_fraction": 0.2, "seeds": 1, "loss": "mse"}, "validation")],
    )
    def test_the_axis_says_which_rows_chose(self, options: dict[str, Any], chosen: str) -> None:
        made = Case(**options).panels()
        assert chosen in made["sensitivity"].y_label
        assert chosen in made["search"].y_label


class TestPaths:
    def test_they_are_w_and_b_of_the_winners_and_end_at_the_mark(self, line: Case) -> None:
        for curve in line.panels()["paths"].curves:
            values = line.histories[curve.label].values
            assert curve.mark == tuple(values[-1])
            assert set(zip(curve.x, curve.y, strict=True)) <= set(map(tuple, values))
            assert (curve.x[0], curve.y[0]) == tuple(values[0])

    def test_the_heights_are_the_loss_of_each_w_and_b(self, line: Case) -> None:
        contour = line.panels()["paths"].contour
        assert contour is not None
        x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
        predicted = contour.x[None, :, None] * x + contour.y[:, None, None]
        np.testing.assert_allclose(contour.z, ((predicted - y) ** 2).sum(axis=-1), rtol=1e-12)
        assert (np.diff(contour.levels) > 0).all()
        np.testing.assert_allclose(np.diff(np.log(contour.levels)), np.log(contour.levels[1] / contour.levels[0]))
        for curve in line.panels()["paths"].curves:
            assert contour.x[0] < curve.x[-1] < contour.x[-1]
            assert contour.y[0] < curve.y[-1] < contour.y[-1]

    @pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
    def test_lines_of_equal_height_are_lines_of_equal_training_loss_also_where_the_rows_are_scaled(
        self, tmp_path: Path, loss: str
    ) -> None:
        """Of huber the shape depends on the unit: what is trained is that of the standardised target."""
        random = np.random.default_rng(0)
        x = random.normal(size=40) * 3 + 10
        y = 700 * x + 2000 * random.normal(size=40)
        np.savetxt(tmp_path / "rows.csv", np.column_stack([x, y]), delimiter=",", header="x,y", comments="")
        case = Case(data=str(tmp_path / "rows.csv"), target="y", loss=loss, seeds=1, learning_rates=2)
        contour = case.panels()["paths"].contour
        assert contour is not None
        x, y = (values.numpy().astype(float)[:, 0] for values in (case.data.x, case.data.y))
        off = (contour.x[None, :, None] * x + contour.y[:, None, None] - y) / y.std()
        size = np.abs(off)
        trained = {"mse": off**2, "l1": size, "huber": np.where(size < 1, off**2 / 2, size - 0.5)}[loss].mean(axis=-1)
        ratio = contour.z / trained
        assert ratio.max() / ratio.min() == pytest.approx(1, rel=1e-4)

    @pytest.mark.parametrize("harm", [np.nan, np.inf, 1e300])
    def test_a_path_that_ran_away_does_not_take_the_others_off_the_picture(
        self, line: Case, harm: float, tmp_path: Path
    ) -> None:
        """A winner whose first seed diverged while most others did not."""
        gone = line.histories["SGD"].values.copy()
        gone[-1] = harm
        histories = line.histories | {"SGD": replace(line.histories["SGD"], values=gone)}
        made = line.panels(histories=histories)
        contour = made["paths"].contour
        assert contour is not None
        for values in (contour.x, contour.y, contour.z, contour.levels):
            assert np.isfinite(values).all()
        assert (np.diff(contour.levels) > 0).all()
        draw_panels(tuple(made.values()), "a title", tmp_path / "comparison.png")
        comparison_page("a title", {}, (), tuple(made.values()), ())

    def test_long_paths_are_thinned_out_with_both_ends(self, line: Case) -> None:
        long = np.linspace(0, 1, 5000)
        history = History(long, long.astype(int), long, ("w", "b"), np.column_stack([long, long * 2]))
        (curve, _) = line.panels(histories=line.histories | {"SGD": history})["paths"].curves
        assert len(curve.x) <= MOST_PATH_POINTS
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 2)

    @pytest.mark.parametrize("options", [{"model": "mlp"}, {}])
    def test_without_two_parameters_or_a_winner_there_are_none(self, options: dict[str, Any], line: Case) -> None:
        case = Case(**options, seeds=1, learning_rates=2) if options else line
        assert "paths" not in case.panels(histories={} if not options else None)


class TestPicture:
    def test_it_is_a_png(self, line: Case, tmp_path: Path) -> None:
        draw_panels(tuple(line.panels().values()), "SGD, Adam: line-linear", tmp_path / "comparison.png")
        with Image.open(tmp_path / "comparison.png") as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width > 1000
            colors = picture.convert("RGB").getcolors(maxcolors=2**24)
        assert colors is not None
        drawn = {color for _, color in colors}
        for curve in line.panels()["loss"].curves:
            assert tuple(bytes.fromhex(curve.color[1:])) in drawn

    def test_it_can_be_drawn_where_nothing_is_finite(self, line: Case, tmp_path: Path) -> None:
        made = line.panels([all_diverged(one, line.config) for one in line.standings], histories={})
        draw_panels(tuple(made.values()), "nothing", tmp_path / "comparison.png")
        with Image.open(tmp_path / "comparison.png") as picture:
            picture.verify()

    @pytest.mark.parametrize("title", ["SGD: in-$_$-linear", "$", "$\\frac$", "SGD, Adam: " + "long " * 60, "<b>&"])
    def test_any_title_can_be_drawn(self, line: Case, tmp_path: Path, title: str) -> None:
        """A file may be called anything."""
        draw_panels([line.panels()["loss"]], title, tmp_path / "comparison.png")
        with Image.open(tmp_path / "comparison.png") as picture:
            picture.verify()

    def test_many_long_names_fit(self, line: Case, tmp_path: Path) -> None:
        x = np.array([1.0, 2.0])
        curves = tuple(Curve(f"SGD:momentum=0.{n}:nesterov=true", "#0072b2", "dashed", x, x + n) for n in range(13))
        draw_panels([replace(line.panels()["loss"], curves=curves)] * 3, "many", tmp_path / "comparison.png")
        with Image.open(tmp_path / "comparison.png") as picture:
            picture.verify()


class Page(HTMLParser):
    """What a browser would load, and what a reader would see in tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.cells: list[str] = []
        self.scripts = ""
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.within = tag
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            self.scripts += data
        if self.within in ("td", "th", "strong"):
            if self.within == "strong":
                self.cells[-1] += data
            else:
                self.cells[-1] += data


TABLES = (Table("ranking", ("rank", "optimizer"), (("1", "Adam"), ("2", "SGD"))),)


class TestPage:
    def test_it_needs_nothing_else(self, line: Case) -> None:
        text = comparison_page("a title", {"model": "linear"}, TABLES, tuple(line.panels().values()), ("A rule.",))
        page = Page(text)
        assert page.loaded == []
        assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
        assert not re.findall(r"@import|url\(\s*['\"]?https?:", re.sub(r"<script.*?</script>", "", text, flags=re.S))
        assert len(text.encode()) < 2_000_000
        assert "utf-8" in text[:200]

    def test_tables_facts_rules_and_notes_are_there(self, line: Case) -> None:
        made = tuple(line.panels().values())
        text = comparison_page("a title", {"model": "linear"}, TABLES, made, ("A rule of ours.",))
        page = Page(text)
        assert page.cells[:6] == ["rank", "optimizer", "1", "Adam", "2", "SGD"]
        assert page.cells[-2:] == ["model", "linear"]
        assert "<h1>a title</h1>" in text
        assert "A rule of ours." in text
        for panel in made:
            assert panel.title in text
            assert panel.note in text
        assert page.tags.count("figure") == len(made)

    def test_no_name_can_bring_in_html(self, line: Case) -> None:
        curve = Curve(HARM, "#0072b2", "solid", np.array([1.0, 2.0]), np.array([np.nan, 2.0]), mark=(2.0, 2.0))
        harmed = Panel(HARM, HARM, HARM, HARM, True, True, HARM, (curve,))
        tables = (Table("ranking", (HARM,), ((HARM,),)),)
        clean = line.panels()["loss"]
        page = Page(comparison_page(HARM, {HARM: HARM}, tables, [harmed], [HARM]))
        innocent = Page(
            comparison_page(
                "t", {"a": "b"}, (Table("ranking", ("a",), (("b",),)),), [replace(clean, curves=(curve,))], ["r"]
            )
        )
        assert page.tags.count("script") == innocent.tags.count("script")
        assert "img" not in page.tags
        assert page.handlers == []
        assert page.cells == [HARM, HARM, "curve", HARM, HARM, HARM, "2", "2", HARM, HARM]

    def test_the_data_of_the_plots_are_in_it(self, line: Case) -> None:
        text = comparison_page("a title", {}, (), tuple(line.panels().values()), ())
        for label in ("SGD", "Adam"):
            assert f'"{label}"' in text or f"&quot;{label}&quot;" in text

    def test_it_can_be_made_where_nothing_is_finite(self, line: Case) -> None:
        made = line.panels([all_diverged(one, line.config) for one in line.standings], histories={})
        text = comparison_page("nothing", {}, (), tuple(made.values()), ())
        assert Page(text).tags.count("figure") == 3

    def test_the_pointer_shows_small_numbers_as_well(self, line: Case) -> None:
        """Bokeh's own formatter would show a learning rate of 0.00001 as 0.0000; only printf's %g does not."""
        (hover,) = _plot(line.panels()["sensitivity"]).select(HoverTool)
        for name, shown in hover.tooltips[1:]:
            field, form = re.search(r": (\$snap_[xy])\{(.*)\}$", shown).groups()
            assert hover.formatters.get(field) == "printf", name
            assert float(form % 1.25e-5) == pytest.approx(1.25e-5, rel=0.01)
