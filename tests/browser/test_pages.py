"""Pages as a person meets them: by pointer and by keyboard, on a desk and on a telephone, by day and by night.

They are those of real runs, as files and as the services that kept the runs show them.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from browsing import Browser, why_not
from looking import look
from selenium.webdriver.common.keys import Keys
from visiting import Visited, kept_runs

from tasks.comparison_page import comparison_page
from tasks.panels import Curve, Panel
from tasks.reporting import Table

NAME = "SGD lr=0.01 line-linear"
PAGES = {"report.html": "train", "parity.html": "train", "comparison.html": "compare"}
PLOTS = {"report.html": 4, "parity.html": 0, "comparison.html": 4}
SMALLEST_TEXT = 12  # pixels
LEAST_CONTRAST = 4.5  # WCAG 2.2, success criterion 1.4.3, level AA
MOST_BYTES = 2_000_000

# Of each piece of text that is shown: size, and contrast with what is behind it, as WCAG 2.2 defines it.
TEXTS = """
const parse = (color) => color.match(/[\\d.]+/g).map(Number)
const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b)
const contrast = (one, other) => {
  const [low, high] = [light(parse(one)), light(parse(other))].sort((a, b) => a - b)
  return (high + 0.05) / (low + 0.05)
}
const behind = (element) => {
  for (let one = element; one; one = one.parentElement ?? one.getRootNode().host) {
    const color = getComputedStyle(one).backgroundColor
    if ((parse(color)[3] ?? 1) === 1) return color
  }
}
const page = getComputedStyle(document.body).backgroundColor
const shown = everywhere("*").filter((one) => one.checkVisibility() && !["SCRIPT", "STYLE"].includes(one.tagName)
  && [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()))
const texts = shown.map((one) => {
  const {color, fontSize} = getComputedStyle(one)
  return {text: one.textContent.trim().slice(0, 40), size: parseFloat(fontSize), contrast: contrast(color, behind(one))}
})
const hex = (color) => `rgb(${[1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16))})`
const drawn = (window.Bokeh?.documents ?? []).flatMap((one) => one.roots())
const axes = drawn.flatMap((plot) => [...plot.below, ...plot.left])
return [...texts, ...axes.flatMap((axis) => ["major_label", "axis_label"].map((kind) => ({
  text: `${kind} of an axis`, size: parseFloat(axis[`${kind}_text_font_size`]),
  contrast: contrast(hex(axis[`${kind}_text_color`]), page)})))]
"""
# What has the focus, however deep, and how that can be seen; null at the end of the page.
FOCUSED = """
let one = document.activeElement
while (one?.shadowRoot?.activeElement) one = one.shadowRoot.activeElement
if (!one || one === document.body) return null
const {outlineStyle, outlineWidth} = getComputedStyle(one)
window.reached = [...(window.reached ?? []), one]
return {what: one.outerHTML.slice(0, 80), seen: outlineStyle !== "none" && parseFloat(outlineWidth) > 0}
"""
# What answers to the pointer and was not reached.
MISSED = """
const named = "a[href], button, input, summary, .bk-tool-button, .bk-tool-overflow"
const scrolls = everywhere("*").filter((one) => one.scrollWidth > one.clientWidth + 1
  && ["auto", "scroll"].includes(getComputedStyle(one).overflowX))
