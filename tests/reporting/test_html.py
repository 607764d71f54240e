"""The HTML file: alone, well-formed, escaped, accessible, and readable with many layers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from rankfold.records import Cost
from rankfold.reporting import MetricValue, Report
from rankfold.reporting.markup import Markup, el

VOID = {"meta", "br", "wbr"}
DOCUMENT = {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "div"}
TEXT = {"p", "h1", "h2", "h3", "b", "small", "span", "i", "br", "wbr", "code", "ul", "li"}
TABLES = {"table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd"}
CHARTS = {"figure", "figcaption", "svg", "g", "rect", "line", "path", "circle", "text"}
ALLOWED = DOCUMENT | TEXT | TABLES | CHARTS


class Page(HTMLParser):
    """Checks that elements close in order and collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_parser_here_finds_faults() -> None:
    with pytest.raises(AssertionError):
        Page("<p><b>x</p></b>")
    with pytest.raises(AssertionError):
        Page("<p>x")


def test_the_page_is_well_formed_and_holds_only_known_elements(report: Report) -> None:
    page = Page(report.to_html())
    assert set(page.tags) <= ALLOWED
    assert not [key for key, _ in page.attributes if key.startswith("on")]


def test_the_page_needs_nothing_else(report: Report) -> None:
    page = Page(report.to_html())
    assert not {"src", "href", "srcset", "action", "data"} & {key for key, _ in page.attributes}
    style = (files("rankfold.reporting") / "style.css").read_text("utf-8")
    assert style in report.to_html()
    assert not re.search(r"url\(|@import|@font-face|//", style)


def test_hostile_names_are_shown_and_never_run(hostile: Report) -> None:
    text = hostile.to_html()
    assert "<script" not in text
    page = Page(text)
    assert sum(hostile.model_name in t for t in page.texts) > 8


def test_coverage_is_the_first_thing_said(small: Report) -> None:
    body = small.to_html().split("<main>")[1]
    assert body.index(small.coverage) < body.index("4.21 ms")
    assert body.index(small.coverage) < body.index("Layer by layer")


def test_every_layer_has_a_titled_column_in_every_chart_and_a_row(report: Report) -> None:
    text = report.to_html()
    charts = text.count('class="columns"')
    assert charts >= 3
    assert text.count('<g class="col"><title>') == charts * len(report.layers)
    assert text.count('<th scope="row"><code>') == len(report.layers)


def test_what_may_be_wider_than_the_page_scrolls_and_says_so(report: Report) -> None:
    text = report.to_html()
    assert text.count('<div class="scroll') == text.count("<table>") + text.count("<svg") >= 8
    style = (files("rankfold.reporting") / "style.css").read_text("utf-8")
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto;[^}]*linear-gradient", style)
    assert re.search(r"max-width: \d+px\) \{\s*figure[^}]*figcaption::after \{ content: \"scroll sideways", style)


def test_many_layers_hide_names_that_do_not_fit(large: Report, small: Report) -> None:
    def below(text: str) -> list[str]:
        chart = text.split('class="columns"')[1].split("</svg>")[0]
        return re.findall(r'<text[^>]*class="tick (?:mid|end)"[^>]*>([^<]*)<', chart)

    few, many = below(small.to_html()), below(large.to_html())
    assert "layer3.dw" in few
    assert {"stage1", "stage3"} <= set(many)
    assert len(many) < 30
    assert 'class="scroll tall"' in large.to_html()
    assert 'class="scroll tall"' not in small.to_html()


def test_what_is_not_known_is_left_out() -> None:
    bare = Report(coverage="compressible: nothing", before=Cost(), after=Cost())
    text = bare.to_html()
    Page(text)
    for word in ("Metrics", "Budget", "Notes", "Fine-tuning", "Layer by layer"):
        assert f"<h2>{word}</h2>" not in text
    bare.to_markdown()


def test_a_growth_is_not_sold_as_a_saving() -> None:
    worse = Report(coverage="c", before=Cost(params=100), after=Cost(params=150))
    text = worse.to_html()
    assert "1.5×<small> more</small>" in text
    assert "50 % more" in text


def test_macs_are_never_called_speed(report: Report) -> None:
    text = report.to_html() + report.to_markdown()
    assert "speed" not in text.lower()
    assert ("faster" in text) == (report.latency is not None)


def test_a_reload_that_differs_is_told() -> None:
    def page(reloaded: float) -> str:
        metric = MetricValue(name="top-1", dense=0.9, compressed=0.8, reloaded=reloaded)
        return Report(coverage="c", before=Cost(), after=Cost(), metrics=(metric,)).to_html()

    assert "after saving and loading" in page(0.7)
    assert "after saving and loading" not in page(0.8)


def test_elements_escape_all_but_markup() -> None:
    assert el("p", "<b>&") == "<p>&lt;b&gt;&amp;</p>"
    assert el("p", Markup("<b>x</b>"), None, ["<", None]) == "<p><b>x</b>&lt;</p>"
    assert el("rect", x=1.0, aria_label='"', class_=None) == '<rect x="1" aria-label="&quot;"/>'


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light, print", "dark"])
def test_colors_have_contrast(scheme: int) -> None:
    style = (files("rankfold.reporting") / "style.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.S)[scheme]
    color: dict[str, str] = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for ink in ("ink", "muted", "good", "bad", "after"):
        assert _contrast(color[ink], color["paper"]) >= 4.5, ink
        assert _contrast(color[ink], color["page"]) >= 4.5, ink
    assert _contrast(color["good"], color["good-soft"]) >= 4.5
    assert _contrast(color["bad"], color["bad-soft"]) >= 4.5
    for mark in ("kept", "error", "measured", "rank2"):
        assert _contrast(color[mark], color["paper"]) >= 3, mark
    assert _contrast(color["after"], color["before"]) >= 2.5
    assert _contrast("#777777", "#787878") < 1.1  # the measure tells bad from good
