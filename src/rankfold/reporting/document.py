"""Documents: records that are saved, loaded and rendered in the same formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rankfold._documents import Limits, json_text, parse_document, read_text, write_by_suffix
from rankfold.records.display import Shown
from rankfold.reporting import html, markdown
from rankfold.reporting.codec import decode, encode
from rankfold.reporting.sections import content
from rankfold.reporting.terminal import print_record

if TYPE_CHECKING:
    from rich.console import Console


class Document(Shown):
    """A frozen record that can be saved, loaded and printed.

    A document is a frozen dataclass that sets `KIND` and registers its sections with
    `rankfold.reporting.sections.content`.
    """

    __slots__ = ()
    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    LIMITS: ClassVar[Limits] = Limits()

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values."""
        return {"format": f"rankfold-{self.KIND}", "version": self.VERSION, **encode(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str) -> Self:
        """Return the document that `to_dict` describes; `source` names its origin in messages.

        Raises
        ------
        CorruptArtifact
            If a field is missing or malformed.
        """
        return decode(cls, data, source)

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; `from_json` reads it without loss."""
        return json_text(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str | None = None) -> Self:
        """Return the document in a JSON text; `source` names its origin in messages.

        Raises
        ------
        CorruptArtifact
            If the text is not JSON, describes another kind of document or a newer version, or has a malformed field.
        """
        where = source or cls.KIND
        form = f"rankfold-{cls.KIND}"
        data = parse_document(text, kind=cls.KIND, format=form, version=cls.VERSION, source=where, limits=cls.LIMITS)
        return cls.from_dict(data, source=where)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the document in a JSON file.

        Raises
        ------
        CorruptArtifact
            If the file does not exist or cannot be read.
        """
        hint = f"Pass a .json file written by {cls.__name__}.save."
        text = read_text(Path(path), kind=cls.KIND, hint=hint, limits=cls.LIMITS)
        return cls.from_json(text, source=str(path))

    def to_html(self) -> str:
        """Return a self-contained HTML page with all tables and charts, without scripts."""
        return html.draw(content(self, brief=False))

    def to_markdown(self) -> str:
        """Return all tables as GitHub-flavored Markdown."""
        return markdown.draw(content(self, brief=False))

    def print(self, console: Console | None = None) -> None:
        """Print the document to a rich console; None is standard output."""
        print_record(self, console)

    def writers(self) -> dict[str, Callable[[], str]]:
        """Return the functions that render the document, by file suffix."""
        return {".html": self.to_html, ".md": self.to_markdown, ".json": self.to_json}

    def save(self, path: str | Path) -> Path:
        """Write the document atomically, in the format of the file's suffix (see `writers`).

        Raises
        ------
        ConfigError
            If the suffix is not supported.
        RankfoldError
            If the file cannot be written.
        """
        article = "an" if self.KIND[0] in "aeiou" else "a"
        return write_by_suffix(path, self.writers(), what=f"{article} {self.KIND}")
