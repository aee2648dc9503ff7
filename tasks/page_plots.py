"""Panels as plots that answer to the pointer, drawn by bokeh in the browser without network."""

from collections.abc import Sequence
from html import escape
from typing import Any

from bokeh.document import Document
from bokeh.embed import components
from bokeh.events import DocumentReady
from bokeh.models import CustomJS, HoverTool, InlineStyleSheet, Range1d
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from bokeh.resources import Resources

from tasks.pages import NO_PLOTS, Plot, Plots
from tasks.panels import Panel

HEIGHT = 380
_TOOLBAR = """
.bk-tool-button:focus-visible, .bk-tool-overflow:focus-visible { outline: 3px solid var(--link); }
.bk-tool-overflow { color: var(--text); }
"""
CONTOUR_LINES = "#80808080"
MOST_VALUES = 8  # of a curve, in words
# A canvas is reached by no style sheet.
_PAINT = """
const dark = matchMedia("(prefers-color-scheme: dark)")
function paint() {
  const text = dark.matches ? "#c8c8c8" : "#404040", lines = dark.matches ? "#ffffff30" : "#00000020"
  for (const axis of axes) {
    axis.setv({major_label_text_color: text, axis_label_text_color: text,
               axis_line_color: text, major_tick_line_color: text, minor_tick_line_color: text})
  }
  for (const grid of grids) grid.grid_line_color = lines
}
dark.addEventListener("change", paint)
paint()
"""


def plots(panels: Sequence[Panel]) -> Plots:
    """Make a plot of each panel, and bokeh's own library with them."""
    if not panels:
        return NO_PLOTS
    figures = [_plot(panel) for panel in panels]
    document = Document()
    for one in figures:
        document.add_root(one)
    parts = {"axes": [axis for one in figures for axis in one.axis], "grids": [g for one in figures for g in one.grid]}
    document.js_on_event(DocumentReady, CustomJS(args=parts, code=_PAINT))
    script, places = components(figures)
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return Plots(library + script, tuple(map(_in_words, panels, places)))


def _in_words(panel: Panel, place: str) -> Plot:
    return Plot(
        panel.title,
        panel.note,
        panel.x_label,
        panel.y_label,
        place,
        legend=[[curve.label, curve.color, curve.dash] for curve in panel.curves],
        values=[
            [curve.label, f"{x:.4g}", f"{y:.4g}"] for curve in panel.curves for x, y in curve.sample(MOST_VALUES)
        ],
    )  # fmt: skip


def _plot(panel: Panel) -> figure:
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=panel.x_label,
        y_axis_label=panel.y_label,
        x_axis_type="log" if panel.x_log else "linear",
        y_axis_type="log" if panel.y_log else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        toolbar_location="above",
        active_drag=None,  # a finger on it scrolls the page
        background_fill_alpha=0,
        border_fill_alpha=0,
    )
    if panel.contour:
        lines = panel.contour
        plot.contour(lines.x, lines.y, lines.z, levels=lines.levels.tolist(), line_color=CONTOUR_LINES)
        plot.x_range, plot.y_range = Range1d(lines.x[0], lines.x[-1]), Range1d(lines.y[0], lines.y[-1])
    hovered: list[DataRenderer] = []
    for curve in panel.curves:
        look: dict[str, Any] = {"color": curve.color, "name": curve.label}
        if curve.low is not None and curve.high is not None:
            plot.varea(curve.x, curve.low, curve.high, alpha=0.15, **look)
        if curve.dash:
            hovered.append(plot.line(curve.x, curve.y, line_width=2, line_dash=curve.dash, **look))
        else:
            hovered.append(plot.scatter(curve.x, curve.y, size=7, fill_alpha=0.6, **look))
        if curve.mark:
            plot.scatter(x=[curve.mark[0]], y=[curve.mark[1]], size=9, **look)
    # Beside the values, not in bokeh's own place for names: those are too pale to read.
    x, y = map(_as_html, (panel.x_label, panel.y_label))
    tips = [("", "$name"), ("", f"{x}: $snap_x{{%.4g}}"), ("", f"{y}: $snap_y{{%.4g}}")]
    printf: Any = {"$snap_x": "printf", "$snap_y": "printf"}
    hover = HoverTool(renderers=hovered, tooltips=tips, formatters=printf, line_policy="nearest", visible=False)
    plot.add_tools(hover)
    plot.axis.major_label_text_font_size = plot.axis.axis_label_text_font_size = "13px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.outline_line_color = None
    plot.toolbar.logo = None
    plot.toolbar.stylesheets = [InlineStyleSheet(css=_TOOLBAR)]
    return plot


def _as_html(label: str) -> str:
    """A label within what bokeh reads as HTML, and puts values into where an @ or a $ stands before a word."""
    return escape(label).replace("@", "&#64;").replace("$", "&#36;")
