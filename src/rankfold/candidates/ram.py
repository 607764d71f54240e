"""Bounds on peak RAM: removal of the candidates that exceed them.

The peak of a plan is the maximum over its choices, so a bound needs no search: any choice of the remaining candidates
meets it.
"""

from __future__ import annotations

from dataclasses import replace

from rankfold.errors import BudgetError, InfeasibleBudget
from rankfold.records import PEAK, Candidate, CandidateTable


def within_ram(table: CandidateTable, limit: int) -> CandidateTable:
    """Return a table without the candidates that take more RAM than a limit in bytes.

    Layers that exceed the limit if they are kept become `required`. Raises `InfeasibleBudget`, with the least possible
    RAM in its rows, if no choice meets the limit.
    """
    peaks, least = table.peaks, least_ram(table)
    if least > limit:
        raise InfeasibleBudget(
            f"budget '{PEAK}<={limit}' cannot be met: an operation or layer takes at least {least:,} bytes of "
            "activations. Loosen the bound, allow more methods, exclude fewer layers, or use a smaller input or batch.",
            [(PEAK, limit, least, peaks.dense)],
        )
    rows = {name: tuple(c for c in row if _ram(c) <= limit) for name, row in table.rows.items()}
    emptied = {name for name, row in rows.items() if table.rows[name] and not row}
    return replace(
        table,
        rows={name: row for name, row in rows.items() if row},
        reasons={**table.reasons, **dict.fromkeys(emptied, "every candidate takes more RAM than the budget allows")},
        required=frozenset(name for name, size in peaks.kept.items() if size > limit),
    )


def least_ram(table: CandidateTable) -> int:
    """Return the least possible peak RAM in bytes."""
    peaks = table.peaks
    options = [[peaks.kept[name], *map(_ram, row)] for name, row in table.rows.items()]
    return max([peaks.floor, *map(min, options)])


def _ram(candidate: Candidate) -> int:
    if candidate.ram is None:
        raise BudgetError(f"a candidate of {candidate.layer!r} was priced without RAM. Use the table's candidates.")
    return candidate.ram
