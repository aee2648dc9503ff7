"""What the HTML pages share: the templates, and plots as they are put into one. Light to import, without bokeh."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One plot of a page, and the same in words.

    Attributes:
        place: the element that the scripts put it into.
        legend: label, color and dash of each curve.
        values: label, x and y of some points of each curve, for whoever has no pointer.
    """

    title: str
    note: str
    x_label: str
    y_label: str
    place: str
    legend: list[list[str]]
    values: list[list[str]]


@dataclass(frozen=True)
class Plots:
    """Plots, and the script elements that bring them to life."""

    scripts: str
    plots: tuple[Plot, ...]

    def write(self, path: Path) -> None:
        """Hand them to another process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Plots":
        """Take them from another process."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["scripts"], tuple(Plot(**plot) for plot in content["plots"]))


NO_PLOTS = Plots("", ())


def page(template: str, values: Mapping[str, Any], plots: Plots = NO_PLOTS) -> str:
    """One HTML page that needs nothing else; every value is escaped."""
    # Made by bokeh, not by what a user typed: it escapes the labels itself.
    scripts = Markup(plots.scripts)
    text = _TEMPLATES.get_template(template).render(values, scripts=scripts, plots=plots.plots, Markup=Markup)
    # The name of a file may hold what is no character.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
