"""A comparison as one HTML page that needs nothing else: tables, and plots that answer to the pointer."""

from collections.abc import Mapping, Sequence

from tasks.page_plots import plots
from tasks.pages import page
from tasks.panels import Panel
from tasks.reporting import Table


def comparison_page(
    title: str, rows: Mapping[str, str], tables: Sequence[Table], panels: Sequence[Panel], rules: Sequence[str]
) -> str:
    """Write the page.

    Args:
        title: what was compared.
        rows: names and values.
        tables: on top.
        panels: the plots, each with its note.
        rules: how it was compared, a sentence each.
    """
    # A curve of the same name is the same optimizer in every panel.
    legend = {curve.label: (curve.color, curve.dash) for panel in panels for curve in panel.curves}
    return page(
        "comparison.html",
        {"title": title, "rows": rows, "tables": tables, "rules": rules, "legend": legend},
        plots(panels),
    )
