"""Bounds on peak RAM: the table without the candidates that take too much.

RAM does not add up over layers: the peak of a plan is the largest of what its choices take, each alone. So a bound
needs no search: what is above it leaves the table, and any choice of the rest is within it.
"""

from __future__ import annotations

from dataclasses import replace

from rankfold.errors import InfeasibleBudget
from rankfold.records import PEAK, Candidate, CandidateTable


def within_ram(table: CandidateTable, limit: int) -> CandidateTable:
    """Return the part of a table whose choices take at most so much RAM.

    Candidates above the limit leave the table; a layer that is above it as it is may not be kept (`required`).

    Parameters
    ----------
    table : CandidateTable
        Of a pricing with a profile.
    limit : int
        Bytes.

    Raises
    ------
    InfeasibleBudget
        If no choice is within the limit; the least that some choice takes is in its rows.
    """
    if table.ram is None:
        raise ValueError("the table was built without RAM: its pricing has no profile")
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
        raise ValueError("the table was built without RAM: its pricing has no profile")
    options = [[table.ram.kept[name], *map(_ram, row)] for name, row in table.rows.items()]
    return max([table.ram.floor, *map(min, options)])


def _ram(candidate: Candidate) -> int:
    if candidate.ram is None:
        raise ValueError(f"a candidate of {candidate.layer!r} was priced without RAM")
    return candidate.ram
