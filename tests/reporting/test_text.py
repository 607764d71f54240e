"""The terminal and Markdown forms, of reports and of inventories."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from rankfold.records import Cost, Inventory, Plan
from rankfold.reporting import EpochRow, Report, inventory_markdown, words
from rankfold.reporting.layers import short
from rankfold.reporting.markdown import code, text
from rankfold.reporting.terminal import print_record

Parts = tuple[Inventory, Plan, dict[str, Cost]]


def printed(show: Callable[[Console], None], width: int = 100) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_fits_and_cuts_no_number(report: Report, width: int) -> None:
    shown = printed(report.print, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for row in report.factored:
        change = f"{words.compact(row.before.macs)}→{words.compact(row.after.macs)}"
        assert change in shown
    assert "…" in printed(report.print, width=24)  # where numbers cannot stay whole, it shows


def test_the_terminal_says_the_coverage_first_and_the_verdict(small: Report) -> None:
    lines = printed(small.print).splitlines()
    assert lines[0].strip() == "resnet_demo"
    assert lines[1].strip() == small.coverage
    shown = "\n".join(lines)
    assert re.search(r"params ≤ 25 % +NOT met +37,248 of at most 36,524 \(25\.5 % of dense\)", shown)
    assert "kept: no candidate" in shown
    assert re.search(r"top-1 +91\.73 % +85\.41 % +91\.20 % +91\.20 % +-0\.53 points +10,000", shown)
    assert re.search(r"parameters +146,096 +37,248 +3\.9x +74\.5 %", shown)
    assert "Notes\n- BatchNorm" in shown


@pytest.mark.parametrize("number", [1, 12, 13, 100, 500])
def test_a_long_history_is_thinned_out_in_the_terminal(small: Report, number: int) -> None:
    rows = tuple(EpochRow(epoch=e, loss=1 / e) for e in range(1, number + 1))
    shown = printed(replace(small, history=rows).print)
    block = shown.split("Fine-tuning")[1].split("Before and after")[0]
    epochs = [int(e) for e in re.findall(r"^ +(\d+) ", block, re.M)]
    assert epochs[0] == 1
    assert epochs[-1] == number
    assert len(epochs) == number if number <= 12 else 6 <= len(epochs) <= 13
    assert (f"of {number} epochs" in shown) == (number > 12)
    assert replace(small, history=rows).to_html().count("<circle") == (number if number > 1 else 0)


def test_a_narrow_terminal_leaves_the_descriptions_out(small: Report, parts: Parts) -> None:
    for show in (small.print, lambda console: print_record(parts[0], console)):
        assert "Conv2d" in printed(show, 100)
        assert "Conv2d" not in printed(show, 80)
        assert "…" not in printed(show, 80)


def test_output_that_is_no_terminal_is_wide(
    small: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    small.print()
    assert "Conv2d" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    small.print()
    assert "Conv2d" not in capsys.readouterr().out


def test_a_long_reason_is_explained_once_below_the_table(small: Report, parts: Parts) -> None:
    why = "depthwise convolution: nothing to factor"
    rows = tuple(replace(row, reason=why) if row.kept else row for row in small.layers)
    shown = printed(replace(small, layers=rows).print)
    assert shown.count("nothing to factor") == 1
    assert f"{why} (2 layers)" in shown
    assert "kept: depthwise" in shown
    assert why in replace(small, layers=rows).to_markdown()

    layers = tuple(replace(layer, skip=why) if layer.skip else layer for layer in parts[0])
    inventory = replace(parts[0], layers=layers)
    shown = printed(lambda console: print_record(inventory, console))
    assert f"{why} (1 layer)" in shown
    assert f"| {why} |" in inventory_markdown(inventory)


def test_markup_in_names_stays_text(hostile: Report) -> None:
    assert "[red]" in printed(hostile.print)


def test_the_console_defaults_to_standard_output(small: Report, capsys: pytest.CaptureFixture[str]) -> None:
    small.print()
    assert small.coverage in capsys.readouterr().out


def _tables(markdown: str) -> list[list[str]]:
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.M)
    return [block.splitlines() for block in blocks]


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_markdown_tables_are_rectangular(report: Report) -> None:
    tables = _tables(report.to_markdown())
    assert len(tables) >= 3
    for table in tables:
        assert {_cells(line) for line in table} == {_cells(table[0])}
    assert _cells("| a | b |") == 2
    assert _cells(r"| a \| b |") == 1


def test_markdown_says_what_the_report_says(small: Report) -> None:
    shown = small.to_markdown()
    assert shown.startswith(f"# resnet_demo\n\n**{small.coverage}**\n")
    assert "| parameters | 146,096 | 37,248 | 3.9x | 74.5 % |" in shown
    assert "| `layer1.0` | Conv2d 16->32 3x3 s1 g1 | tucker | (8, 4) | 4,608 | 829 |" in shown
    assert "kept: depthwise convolution" in shown
    assert "- 6 x BatchNorm2d, 384 parameters: normalization" in shown
    assert "NOT met" in shown
    assert "## Fine-tuning" in shown


def test_markdown_escapes(hostile: Report) -> None:
    shown = hostile.to_markdown()
    outside_code = re.sub(r"(`+).*?\1", "", re.sub(r"\\`", "", shown))
    assert "<script" not in outside_code
    assert text("a|b*c_d <x>\n`y` _z_") == r"a\|b\*c_d &lt;x> \`y\` \_z\_"
    assert text("> quoted") == r"\> quoted"
    assert code("a`b|c") == r"``a`b\|c``"
    assert code("`a") == "`` `a ``"


def test_short_leaves_out_what_goes_without_saying() -> None:
    assert short("Conv2d 3->16 3x3 s1 g1") == "Conv2d 3->16 3x3"
    assert short("Conv2d 8->8 3x3 s1 g8") == "Conv2d 8->8 3x3 g8"
    assert short("Conv2d 8->8 3x3 s2 g1") == "Conv2d 8->8 3x3 s2"
    assert short("Conv2d 8->8 3x3 s1x2 g16") == "Conv2d 8->8 3x3 s1x2 g16"


def test_the_inventory_in_the_terminal(parts: Parts) -> None:
    inventory = parts[0]
    shown = printed(lambda console: print_record(inventory, console))
    lines = shown.splitlines()
    assert lines[0].strip() == inventory.summary()
    assert max(map(len, lines)) <= 100
    assert "…" not in shown
    assert all(layer.name in shown for layer in inventory)
    assert re.search(r"layer3\.0 .* 73\.7k +50\.5 % +18\.9M +50\.9 % +[\d.]+k? +1 +compressible", shown)
    assert re.search(r"total +146k +37\.1M", shown)
    assert "depthwise" in shown
    assert "- 6 x BatchNorm2d" in shown


def test_the_inventory_in_markdown(parts: Parts) -> None:
    shown = inventory_markdown(parts[0])
    assert shown.startswith(f"**{parts[0].summary()}**\n")
    (table,) = _tables(shown)
    assert {_cells(line) for line in table} == {9}
    assert len(table) == 2 + len(parts[0].layers) + 1
    fm = parts[0].costs["layer3.0"].fm
    assert fm > 0
    assert f"| 73,728 | 50.5 % | 18,874,368 | 50.9 % | {fm:,} | 1 | compressible |" in shown
    assert "| **total** |  | 146,096 |" in shown
