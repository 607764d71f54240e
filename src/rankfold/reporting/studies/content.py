"""The sections of the studies of a paper: a table and charts for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankfold.records import Ranks
from rankfold.reporting import words
from rankfold.reporting.charts import Dot, Series, columns, linear, plot
from rankfold.reporting.markup import Markup
from rankfold.reporting.rounds import rounds_section
from rankfold.reporting.sections import Cell, Content, Section, Text, content, tips
from rankfold.reporting.studies.record import MODEL, PARTS, Reproduction, Study, Trial

RESOURCES = {"params": "params", "macs": "MACs"}


@content.register
def _(reproduction: Reproduction, *, brief: bool) -> Content:
    explained = (
        "params and MACs: reductions, in the model, its convolutions (conv) and its linear layers. X: the drop is "
        "larger than allowed. Time: all rounds of a run; for other strategies, the last call, which may have resumed a "
        "search."
    )
    return Content(
        title=reproduction.model_name,
        kind="rankfold reproduction",
        lead=reproduction.citation,
        details=(explained,),
        sections=[part for study in reproduction.studies for part in _sections(study, brief=brief)],
    )


def _sections(study: Study, *, brief: bool) -> list[Section]:
    """Return the table of a study and, on a page, the ranks of the layers and the rounds, as far as it has them."""
    layers = list(dict.fromkeys(name for trial in study.trials for name in trial.ranks))
    rounds = [replace(row, run=trial.name) for trial in study.trials for row in trial.log]
    parts = [_section(study, brief=brief)]
    if layers and not brief:
        parts.append(_ranks(study, layers))
    if rounds and not brief:
        parts.append(rounds_section(rounds, study.metric, title=f"{study.title}: rounds", level=_level(study)))
    return parts


def _ranks(study: Study, layers: Sequence[str]) -> Section:
    """Return the ranks of each layer as a table and a chart; the largest rank counts if a layer has several."""
    rows = [[layer, *(_rank(trial.ranks.get(layer)) for trial in study.trials)] for layer in layers]
    section = Section(
        title=f"{study.title}: ranks",
        heads=["`layer", *(f">{trial.name}" for trial in study.trials)],
        rows=rows,
    )
    series = [
        Series(
            name=trial.name,
            css=f"rank{i % 4}",
            values=[max(trial.ranks[layer]) if layer in trial.ranks else None for layer in layers],
        )
        for i, trial in enumerate(study.trials)
    ]
    chart = columns(layers, tips(section), series, label="Largest rank of each layer", overlay=False)
    return replace(section, figures=[chart])


def _rank(ranks: Ranks | None) -> str:
    return words.NONE if ranks is None else words.ranks(ranks)


def _section(study: Study, *, brief: bool) -> Section:
    """Return the table of a study, with charts and more columns unless it is for a terminal."""
    shown = [(MODEL, name) for name in RESOURCES]
    shown += [(part, name) for part in PARTS if study.dense[part].params for name in RESOURCES]
    shown = shown[:2] if brief else shown
    rows = [_cells(study, trial, shown) for trial in study.trials]
    heads = list(rows[0]) if rows else []
    total = words.seconds(sum(sum(trial.seconds.values()) for trial in study.trials))
    section = Section(
        title=study.title,
        heads=heads,
        rows=[list(row.values()) for row in rows],
        footer=["all", *(total if head == ">time" else "" for head in heads[1:])] if len(rows) > 1 else (),
        notes=[_original(study), *study.notes, *([] if brief else [_origin(study)])],
    )
    return section if brief or not rows else replace(section, figures=_figures(study, tips(section)))


def _cells(study: Study, trial: Trial, shown: Sequence[tuple[str, str]]) -> dict[str, Text]:
    """Return the cells of a row by column; `shown` has parts of the model, and resources."""
    value = replace(study.metric, tuned=trial.metric)
    change = words.metric_change(value).removesuffix(" points")
    cells: dict[str, Text] = {"": trial.name, ">parameters": words.count(trial.parts[MODEL].params)}
    for part, name in shown:
        before, after = getattr(study.dense[part], name), getattr(trial.parts[part], name)
        title = RESOURCES[name] if part == MODEL else f"{part} {RESOURCES[name]}"
        cells[f">{title}"] = words.reduction(before, after)
    if any(one.loss is not None for one in study.trials):
        cells[">loss"] = words.number(trial.loss)
    if any(one.before is not None for one in study.trials):
        cells[">before fine-tuning"] = words.metric(value, trial.before)
    cells[f">{study.metric.name}"] = words.metric(value, trial.metric)
    cells[">change"] = change if study.within(trial) else Cell(f"{change} X", tone="bad")
    cells[">rounds"] = words.NONE if trial.rounds is None else str(trial.rounds)
    cells[">time"] = words.seconds(sum(trial.seconds.values()))
    if study.epoch_seconds:
        cells[">overhead"] = f"{trial.overhead / study.epoch_seconds:.1f} epochs"
    return cells


def _original(study: Study) -> str:
    dense, metric = study.dense[MODEL], study.metric
    return (
        f"Original: {words.count(dense.params)} parameters, {words.count(dense.macs)} MACs, {metric.name} "
        f"{words.metric(metric, metric.dense)}. Allowed drop: {_points(study, study.allowed)}."
    )


def _points(study: Study, drop: float) -> str:
    return f"{100 * drop:g} points" if study.metric.in_percent else words.number(drop)


def _origin(study: Study) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    return f"{study.command} ({versions})"


def _figures(study: Study, tipped: Sequence[str]) -> list[Markup]:
    """Return the reductions in each part, the metric by parameters left, and the overheads."""
    names = [trial.name if study.within(trial) else f"{trial.name} X" for trial in study.trials]
    figures: list[Markup] = []
    for part, layers in PARTS.items():
        series = [
            Series(name=title, css=f"rank{i}", values=[_reduction(study, trial, part, name) for trial in study.trials])
            for i, (name, title) in enumerate(RESOURCES.items())
            if getattr(study.dense[part], name)
        ]
        if series:
            title = f"Reduction in the {layers}"
            figures.append(columns(names, tipped, series, label=title, overlay=False, show=words.percent))
    figures.append(_tradeoff(study, tipped))
    if any(trial.loss is not None for trial in study.trials):
        figures.append(_losses(study, tipped))
    if study.epoch_seconds:
        values = [trial.overhead / study.epoch_seconds for trial in study.trials]
        series = [Series(name="overhead", css="rank2", values=values)]
        figures.append(columns(names, tipped, series, label="Overhead in training epochs"))
    return figures


def _reduction(study: Study, trial: Trial, part: str, name: str) -> float:
    return 1 - getattr(trial.parts[part], name) / getattr(study.dense[part], name)


def _losses(study: Study, tipped: Sequence[str]) -> Markup:
    """Return the loss of the search by the parameters left."""
    dots = [
        Dot(x=1 - _reduction(study, trial, MODEL, "params"), y=trial.loss, tip=tip, css="loss", label=trial.name)
        for trial, tip in zip(study.trials, tipped, strict=True)
        if trial.loss is not None
    ]
    curve = sorted((dot.x, dot.y) for dot in dots)
    across = linear([0.0, *(x for x, _ in curve)], words.percent, number=6)
    up = linear([0.0, *(y for _, y in curve)], lambda v: f"{v:.3g}", number=5)
    return plot("Loss by parameters left", dots, curve, across, up, css="loss", below="parameters left")


def _tradeoff(study: Study, tipped: Sequence[str]) -> Markup:
    """Return the metric by the parameters left, with the Pareto front named, and the largest allowed drop as a line."""
    metric = study.metric
    front: list[Trial] = []
    for trial in sorted(study.trials, key=lambda t: (t.parts[MODEL].params, t.drop)):
        front += [trial] if not front or trial.drop < front[-1].drop else []
    dots = [
        Dot(
            x=1 - _reduction(study, trial, MODEL, "params"), y=trial.metric, tip=tip,
            css="after" if study.within(trial) else "error", label=trial.name if trial in front else "",
        )
        for trial, tip in zip(study.trials, tipped, strict=True)
    ]  # fmt: skip
    level = _level(study)
    across = linear([0.0, *(dot.x for dot in dots)], words.percent, number=6)
    up = linear([level[0], metric.dense, *(dot.y for dot in dots)], lambda v: words.metric(metric, v), number=5)
    title = f"{metric.name} by parameters left"
    return plot(title, dots, (), across, up, css="after", below="parameters left", level=level)


def _level(study: Study) -> tuple[float, str]:
    """Return the metric at the largest allowed drop, and its name in charts."""
    metric = study.metric
    bound = metric.dense - study.allowed * (1 if metric.higher_is_better else -1)
    return bound, f"drop of {_points(study, study.allowed)}"
