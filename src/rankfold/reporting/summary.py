"""The sections of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rankfold.errors import UnknownNameError
from rankfold.records import RESOURCES, Resource, find_resource
from rankfold.reporting import words
from rankfold.reporting.figures import history_figures, layer_figures
from rankfold.reporting.layers import explanations, other_modules, remark, short
from rankfold.reporting.record import BoundRow, LayerRow, MetricValue, WidthRow
from rankfold.reporting.report import Report
from rankfold.reporting.rounds import MOST_SHOWN, rounds_section
from rankfold.reporting.sections import Cell, Content, Section, Text, Tile, content, tips

MOST_COUPLED = 4
"""Maximum number of coupled layers that are named."""


@content.register
def _(report: Report, *, brief: bool) -> Content:
    results = [
        _totals(report, brief=brief),
        _metrics(report),
        _budget(report),
        Section(title="Notes", lines=report.notes, narrow=True),
    ]
    layers, others = _layers(report, brief=brief), other_modules(report.others)
    widths = _widths(report)
    rounds = [rounds_section(report.rounds, report.metrics[0], brief=brief)] if report.rounds else []
    training = [*rounds, _history(report, brief=brief)]
    origin = provenance_rows(report)
    sections = (
        [
            layers,
            widths,
            others,
            *training,
            *results,
            Section(notes=["; ".join(f"{what}: {value}" for what, value in origin)]),
        ]
        if brief
        else [*results, widths, layers, others, *training, Section(title="Provenance", heads=("", ""), rows=origin)]
    )
    return Content(
        title=report.model_name or "Compressed model",
        kind="rankfold report",
        lead=report.coverage,
        details=(_headline(report),),
        sections=sections,
        tiles=_tiles(report),
    )


def _headline(report: Report) -> str:
    """Return the strategy, the number of factored layers, and the budget."""
    provenance = report.provenance
    parts = [f"strategy {provenance.strategy}", f"{len(report.factored)} of {len(report.layers)} layers factored"]
    if provenance.budget:
        parts.append("budget " + (", ".join(map(_bound_text, report.bounds)) or provenance.budget))
    return " · ".join(parts)


def _totals(report: Report, *, brief: bool) -> Section:
    rows: list[list[str]] = []
    for resource in RESOURCES.values():
        if resource.amount is not None or (resource.layer is not None and resource.name in report.before.more):
            row = _total(resource.title, resource.of(report.before), resource.of(report.after), resource.show)
            if resource.name == "macs" and report.uncounted:
                row[1:] = [*map(words.at_least, row[1:3]), words.NONE, words.NONE]
            rows.append(row)
    if report.disk_bytes is not None:
        rows.insert(3, ["on disk", words.NONE, words.size(report.disk_bytes), words.NONE, words.NONE])
    if report.latency is not None:
        rows.append(_total("latency", *report.latency, words.milliseconds))
    note = (
        "MACs and feature maps are those of one forward pass on the example input; fewer MACs do not always take less "
        "time. Overall memory is the sum of parameters and feature-map elements. The ratio is before ÷ after."
    )
    heads = ("", ">before", ">after", ">ratio", ">reduction")
    return Section(title="Before and after", heads=heads, rows=rows, notes=[] if brief else [note], narrow=True)


def _total(name: str, before: float, after: float, show: words.Show) -> list[str]:
    return [name, show(before), show(after), words.ratio(before, after), words.reduction(before, after)]


def _metrics(report: Report) -> Section:
    fields = {"dense": "dense", "compressed": "compressed", "tuned": "fine-tuned", "reloaded": "reloaded"}
    measured = [name for name in fields if any(getattr(m, name) is not None for m in report.metrics)]
    counted = any(m.samples is not None for m in report.metrics)
    rows = [
        [
            m.name,
            *(words.metric(m, getattr(m, name)) for name in measured),
            Cell(words.metric_change(m), tone="bad" if m.worse else ""),
            *([words.NONE if m.samples is None else words.count(m.samples)] if counted else []),
        ]
        for m in report.metrics
    ]
    heads = ["metric", *(f">{fields[name]}" for name in measured), ">change", *([">samples"] if counted else [])]
    differing = ", ".join(m.name for m in report.metrics if m.reload_differs)
    warning = Cell(f"Measured again after saving and loading, {differing} changed.", tone="bad")
    return Section(title="Metrics", heads=heads, rows=rows, notes=[warning] if differing else [], narrow=True)


def _budget(report: Report) -> Section:
    verdicts = {True: Cell("met", tone="good"), False: Cell("NOT met", tone="bad"), None: Cell("unknown")}
    rows = [(_bound_text(bound), verdicts[bound.met], _bound_result(bound)) for bound in report.bounds]
    return Section(title="Budget", heads=("bound", "verdict", "result"), rows=rows, narrow=True)


def _bound_text(bound: BoundRow) -> str:
    """Return a bound in typeset form: ``params ≤ 25 %``, ``flash ≤ 512 KiB``."""
    resource = _resource(bound)
    if bound.limit is None or resource is None or resource.kind != "additive":
        return bound.text
    if "%" in bound.text:
        return words.bound(bound.text)
    return f"{bound.resource} ≤ {_amount(bound, bound.limit)}"


def _bound_result(bound: BoundRow) -> str:
    """Return the result with its numbers: ``67,400 of at most 67,430 (25 % of dense)``."""
    if bound.value is None or bound.limit is None:
        return "not checked here"
    text = f"{_amount(bound, bound.value)} of at most {_amount(bound, bound.limit)}"
    return f"{text} ({words.percent(bound.value / bound.dense)} of dense)" if bound.dense else text


def _amount(bound: BoundRow, value: float) -> str:
    resource = _resource(bound)
    return (words.count if resource is None else resource.show)(value)


def _resource(bound: BoundRow) -> Resource | None:
    """Return a bound's resource; None if it is not registered here."""
    try:
        return find_resource(bound.resource)
    except UnknownNameError:
        return None


