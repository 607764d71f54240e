"""The analysis as one HTML document."""

from __future__ import annotations

from collections.abc import Sequence

from rankfold.reporting import words
from rankfold.reporting.exploration.plots import chains, plane, reduction_chart, score_chart
from rankfold.reporting.exploration.record import GROUPS, AnalysisRecord, LayerSpaces
from rankfold.reporting.exploration.sheets import FEW, TITLES, sheets
from rankfold.reporting.markup import Markup, el
from rankfold.reporting.page import page, section, table

TALL = 30
"""Tables of more rows scroll."""


def to_html(analysis: AnalysisRecord) -> str:
    """Return the document."""
    title = analysis.title or "Exploration space"
    plots = [part for group in GROUPS for part in _plots(analysis, group)]
    tables = [
        section(
            sheet.title,
            table(sheet.heads, sheet.rows, tall=len(sheet.rows) > TALL, css="layers"),
            el("p", sheet.note, class_="muted small") if sheet.note else None,
        )
        for sheet in sheets(analysis, brief=False)
    ]
    return page(f"{title} · rankfold analysis", _header(analysis, title), plots, tables)


def _header(analysis: AnalysisRecord, title: str) -> Markup:
    steps = ", ".join(words.percent(step) for step in analysis.steps)
    number = len(analysis.layers)
    return el(
        "header",
        el("p", "rankfold analysis", class_="eyebrow"),
        el("h1", title),
        el("p", f"{number} layer{'s' * (number != 1)}, methods {', '.join(analysis.methods)}", class_="coverage"),
        el(
            "p",
            f"Compression steps {steps} of the parameters removed, each within {words.percent(analysis.tolerance)}; "
            f"{analysis.random} random solutions a step, seed {analysis.seed}; tensor shapes of ttm with up to "
            f"{analysis.cores} cores. Valid settings have fewer parameters and fewer MACs than the layer"
            f"{', and no rank that another one makes useless' if analysis.useful else ''}.",
            class_="muted",
        ),
    )


def _plots(analysis: AnalysisRecord, group: str) -> list[Markup]:
    layers = [layer for layer in analysis.layers if layer.group == group]
    averages = [a for a in analysis.averages if a.group == group]
    if not averages:
        return []
    what = TITLES[group]
    found = [
        section(
            f"How the methods compare on {what} (Figs 6 and 7)",
            score_chart(averages, "Mean scores, 5 is best"),
            reduction_chart(averages, "Mean reductions and coverage"),
        )
    ]
    planes = _planes(layers, [a.method for a in averages])
    if planes:
        found.append(section(f"Where the valid settings of {what} lie (Fig. 2)", planes))
    drawn = _chains(layers)
    if drawn:
        found.append(section(f"What the methods make of {what} (Fig. 5)", drawn))
    return found


def _planes(layers: Sequence[LayerSpaces], methods: Sequence[str]) -> list[Markup]:
    """Each layer's maps if there are few layers, else their means."""
    few = len(layers) <= FEW
    cases = [(f"{layer.label}, ", [layer]) for layer in layers] if few else [("", list(layers))]
    found: list[Markup] = []
    for name, members in cases:
        maps = [
            plane([s for layer in members if (s := layer.space(method)) is not None], f"{name}{method}")
            for method in methods
        ]
        if any(maps):
            found.append(el("div", maps, class_="planes"))
    return found


def _chains(layers: Sequence[LayerSpaces]) -> list[Markup]:
    shown = layers if len(layers) <= FEW else layers[:1]
    found: list[Markup] = []
    for layer in shown:
        chart = chains(layer.layer, layer.spaces)
        if chart is not None:
            caption = el("figcaption", el("b", layer.label), el("span", layer.layer, class_="muted"))
            found.append(el("figure", caption, el("div", chart, class_="scroll", tabindex="0")))
    return found
