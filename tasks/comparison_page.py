"""A comparison as one HTML page that needs nothing else: tables, and plots that answer to the pointer."""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.embed import components
from bokeh.models import HoverTool, Range1d
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup

from tasks.panels import Panel
from tasks.parity_page import TEMPLATES
from tasks.reporting import Table

HEIGHT = 420
TEXT, LINES = "#808080", "#80808040"  # legible on a light and on a dark page


def comparison_page(
    title: str, rows: Mapping[str, str], tables: Sequence[Table], panels: Sequence[Panel], rules: Sequence[str]
) -> str:
    """Write the page.

    Args:
        title: what was compared.
        rows: names and values on top.
        tables: below them.
        panels: the plots, each with its note.
        rules: how it was compared, a sentence each.
    """
    plots = [_plot(panel) for panel in panels]
    script, places = components(plots)
    environment: Environment = TEMPLATES
    return environment.get_template("comparison.html").render(
        title=title,
        rows=rows,
        tables=tables,
        rules=rules,
        plots=[(panel.title, panel.note, Markup(place)) for panel, place in zip(panels, places, strict=True)],
        # bokeh's own library and the data: made by it, not by what a user typed; it escapes labels itself.
        scripts=Markup(Resources(mode="inline", components=["bokeh"]).render_js() + script),
    )


def _plot(panel: Panel) -> figure:
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=panel.x_label,
        y_axis_label=panel.y_label,
        x_axis_type="log" if panel.x_log else "linear",
        y_axis_type="log" if panel.y_log else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        background_fill_alpha=0,
        border_fill_alpha=0,
    )
    if panel.contour:
        lines = panel.contour
        plot.contour(lines.x, lines.y, lines.z, levels=lines.levels.tolist(), line_color=LINES)
        plot.x_range, plot.y_range = Range1d(lines.x[0], lines.x[-1]), Range1d(lines.y[0], lines.y[-1])
    hovered: list[DataRenderer] = []
    for curve in panel.curves:
        look: dict[str, Any] = {"color": curve.color, "legend_label": curve.label, "name": curve.label}
        if curve.low is not None and curve.high is not None:
            plot.varea(curve.x, curve.low, curve.high, color=curve.color, alpha=0.15, legend_label=curve.label)
        hovered.append(plot.line(curve.x, curve.y, line_width=2, line_dash=curve.dash, **look))
        if curve.mark:
            plot.scatter(x=[curve.mark[0]], y=[curve.mark[1]], size=9, **look)
    tips = [("", "$name"), (panel.x_label, "$snap_x{%.4g}"), (panel.y_label, "$snap_y{%.4g}")]
    printf: Any = {"$snap_x": "printf", "$snap_y": "printf"}
    plot.add_tools(HoverTool(renderers=hovered, tooltips=tips, formatters=printf, line_policy="nearest"))
    plot.axis.major_label_text_color = plot.axis.axis_label_text_color = TEXT
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = TEXT
    plot.grid.grid_line_color = LINES
    plot.outline_line_color = LINES
    plot.legend.click_policy = "hide"
    plot.legend.label_text_color = TEXT
    plot.legend.background_fill_alpha = 0
    plot.legend.border_line_color = None
    plot.add_layout(plot.legend[0], "below")
    plot.legend[0].ncols = 4
    return plot