return [...everywhere(named), ...scrolls].filter((one) => one.checkVisibility() && !window.reached.includes(one))
  .map((one) => one.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if why_not():
        pytest.skip(why_not())
    with Browser.running() as running:
        yield running


@pytest.fixture(scope="session")
def visited(
    made_once: Callable[[str, Callable[[Path], None]], Path], prefect_home: Path, empty_database: Path
) -> Visited:
    """What two flows left in both services, and what their pages show of it."""
    if why_not():
        pytest.skip(why_not())

    def visit(folder: Path) -> None:
        shutil.copytree(prefect_home, folder / "prefect-server")
        shutil.copy(empty_database, folder / "mlflow.db")
        random = np.random.default_rng(0)
        areas = random.uniform(40, 200, 60)
        prices = 3 * areas + 50 + random.normal(0, 25, 60)
        rows = "".join(f"{area:.1f},{price:.1f}\n" for area, price in zip(areas, prices, strict=True))
        (folder / "houses.csv").write_text(f"area,price\n{rows}")
        compared = (
            "compare",
            "--data",
            "houses.csv",
            "--target",
            "price",
            "--optimizers",
            "SGD,Adam",
            "--budget",
            "40",
        )
        asked = {"train": ("train",), "compare": (*compared, "--seeds", "3", "--learning-rates", "4")}
        with kept_runs(folder, asked) as kept, Browser.running() as browser:
            told = {"results": dict(kept.results), "seen": look(browser, kept)}
        (folder / "told.json").write_text(json.dumps(told))

    folder = made_once("browser", visit)
    told = json.loads((folder / "told.json").read_text())
    return Visited(folder / "artifacts", told["results"], told["seen"])


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, visited: Visited) -> Path:
    return visited.file(PAGES[request.param], request.param)