def _layers(report: Report, *, brief: bool) -> Section:
    measured = any(row.measured_error is not None for row in report.layers)
    if brief:
        heads = ["layer", "+", "method, ranks", ">params", ">MACs", ">error"]
    else:
        costs = [">params", ">after", ">left", ">MACs", ">after", ">left"]
        heads = ["`layer", "+", "method", "ranks", *costs, ">predicted error" if measured else ">error"]
    heads += [">measured"] if measured else []
    rows: list[list[Text]] = []
    for row in report.layers:
        errors = [words.error(row.error), words.error(row.measured_error)][: 1 + measured]
        errors = [""] * len(errors) if row.kept else errors
        rows.append([*_brief_layer(row), *errors] if brief else [*_full_layer(row), *errors, remark(row)])
    return Section(
        title="Layer by layer",
        heads=heads if brief else [*heads, "remark"],
        rows=rows,
        notes=explanations(row.reason for row in report.layers) if brief else (),
        figures=() if brief else layer_figures(report, tips(_layers(report, brief=True))),
    )


def _widths(report: Report) -> Section:
    rows = [
        (row.layer, str(row.before), str(row.after), words.percent(row.after / row.before), _coupled(row))
        for row in report.widths
    ]
    heads = ("`layer", ">channels", ">after", ">left", "coupled layers")
    return Section(title="Removed channels", heads=heads, rows=rows, narrow=True)


def _coupled(row: WidthRow) -> str:
    shown, more = row.coupled[:MOST_COUPLED], len(row.coupled) - MOST_COUPLED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _brief_layer(row: LayerRow) -> list[Text]:
    what = "" if row.kept else f"{row.method} {words.ranks(row.ranks)}"
    return [
        row.label,
        short(row.layer),
        "; ".join(filter(None, (what, remark(row, brief=True)))),
        _change(row.before.params, row.after.params),
        _change(row.before.macs, row.after.macs),
    ]


def _change(before: int, after: int) -> str:
    return words.compact(before) if before == after else f"{words.compact(before)}→{words.compact(after)}"


def _full_layer(row: LayerRow) -> list[Text]:
    cells: list[Text] = [row.label, row.layer, row.method or words.NONE, words.ranks(row.ranks) if row.ranks else ""]
    for before, after in ((row.before.params, row.after.params), (row.before.macs, row.after.macs)):
        share = after / before if before else None
        left = "" if row.kept and before == after else words.NONE
        shown = left if share is None or not left else Cell(words.percent(share), share=share)
        cells += [words.count(before), words.count(after), shown]
    return cells


