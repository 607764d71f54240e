"""The sections of an analysis, in the layout of the similarity paper's Tables 1-6 and Figs 2 and 5-7."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from rankfold.cost.exploration import METRICS, Solution, Space, Step
from rankfold.reporting import words
from rankfold.reporting.charts import Series, columns
from rankfold.reporting.exploration.plots import chains, plane
from rankfold.reporting.exploration.record import EXTENTS, GROUPS, Analysis, Average, Group, LayerSpaces
from rankfold.reporting.markup import Markup, el
from rankfold.reporting.sections import Content, Section, content, tips

FEW = 6
"""Up to this number of layers, the terminal shows every solution and formula, and the page the plots of each layer."""

COLORS = 8
"""Number of distinct colors for methods."""

TITLES = {"convolutions": "convolutions", "matrices": "linear layers and 1x1 convolutions"}


@content.register
def _(analysis: Analysis, *, brief: bool) -> Content:
    number, steps = len(analysis.layers), ", ".join(map(words.percent, analysis.steps))
    kept = [[name or "(the model)", reason] for name, reason in analysis.kept.items()]
    return Content(
        title=analysis.title or "Exploration space",
        kind="rankfold analysis",
        lead=f"{number} layer{'s' * (number != 1)}, methods {', '.join(analysis.methods)}",
        details=(
            f"Compression steps: {steps} of the parameters removed, each within {words.percent(analysis.tolerance)}; "
            f"{analysis.random} random solutions a step, seed {analysis.seed}; tensor shapes of ttm with up to "
            f"{analysis.cores} cores. A valid setting has fewer parameters and fewer MACs than the layer"
            f"{', and no rank that another rank makes useless' if analysis.useful else ''}.",
        ),
        sections=[
            *(section for group in GROUPS for section in _group(analysis, group, brief=brief)),
            Section(title="Not analyzed", heads=("`layer", "reason"), rows=kept),
        ],
    )


def _group(analysis: Analysis, group: Group, *, brief: bool) -> Iterator[Section]:
    """Yield the sections of a group; `brief` omits charts, and the details of more than `FEW` layers."""
    layers = [layer for layer in analysis.layers if layer.group == group]
    methods = [m for m in analysis.methods if any(layer.space(m) for layer in layers)]
    averages = [a for a in analysis.averages if a.group == group]
    if not methods:
        return
    few, what = len(analysis.layers) <= FEW or not brief, TITLES[group]
    if few:
        yield _costs(layers, f"Costs of {what} (Table 1)")
    yield _sizes(layers, methods, f"Exploration space of {what} (Tables 2 and 3)")
    if few:
        yield _solutions(layers, f"Chosen solutions of {what}")
    if any(space.seconds is not None for layer in layers for space in layer.spaces):
        yield _times(layers, methods, f"Times of {what}, seconds (Tables 4 and 5)")
    if averages:
        yield _averages(averages, f"Averages over {what} (Figs 6 and 7)", brief=brief)
        yield _scores(averages, f"Scores of {what} (Table 6)", brief=brief)
    if averages and not brief:
        planes = _planes(layers, [a.method for a in averages])
        yield Section(title=f"Where the valid settings of {what} lie (Fig. 2)", figures=planes)
        shown = layers if len(layers) <= FEW else layers[:1]
        drawn = [chains(layer.label, layer.layer, layer.spaces) for layer in shown]
        yield Section(title=f"Chains that replace {what} (Fig. 5)", figures=[chart for chart in drawn if chart])


def _planes(layers: Sequence[LayerSpaces], methods: Sequence[str]) -> list[Markup]:
    """Return the maps of each layer if there are few layers, otherwise their means."""
    cases = [(f"{layer.label}, ", [layer]) for layer in layers] if len(layers) <= FEW else [("", list(layers))]
    rows: list[Markup] = []
    for name, members in cases:
        spaces = {method: [s for layer in members if (s := layer.space(method)) is not None] for method in methods}
        maps = [plane(spaces[method], f"{name}{method}") for method in methods]
        if any(maps):
            rows.append(el("div", maps, class_="planes"))
    return rows


def _costs(layers: Sequence[LayerSpaces], title: str) -> Section:
    rows: list[list[str]] = []
    for layer in layers:
        dense = (words.count(layer.dense.params), words.count(layer.dense.macs), words.count(layer.dense.fm))
        rows.append([layer.label, "original", *dense])
        for space in layer.spaces:
            if space.formulas:
                rows.append(["", space.method, *(space.formulas[name] for name in ("P", "M", "FM"))])
    note = "MACs are half of the FLOPs; feature maps are all values that the layer writes. ttm: first tensor shape."
    heads = ("layer", "method", "parameters", "MACs", "feature-map elements")
    return Section(title=title, heads=heads, rows=rows, notes=[note])


def _sizes(layers: Sequence[LayerSpaces], methods: Sequence[str], title: str) -> Section:
    note = (
        "First: rank settings with fewer parameters and fewer MACs than the layer / solutions chosen over all steps. "
        "Then: valid rank settings of the step."
    )

    def whole(space: Space) -> str:
        return f"{words.compact(space.size)} / {sum(len(step.solutions) for step in space.steps)}"

    return _by_step(layers, methods, whole, lambda step: words.count(step.count), title, note)


def _times(layers: Sequence[LayerSpaces], methods: Sequence[str], title: str) -> Section:
    def whole(space: Space) -> str:
        return words.NONE if space.seconds is None else f"{space.seconds:.2g}"

    def part(step: Step) -> str:
        return words.NONE if step.decomposition_s is None else f"{step.decomposition_s:.3g}"

    note = "First: counting and choosing. Then: preparing the layer and factoring it at the step's most equal ranks."
    return _by_step(layers, methods, whole, part, title, note)


def _by_step(
    layers: Sequence[LayerSpaces],
    methods: Sequence[str],
    whole: Callable[[Space], str],
    part: Callable[[Step], str],
    title: str,
    note: str,
) -> Section:
    """Return a row per layer and step; values of the whole layer are in its first row."""
    rows: list[list[str]] = []
    for layer in layers:
        spaces = [layer.space(method) for method in methods]
        steps = next(space.steps for space in spaces if space is not None)
        for i, step in enumerate(steps):
            first = [words.NONE if space is None else whole(space) for space in spaces]
            rest = [words.NONE if space is None else part(space.steps[i]) for space in spaces]
            start = [layer.label, *first] if i == 0 else [""] * (len(first) + 1)
            rows.append([*start, words.percent(step.reduction), *rest])
    columns = [f">{method}" for method in methods]
    return Section(title=title, heads=("layer", *columns, ">step", *columns), rows=rows, notes=[note])


def _solutions(layers: Sequence[LayerSpaces], title: str) -> Section:
    rows: list[list[str]] = []
    for layer in layers:
        for space in layer.spaces:
            for step in space.steps:
                start = [layer.label, words.percent(step.reduction), space.method]
                chosen = (("fewest MACs", step.fewest_macs), ("most MACs", step.most_macs), ("equal", step.equal_ranks))
                for solution in step.solutions:
                    kinds = [kind for kind, s in chosen if s == solution] or ["random"]
                    dense, cost = layer.dense, solution.cost
                    reductions = [words.reduction(getattr(dense, e), getattr(cost, e)) for e in EXTENTS]
                    rows.append([*start, ", ".join(kinds), _ranks(solution), *reductions])
    heads = ("layer", ">step", "method", "solution", "ranks", ">params", ">MACs", ">memory")
    note = "Reductions of parameters, MACs and overall memory (weights plus feature maps)."
    return Section(title=title, heads=heads, rows=rows, notes=[note])


def _ranks(solution: Solution) -> str:
    shapes = [solution.options.get(name) for name in ("in_shape", "out_shape")]
    shape = " → ".join("x".join(map(str, s)) for s in shapes if s)
    return words.ranks(solution.ranks) + (f" of {shape}" if shape else "")


def _averages(averages: Sequence[Average], title: str, *, brief: bool) -> Section:
    values: dict[str, list[float | None]] = {}
    for extent in EXTENTS:
        name = extent.replace("macs", "MACs")
        for label, field in ((f"best {name}", f"best_{extent}"), (f"worst {name}", f"worst_{extent}")):
            values[label] = [100 * getattr(a, field) for a in averages]
        if extent != "memory":
            values[f"{name} coverage"] = [100 * getattr(a, f"{extent}_coverage") for a in averages]
    spaces = ", ".join(f"{a.method} {words.compact(a.size)} over {a.layers}" for a in averages)
    note = (
        "Reductions: best and worst of the valid settings; negative values are increases. Coverage: best minus worst. "
        f"Mean number of valid settings over the layers that have any: {spaces}."
    )
    return _comparison(averages, values, " %", title, note, brief=brief)


def _scores(averages: Sequence[Average], title: str, *, brief: bool) -> Section:
    names = [metric for metric in METRICS if any(metric in a.scores for a in averages)]
    values = {name: [a.scores.get(name) for a in averages] for name in names}
    return _comparison(averages, values, "", title, "5 is excellent, 1 is poor.", brief=brief)


def _comparison(
    averages: Sequence[Average],
    values: Mapping[str, Sequence[float | None]],
    unit: str,
    title: str,
    note: str,
    *,
    brief: bool,
) -> Section:
    """Return the values of several methods in parallel, as a table and a chart."""
    rows = [
        [name, *(words.NONE if value is None else f"{value:.1f}{unit}" for value in row)]
        for name, row in values.items()
    ]
    section = Section(title=title, heads=("", *(f">{a.method}" for a in averages)), rows=rows, notes=[note])
    if brief:
        return section
    series = [
        Series(name=a.method, css=f"rank{i % COLORS}", values=[row[i] for row in values.values()])
        for i, a in enumerate(averages)
    ]
    names = list(values)
    chart = columns(names, tips(section), series, label=title, overlay=False, show=lambda v: f"{v:g}{unit}")
    return replace(section, figures=[chart])
