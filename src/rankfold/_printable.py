"""Text from outside (names in files, models and data) made safe to show: no control character, no endless quotation."""

from __future__ import annotations

import reprlib
import unicodedata

LONGEST = 2000
"""Characters of a message; what is longer is cut in its middle."""

_QUOTE = 160


def printable(text: str) -> str:
    r"""Return text in which everything that a terminal or browser would obey is written out, such as ``\x1b``.

    Kept are printable characters, spaces of any width and line feeds. Written out are control characters (escape
    sequences, carriage returns, tabs), marks of direction, line and paragraph separators, and halves of surrogate
    pairs, which cannot be written as UTF-8.

    Examples
    --------
    >>> printable("\x1b[2Jred\nblue")
    '\\x1b[2Jred\nblue'
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else escaped(c) for c in text)


def shortened(text: str, limit: int = LONGEST) -> str:
    """Return text of at most `limit` characters: what is longer keeps its beginning and its end.

    Examples
    --------
    >>> shortened("a" * 900 + "z" * 100, 60)
    'aaaaaaaaaa ... (980 characters left out) ... zzzzzzzzzz'
    """
    if len(text) <= limit:
        return text
    kept = limit - 40  # the note in the middle, with a number of up to 9 digits
    tail = min(kept // 2, 600)
    left_out = len(text) - kept
    return f"{text[: kept - tail]} ... ({left_out} characters left out) ... {text[len(text) - tail :]}"


def quoted(value: object, limit: int = _QUOTE) -> str:
    """Return the `repr` of a value from outside in at most `limit` characters, however large and deep it is.

    Examples
    --------
    >>> quoted([["a" * 1000]])
    "[['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']]"
    """
    return shortened(printable(_repr.repr(value)), limit)


def escaped(character: str) -> str:
    """Return a character as Python writes it in a string: with a backslash, in ASCII."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _harmless(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 4, 80, 80, 40