def _history(report: Report, *, brief: bool) -> Section:
    table = epoch_table(report.history, title="Fine-tuning", brief=brief)
    return table if brief else replace(table, figures=history_figures(report))


def epoch_table(epochs: Sequence[Any], *, title: str, brief: bool) -> Section:
    """Return the loss, metric and learning rate of each epoch; with `brief` not of all, if there are many."""
    step = -(-len(epochs) // MOST_SHOWN) if brief else 1
    shown = [e for e in epochs if (epochs[-1].epoch - e.epoch) % step == 0 or e is epochs[0]]
    rows = [
        (str(e.epoch), words.number(e.loss), words.number(e.metric), words.rate(e.lr), words.seconds(e.seconds))
        for e in shown
    ]
    return Section(
        title=title + (f" ({len(shown)} of {len(epochs)} epochs)" if len(shown) < len(epochs) else ""),
        heads=(">epoch", ">loss", ">metric", ">learning rate", ">time"),
        rows=rows,
    )


def provenance_rows(report: Report) -> list[tuple[str, str]]:
    """Return the origin of the plan as (property, value), where available."""
    p = report.provenance
    config = ", ".join(f"{k}={v}" for k, v in p.config.items())
    rows = [
        ("strategy", p.strategy),
        ("strategy options", config),
        ("budget", p.budget or ""),
        ("methods", ", ".join(p.methods)),
        ("seed", str(p.seed)),
        ("search", ", ".join(f"{_SEARCH.get(k, k)} {_value(v)}" for k, v in p.search.items())),
        ("deployment data type", p.deploy_dtype or ""),
        ("predicted errors", f"of the {p.errors}" if p.errors else ""),
        ("reconstruction", p.reconstruct or ""),
        ("example input", report.example),
        ("source weights", p.weights_hash or ""),
        ("versions", ", ".join(f"{k} {v}" for k, v in p.versions.items())),
        ("time", ", ".join(f"{k} {words.seconds(v)}" for k, v in report.timings.items())),
        ("created", report.created),
    ]
    return [(what, value) for what, value in rows if value]


_SEARCH = {"predicted_loss": "predicted loss", "bound": "lower bound"}
"""Labels of search results whose field names are unclear."""


def _value(value: Any) -> str:
    """Return a search result as text: numbers with four digits, lists in order."""
    if isinstance(value, list | tuple):
        return " → ".join(map(_value, value))
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_value(item)}' for name, item in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tiles(report: Report) -> list[Tile]:
    before, after = report.before, report.after
    costs = [
        ("parameters", before.params, after.params, words.compact, "fewer", "more"),
        ("MACs", before.macs, after.macs, words.compact, "fewer", "more"),
        ("weights", before.weight_bytes, after.weight_bytes, words.size, "smaller", "larger"),
    ]
    if report.uncounted:
        del costs[1]
    tiles = [_cost_tile(*cost) for cost in costs]
    if report.latency is not None:
        tiles.append(_cost_tile("latency", *report.latency, words.milliseconds, "faster", "slower"))
    tiles += [_metric_tile(metric) for metric in report.metrics[:1]]
    checked = [bound for bound in report.bounds if bound.met is not None]
    if checked:
        value, tone = ("met", "good") if all(bound.met for bound in checked) else ("not met", "bad")
        tiles.append(Tile(name="budget", value=value, details=[", ".join(map(_bound_text, checked))], tone=tone))
    return tiles


def _cost_tile(name: str, before: float, after: float, show: words.Show, less: str, more: str) -> Tile:
    least, most = sorted((before, after))
    return Tile(
        name=name,
        value=words.ratio(most, least).replace("x", "×"),
        unit=less if after <= before else more,
        details=[f"{show(before)} → {show(after)}"],
        share=after / before if before > 0 else 1.0,
    )


def _metric_tile(metric: MetricValue) -> Tile:
    details: list[Text] = ["dense model"]
    if metric.change is not None:
        change = Cell(words.metric_change(metric), tone="bad" if metric.worse else "")
        details = [f"dense {words.metric(metric, metric.dense)}", change]
    if metric.samples is not None:
        details.append(f"on {words.count(metric.samples)} sample{'s' * (metric.samples != 1)}")
    return Tile(name=metric.name, value=words.metric(metric, metric.final), details=details)
