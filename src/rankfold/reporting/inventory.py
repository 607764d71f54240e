"""What `inspect` found: the coverage line, then every layer and whether it is compressible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankfold.records import Cost, Inventory, LayerInfo
from rankfold.reporting import words
from rankfold.reporting.build import layer_note
from rankfold.reporting.markdown import code, table, text
from rankfold.reporting.summary import explanations, headword, other_groups, other_text
from rankfold.reporting.terminal import WIDE, default_console, line, make_table, short, without_words

if TYPE_CHECKING:
    from rich.console import Console

HEADS = ("layer", "", ">params", ">share", ">MACs", ">share", ">FM", ">calls", "verdict")


def inventory_table(inventory: Inventory, console: Console | None = None) -> None:
    """Print an inventory; `console` is rich's, by default one on standard output."""
    out = console or default_console()
    out.print(line(inventory.summary(), "bold"))
    if inventory.example:
        out.print(line(f"example input: {inventory.example}", "dim"))
    rows = [
        [
            layer.name or "(the model)",
            short(layer.describe()),
            *_row(inventory, layer, words.compact),
            _verdict(layer, headword(layer.skip or "")),
        ]
        for layer in inventory
    ]
    table_rows = [list(HEADS), *rows, ["total", "", *_total(inventory, words.compact)]]
    if out.width < WIDE:
        table_rows = [without_words(row) for row in table_rows]
    heads, *body, footer = table_rows
    out.print(make_table("", heads, body, footer))
    for explanation in explanations(layer.skip for layer in inventory):
        out.print(line(explanation, "dim"))
    for group in other_groups(inventory.others):
        out.print(line(f"other: {other_text(group)}", "dim"))


def inventory_markdown(inventory: Inventory) -> str:
    """Return an inventory as GitHub-flavoured Markdown, with exact numbers."""
    rows: list[list[str]] = []
    for layer in inventory:
        cells = [text(layer.describe()), *_row(inventory, layer, words.count)]
        name = code(layer.name or "(the model)")
        rows.append([name, *cells, text(_verdict(layer, layer.skip or ""))])
    rows.append(["**total**", "", *_total(inventory, words.count)])
    lines = [f"**{text(inventory.summary())}**", ""]
    if inventory.example:
        lines += [f"Example input: {text(inventory.example)}", ""]
    lines += table(HEADS, rows)
    lines += [f"- {text(other_text(group))}" for group in other_groups(inventory.others)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _row(inventory: Inventory, layer: LayerInfo, show: words.Show) -> list[str]:
    cost, total = inventory.costs.get(layer.name, Cost()), inventory.total
    return [
        show(cost.params),
        _share(cost.params, total.params),
        show(cost.macs),
        words.NONE if inventory.uncounted else _share(cost.macs, total.macs),
        show(cost.fm),
        str(sum(call.count for call in layer.calls)),
    ]


def _verdict(layer: LayerInfo, skip: str) -> str:
    parts = (skip or "compressible", layer_note(layer))
    return "; ".join(part for part in parts if part)


def _total(inventory: Inventory, show: words.Show) -> list[str]:
    total = inventory.total
    macs = words.at_least(show(total.macs)) if inventory.uncounted else show(total.macs)
    return [show(total.params), "", macs, "", show(total.fm), "", ""]


def _share(part: float, whole: float) -> str:
    return words.percent(part / whole) if whole else words.NONE
