"""Bounds on peak RAM: what each candidate takes, and the table without those that take too much.

RAM does not add up over layers: the peak of a plan is the largest of what its choices take, each alone. So a bound
needs no search: what is above it leaves the table, and any choice of the rest is within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankfold import methods
from rankfold.cost import layer_ram
from rankfold.errors import InfeasibleBudget
from rankfold.records import (
    PEAK,
    ActivationProfile,
    Candidate,
    CandidateTable,
    Choice,
    Inventory,
    LayerInfo,
    PeakRAM,
    Plan,
)


def with_ram(table: CandidateTable, inventory: Inventory, profile: ActivationProfile) -> CandidateTable:
    """Return a table that knows the peak RAM of every candidate.

    Parameters
    ----------
    table : CandidateTable
        Any table of the inventory's layers.
    inventory : Inventory
        Its layers.
    profile : ActivationProfile
        The dense model's activation memory.
    """
    rows = {name: _priced(row, inventory.layer(name), profile) for name, row in table.rows.items()}
    floor = profile.floor
    fixed: dict[str, Candidate] = {}
    for name in profile.layers:
        layer = inventory.layer(name)
        if name in table.fixed:
            (fixed[name],) = _priced([table.fixed[name]], layer, profile)
            floor = max(floor, fixed[name].ram or 0)
        elif name not in rows:
            floor = max(floor, layer_ram(profile, layer))
    kept = {name: layer_ram(profile, inventory.layer(name)) for name in rows}
    return replace(
        table,
        rows=rows,
        fixed={**table.fixed, **fixed},
        ram=PeakRAM(dense=profile.peak, floor=floor, kept=kept),
    )


def within_ram(table: CandidateTable, limit: int) -> CandidateTable:
    """Return the part of a table whose choices take at most so much RAM.

    Candidates above the limit leave the table; a layer that is above it as it is may not be kept (`required`).

    Parameters
    ----------
    table : CandidateTable
        As `with_ram` returns it.
    limit : int
        Bytes.

    Raises
    ------
    InfeasibleBudget
        If no choice is within the limit; the least that some choice takes is in its rows.
    """
    if table.ram is None:
        raise ValueError("the table was built without RAM; see with_ram")
    least = least_ram(table)
    if least > limit:
        raise InfeasibleBudget(
            f"budget '{PEAK}<={limit}' cannot be met: some operation or layer takes {least:,} bytes of activations "
            "whatever is chosen. Loosen the bound, allow more methods, exclude fewer layers, or give a smaller input "
            "or batch.",
            [(PEAK, limit, least, table.ram.dense)],
        )
    rows = {name: tuple(c for c in row if _ram(c) <= limit) for name, row in table.rows.items()}
    emptied = {name for name, row in rows.items() if table.rows[name] and not row}
    return replace(
        table,
        rows={name: row for name, row in rows.items() if row},
        reasons={**table.reasons, **dict.fromkeys(emptied, "factored it would take more RAM than the budget allows")},
        required=frozenset(name for name, size in table.ram.kept.items() if size > limit),
    )


def least_ram(table: CandidateTable) -> int:
    """Return the least peak RAM, in bytes, that any choice of candidates reaches."""
    if table.ram is None:
        raise ValueError("the table was built without RAM; see with_ram")
    options = [[table.ram.kept[name], *map(_ram, row)] for name, row in table.rows.items()]
    return max([table.ram.floor, *map(min, options)])


def plan_ram(plan: Plan, inventory: Inventory, profile: ActivationProfile) -> int:
    """Return the peak RAM of a plan, in bytes: whatever strategy made it."""
    return max([profile.floor, *(_layer_ram(inventory.layer(n), plan.layers.get(n), profile) for n in profile.layers)])


def _layer_ram(layer: LayerInfo, choice: Choice | None, profile: ActivationProfile) -> int:
    if choice is None or choice.method is None:
        return layer_ram(profile, layer)
    return layer_ram(profile, layer, methods.chosen_blueprint(layer, choice))


def _priced(row: Sequence[Candidate], layer: LayerInfo, profile: ActivationProfile) -> tuple[Candidate, ...]:
    return tuple(replace(c, ram=_layer_ram(layer, Choice.of(c), profile)) for c in row)


def _ram(candidate: Candidate) -> int:
    if candidate.ram is None:
        raise ValueError(f"a candidate of {candidate.layer!r} was priced without RAM; see with_ram")
    return candidate.ram
