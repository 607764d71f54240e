"""Candidates that cost time are removed."""

from __future__ import annotations

from dataclasses import replace

from rankfold.records import LATENCY, CandidateTable


def without_slower(table: CandidateTable) -> CandidateTable:
    """Return a table without the candidates that take as long as their layer, or longer."""
    rows = {
        name: tuple(c for c in row if c.cost.get(LATENCY) < table.dense[name].get(LATENCY))
        for name, row in table.rows.items()
    }
    emptied = [name for name, row in rows.items() if not row]
    return replace(
        table,
        rows={name: row for name, row in rows.items() if row},
        reasons={**table.reasons, **dict.fromkeys(emptied, "no candidate is faster than the layer on the target")},
    )
