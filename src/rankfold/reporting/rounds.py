"""The rounds of a strategy that trains models: a table, and the metric by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankfold.reporting import words
from rankfold.reporting.charts import Dot, linear, plot
from rankfold.reporting.markup import Markup
from rankfold.reporting.record import MetricValue, RoundRow
from rankfold.reporting.sections import Section, tips

MOST_SHOWN = 12
"""Approximate number of rounds, or of epochs, that the terminal shows."""


def rounds_section(
    rounds: Sequence[RoundRow],
    metric: MetricValue,
    *,
    title: str = "Rounds",
    level: tuple[float, str] | None = None,
    brief: bool = False,
) -> Section:
    """Return the rounds as a table and a chart; with `brief` only the table, and not all rounds if there are many.

    `level` is the metric that is good enough, and its name in the chart.
    """
    heads = ("run", ">round", ">amount", f">{metric.name}", ">drop", "least similar layer", ">layers raised", ">time")
    step = -(-len(rounds) // MOST_SHOWN) if brief else 1
    shown = [row for i, row in enumerate(rounds) if (len(rounds) - 1 - i) % step == 0]
    section = Section(
        title=title + (f" ({len(shown)} of {len(rounds)})" if len(shown) < len(rounds) else ""),
        heads=heads,
        rows=[
            (
                row.run, str(row.number), words.count(row.amount), words.metric(metric, row.metric),
                words.number(row.drop), _least_similar(row), str(len(row.raised)),
                words.seconds(sum(row.seconds.values())),
            )
            for row in shown
        ],
    )  # fmt: skip
    return section if brief or len(rounds) < 2 else replace(section, figures=[_chart(rounds, metric, level, section)])


def _chart(
    rounds: Sequence[RoundRow], metric: MetricValue, level: tuple[float, str] | None, section: Section
) -> Markup:
    """Return the metric by round, with a line if there is one run, and the names of the runs if there are several."""
    runs = {row.run for row in rounds}
    last = {row.run: row.number for row in rounds}
    dots = [
        Dot(
            x=row.number, y=row.metric, tip=tip, css="after",
            label=row.run if len(runs) > 1 and row.number == last[row.run] else "",
        )
        for row, tip in zip(rounds, tips(section), strict=True)
    ]  # fmt: skip
    curve = [(dot.x, dot.y) for dot in dots] if len(runs) == 1 else ()
    across = linear([dot.x for dot in dots], lambda v: f"{v:g}" if v == int(v) else "", number=6)
    levels = [] if level is None else [level[0]]
    up = linear([metric.dense, *levels, *(dot.y for dot in dots)], lambda v: words.metric(metric, v), number=5)
    return plot(f"{metric.name} by round", dots, curve, across, up, css="after", below="round", level=level)


def _least_similar(row: RoundRow) -> str:
    if not row.similarity:
        return words.NONE
    name = min(row.similarity, key=lambda layer: row.similarity[layer])
    return f"{name} {words.number(row.similarity[name])}"
