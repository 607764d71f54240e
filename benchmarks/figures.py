"""Write the tables of README and docs from the result files: no figure is typed by hand.

    python benchmarks/figures.py [--check]

A table stands between ``<!-- figures: FILE.json -->`` and ``<!-- end figures -->``, FILE being in benchmarks/results.
With ``--check`` nothing is written, and the exit code tells whether a document is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- figures: ([\w.]+) -->\n).*?(<!-- end figures -->)", re.S)


def render(results: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table: shares in per cent, counts with separators, numbers to the right."""
    columns = list(results[0])
    numbers = {c: not isinstance(results[0][c], str) for c in columns}
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if numbers[c] else "---" for c in columns) + "|",
        *("| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in results),
    ]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return a document's text with its tables as the result files have them."""

    def table(match: re.Match[str]) -> str:
        record = json.loads((RESULTS / match[2]).read_text(encoding="utf-8"))
        return f"{match[1]}\n{render(record['results'])}\n\n{match[3]}"

    return BLOCK.sub(table, text)


def documents() -> list[Path]:
    """Return README and the documents."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    """Update the documents, or check them."""
    parser = argparse.ArgumentParser(description="Write the tables of README and docs from the result files.")
    parser.add_argument("--check", action="store_true", help="only tell whether a document is out of date")
    args = parser.parse_args()
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    stale = {path: updated(text) for path, text in texts.items() if updated(text) != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} is out of date")
        if not args.check:
            path.write_text(text, encoding="utf-8")
    return int(args.check and bool(stale))


def _cell(value: Any) -> str:
    if isinstance(value, float) and 0 <= value <= 1:
        return f"{value * 100:.2f} %"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
