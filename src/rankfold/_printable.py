"""Safe display of text from outside (names in files, models and data): no control characters, limited length."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence

LONGEST = 2000
"""Maximum number of characters of a message; a longer one is cut in the middle."""

_QUOTE = 160


def printable(text: str) -> str:
    r"""Return text in which characters that a terminal or browser would interpret are escaped, such as ``\x1b``.

    Printable characters, spaces of any width and line feeds are kept. Control characters (escape sequences, carriage
    returns, tabs), directional marks, line and paragraph separators, and halves of surrogate pairs, which have no UTF-8
    encoding, are escaped.

    Examples
    --------
    >>> printable("\x1b[2Jred\nblue")
    '\\x1b[2Jred\nblue'
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else escaped(c) for c in text)


def shortened(text: str, limit: int = LONGEST) -> str:
    """Return text of at most `limit` characters; a longer one keeps its beginning and its end.

    Examples
    --------
    >>> shortened("a" * 900 + "z" * 100, 60)
    'aaaaaaaaaa ... (980 characters left out) ... zzzzzzzzzz'
    """
    if len(text) <= limit:
        return text
    kept = limit - 40  # leaves space for the note, with a number of up to 9 digits
    tail = min(kept // 2, 600)
    left_out = len(text) - kept
    return f"{text[: kept - tail]} ... ({left_out} characters left out) ... {text[len(text) - tail :]}"


def quoted(value: object, limit: int = _QUOTE) -> str:
    """Return the `repr` of a value from outside in at most `limit` characters, however large and nested it is.

    Examples
    --------
    >>> quoted([["a" * 1000]])
    "[['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']]"
    """
    return shortened(printable(_repr.repr(value)), limit)


def few(names: Sequence[str], most: int = 8) -> str:
    """Return the first names, quoted, and the number of the others."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def escaped(character: str) -> str:
    """Return a character as an ASCII escape sequence of Python."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _harmless(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 4, 80, 80, 40
