"""A new document is a dataclass and one function that returns sections; it is drawn, saved and loaded like others."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from rankfold.errors import ConfigError, CorruptArtifact
from rankfold.reporting import terminal
from rankfold.reporting.charts import Series, columns
from rankfold.reporting.document import Document
from rankfold.reporting.sections import Cell, Column, Content, Section, Tile, content, tips

NAMES = ("body.0", "<head>|`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes(Document):
    """The amounts of some layers."""

    KIND: ClassVar[str] = "list of sizes"

    amounts: tuple[int, ...]


@content.register
def _(sizes: Sizes, *, brief: bool) -> Content:
    rows = [(n, "a layer", Cell(str(a), tone="bad", share=a / 100)) for n, a in zip(NAMES, sizes.amounts, strict=True)]
    table = Section(title="Amounts", heads=("`layer", "+in words", ">amount"), rows=rows, footer=("all", "", "75"))
    chart = columns(NAMES, tips(table), [Series(name="amount", css="after", values=sizes.amounts)], label="Amounts")
    return Content(
        title="Sizes",
        kind="rankfold sizes",
        lead="First.",
        sections=[
            Section(title="Empty"),
            replace(table, figures=() if brief else [chart], narrow=True),
            Section(title="Remarks", lines=["- one", Cell("two", tone="good")], notes=["small"]),
        ],
        tiles=[Tile(name="sum", value="75", unit="in all", details=["a", "b"], share=0.75)],
    )


SIZES = Sizes(amounts=(25, 50))


def printed(width: int) -> str:
    stream = io.StringIO()
    SIZES.print(Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_draws_it() -> None:
    text = printed(100)
    assert [line.strip() for line in text.splitlines()[:3]] == ["Sizes", "First.", "Amounts"]
    assert "in words" in text
    assert "in words" not in printed(80)
    assert NAMES[1] in text
    assert "- - one\n- two\nsmall" in text
    assert str(SIZES).splitlines()[0] == "Sizes"


def test_markdown_draws_it() -> None:
    text = SIZES.to_markdown()
    assert text.startswith(
        "# Sizes\n\n**First.**\n\n## Amounts\n\n| layer | in words | amount |\n| --- | --- | ---: |\n"
    )
    assert "| `body.0` | a layer | 25 |" in text
    assert "| `` <head>\\|` `` | a layer | 50 |\n| **all** |  | 75 |" in text
    assert text.endswith("## Remarks\n\n- \\- one\n- two\n\nsmall\n")


def test_html_draws_it() -> None:
    text = SIZES.to_html()
    assert "<title>Sizes · rankfold sizes</title>" in text
    assert '<th scope="row"><code>body.<wbr/>0</code><span class="sub">a layer</span></th>' in text
    assert '<span class="bad left" style="--left:25.0%">25</span>' in text
    assert "&lt;head&gt;" in text
    assert "<head>|" not in text
    assert "<title>layer body.0\nin words a layer\namount 25</title>" in text
    assert '<p class="big">75<small> in all</small></p>' in text
    assert 'class="two"' in text


@pytest.mark.parametrize("draw", [printed, lambda _: SIZES.to_markdown(), lambda _: SIZES.to_html()])
def test_a_section_without_content_is_not_shown(draw: object) -> None:
    text = draw(100)  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
    assert "Empty" not in text
    assert "Remarks" in text


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    assert Sizes.load(SIZES.save(tmp_path / "s.json")) == SIZES
    assert SIZES.to_dict() == {"format": "rankfold-list of sizes", "version": 1, "amounts": [25, 50]}
    assert Sizes.from_dict(SIZES.to_dict(), source="s") == SIZES
    with pytest.raises(CorruptArtifact, match=r"s\.amounts\[0\] must be a whole number"):
        Sizes.from_dict({"amounts": ["many"]}, source="s")
    with pytest.raises(CorruptArtifact, match="not a rankfold list of sizes"):
        Sizes.from_json('{"format": "rankfold-report", "version": 1}')
    with pytest.raises(ConfigError, match=r"\.html, \.md, \.json"):
        SIZES.save(tmp_path / "s.txt")


def test_what_registers_nothing_cannot_be_drawn() -> None:
    with pytest.raises(TypeError, match="registered for int"):
        terminal.print_record(3)


def test_heads_have_marks() -> None:
    marks = {head: (Column(head).title, Column(head).mark) for head in (">params", "`layer", "+", "plain", "")}
    assert marks == {
        ">params": ("params", ">"), "`layer": ("layer", "`"), "+": ("", "+"), "plain": ("plain", ""), "": ("", ""),
    }  # fmt: skip
