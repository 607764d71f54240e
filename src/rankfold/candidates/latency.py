"""Candidates that cost time are removed."""

from __future__ import annotations

from dataclasses import replace

from rankfold.cost import Pricing
from rankfold.records import CandidateTable


def without_slower(table: CandidateTable, pricing: Pricing) -> CandidateTable:
    """Return a table without the candidates that are not faster than their layer (`Pricing.is_faster`)."""
    rows = {name: tuple(filter(pricing.is_faster, row)) for name, row in table.rows.items()}
    emptied = [name for name, row in rows.items() if not row]
    return replace(
        table,
        rows={name: row for name, row in rows.items() if row},
        reasons={**table.reasons, **dict.fromkeys(emptied, "no candidate is faster than the layer on the target")},
    )
