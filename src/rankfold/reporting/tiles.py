"""The tiles on top of the HTML report: what happened, at a glance."""

from __future__ import annotations

from rankfold.reporting import words
from rankfold.reporting.markup import Markup, el, join
from rankfold.reporting.record import MetricValue, ReportRecord
from rankfold.reporting.summary import bound_text


def tiles(record: ReportRecord) -> Markup:
    """Return the section of tiles."""
    before, after = record.before, record.after
    shown = [_cost_tile("parameters", before.params, after.params, words.compact, "fewer", "more")]
    if not record.uncounted:
        shown.append(_cost_tile("MACs", before.macs, after.macs, words.compact, "fewer", "more"))
    shown.append(_cost_tile("weights", before.weight_bytes, after.weight_bytes, words.size, "smaller", "larger"))
    if record.latency is not None:
        dense, compressed = record.latency
        shown.append(_cost_tile("latency", dense, compressed, words.milliseconds, "faster", "slower"))
    shown += [_metric_tile(m) for m in record.metrics[:1]]
    known = [b for b in record.bounds if b.met is not None]
    if known:
        met = all(b.met for b in known)
        shown.append(
            _tile(
                "budget",
                "met" if met else "not met",
                ", ".join(bound_text(b) for b in known if b.met is not None),
                css="good" if met else "bad",
            )
        )
    return el("section", shown, class_="tiles", aria_label="At a glance")


def _cost_tile(name: str, before: float, after: float, show: words.Show, less: str, more: str) -> Markup:
    shrunk = after <= before
    big = words.ratio(before, after) if shrunk else words.ratio(after, before)
    width = 100 * min(1.0, after / before) if before > 0 else 100.0
    return _tile(
        name,
        join(big.replace("x", "×"), el("small", f" {less if shrunk else more}")),
        f"{show(before)} → {show(after)}",
        el("div", el("i", style=f"width:{width:.1f}%"), class_="meter"),
        hint=f"{name}: reduction {words.reduction(before, after)}",
    )


def _metric_tile(metric: MetricValue) -> Markup:
    value = words.metric(metric, metric.final)
    if metric.change is None:
        return _tile(metric.name, value, "dense model")
    change = el("span", minus(words.metric_change(metric)), class_="worse" if metric.worse else None)
    return _tile(
        metric.name,
        value,
        join(el("span", f"dense {words.metric(metric, metric.dense)}"), el("br"), change),
    )


def _tile(name: str, big: str, detail: str, bar: Markup | None = None, *, css: str = "", hint: str = "") -> Markup:
    return el(
        "div",
        el("p", name, class_="name"),
        el("p", big, class_="big"),
        bar,
        el("p", detail, class_="detail"),
        class_=f"tile {css}".strip(),
        title=hint or None,
    )


def minus(text: str) -> str:
    """Return the text with true minus signs, as wide as the plus."""
    return text.replace("-", "\N{MINUS SIGN}")
