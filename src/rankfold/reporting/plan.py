"""A plan in the terminal: what is to be done with each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankfold.records import Inventory, Plan
from rankfold.records.display import show
from rankfold.reporting import words
from rankfold.reporting.inventory import inventory_table
from rankfold.reporting.summary import explanations, headword
from rankfold.reporting.terminal import default_console, line, make_table, short

if TYPE_CHECKING:
    from rich.console import Console

HEADS = ("layer", "", "method, ranks", ">error", "remark")


def plan_table(plan: Plan, console: Console | None = None) -> None:
    """Print a plan; `console` is rich's, by default one on standard output."""
    out = console or default_console()
    out.print(line(plan.headline(), "bold"))
    rows = []
    for name, choice in plan.layers.items():
        kept = choice.method is None
        what = "kept" if kept else f"{choice.method} {words.ranks(choice.ranks)}{', gauged' if choice.gauge else ''}"
        error = "" if kept else words.error(choice.error)
        described = short(plan.fingerprint.get(name, "").partition(",")[0])
        rows.append([name or "(the model)", described, what, error, headword(choice.reason or "")])
    out.print(make_table("", HEADS, rows))
    for explanation in explanations(choice.reason for choice in plan.layers.values()):
        out.print(line(explanation, "dim"))


show.register(Inventory, inventory_table)
show.register(Plan, plan_table)
