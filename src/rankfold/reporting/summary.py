"""What every form of the report tells in the same words: totals, budget, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rankfold.records import RESOURCES, OtherModule, resource_names
from rankfold.reporting import words
from rankfold.reporting.record import BoundRow, LayerRow, MetricValue, ReportRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalRow:
    """One line of the before/after table; `before` and `after` are None where not known, lower bounds if `partial`."""

    name: str
    before: float | None
    after: float | None
    show: words.Show
    partial: bool = False

    @property
    def before_text(self) -> str:
        """The dense model's amount."""
        return self._text(self.before)

    @property
    def after_text(self) -> str:
        """The compressed model's amount."""
        return self._text(self.after)

    def _text(self, amount: float | None) -> str:
        if amount is None:
            return words.NONE
        return words.at_least(self.show(amount)) if self.partial else self.show(amount)

    @property
    def ratio(self) -> str:
        """Original over compressed."""
        if self.before is None or self.after is None or self.partial:
            return words.NONE
        return words.ratio(self.before, self.after)

    @property
    def reduction(self) -> str:
        """One minus compressed over original."""
        if self.before is None or self.after is None or self.partial:
            return words.NONE
        return words.reduction(self.before, self.after)


def totals(record: ReportRecord) -> list[TotalRow]:
    """Return the before/after table; what was not measured has no row."""
    rows = [
        TotalRow(
            name=resource.title,
            before=resource.of(record.before),
            after=resource.of(record.after),
            show=resource.show,
            partial=resource.name == "macs" and bool(record.uncounted),
        )
        for resource in RESOURCES.values()
        if resource.amount is not None or resource.name in record.before.more
    ]
    if record.disk_bytes is not None:
        rows.insert(3, TotalRow(name="on disk", before=None, after=record.disk_bytes, show=words.size))
    if record.latency is not None:
        dense, compressed = record.latency
        rows.append(TotalRow(name="latency", before=dense, after=compressed, show=words.milliseconds))
    return rows


def bound_text(bound: BoundRow) -> str:
    """Return a bound as a person writes it: ``params ≤ 25 %``, ``flash ≤ 512 KiB``."""
    relative = "%" in bound.text
    if bound.limit is None or bound.resource not in resource_names("additive"):
        return bound.text
    if relative:
        return bound.text.replace("<=", " ≤ ").replace("%", " %")
    return f"{bound.resource} ≤ {_amount(bound, bound.limit)}"


def bound_result(bound: BoundRow) -> str:
    """Return what came out, with the numbers: ``67,400 of at most 67,430 (25 % of dense)``."""
    if bound.value is None or bound.limit is None:
        return "not checked here"
    text = f"{_amount(bound, bound.value)} of at most {_amount(bound, bound.limit)}"
    return f"{text} ({words.percent(bound.value / bound.dense)} of dense)" if bound.dense else text


def verdict(bound: BoundRow) -> str:
    """Return whether the bound holds, in one or two words."""
    return {True: "met", False: "NOT met", None: "unknown"}[bound.met]


def _amount(bound: BoundRow, value: float) -> str:
    show = RESOURCES[bound.resource].show if bound.resource in RESOURCES else words.count
    return show(value)


def metric_columns(record: ReportRecord) -> list[tuple[str, Callable[[MetricValue], float | None]]]:
    """Return the columns of the metrics table that hold anything: title and value of a metric."""
    columns: list[tuple[str, Callable[[MetricValue], float | None]]] = [
        ("dense", lambda m: m.dense),
        ("compressed", lambda m: m.compressed),
        ("fine-tuned", lambda m: m.tuned),
        ("reloaded", lambda m: m.reloaded),
    ]
    return [(t, get) for t, get in columns if any(get(m) is not None for m in record.metrics)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherGroup:
    """Modules of one type with parameters that are no layers."""

    type_name: str
    number: int
    params: int
    reason: str


def other_groups(others: Sequence[OtherModule]) -> list[OtherGroup]:
    """Return the modules that are no layers, grouped by type and reason, the largest first."""
    groups: dict[tuple[str, str], tuple[int, int]] = {}
    for other in others:
        number, params = groups.get((other.type_name, other.reason), (0, 0))
        groups[other.type_name, other.reason] = (number + 1, params + other.params)
    rows = [OtherGroup(type_name=t, number=n, params=p, reason=r) for (t, r), (n, p) in groups.items()]
    return sorted(rows, key=lambda g: -g.params)


def other_text(group: OtherGroup) -> str:
    """Return a group in words: ``20 x BatchNorm2d, 2,752 parameters: no layer to factor``."""
    what = f"{group.number} x {group.type_name}" if group.number > 1 else group.type_name
    return f"{what}, {words.count(group.params)} parameters: {group.reason}"


def remark(row: LayerRow, *, brief: bool = False) -> str:
    """Return why a layer is as it is; empty if there is nothing to say."""
    reason = row.reason or ("by hand" if row.kept else "")
    if brief:
        reason = headword(reason)
    parts = (f"kept: {reason}" if row.kept else reason, row.note)
    return "; ".join(part for part in parts if part)


def headword(reason: str) -> str:
    """Return the part of a reason before its explanation: ``depthwise convolution``."""
    return reason.partition(": ")[0]


def explanations(reasons: Iterable[str | None]) -> list[str]:
    """Return each reason that `headword` shortens once, with the number of layers it holds for."""
    counts = Counter(r for r in reasons if r and headword(r) != r)
    return [f"{reason} ({n} layer{'s' if n > 1 else ''})" for reason, n in counts.items()]


def headline(record: ReportRecord) -> str:
    """Return one line that says what was done: strategy, layers factored, budget."""
    provenance = record.provenance
    done = f"{len(record.factored)} of {len(record.layers)} layers factored"
    parts = [f"strategy {provenance.strategy}", done]
    if provenance.budget:
        parts.append("budget " + (", ".join(map(bound_text, record.bounds)) or provenance.budget))
    return " · ".join(parts)


def provenance_rows(record: ReportRecord) -> list[tuple[str, str]]:
    """Return where the plan comes from, as (what, value); what is not known is left out."""
    p = record.provenance
    config = ", ".join(f"{k}={v}" for k, v in p.config.items())
    rows = [
        ("strategy", p.strategy),
        ("strategy options", config),
        ("budget", p.budget or ""),
        ("methods", ", ".join(p.methods)),
        ("seed", str(p.seed)),
        ("search", ", ".join(f"{k} {_found(v)}" for k, v in p.search.items())),
        ("deployment data type", p.deploy_dtype or ""),
        ("reconstruction", p.reconstruct or ""),
        ("example input", record.example),
        ("source weights", p.weights_hash or ""),
        ("versions", ", ".join(f"{k} {v}" for k, v in p.versions.items())),
        ("time", ", ".join(f"{k} {words.seconds(v)}" for k, v in record.timings.items())),
        ("created", record.created),
    ]
    return [(what, value) for what, value in rows if value]


def _found(value: Any) -> str:
    """Write what a search found out: numbers to four digits, a list of them in order."""
    if isinstance(value, list | tuple):
        return " → ".join(map(_found, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def has_measured_errors(record: ReportRecord) -> bool:
    """Whether the table needs a column for measured errors."""
    return any(row.measured_error is not None for row in record.layers)
