"""Documents: records that are saved, loaded and shown, each in the same ways."""

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
    """A frozen record that is saved, loaded and shown.

    A document is a frozen dataclass that names its `KIND` and registers its sections with
    `rankfold.reporting.sections.content`; everything else is here.
    """

    __slots__ = ()
    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    LIMITS: ClassVar[Limits] = Limits()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {"format": f"rankfold-{self.KIND}", "version": self.VERSION, **encode(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str) -> Self:
        """Return the document that `to_dict` has written.

        Parameters
        ----------
        source : str
            Where the data comes from, for messages.

        Raises
        ------
        CorruptArtifact
            If a field is missing or malformed.
        """
        return decode(cls, data, source)

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; `from_json` reads it back without loss."""
        return json_text(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str | None = None) -> Self:
        """Read a document from JSON text.

        Parameters
        ----------
        source : str or None
            Where the text comes from, for messages.

        Raises
        ------
        CorruptArtifact
            If the text is not JSON, another kind of document, of a newer version, or has a malformed field.
        """
        where = source or cls.KIND
        form = f"rankfold-{cls.KIND}"
        data = parse_document(text, kind=cls.KIND, format=form, version=cls.VERSION, source=where, limits=cls.LIMITS)
        return cls.from_dict(data, source=where)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a document from a JSON file.

        Raises
        ------
        CorruptArtifact
            If the file does not exist or cannot be read.
        """
        hint = f"Give a .json file that {cls.__name__}.save wrote."
        text = read_text(Path(path), kind=cls.KIND, hint=hint, limits=cls.LIMITS)
        return cls.from_json(text, source=str(path))

    def to_html(self) -> str:
        """Return one HTML page with all tables and charts; it needs no network, script or font."""
        return html.draw(content(self, brief=False))

    def to_markdown(self) -> str:
        """Return all tables as GitHub-flavoured Markdown."""
        return markdown.draw(content(self, brief=False))

    def print(self, console: Console | None = None) -> None:
        """Print the document; `console` is rich's, by default one on standard output."""
        print_record(self, console)

    def writers(self) -> dict[str, Callable[[], str]]:
        """Return what writes the document, by file suffix."""
        return {".html": self.to_html, ".md": self.to_markdown, ".json": self.to_json}

    def save(self, path: str | Path) -> Path:
        """Write the document to a file, whole or not at all, in the format of the file's suffix.

        Parameters
        ----------
        path : str or Path
            Ends in one of the suffixes of `writers`.

        Raises
        ------
        ConfigError
            If the suffix is another one.
        RankfoldError
            If the file cannot be written.
        """
        article = "an" if self.KIND[0] in "aeiou" else "a"
        return write_by_suffix(path, self.writers(), what=f"{article} {self.KIND}")
