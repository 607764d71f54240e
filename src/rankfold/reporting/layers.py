"""The sections of an inventory and of a plan, and the descriptions of layers that they share with reports."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from rankfold.records import Cost, Inventory, LayerInfo, OtherModule, Plan
from rankfold.reporting import markdown, words
from rankfold.reporting.record import LayerRow
from rankfold.reporting.sections import Content, Section, content


@content.register
def _(inventory: Inventory, *, brief: bool) -> Content:
    number = words.compact if brief else words.count
    rows: list[list[str]] = []
    for layer in inventory:
        skip = layer.skip or "compressible"
        rows.append(
            [
                layer.name or "(the model)",
                short(layer.describe()) if brief else layer.describe(),
                *_amounts(inventory, inventory.costs.get(layer.name, Cost()), number),
                str(sum(call.count for call in layer.calls)),
                "; ".join(filter(None, (headword(skip) if brief else skip, layer_note(layer)))),
            ]
        )
    total = inventory.total
    macs = words.at_least(number(total.macs)) if inventory.uncounted else number(total.macs)
    table = Section(
        heads=("`layer", "+", ">params", ">share", ">MACs", ">share", ">FM", ">calls", "verdict"),
        rows=rows,
        footer=("total", "", number(total.params), "", macs, "", number(total.fm), "", ""),
        notes=explanations(layer.skip for layer in inventory) if brief else (),
    )
    details = [f"Example input: {inventory.example}"] if inventory.example else []
    return Content(lead=inventory.summary(), details=details, sections=[table, other_modules(inventory.others)])


@content.register
def _(plan: Plan, *, brief: bool) -> Content:
    rows: list[list[str]] = []
    for name, choice in plan.layers.items():
        kept = choice.method is None
        what = "kept" if kept else f"{choice.method} {words.ranks(choice.ranks)}{', gauged' if choice.gauge else ''}"
        layer = short(plan.fingerprint.get(name, "").partition(",")[0])
        reason = headword(choice.reason or "") if brief else choice.reason or ""
        rows.append([name or "(the model)", layer, what, "" if kept else words.error(choice.error), reason])
    notes = explanations(choice.reason for choice in plan.layers.values()) if brief else ()
    table = Section(heads=("`layer", "+", "method, ranks", ">error", "remark"), rows=rows, notes=notes)
    widths = [(g.name, str(g.width), str(len(g.kept)), words.percent(len(g.kept) / g.width)) for g in plan.narrowing]
    heads = ("`layer", ">channels", ">after", ">left")
    return Content(lead=plan.headline(), sections=[Section(title="Removed channels", heads=heads, rows=widths), table])


def inventory_markdown(inventory: Inventory) -> str:
    """Return an inventory as GitHub-flavored Markdown with exact numbers."""
    return markdown.draw(content(inventory, brief=False))


def _amounts(inventory: Inventory, cost: Cost, number: words.Show) -> list[str]:
    total = inventory.total
    params = words.percent(cost.params / total.params) if total.params else words.NONE
    macs = words.NONE if inventory.uncounted or not total.macs else words.percent(cost.macs / total.macs)
    return [number(cost.params), params, number(cost.macs), macs, number(cost.fm)]


def other_modules(modules: Sequence[OtherModule]) -> Section:
    """Return the modules with parameters that are not layers, by type and reason, largest first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for module in modules:
        groups.setdefault((module.type_name, module.reason), []).append(module.params)
    lines = [
        f"{f'{len(params)} x ' if len(params) > 1 else ''}{kind}, {words.count(sum(params))} parameters: {reason}"
        for (kind, reason), params in sorted(groups.items(), key=lambda group: -sum(group[1]))
    ]
    return Section(title="Other modules with parameters", lines=lines)


def layer_note(layer: LayerInfo) -> str | None:
    """Return a layer's note, its other paths, and the layers that it is tied to."""
    parts = [layer.note] if layer.note else []
    if layer.aliases:
        parts.append(f"also used as {', '.join(layer.aliases)}")
    if layer.ties:
        parts.append(f"weight tied to {', '.join(layer.ties)}")
    return "; ".join(parts) or None


def remark(row: LayerRow, *, brief: bool = False) -> str:
    """Return the explanation of a layer's outcome; may be empty."""
    reason = row.reason or ("by hand" if row.kept else "")
    reason = headword(reason) if brief else reason
    narrowed = f"now {short(row.narrowed)}" if row.narrowed else ""
    kept = "kept" if not row.narrowed else "not factored"
    return "; ".join(filter(None, (narrowed, f"{kept}: {reason}" if row.kept else reason, row.note)))


def headword(reason: str) -> str:
    """Return the part of a reason before its explanation, such as ``depthwise convolution``."""
    return reason.partition(": ")[0]


def explanations(reasons: Iterable[str | None]) -> list[str]:
    """Return each reason that `headword` shortens, with its number of layers."""
    counts = Counter(r for r in reasons if r and headword(r) != r)
    return [f"{reason} ({n} layer{'s' * (n > 1)})" for reason, n in counts.items()]


def short(layer: str) -> str:
    """Return a layer's description without the defaults: stride 1, one group."""
    return re.sub(r" s1(?= |$)", "", re.sub(r" g1$", "", layer))
