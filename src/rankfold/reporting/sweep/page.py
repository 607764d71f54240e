"""The sweep as one HTML document."""

from __future__ import annotations

from rankfold.reporting.markup import el
from rankfold.reporting.page import page, section, table
from rankfold.reporting.sweep.plots import damage_plot, metric_plot
from rankfold.reporting.sweep.record import SweepRecord
from rankfold.reporting.sweep.sheets import headline, heads, infeasible, rows

TALL = 40
"""A table of more rows scrolls."""


def to_html(sweep: SweepRecord) -> str:
    """Return the document."""
    title = sweep.model_name or "Sweep"
    header = el(
        "header",
        el("p", "rankfold sweep", class_="eyebrow"),
        el("h1", title),
        el("p", sweep.coverage, class_="coverage"),
        el("p", headline(sweep), class_="muted"),
    )
    cells = rows(sweep)
    without = infeasible(sweep)
    plots = [plot for plot in (damage_plot(sweep), metric_plot(sweep)) if plot is not None]
    return page(
        f"{title} · rankfold sweep",
        header,
        section("What each budget costs", plots) if plots else None,
        section(
            "Plans",
            table(heads(sweep), cells, tall=len(cells) > TALL, css="layers"),
            el(
                "p",
                "Shares are of the model as it is. A front point is one that no other beats in both the swept resource "
                "and the predicted damage.",
                class_="muted small",
            ),
        ),
        section("Budgets without a plan", el("ul", [el("li", line) for line in without], class_="notes"))
        if without
        else None,
    )