def test_it_asks_for_nothing_and_nothing_is_complained_of(page: Path, browser: Browser) -> None:
    browser.open(page.as_uri())
    plots = browser.drawn_plots() if PLOTS[page.name] else []
    assert len(plots) == PLOTS[page.name]
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert page.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_can_be_read(page: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.open(page.as_uri(), width=width, dark=dark)
    if PLOTS[page.name]:
        for plot in browser.drawn_plots():
            assert plot["x"] >= 0
            assert plot["x"] + plot["width"] <= width
            assert min(plot["width"], plot["height"]) > 250
    assert browser.ask("return document.documentElement.scrollWidth") <= width
    texts = browser.ask(f"for (const one of everywhere('details')) one.open = true\n{TEXTS}")
    assert len(texts) > 50
    assert [one for one in texts if one["size"] < SMALLEST_TEXT] == []
    assert [one for one in texts if one["contrast"] < LEAST_CONTRAST] == []
    ground = browser.ask("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark


@pytest.mark.parametrize("width", [1280, 400])
def test_what_answers_to_the_pointer_is_reached_by_the_keyboard(page: Path, browser: Browser, width: int) -> None:
    browser.open(page.as_uri(), width=width)
    if PLOTS[page.name]:
        browser.drawn_plots()
    browser.press(Keys.TAB)
    stops = []
    while (stop := browser.ask(FOCUSED)) and len(stops) < 200:
        stops.append(stop)
        browser.press(Keys.TAB)
    assert stops
    assert [stop["what"] for stop in stops if not stop["seen"]] == []
    assert browser.ask(MISSED) == []


def number(told: str, name: str) -> float:
    """What the first curve under the pointer has under that name."""
    return float(told.partition(f"{name}: ")[2].split()[0])


class TestReport:
    def test_hovering_gives_the_values_of_the_history(self, visited: Visited, browser: Browser) -> None:
        history = pyarrow.parquet.read_table(visited.file("train", "history.parquet")).to_pydict()
        browser.open(visited.file("train", "report.html").as_uri())
        browser.drawn_plots()
        for epoch in (0, 1000):
            told = browser.hover(0, epoch, history["loss"][epoch])
            assert number(told, "epoch") == epoch
            assert number(told, "training loss") == pytest.approx(history["loss"][epoch], rel=1e-3)
        told = browser.hover(1, 500, history["b"][500])
        assert "b" in told.split()
        assert number(told, "value") == pytest.approx(history["b"][500], rel=1e-3)

    def test_hovering_gives_the_rows(self, visited: Visited, browser: Browser) -> None:
        """The three points of the exercise, and what is predicted there."""
        browser.open(visited.file("train", "report.html").as_uri())
        browser.drawn_plots()
        told = browser.hover(2, 2, 4)
        assert (number(told, "x"), number(told, "y")) == (2, pytest.approx(4, abs=0.01))


@pytest.mark.parametrize("name", ["</script><img src=x onerror=alert(1)>", "@{x} $x {{7*7}} $name", "x" * 900])
def test_no_name_is_taken_for_anything_else(name: str, browser: Browser, tmp_path: Path) -> None:
    """A column may be called anything; here all the names on a page are."""
    x = np.array([1.0, 2.0, 3.0])
    panel = Panel("loss", name, name, name, False, False, name, (Curve(name, "#0072b2", "solid", x, 2 * x),))
    page = tmp_path / "comparison.html"
    page.write_text(comparison_page(name, {name: name}, (Table("t", (name,), ((name,),)),), (panel,), (name,)))
    browser.open(page.as_uri(), width=400)
    browser.drawn_plots()
    told = browser.hover(0, 2, 4)
    assert told.split("\n")[0].strip() == name
    assert number(told, name) == 2
    assert browser.ask("return document.querySelector('h1').textContent") == name
    assert browser.ask("return document.documentElement.scrollWidth") <= 400
    assert browser.ask("return document.images.length") == 0
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []


class TestComparison:
    def test_hovering_gives_the_medians_of_the_table(self, visited: Visited, browser: Browser) -> None:
        rows = pyarrow.parquet.read_table(visited.file("compare", "comparison.parquet")).to_pandas()
        sgd = rows[(rows.optimizer == "SGD") & rows.on_grid]
        medians = sgd.groupby("lr").validation_loss.median()
        rate, loss = min(medians.items(), key=lambda one: one[1])
        browser.open(visited.file("compare", "comparison.html").as_uri())
        browser.drawn_plots()
        told = browser.hover(1, rate, loss)
        assert "SGD" in told
        assert number(told, "learning rate") == pytest.approx(rate, rel=1e-3)
        assert number(told, "final validation mse, target standardised") == pytest.approx(loss, rel=1e-3)

    def test_a_box_hides_a_curve_in_every_plot(self, visited: Visited, browser: Browser) -> None:
        browser.open(visited.file("compare", "comparison.html").as_uri())
        before = browser.drawn_plots()
        browser.ask("document.querySelector('fieldset input').focus()")
        browser.press(Keys.SPACE)

        def changed() -> bool:
            return all(one["colors"] != other["colors"] for one, other in zip(browser.plots(), before, strict=True))

        browser.until(changed)
        browser.press(Keys.SPACE)
        browser.until(lambda: [one["colors"] for one in browser.plots()] == [one["colors"] for one in before])


class TestServices:
    """The pages of MLflow and Prefect show a run, and lead from one to the other."""

    def test_the_list_of_runs_has_names_and_the_columns_that_matter(self, visited: Visited) -> None:
        shown = visited.seen["runs"].splitlines()
        for text in (
            NAME,
            "optimizer",
            "SGD",
            "lr",
            "0.01",
            "final_loss",
            "parity",
            "passed",
            "model.alias",
            "champion",
        ):
            assert text in shown, text

    def test_the_curve_of_the_loss_is_drawn(self, visited: Visited) -> None:
        curve = visited.seen["curve"]
        assert curve["points"] > 300
        assert curve["drawn"] > 100
        assert curve["first"] > 10
        assert curve["last"] == pytest.approx(visited.results["train"]["loss"], rel=1e-5)

    def test_the_pages_of_a_run_open_among_its_artifacts(self, visited: Visited) -> None:
        assert visited.seen["artifacts"] == {
            "report.html": {"heading": NAME, "plots": 4},
            "parity.html": {"heading": "Does onnxruntime predict what torch predicts?", "plots": 0},
            "comparison.html": {"heading": "SGD, Adam: houses-linear", "plots": 4},
        }

    def test_mlflow_leads_to_the_flow_run_and_prefect_back(self, visited: Visited) -> None:
        run = visited.results["train"]
        shown = visited.seen["flow run"].splitlines()
        assert {NAME, "Completed"} <= set(shown)
        links = visited.seen["links"]
        assert links["The run in MLflow"].endswith(f"/runs/{run['run_id']}")
        assert links["The report"].endswith(f"/runs/{run['run_id']}/artifacts/report.html")
        back = visited.seen["back"].splitlines()
        assert {NAME, run["run_id"]} <= set(back)
