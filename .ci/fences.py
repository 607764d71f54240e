"""Take the commands and snippets of the documentation out of its Markdown, to run them.

A fenced block is runnable when the line before it is a tag, invisible to the reader::

    <!-- ci:run -->
    ```bash
    rankfold --help
    ```

Tags: ``ci:demo`` and ``ci:test`` (README's first and second command, one each), ``ci:run`` (shell)
and ``ci:python`` (one process per document, see tests/test_readme.py). As a script, it prints
the shell blocks with one tag as a script in which every command must succeed::

    python3 .ci/fences.py ci:run README.md docs/*.md | bash -euo pipefail
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

TAGS = ("ci:demo", "ci:test", "ci:run", "ci:python")
_TAG = re.compile(r"^\s*<!--\s*(ci:\S+)\s*-->\s*$")
_FENCE = re.compile(r"^\s*(`{3,})\s*(\w*)\s*$")
_LANGUAGE = {"ci:python": "python"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One tagged block: its tag, its text, and the line of its first character (from 1)."""

    tag: str
    text: str
    line: int


def fences(markdown: str) -> list[Fence]:
    """Return the tagged blocks of a document, in order.

    Raises
    ------
    ValueError
        If a tag is unknown or not followed by a block of its language, or a block never ends.
    """
    found: list[Fence] = []
    tag: str | None = None
    lines = markdown.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if match := _TAG.match(line):
            tag = match[1]
            if tag not in TAGS:
                raise ValueError(f"line {number}: unknown tag {tag!r}, use one of {', '.join(TAGS)}")
        elif match := _FENCE.match(line):
            language, start = match[2], number
            end = next((i for i in range(start, len(lines)) if lines[i].strip() == match[1]), None)
            if end is None:
                raise ValueError(f"line {number}: this block never ends")
            number = end + 1
            if tag is not None:
                wanted = _LANGUAGE.get(tag, "bash")
                if language != wanted:
                    raise ValueError(f"line {start}: {tag} needs a ```{wanted} block, not {language!r}")
                text = "\n".join(lines[start:end]) + "\n"
                found.append(Fence(tag=tag, text=text, line=start + 1))
            tag = None
        elif tag is not None:
            raise ValueError(f"line {number}: {tag} must stand right before a block, not {line!r}")
    if tag is not None:
        raise ValueError(f"the last line: {tag} stands before nothing")
    return found


def commands(text: str) -> list[str]:
    """Return a shell block's lines, one that ends in a backslash joined to the next."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = (line.strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def script(fence: Fence) -> str:
    """Return a shell script that shows and runs each command, and stops at the first that fails.

    ``set -e`` alone would let ``false && true`` pass anywhere but at the end, hence the braces.
    """
    return "".join(
        f"printf '$ %s\\n' {shlex.quote(command)}\n{{\n{command}\n}} || exit\n" for command in commands(fence.text)
    )


def main(tag: str, *paths: str) -> None:
    """Print the script of every block with this tag in these files."""
    count = 0
    for path in paths:
        try:
            tagged = [f for f in fences(Path(path).read_text("utf-8")) if f.tag == tag]
        except ValueError as error:
            raise SystemExit(f"{path}, {error}") from None
        for fence in tagged:
            print(f"# {path}, line {fence.line}")
            print(script(fence), end="")
        count += len(tagged)
    # README's two commands are one block each; a document need not have any other.
    if tag in ("ci:demo", "ci:test") and count != 1:
        raise SystemExit(f"expected one {tag} block in {', '.join(paths)}, found {count}")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in TAGS:
        raise SystemExit(f"usage: fences.py {'|'.join(TAGS)} FILE.md ...")
    main(*sys.argv[1:])
